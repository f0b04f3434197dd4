from __future__ import annotations

import json
import os
import threading
from datetime import datetime
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput, FingerprintMismatch, IntegrityError, Unavailable
from retrieval import turns
from retrieval.archive import Archive
from retrieval.index import IndexSettings
from retrieval.query import SearchQuery
from retrieval.sources import Item
from tests.command import foveal
from tests.retrieval.pixels import PixelEncoder, write_images

ENCODER = PixelEncoder()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "world" / "images", 48)


@pytest.fixture
def archive(tmp_path: Path, images: list[Path]) -> Archive:
    made = Archive.create(tmp_path / "archive", ENCODER, reference="open_clip:./pixels")
    made.add(images[0].parent, ENCODER)
    return made


def random_units(count: int, dimension: int = 32, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_every_added_image_is_found_by_itself(archive: Archive, images: list[Path]) -> None:
    assert len(archive) == 48
    for path in images[:8]:
        hit = archive.search(SearchQuery(image=path, k=1), ENCODER)[0]
        assert hit.uri == str(path)
        assert hit.similarity == pytest.approx(1, abs=1e-3)


def test_text_finds_its_colour_and_hits_come_best_first(archive: Archive) -> None:
    hits = archive.search(SearchQuery(text="red", k=6), ENCODER)
    assert {hit.metadata["colour"] for hit in hits} == {"red"}
    assert [h.similarity for h in hits] == sorted((h.similarity for h in hits), reverse=True)


def test_image_with_text_lies_between_and_negative_text_pushes_away(archive: Archive) -> None:
    red = Image.new("RGB", (20, 20), "red")
    both = archive.search(SearchQuery(text="blue", image=red, k=48), ENCODER)
    top = {hit.metadata["colour"] for hit in both[:12]}
    assert "purple" in top or {"red", "blue"} <= top
    plain = archive.search(SearchQuery(text="white", k=48), ENCODER)
    pushed = archive.search(SearchQuery(text="white", negative="yellow", k=48), ENCODER)
    place = [[h.metadata["colour"] for h in hits].index("yellow") for hits in (plain, pushed)]
    assert place[1] > place[0]


def test_filters_are_exact_and_typed(archive: Archive) -> None:
    hits = archive.search(SearchQuery(text="red", filter="camera = 'cam1' AND hour >= 12", k=48), ENCODER)
    assert hits
    assert all(h.metadata["camera"] == "cam1" and h.metadata["hour"] >= 12 for h in hits)
    assert len(hits) == sum(i % 3 == 1 and i % 24 >= 12 for i in range(48))
    assert not archive.search(SearchQuery(text="red", filter="camera = 'none'"), ENCODER)
    assert archive.columns["hour"] == "number"
    assert archive.columns["camera"] == "text"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("camra = 'cam1'", "Did you mean camera"),
        ("camera = ", "hour \\(number\\)"),
        ("hour > 'noon'", "noon"),
        ("camera", "boolean"),
        ("1=1; drop table x", "filter"),
        ("hour > 3 LIMIT 1", "filter"),
        ("id IN (SELECT id FROM t)", "filter"),
        ("width / 0 = 1", "filter"),
        (" ", "empty"),
        ("hour > 1 AND " * 2000, "too long"),
    ],
)
def test_a_bad_filter_is_refused_and_lists_the_columns(archive: Archive, expression: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        archive.search(SearchQuery(text="red", filter=expression), ENCODER)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"negative": "red"},
        {"text": ""},
        {"text": "x" * 100_000},
        {"text": "red", "k": 0},
        {"text": "red", "k": 10**6},
        {"text": "red", "image_weight": 2.0},
    ],
)
def test_a_senseless_query_is_refused(bad: dict) -> None:
    with pytest.raises(BadInput):
        SearchQuery(**bad)


def test_k_beyond_the_archive_returns_all_of_it(archive: Archive) -> None:
    assert len(archive.search(SearchQuery(text="red", k=1000), ENCODER)) == 48


def test_adding_again_changes_nothing(archive: Archive, images: list[Path]) -> None:
    version = archive.stats()["version"]
    report = archive.add(images[0].parent, ENCODER)
    assert (report.added, report.updated, report.unchanged) == (0, 0, 48)
    assert archive.stats()["version"] == version


def test_a_changed_file_is_embedded_again_under_the_same_id(archive: Archive, images: list[Path]) -> None:
    before = archive.search(SearchQuery(image=images[3], k=1), ENCODER)[0]
    Image.new("RGB", (30, 30), "cyan").save(images[3])
    report = archive.add(images[0].parent, ENCODER)
    assert (report.added, report.updated, report.unchanged) == (0, 1, 47)
    after = archive.search(SearchQuery(image=images[3], k=48), ENCODER)
    assert after[0].id == before.id
    assert len({hit.id for hit in after}) == 48
    assert archive.check().ok


