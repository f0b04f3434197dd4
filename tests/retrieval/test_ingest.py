from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.errors import BadInput
from retrieval import ingest
from retrieval.ingest import embed, identity
from retrieval.sources import Sources, read_sidecar
from tests.retrieval.pixels import PixelEncoder, write_images


def test_batches_keep_order_and_count_every_file(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", ingest.BATCH * 2 + 5)
    paths[3].write_bytes(b"no image")
    encoder = PixelEncoder()
    batches = list(embed(Sources.resolve(tmp_path / "images").items, encoder, {}))
    assert [uri for batch in batches for uri in batch.seen] == [str(p) for p in paths]
    assert sum(len(batch.rows) for batch in batches) == len(paths) - 1
    assert [len(batch.rows) for batch in batches] == [64, 64, 4]
    row = batches[0].rows[3]
    assert row.id == identity(str(paths[4]))
    assert (row.width, row.height) == (40, 24)
    np.testing.assert_allclose(row.vector, encoder.encode_images([Image.open(paths[4])])[0], atol=1e-6)
    reason = batches[0].rejected[0].reason
    assert reason.startswith("0003.png is not an image")


def test_sizes_are_upright_and_huge_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.new("RGB", (40, 20), "red").save(turned, exif=exif)
    batch = next(iter(embed(Sources.resolve(turned).items, PixelEncoder(), {})))
    assert (batch.rows[0].width, batch.rows[0].height) == (20, 40)
    monkeypatch.setattr(ingest, "MAX_BYTES", 10)
    batch = next(iter(embed(Sources.resolve(turned).items, PixelEncoder(), {})))
    assert "too large" in batch.rejected[0].reason


def test_a_vanished_file_is_rejected_not_raised(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 3)
    items = Sources.resolve(tmp_path / "images").items
    paths[1].unlink()
    batch = next(iter(embed(items, PixelEncoder(), {})))
    assert [Path(r.uri).name for r in batch.rejected] == ["0001.png"]
    assert len(batch.rows) == 2


@pytest.mark.parametrize("source", ["images", "images/sub", "images/*.png", "images/**/*.png", "images/0000.png", "."])
def test_the_sidecar_is_found_from_any_kind_of_source(tmp_path: Path, source: str) -> None:
    write_images(tmp_path / "images", 2)
    if source == "images/sub":
        (tmp_path / "images" / "sub").mkdir()
        for path in (tmp_path / "images").glob("*.png"):
            path.rename(tmp_path / "images" / "sub" / path.name)
        (tmp_path / "metadata.csv").rename(tmp_path / "images" / "metadata.csv")
    found = Sources.resolve(str(tmp_path / source))
    assert found.items
    assert found.items[0].metadata == {"camera": "cam0", "hour": 0, "colour": "red"}


def test_sidecar_columns_are_typed_as_a_whole(tmp_path: Path) -> None:
    sidecar = tmp_path / "metadata.csv"
    sidecar.write_text("file_name,a,b,code,n\nx.png,1,1,007,nan\ny.png,2.5,two,012,\n", "utf-8")
    assert read_sidecar(sidecar) == {
        "x.png": {"a": 1, "b": "1", "code": "007", "n": "nan"},
        "y.png": {"a": 2.5, "b": "two", "code": "012"},
    }


def test_an_unusable_sidecar_is_noted_and_a_folder_without_images_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1)
    (tmp_path / "metadata.csv").write_text("name,x\na,1\n")
    found = Sources.resolve(tmp_path / "images")
    assert found.items[0].metadata == {}
    assert "file_name" in found.notes[0]
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInput, match="no images"):
        Sources.resolve(tmp_path / "bare")
