from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.detections import FloatArray
from foveal.errors import BadInput
from retrieval import ingest, quarantine
from retrieval.ahead import ahead
from retrieval.ingest import Batch, Rejected, embed, identity
from retrieval.quarantine import Quarantine
from retrieval.sources import Item, Sources
from retrieval.table import Known, canonical
from tests.retrieval.pixels import PixelEncoder, write_images

OLD = 1_700_000_000  # seconds: long settled


class Counted(PixelEncoder):
    """Counts what it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        self.sizes.append(len(images))
        return super().encode_images(images)


class Store(dict[str, Known]):
    """What an archive would hold."""

    def known(self, ids: Sequence[str]) -> Mapping[str, Known]:
        return {key: self[key] for key in ids if key in self}

    def commit(self, batches: Iterator[Batch]) -> Batch:
        """Takes all batches; returns them as one."""
        total = Batch()
        for batch in batches:
            for row in batch.rows:
                self[row.id] = Known(row.content_hash, canonical(row.metadata), row.stamp)
            for key, stamp in batch.restamped.items():
                self[key] = replace(self[key], stamp=stamp)
            total.rows += batch.rows
            total.rejected += batch.rejected
            total.seen += batch.seen
            total.unchanged += batch.unchanged
            total.restamped |= batch.restamped
        return total


def nothing_known(ids: Sequence[str]) -> Mapping[str, Known]:
    return {}


def reads(items: Sources, counted: list[str]) -> Iterator[Item]:
    """The items, each noting its URI when its bytes are asked for."""
    for item in items:

        def read(item: Item = item) -> bytes:
            counted.append(item.uri)
            return item.read()

        yield replace(item, reader=read)


def settle(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (OLD, OLD))


def test_batches_keep_order_and_count_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "HAND_ON", 96)
    paths = write_images(tmp_path / "images", ingest.BATCH * 2 + 5)
    paths[3].write_bytes(b"no image")
    encoder = Counted()
    batches = list(embed(Sources.resolve(tmp_path / "images"), encoder, nothing_known))
    assert [uri for batch in batches for uri in batch.seen] == [str(p) for p in paths]
    assert [len(batch.rows) for batch in batches] == [95, 37]
    assert encoder.sizes == [64, 31, 37]
    row = batches[0].rows[3]
    assert row.id == identity(str(paths[4]))
    assert (row.width, row.height, row.bytes) == (40, 24, paths[4].stat().st_size)
    np.testing.assert_allclose(row.vector, encoder.encode_images([Image.open(paths[4])])[0], atol=1e-6)
    assert Image.open(io.BytesIO(row.thumbnail or b"")).size == (40, 24)
    assert batches[0].rejected[0].reason.startswith("0003.png is not an image")


def test_a_batch_is_handed_on_in_time_for_progress_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "HAND_ON_SECONDS", 0.0)
    write_images(tmp_path / "images", ingest.BATCH + 5)
    found = list(embed(Sources.resolve(tmp_path / "images"), PixelEncoder(), nothing_known))
    assert [len(batch.rows) for batch in found] == [64, 5]


def test_unchanged_files_are_not_even_read(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 20)
    settle(tmp_path)
    encoder, store = Counted(), Store()

    def add() -> tuple[Batch, list[str]]:
        counted: list[str] = []
        items = reads(Sources.resolve(tmp_path / "images"), counted)
        return store.commit(embed(items, encoder, store.known)), counted

    batch, counted = add()
    assert (len(batch.rows), len(counted)) == (20, 20)
    batch, counted = add()
    assert (batch.unchanged, batch.rows, counted) == (20, [], [])

    Image.new("RGB", (9, 9), "cyan").save(paths[4])
    os.utime(paths[4], (OLD + 1, OLD + 1))
    os.utime(paths[5], (OLD + 1, OLD + 1))  # touched, its bytes the same
    sidecar = tmp_path / "metadata.csv"
    sidecar.write_text(sidecar.read_text().replace("0006.png,cam0", "0006.png,roof"))
    before = sum(encoder.sizes)
    batch, counted = add()
    assert sorted(counted) == [str(p) for p in paths[4:7]]
    assert [(Path(row.uri).name, row.vector is None) for row in batch.rows] == [("0004.png", False), ("0006.png", True)]
    assert list(batch.restamped) == [identity(str(paths[5]))]
    assert (batch.unchanged, sum(encoder.sizes) - before) == (18, 1)
    batch, counted = add()
    assert (batch.unchanged, counted) == (20, [])


def test_the_stamp_of_a_file_just_written_is_not_relied_on(tmp_path: Path) -> None:
    """Written twice within a tick of the clock, a file of the same size keeps its stamp."""
    path = write_images(tmp_path / "images", 1)[0]
    Image.new("RGB", (8, 8), "red").save(path, "BMP")
    stamp = os.stat(path)
    store = Store()
    assert store.commit(embed(Sources.resolve(path), PixelEncoder(), store.known)).rows[0].stamp == ""
    Image.new("RGB", (8, 8), "blue").save(path, "BMP")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert store.commit(embed(Sources.resolve(path), PixelEncoder(), store.known)).rows


def test_a_copy_has_a_row_of_its_own(tmp_path: Path) -> None:
    first = write_images(tmp_path / "images", 1)[0]
    second = first.with_name("again.png")
    second.write_bytes(first.read_bytes())
    rows = Store().commit(embed(Sources.resolve(tmp_path / "images"), PixelEncoder(), nothing_known)).rows
    assert len({row.id for row in rows}) == 2
    assert len({row.content_hash for row in rows}) == len({row.phash for row in rows}) == 1


def test_what_the_camera_says_is_metadata_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Acme", "One"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.jpg.json").write_text(json.dumps({"camera_model": "Two"}))
    row = Store().commit(embed(Sources.resolve(tmp_path), PixelEncoder(), nothing_known)).rows[0]
    assert row.metadata == {"camera_make": "Acme", "camera_model": "Two"}


def test_sizes_are_upright_and_of_the_file_though_decoded_smaller(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 2500), "red").save(tmp_path / "turned.jpg", exif=exif)
    row = Store().commit(embed(Sources.resolve(tmp_path), PixelEncoder(), nothing_known)).rows[0]
    assert (row.width, row.height) == (2500, 3000)


class Prepared(PixelEncoder):
    """Prepares in threads, as `TorchEncoder` does."""

    image_side = 8

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def prepare_image(self, image: Image.Image) -> Image.Image:
        self.threads.add(threading.current_thread().name)
        return image.resize((8, 8), Image.Resampling.BOX)

    def encode_prepared(self, prepared: Sequence[Any]) -> FloatArray:
        return self.encode_images(prepared)


def test_an_encoder_that_prepares_does_so_in_threads_with_the_same_result(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 10)
    encoder = Prepared()
    both = [
        Store().commit(embed(Sources.resolve(tmp_path / "images"), one, nothing_known)).rows
        for one in (encoder, PixelEncoder())
    ]
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a.vector, b.vector)
    assert all(name.startswith("decode") for name in encoder.threads)


# What people really have.


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
FRAMES = [Image.new("RGB", (12, 12), colour) for colour in ("red", "blue", "green")]
RAMP = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)

GOOD: dict[str, Callable[[], bytes]] = {
    "a png.jpg": lambda: encoded(NOISE, "PNG"),
    "UPPER.JPEG": lambda: jpeg(NOISE),
    "animated.gif": lambda: encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "animated.webp": lambda: encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "cmyk.jpg": lambda: jpeg(NOISE.convert("CMYK")),
    "sixteen.png": lambda: encoded(Image.fromarray(RAMP), "PNG"),
    "sixteen.tif": lambda: encoded(Image.fromarray(RAMP), "TIFF"),
    "palette.png": lambda: encoded(NOISE.quantize(16), "PNG"),
    "one pixel.png": lambda: encoded(Image.new("RGB", (1, 1)), "PNG"),
    "wide.png": lambda: encoded(Image.new("RGB", (30_000, 1)), "PNG"),
    "wide.jpg": lambda: jpeg(Image.new("L", (30_000, 200))),
    "日本語 ñandú 🐦.png": lambda: encoded(NOISE, "PNG"),
    "صورة.png": lambda: encoded(NOISE, "PNG"),
    'it\'s "quoted"\n#1 %41?.png': lambda: encoded(NOISE, "PNG"),
}
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "page.jpg": (lambda: b"<!DOCTYPE html><html>404</html>", "not an image"),
    "empty.jpg": (lambda: b"", "an empty file"),
    "cut.jpg": (lambda: jpeg(NOISE)[:700], "damaged or cut short"),
    "cut.png": (lambda: encoded(NOISE, "PNG")[:3000], "damaged or cut short"),
    "zeros.png": (lambda: bytes(5000), "not an image"),
    "poster.png": (lambda: encoded(Image.new("1", (30_000, 4_000)), "PNG"), "too large"),
    "script.svg.png": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
}


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own, before ours refuses the file
def test_everything_people_have_ends_where_it_belongs(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name, make in GOOD.items():
        (folder / name).write_bytes(make())
    for name, (make, _) in BAD.items():
        (folder / name).write_bytes(make())
    (folder / "sub" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("no image, and not taken for one")
    os.mkfifo(folder / "pipe.jpg")
    raw = os.fsencode(folder) + b"/caf\xe9.png"
    with open(raw, "wb") as stream:
        stream.write(encoded(NOISE, "PNG"))

    batch = Store().commit(embed(Sources.resolve(folder), PixelEncoder(), nothing_known))
    reasons = {Path(one.uri).name: one.reason for one in batch.rejected}
    uris = {row.uri for row in batch.rows}
    assert uris == {str(folder / name) for name in GOOD} | {f"file://{folder}/caf%E9.png"}
    assert set(reasons) == {*BAD, "itself.jpg", "dangling.jpg", "pipe.jpg"}
    for name, (_, message) in BAD.items():
        assert message in reasons[name], name
    assert "not a file" in reasons["pipe.jpg"]
    assert len(batch.seen) == len(set(batch.seen)) == len(uris) + len(reasons)
    for row in batch.rows:
        json.dumps([row.uri, dict(row.metadata)], ensure_ascii=False).encode()  # Arrow takes nothing else
        assert row.vector is not None
        assert np.isfinite(row.vector).all()


def test_files_that_vanish_or_may_not_be_read_are_rejected_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path / "images", 4)
    found = Sources.resolve(tmp_path / "images")
    paths[1].unlink()
    real = open

    def guarded(path: Any, *rest: Any, **options: Any) -> Any:
        if str(path) == str(paths[2]):  # tests may run as root, whom no permission stops
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr("builtins.open", guarded)
    batch = Store().commit(embed(found, PixelEncoder(), nothing_known))
    assert len(batch.rows) == 2
    reasons = {Path(one.uri).name: one.reason for one in batch.rejected}
    assert set(reasons) == {"0001.png", "0002.png"}
    assert "No such file" in reasons["0001.png"]
    assert "Permission denied" in reasons["0002.png"]


def test_files_larger_than_any_image_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as stream:
        stream.truncate(2**40)
    batch = Store().commit(embed(Sources.resolve(tmp_path), PixelEncoder(), nothing_known))
    assert "too large" in batch.rejected[0].reason


def test_a_vector_that_is_not_finite_is_rejected(tmp_path: Path) -> None:
    class Broken(PixelEncoder):
        def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
            vectors = super().encode_images(images)
            vectors[1] = np.nan
            return vectors

    write_images(tmp_path / "images", 3)
    batch = Store().commit(embed(Sources.resolve(tmp_path / "images"), Broken(), nothing_known))
    assert len(batch.rows) == 2
    assert "not finite" in batch.rejected[0].reason


def test_an_encoder_that_fails_stops_the_run_and_its_threads(tmp_path: Path) -> None:
    class Broken(PixelEncoder):
        def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
            raise RuntimeError("out of memory")

    write_images(tmp_path / "images", 3)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(embed(Sources.resolve(tmp_path / "images"), Broken(), nothing_known))
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("decode", "ahead"))]


def test_a_run_that_is_given_up_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "HAND_ON", 64)
    write_images(tmp_path / "images", 300)
    run = embed(Sources.resolve(tmp_path / "images"), PixelEncoder(), nothing_known)
    next(run)
    run.close()
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("decode", "ahead"))]


def test_ahead_keeps_order_raises_in_its_place_and_closes() -> None:
    closed = threading.Event()

    def numbers(fail: bool) -> Any:
        try:
            yield from range(5)
            if fail:
                raise ValueError("five")
        finally:
            closed.set()

    assert list(ahead(numbers(False), 2)) == [0, 1, 2, 3, 4]
    taken: list[int] = []
    with pytest.raises(ValueError, match="five"):
        taken.extend(ahead(numbers(True), 1))
    closed.clear()
    run = ahead(numbers(False), 1)
    assert next(run) == 0
    run.close()
    assert closed.is_set()


# Quarantine.


def test_quarantine_holds_the_last_word_on_each_file(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    list_ = Quarantine(path)
    assert list_.read() == []
    list_.update([], ["a"])
    assert not path.exists()
    list_.update([Rejected("a", "empty"), Rejected("b\u2028\udce9", "cut")], ["a", "b\u2028\udce9", "c"])
    list_.update([Rejected("a", "cut")], ["a"])
    other = Quarantine(path)
    assert other.read() == list_.read() == [Rejected("a", "cut"), Rejected("b\u2028\udce9", "cut")]
    size = path.stat().st_size
    list_.update([Rejected("a", "cut")], ["a", "c"])
    assert path.stat().st_size == size
    list_.update([], ["a"])
    assert other.read() == [Rejected("b\u2028\udce9", "cut")]


@pytest.mark.parametrize("cut", range(2, 40, 7))
def test_a_line_that_a_crash_cut_off_harms_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).update([Rejected("a", "first"), Rejected("b", "second" * 5)], [])
    os.truncate(path, path.stat().st_size - cut)
    again = Quarantine(path)
    assert again.read() == [Rejected("a", "first")]
    again.update([Rejected("c", "third")], ["c"])
    assert Quarantine(path).read() == again.read() == [Rejected("a", "first"), Rejected("c", "third")]


def test_quarantine_grows_by_what_changes_and_is_rewritten_when_mostly_waste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "WASTE", 100)
    path = tmp_path / "quarantine.jsonl"
    list_ = Quarantine(path)
    list_.update([Rejected(str(i), "x") for i in range(50)], [])
    inode = path.stat().st_ino
    sizes: list[int] = []
    for turn in range(160):
        list_.update([Rejected("7", f"reason {turn}")], ["7"])
        sizes.append(path.stat().st_size)
    assert sizes[1] - sizes[0] < 120
    assert sizes[-1] < max(sizes)
    assert path.stat().st_ino != inode
    assert len(Quarantine(path).read()) == 50
    assert Quarantine(path).read() == list_.read()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no images"):
        Sources.resolve(tmp_path)
