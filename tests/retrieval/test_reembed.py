from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from foveal.detections import FloatArray
from foveal.errors import BadInput, FingerprintMismatch, Unavailable
from foveal.progress import SilentProgress
from retrieval.archive import Archive
from retrieval.compare import Question, compare, read_questions
from retrieval.ingest import identity
from retrieval.query import SearchQuery
from retrieval.reembed import reembed
from retrieval.relevance_fit import calibrate
from tests.command import foveal
from tests.retrieval.pixels import COLOURS, PixelEncoder, write_images

OLD, NEW = PixelEncoder(), PixelEncoder(dimension=24, seed=1)


class Stopped(Exception):
    """Stands for a kill."""


class StopsAfter(SilentProgress):
    """Stops the work once `count` images are done."""

    def __init__(self, count: int) -> None:
        self.count = count

    def advance(self, n: int = 1) -> None:
        self.count -= n
        if self.count <= 0:
            raise Stopped


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.ingest.HAND_ON", 64)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "world" / "images", 150)


@pytest.fixture
def archive(tmp_path: Path, images: list[Path]) -> Archive:
    made = Archive.create(tmp_path / "archive", OLD)
    made.add(images[0].parent, OLD)
    return made


def test_the_old_generation_serves_until_the_swap_and_is_refused_after_it(archive: Archive, images: list[Path]) -> None:
    reader = Archive.open(archive.path)
    with pytest.raises(Stopped):
        reembed(archive, NEW, NEW.name, StopsAfter(64))
    assert len(reader.search(SearchQuery(text="red", k=200), OLD)) == 150
    report = reembed(archive, NEW, NEW.name, SilentProgress())
    assert (report.images, report.lost) == (150, {})
    for handle in (reader, archive):
        with pytest.raises(FingerprintMismatch, match="embedded anew"):
            handle.search(SearchQuery(text="red"), OLD)
        with pytest.raises(FingerprintMismatch, match="embedded anew"):
            handle.delete([])
    now = Archive.open(archive.path)
    assert (now.encoder, now.settings.dimension) == (NEW.name, 24)
    hit = now.search(SearchQuery(image=images[5], filter="hour = 5", k=1), NEW)[0]
    assert (hit.uri, hit.metadata["camera"]) == (str(images[5]), "cam2")
    assert now.check().ok
    again = now.add(images[0].parent, NEW)
    assert (again.added, again.updated, again.unchanged) == (0, 0, 150)


def test_it_goes_on_where_it_was_stopped_and_takes_in_what_changed_meanwhile(
    archive: Archive, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        reembed(archive, NEW, NEW.name, StopsAfter(64))
    archive.delete([identity(str(images[0]))])
    late = write_images(images[0].parents[1] / "late" / "images", 3, seed=7)
    archive.add(late[0].parent, OLD)
    seen = 0
    encode = NEW.encode_images

    def counting(pictures):
        nonlocal seen
        seen += len(pictures)
        return encode(pictures)

    monkeypatch.setattr(NEW, "encode_images", counting)
    assert reembed(archive, NEW, NEW.name, SilentProgress()).images == 152
    assert seen == 150 - 64 + 3
    uris = {hit.uri for hit in Archive.open(archive.path).search(SearchQuery(text="red", k=200), NEW)}
    assert uris == {str(file) for file in [*images[1:], *late]}


def test_images_that_are_gone_are_embedded_from_their_thumbnails(archive: Archive, images: list[Path]) -> None:
    images[3].unlink()
    images[4].write_bytes(b"not an image any more")
    report = reembed(archive, NEW, NEW.name, SilentProgress())
    assert report.images == 150
    assert (report.from_thumbnail, report.lost) == ({str(images[3]), str(images[4])}, {})
    now = Archive.open(archive.path)
    assert {str(images[3]), str(images[4])} <= {hit.uri for hit in now.search(SearchQuery(text="red", k=200), NEW)}


def test_rows_of_datasets_are_embedded_from_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset(first: int, count: int) -> datasets.Dataset:
        images = [Image.new("RGB", (600, 400), COLOURS[first + i]) for i in range(count)]
        return datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))

    hub = {split: dataset(number, 1) for number, split in enumerate(("train", "test"))}
    monkeypatch.setattr("datasets.load_dataset", lambda name, split=None: hub[split] if split else hub)
    dataset(2, 2).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset(4, 2)).save_to_disk(str(tmp_path / "two"))
    sources = ["hf:org/name", f"hf:{tmp_path / 'one'}", tmp_path / "two", dataset(6, 1)]
    archive = Archive.create(tmp_path / "archive", OLD)
    assert archive.add(sources, OLD).added == 7
    report = reembed(archive, NEW, NEW.name, SilentProgress())
    assert (report.images, report.lost) == (7, {})
    [only] = report.from_thumbnail
    assert only.startswith("hf://memory/")
    assert len(Archive.open(archive.path).matching("split = 'train'")) == 3


def test_what_cannot_be_opened_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [Image.new("RGB", (60, 40), colour) for colour in COLOURS[:4]]
    pictures = datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))
    asked: list[str] = []

    def load(name: str, split: str | None = None) -> dict[str, datasets.Dataset]:
        asked.append(name)
        if len(asked) > 1:
            raise ConnectionError("no network")
        return {"train": pictures}

    monkeypatch.setattr("datasets.load_dataset", load)
    archive = Archive.create(tmp_path / "archive", OLD)
    archive.add("hf:org/name", OLD)
    assert len(reembed(archive, NEW, NEW.name, SilentProgress()).from_thumbnail) == 4
    assert asked == ["org/name"] * 2