def test_changed_metadata_keeps_the_vector(archive: Archive, images: list[Path]) -> None:
    sidecar = images[0].parent.parent / "metadata.csv"
    sidecar.write_text(sidecar.read_text().replace("0005.png,cam2", "0005.png,roof"))
    report = archive.add(images[0].parent, ENCODER)
    assert (report.updated, report.unchanged) == (1, 47)
    hit = archive.search(SearchQuery(image=images[5], filter="camera = 'roof'", k=1), ENCODER)[0]
    assert (hit.uri, hit.similarity) == (str(images[5]), pytest.approx(1, abs=1e-3))


def test_a_file_seen_unchanged_once_its_time_can_be_trusted_is_not_read_again(
    archive: Archive, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in images:  # they were written a moment before they were added, so their times were not trusted
        os.utime(file, (1_000_000_000, 1_000_000_000))
    read: list[str] = []
    original = Item.read
    monkeypatch.setattr(Item, "read", lambda item: read.append(item.uri) or original(item))
    assert archive.add(images[0].parent, ENCODER).unchanged == 48
    assert len(read) == 48
    read.clear()
    assert archive.add(images[0].parent, ENCODER).unchanged == 48
    assert not read
    assert archive.search(SearchQuery(image=images[3], filter="hour = 3", k=1), ENCODER)[0].uri == str(images[3])
    assert archive.check().ok


def test_what_is_deleted_never_comes_back(archive: Archive, images: list[Path]) -> None:
    gone = [hit.id for hit in archive.search(SearchQuery(text="red", k=3), ENCODER)]
    reader = Archive.open(archive.path)
    reader.search(SearchQuery(text="red"), ENCODER)
    assert archive.delete([*gone, "never-was"]) == 3
    for view in (archive, reader, Archive.open(archive.path)):
        assert not {h.id for h in view.search(SearchQuery(text="red", k=48), ENCODER)} & set(gone)
    assert archive.delete(gone) == 0
    # A new image must not inherit the index entry of a deleted one.
    extra = write_images(archive.path.parent / "more" / "images", 3, seed=9)
    archive.add(extra[0].parent, ENCODER)
    hits = archive.search(SearchQuery(image=extra[0], k=48), ENCODER)
    assert hits[0].uri == str(extra[0])
    assert not {h.id for h in hits} & set(gone)
    assert archive.check().ok


def test_a_reader_sees_what_another_handle_adds(archive: Archive, tmp_path: Path) -> None:
    reader = Archive.open(archive.path)
    assert len(reader.search(SearchQuery(text="red", k=100), ENCODER)) == 48
    more = write_images(tmp_path / "late" / "images", 5, seed=3)
    archive.add(more[0].parent, ENCODER)
    assert len(reader.search(SearchQuery(text="red", k=100), ENCODER)) == 53
    assert reader.stats()["tail"] == 5
    archive.rebuild()
    assert reader.stats()["tail"] == 0
    assert len(reader.search(SearchQuery(text="red", k=100), ENCODER)) == 53


def test_another_encoder_is_refused_for_adding_and_searching(archive: Archive, images: list[Path]) -> None:
    other = PixelEncoder(seed=1)
    with pytest.raises(FingerprintMismatch, match="foveal archive add"):
        archive.add(images[0].parent, other)
    with pytest.raises(FingerprintMismatch, match=r"open_clip:\./pixels"):
        archive.search(SearchQuery(text="red"), other)
    assert Archive.open(archive.path).encoder == "open_clip:./pixels"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_files_are_quarantined_and_the_rest_added(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    good = write_images(folder, 3)
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "empty.png").write_bytes(b"")
    whole = good[0].read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (11_000, 11_000)).save(folder / "huge.png")
    archive = Archive.create(tmp_path / "archive", ENCODER)
    report = archive.add(folder, ENCODER)
    assert report.added == 3
    reasons = {Path(path).name: reason for path, reason in report.quarantined}
    assert reasons.keys() == {"page.jpg", "empty.png", "cut.png", "huge.png"}
    assert all(reason.startswith(name) for name, reason in reasons.items())
    limit = "expected at most 100,000,000 pixels; received 11000 x 11000"
    assert reasons["huge.png"] == f"huge.png is too large; {limit}. Shrink it."
    assert sorted(Archive.open(archive.path).quarantined()) == sorted(report.quarantined)
    (folder / "cut.png").write_bytes(whole + b" ")
    assert archive.add(folder, ENCODER).added == 1
    assert "cut.png" not in str(archive.quarantined())


