"""Folders taken in blurred: vector and thumbnail know nothing of what was found, and the files stay as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from foveal import world
from foveal.detections import Detections
from foveal.images import decode
from foveal.models import load_open_detector
from foveal.progress import SilentProgress
from retrieval.archive import Archive
from retrieval.blur import BY, COPY, PLACES, WHERE, Blur, _mosaic
from retrieval.ingest import embed
from retrieval.reembed import reembed
from tests.command import foveal
from tests.retrieval.pixels import PixelEncoder


class RedDetector:
    """One box around everything red."""

    name, classes = "red", ("red",)

    def __init__(self, version: str = "1", fails: bool = False) -> None:
        self.fingerprint, self.fails, self.asked = hashlib.sha256(version.encode()).hexdigest(), fails, 0

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        self.asked += len(images)
        if self.fails:
            raise RuntimeError("no memory")
        return [self._one(image) for image in images]

    def _one(self, image: Image.Image) -> Detections:
        rows, columns = np.nonzero(reds(image))
        if not len(rows):
            return Detections.empty(self.classes)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return Detections.build([box], [0.9], [0], self.classes)


def reds(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB"), dtype=int)
    return pixels[..., 0] - pixels[..., 1] > 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        image = Image.new("RGB", (96, 64), (90, 120, 40 * number))
        ImageDraw.Draw(image).rectangle((10, 10, 40, 40 + number), fill=(220, 20, 20))
        image.save(folder / f"{number}.png")
    return folder


def added(archive: Archive, folder: Path, detector: RedDetector | None) -> tuple[int, int, int, int]:
    through = embed if detector is None else partial(embed, blur=Blur(detector))
    report = archive.add(folder, PixelEncoder(), through=through)
    return report.added, report.updated, report.unchanged, len(report.quarantined)


def rows(archive: Archive) -> list[dict[str, object]]:
    ids = [id for id in archive.matching("width > 0")]
    return list(archive.items(ids, ["thumbnail", "metadata", "uri", "vector"]).values())


def test_vector_and_thumbnail_are_of_the_blurred_picture(tmp_path: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    plain, hidden = (Archive.create(tmp_path / name, PixelEncoder()) for name in ("plain", "hidden"))
    assert added(plain, folder, None) == (3, 0, 0, 0)
    assert added(hidden, folder, RedDetector()) == (3, 0, 0, 0)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert all(reds(decode(row["thumbnail"])).any() for row in rows(plain))
    blur = Blur(RedDetector())
    for row in rows(hidden):
        assert not reds(decode(row["thumbnail"])).any()
        told = json.loads(str(row["metadata"]))
        assert (told[PLACES], told[BY], told[WHERE]) == (1, RedDetector().fingerprint, COPY)
        want = PixelEncoder().encode_images([blur(decode(Path(str(row["uri"]))))[0]])[0]
        assert np.allclose(np.asarray(row["vector"], dtype=np.float32), want, atol=2e-3)


def test_a_detector_that_fails_keeps_pictures_out(tmp_path: Path, folder: Path) -> None:
    archive = Archive.create(tmp_path / "archive", PixelEncoder())
    assert added(archive, folder, RedDetector(fails=True)) == (0, 0, 0, 3)
    assert len(archive) == 0
    assert all("blurred" in reason for _, reason in archive.quarantined())
    assert added(archive, folder, RedDetector()) == (3, 0, 0, 0)
    assert archive.quarantined() == []


def test_only_what_another_blur_has_seen_is_blurred_anew(tmp_path: Path, folder: Path) -> None:
    archive = Archive.create(tmp_path / "archive", PixelEncoder())
    assert added(archive, folder, None) == (3, 0, 0, 0)
    first, again, other = RedDetector(), RedDetector(), RedDetector("2")
    assert added(archive, folder, first) == (0, 3, 0, 0)
    assert added(archive, folder, again) == (0, 0, 3, 0)
    assert again.asked == 0
    (folder / "0.json").write_text('{"camera": "north"}')
    assert added(archive, folder, again) == (0, 1, 2, 0)  # metadata alone: the blurred picture is kept
    assert [json.loads(str(row["metadata"]))[PLACES] for row in rows(archive)] == [1, 1, 1]
    assert added(archive, folder, other) == (0, 3, 0, 0)
    assert {json.loads(str(row["metadata"]))[BY] for row in rows(archive)} == {other.fingerprint}


def test_what_was_blurred_does_not_come_in_unblurred(tmp_path: Path, folder: Path) -> None:
    archive = Archive.create(tmp_path / "archive", PixelEncoder())
    added(archive, folder, RedDetector())
    Image.open(folder / "1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "1.png")
    added(archive, folder, None)
    assert "blurred" in dict(archive.quarantined())[str(folder / "1.png")]
    assert not any(reds(decode(row["thumbnail"])).any() for row in rows(archive))


def test_another_encoder_does_not_see_what_was_blurred(tmp_path: Path, folder: Path) -> None:
    archive = Archive.create(tmp_path / "archive", PixelEncoder())
    added(archive, folder, RedDetector())
    encoder = PixelEncoder(seed=1)
    report = reembed(archive, encoder, "other", SilentProgress())
    assert (report.images, len(report.from_thumbnail), report.lost) == (3, 3, {})
    for row in rows(Archive.open(archive.path)):
        want = encoder.encode_images([decode(row["thumbnail"])])[0]
        assert np.allclose(np.asarray(row["vector"], dtype=np.float32), want, atol=2e-3)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (9, 9), (64, 20), (700, 500)])
def test_a_place_of_any_size_keeps_nine_greys_at_most(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    left = np.asarray(_mosaic(Image.fromarray(noise)))
    assert left.shape == noise.shape
    changes = [int((np.diff(left[..., 0].astype(int), axis=axis) != 0).any(axis=1 - axis).sum()) for axis in (0, 1)]
    assert max(changes) <= 2
    assert len(np.unique(left)) <= 4


def test_the_command_blurs_what_its_prompts_name(tmp_path: Path) -> None:
    world.write(tmp_path / "world", "site", 2, seed=4, workers=1)
    words = ("archive", "add", str(tmp_path / "world" / "images"), "--archive", str(tmp_path / "archive"))
    assert foveal(*words, "--blur-prompts", "a crate").code == 1
    assert not (tmp_path / "archive").exists()
    said = foveal(
        *words, "--blur", "bundled:owl", "--blur-prompts", "a crate,a barrel", "--blur-threshold", "0.02", "--json"
    )
    assert said.json["added"] == 2
    told = [json.loads(str(row["metadata"])) for row in rows(Archive.open(tmp_path / "archive"))]
    assert sum(one[PLACES] for one in told) > 0
    assert {one[BY] for one in told} == {load_open_detector("bundled:owl").fingerprint}