def test_an_archive_is_not_embedded_twice_at_a_time_nor_with_its_own_encoder(archive: Archive) -> None:
    with pytest.raises(BadInput, match="already"):
        reembed(archive, OLD, OLD.name, SilentProgress())
    building = archive.path / "generations" / "0002"
    building.mkdir()
    with FileLock(building / ".building"), pytest.raises(Unavailable, match="re-embedding"):
        reembed(archive, NEW, NEW.name, SilentProgress())


def test_compact_forgets_the_old_generation(archive: Archive) -> None:
    reembed(archive, NEW, NEW.name, SilentProgress())
    now = Archive.open(archive.path)
    assert [one.encoder for one in now.generations()] == [OLD.name, NEW.name]
    assert now.compact() > 0
    assert [one.encoder for one in now.generations()] == [NEW.name]


def test_two_generations_are_compared_on_the_same_questions(archive: Archive, images: list[Path]) -> None:
    reembed(archive, NEW, NEW.name, SilentProgress())
    now = Archive.open(archive.path)
    then = now.at(now.generations()[0])
    red = frozenset(str(file) for i, file in enumerate(images) if i % 8 == 0)
    found = compare((then, OLD), (now, NEW), [Question("red", red), Question("blue")], k=10)
    assert (found.queries, found.judged) == (2, 1)
    assert 0 <= found.overlap <= 1
    assert found.recall_before is not None
    assert found.recall_before > 0.5
    assert found.gain is not None
    assert found.gain[0] <= found.gain[1]
    same = compare((now, NEW), (now, NEW), [Question("red", red)])
    assert (same.overlap, same.gain, same.changed) == (1.0, (0.0, 0.0), [])
    with pytest.raises(FingerprintMismatch):
        compare((then, NEW), (now, NEW), [Question("red")])


def test_questions_come_from_plain_lines_and_json(tmp_path: Path) -> None:
    file = tmp_path / "queries.txt"
    file.write_text('a red crate\n\n{"text": "blue", "relevant": ["a.jpg"]}\n')
    assert read_questions(file) == [Question("a red crate"), Question("blue", frozenset({"a.jpg"}))]
    file.write_text('{"query": "blue"}\n')
    with pytest.raises(BadInput, match="line 1"):
        read_questions(file)


SHADES = (
    "red", "green", "blue", "yellow", "purple", "orange", "white", "black", "cyan", "brown", "pink", "gray", "navy",
    "lime",
)  # fmt: skip


class Speaking(PixelEncoder):
    """Takes any text: what names no shade is noise of its own."""

    def encode_texts(self, texts):  # type: ignore[no-untyped-def]
        return np.concatenate([self._text(text) for text in texts])

    def _text(self, text: str) -> FloatArray:
        shade = next((shade for shade in SHADES if shade in text), None)
        if shade is not None:
            return super().encode_texts([shade])
        rng = np.random.default_rng(int.from_bytes(text.encode(), "little"))
        return self.encode_images([Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))])


THEN, NOW = Speaking(), Speaking(dimension=24, seed=1)


@pytest.fixture
def calibrated(tmp_path: Path) -> Archive:
    folder = tmp_path / "shades"
    for number, shade in enumerate(SHADES):
        for file in write_images(folder / shade, 6, seed=number, colour=shade):
            file.rename(folder / f"{shade}-{file.name}")
    lines = [f"{shade}-{i:04d}.png,{shade}" for shade in SHADES for i in range(6)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,caption", *lines]))
    made = Archive.create(tmp_path / "archive", THEN)
    made.add(folder, THEN)
    assert calibrate(made, THEN).basis["phrases"] >= 12
    return made


def test_a_calibrated_archive_is_calibrated_for_the_new_encoder_too(calibrated: Archive) -> None:
    before = calibrated.search(SearchQuery(text="red", k=20), THEN)
    report = reembed(calibrated, NOW, NOW.name, SilentProgress())
    assert (report.calibrated, report.notes) == (True, [])
    now = Archive.open(calibrated.path)
    after = now.search(SearchQuery(text="red", k=20), NOW)
    for hits in (before, after):
        chances = [hit.probability for hit in hits]
        assert np.mean(chances[:6]) > np.mean(chances[6:])
    shown = now.search(SearchQuery(text="gribble"), NOW)
    assert shown.nothing
    assert "no image shows 'gribble'" in str(shown.reason)


def test_what_cannot_be_calibrated_anew_is_said(calibrated: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated.delete(calibrated.some(1000)[12:])
    monkeypatch.setattr("foveal.models.load_encoder", lambda *_: NOW)
    told = foveal("archive", "reembed", "--archive", str(calibrated.path), "--encoder", NOW.name, "--json").json
    assert (told["images"], told["calibrated"]) == (12, False)
    assert "foveal archive calibrate" in told["notes"][0]
    hits = Archive.open(calibrated.path).search(SearchQuery(text="red"), NOW)
    assert {hit.probability for hit in hits} == {None}


def test_an_archive_that_was_not_calibrated_stays_so_without_a_word(archive: Archive) -> None:
    report = reembed(archive, NEW, NEW.name, SilentProgress())
    assert (report.calibrated, report.notes) == (False, [])
