from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveal.errors import BadInput, FingerprintMismatch
from foveal.progress import SilentProgress
from retrieval.archive import Archive
from retrieval.query import SearchQuery
from retrieval.transfer import backup, export, read
from tests.retrieval.pixels import PixelEncoder, write_images

ENCODER = PixelEncoder()
QUIET = SilentProgress()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "world" / "images", 30)


@pytest.fixture
def archive(tmp_path: Path, images: list[Path]) -> Archive:
    made = Archive.create(tmp_path / "archive", ENCODER)
    made.add(images[0].parent, ENCODER)
    return made


@pytest.mark.parametrize("name", ["all.parquet", "all.npy"])
def test_what_is_exported_can_be_imported_and_found_again(archive: Archive, tmp_path: Path, name: str) -> None:
    assert export(archive, tmp_path / name, QUIET) == 30
    copy = Archive.create(tmp_path / "copy", ENCODER)
    assert read(copy, tmp_path / name, ENCODER, QUIET) == (30, [])
    for query in (SearchQuery(text="red", k=30), SearchQuery(text="blue", filter="camera = 'cam1' AND hour > 3", k=30)):
        before, after = archive.search(query, ENCODER), copy.search(query, ENCODER)
        assert [(h.id, h.metadata) for h in before] == [(h.id, h.metadata) for h in after]
        assert [h.similarity for h in after] == pytest.approx([h.similarity for h in before], abs=1e-3)
    with pytest.raises(BadInput, match="exists"):
        export(archive, tmp_path / name, QUIET)


def test_numpy_reads_the_vectors_in_the_order_of_the_table_beside_them(archive: Archive, tmp_path: Path) -> None:
    export(archive, tmp_path / "all.npy", QUIET)
    vectors, rows = np.load(tmp_path / "all.npy"), pq.read_table(tmp_path / "all.parquet")
    assert (vectors.shape, vectors.dtype) == ((30, 32), np.float16)
    for place in (0, 17):
        hit = archive.nearest(vectors[place : place + 1].astype(np.float32), 1)[0][0]
        assert hit.uri == rows["uri"][place].as_py()


def test_vectors_of_another_encoder_are_refused_whether_they_say_so_or_not(
    archive: Archive, images: list[Path], tmp_path: Path
) -> None:
    export(archive, tmp_path / "all.parquet", QUIET)
    other = PixelEncoder(seed=3)
    foreign = Archive.create(tmp_path / "foreign", other)
    with pytest.raises(FingerprintMismatch, match="was made by pixels-0"):
        read(foreign, tmp_path / "all.parquet", other, QUIET)
    plain = pa.table(
        {
            "uri": [str(file) for file in images],
            "shift": ["night"] * 30,
            "captured_at": [datetime(2026, 11, 2, 10, 30)] * 30,
            "vector": list(ENCODER.encode_images([_open(file) for file in images])),
        }
    )
    pq.write_table(plain, tmp_path / "plain.parquet")
    with pytest.raises(FingerprintMismatch, match="was not made by pixels-3"):
        read(foreign, tmp_path / "plain.parquet", other, QUIET)
    assert len(foreign) == 0
    mine = Archive.create(tmp_path / "mine", ENCODER)
    assert read(mine, tmp_path / "plain.parquet", ENCODER, QUIET)[0] == 30
    assert mine.search(SearchQuery(image=images[4], filter="shift = 'night'", k=1), ENCODER)[0].uri == str(images[4])
    assert len(mine.matching("captured_at = '2026-11-02 12:30+02:00'")) == 30
    for file in images:
        file.unlink()
    with pytest.raises(BadInput, match="none of its images"):
        read(Archive.create(tmp_path / "blind", ENCODER), tmp_path / "plain.parquet", ENCODER, QUIET)


def _open(file: Path):
    from PIL import Image

    return Image.open(file).convert("RGB")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "vectors.csv", "cannot import"),
        (lambda folder: folder / "missing.parquet", "cannot be read"),
        (lambda folder: _parquet(folder, {"path": ["a"]}), "lacks uri, vector"),
        (lambda folder: _npy(folder, np.zeros((3, 32), np.float32)), "do not fit"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, write, message: str) -> None:
    archive = Archive.create(tmp_path / "archive", ENCODER)
    with pytest.raises(BadInput, match=message):
        read(archive, write(tmp_path), ENCODER, QUIET)


def _parquet(folder: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), folder / "some.parquet")
    return folder / "some.parquet"


def _npy(folder: Path, vectors: np.ndarray) -> Path:
    _parquet(folder, {"uri": ["a", "b"]})
    np.save(folder / "some.npy", vectors)
    return folder / "some.npy"


def test_a_backup_opens_where_it_lies(archive: Archive, tmp_path: Path) -> None:
    assert backup(archive, tmp_path / "backups" / "one") > 0
    archive.delete([hit.id for hit in archive.search(SearchQuery(text="red", k=30), ENCODER)])
    copy = Archive.open(tmp_path / "backups" / "one")
    assert len(copy.search(SearchQuery(text="red", k=30), ENCODER)) == 30
    assert copy.check().ok
    with pytest.raises(BadInput, match="exists"):
        backup(archive, tmp_path / "backups" / "one")