def test_a_dataset_brings_its_metadata_and_shared_file_names_stay_apart(tmp_path: Path) -> None:
    first = write_images(tmp_path / "a" / "images", 2, seed=1)
    second = write_images(tmp_path / "b" / "images", 2, seed=2)
    samples = [Sample(p.stem, p, 40, 24, metadata={"site": "north", "width": 7, "shelf no.": 4}) for p in first]
    archive = Archive.create(tmp_path / "archive", ENCODER)
    archive.add([Dataset.build(samples, ()), second[0].parent, str(second[0].parent / "*.png")], ENCODER)
    assert len(archive) == 4
    query = SearchQuery(text="red", filter="site = 'north' AND meta_width = 7 AND shelf_no_ = 4")
    hits = archive.search(query, ENCODER)
    assert {hit.metadata["sample_id"] for hit in hits} == {"0000", "0001"}
    assert hits[0].metadata["width"] == 7


def test_values_that_do_not_fit_their_column_are_noted(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 3)
    values: list[str | int] = [3, "many", 5]
    samples = [Sample(p.stem, p, 40, 24, metadata={"count": v}) for p, v in zip(paths, values, strict=True)]
    archive = Archive.create(tmp_path / "archive", ENCODER)
    report = archive.add(Dataset.build(samples, ()), ENCODER)
    assert report.notes == ["count: 1 values are not numbers like the others: 'many'"]
    assert len(archive.search(SearchQuery(text="red", filter="count >= 3"), ENCODER)) == 2


def test_times_of_every_source_are_compared_as_times(tmp_path: Path) -> None:
    times = [datetime(2026, 11, 2, 10, 30), datetime(2026, 11, 2, 12, 30)]
    pictures = [path.read_bytes() for path in write_images(tmp_path / "images", 2)]
    csv = "file_name,captured_at\n0000.png,2026-11-02 10:30\n0001.png,2026-11-02 12:30\n"
    (tmp_path / "metadata.csv").write_text(csv)
    pq.write_table(pa.table({"image": pictures, "captured_at": times}), tmp_path / "rows.parquet")
    features = datasets.Features({"image": datasets.Image(), "captured_at": datasets.Value("timestamp[us]")})
    saved = datasets.Dataset.from_dict({"image": [{"bytes": p} for p in pictures], "captured_at": times}, features)
    archive = Archive.create(tmp_path / "archive", ENCODER)
    report = archive.add([tmp_path / "images", tmp_path / "rows.parquet", saved], ENCODER)
    assert (report.added, report.notes) == (6, [])
    late = archive.matching("captured_at BETWEEN '2026-11-02 11:00' AND '2026-11-02T14:30+02:00'")
    uris = [row["uri"] for row in archive.items(late, ["uri"]).values()]
    assert sorted(uri.rpartition("/")[2] for uri in uris) == ["0001.png", "1", "1"]


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png"])
def test_a_missing_source_is_named(tmp_path: Path, source: str) -> None:
    archive = Archive.create(tmp_path / "archive", ENCODER)
    with pytest.raises(BadInput, match="nowhere"):
        archive.add(tmp_path / source, ENCODER)


def test_a_second_writer_is_told_to_wait(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Archive.open(archive.path)
    monkeypatch.setattr(turns, "SECONDS", 0.05)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with archive._writing():
            held.set()
            done.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5)
    try:
        with pytest.raises(Unavailable, match="another process is writing"):
            other.delete(["x"])
        assert other.search(SearchQuery(text="red", k=1), ENCODER)
    finally:
        done.set()
        thread.join()


def test_create_refuses_a_folder_in_use_and_open_one_that_is_none(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists already"):
        Archive.create(archive.path, ENCODER)
    with pytest.raises(BadInput, match="foveal archive add"):
        Archive.open(tmp_path / "none")
    (archive.path / "archive.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"archive\.json"):
        Archive.open(archive.path)


def test_an_empty_archive_answers_with_nothing(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "archive", ENCODER)
    assert not archive.search(SearchQuery(text="red"), ENCODER)
    assert archive.check().ok
    assert archive.stats()["images"] == 0


def test_small_archives_are_exact_and_say_which_index_they_use(archive: Archive) -> None:
    report = archive.recall_at_k(sample=48)
    assert report.recall == 1
    assert report.p50_ms <= report.p99_ms
    assert [segment["index"] for segment in archive.stats()["segments"]] == ["flat"]


@pytest.mark.parametrize("alter", ["truncate", "flip", "remove", "manifest", "stray"])
def test_check_rebuilds_a_damaged_index_and_search_never_fails(archive: Archive, alter: str) -> None:
    index = archive.folder / "index"
    segment = next(index.glob("*.faiss"))
    data = segment.read_bytes()
    if alter == "truncate":
        segment.write_bytes(data[: len(data) // 2])
    elif alter == "flip":
        segment.write_bytes(data[:-40] + bytes([data[-40] ^ 0x40]) + data[-39:])
    elif alter == "remove":
        segment.unlink()
    elif alter == "manifest":
        (index / "manifest.json").write_text("{]")
    else:
        (index / "segment-000000000000.faiss").write_bytes(data[:100])
    damaged = Archive.open(archive.path)
    assert len(damaged.search(SearchQuery(text="red", k=48), ENCODER)) == 48
    report = damaged.check()
    assert report.ok, report.problems
    assert report.repaired
    assert report.images == 48
    again = damaged.check()
    assert (again.ok, again.repaired) == (True, [])
    assert damaged.stats()["index_damage"] is None


def test_check_names_missing_files_and_a_damaged_table(archive: Archive, images: list[Path]) -> None:
    images[7].unlink()
    report = archive.check()
    assert not report.ok
    assert "0007.png" in report.problems[0]
    for file in (archive.folder / "table.lance").rglob("*.lance"):
        os.truncate(file, file.stat().st_size // 2)
    report = archive.check()
    assert not report.ok
    assert "table" in report.problems[0]


def test_check_finds_foreign_and_crooked_rows(archive: Archive) -> None:
    table = archive.table()
    table._dataset.update({"fingerprint": "'other'"}, where="hour = 3")  # as another program might
    report = archive.check()
    assert not report.ok
    assert "another encoder" in report.problems[0]


def test_precomputed_vectors_of_another_shape_or_encoder_are_refused(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "archive", ENCODER)
    with pytest.raises(BadInput, match="do not fit"):
        archive.add_vectors(["a"], random_units(2), fingerprint=ENCODER.fingerprint)
    with pytest.raises(FingerprintMismatch):
        archive.add_vectors(["a", "b"], random_units(2), fingerprint="other")
    with pytest.raises(BadInput, match="finite"):
        archive.add_vectors(["a"], np.full((1, 32), np.nan, np.float32), fingerprint=ENCODER.fingerprint)


def test_a_large_archive_is_tuned_stays_right_under_deletes_and_filters(tmp_path: Path) -> None:
    settings = IndexSettings(flat_below=1000, recall_target=0.99)
    archive = Archive.create(tmp_path / "archive", ENCODER, index=settings)
    vectors = random_units(5000)
    ids = archive.add_vectors(
        [f"mem://{i}" for i in range(5000)],
        vectors,
        fingerprint=ENCODER.fingerprint,
        metadata=[{"half": "left" if v[0] < 0 else "right"} for v in vectors],
    )
    stats = archive.stats()
    assert [segment["index"].endswith("Refine(SQfp16)") for segment in stats["segments"]] == [True]
    assert stats["segments"][0]["tuning"]["recall"] >= 0.99
    told = foveal("archive", "info", "--archive", str(archive.path), "--json").json["segments"][0]
    assert (told["curve"], told["tuning"]) == (stats["segments"][0]["curve"], stats["segments"][0]["tuning"])
    assert told["tuning"] in told["curve"]
    shown = foveal("archive", "info", "--archive", str(archive.path)).out.partition("segment 1: ")
    assert "curve" not in shown[0]
    recalls = [float(line.split()[2]) for line in shown[2].splitlines()[2:]]
    assert recalls
    assert recalls == sorted(recalls)
    assert archive.recall_at_k(sample=100).recall >= 0.98
    # A filter that correlates with the vectors, the case in which an index with a bitmap goes wrong.
    hits = archive.nearest(vectors[:50], 10, "half = 'left'")
    left = np.flatnonzero(vectors[:, 0] < 0)
    for query, row in zip(vectors[:50], hits, strict=True):
        best = np.sort(vectors[left] @ query)[::-1][:10]
        np.testing.assert_allclose([h.similarity for h in row], best, atol=2e-3)
    archive.delete(ids[:4900])
    rows = archive.nearest(vectors[:20], 100)
    assert all({h.id for h in row} == set(ids[4900:]) for row in rows)
    assert Archive.open(archive.path).check().ok


def test_archive_json_holds_what_is_promised(archive: Archive) -> None:
    data = json.loads((archive.path / "archive.json").read_text())
    assert data["format"] == 3
    assert data["encoder"] == "open_clip:./pixels"
    assert data["fingerprint"] == ENCODER.fingerprint
    assert data["dimension"] == 32
