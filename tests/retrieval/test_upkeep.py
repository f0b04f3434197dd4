from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveal.errors import FovealError, IntegrityError, Unavailable
from retrieval.adding import AddReport
from retrieval.archive import Archive
from retrieval.checksums import HINT
from retrieval.feedback import Feedback, Judgement
from retrieval.index import RECIPES, IndexSettings, leanest, needed_mb
from retrieval.ingest import Batch, embed, identity
from retrieval.query import SearchQuery
from retrieval.sources import Sources
from retrieval.table import Row
from retrieval.upkeep import Size, merge_from
from tests.retrieval.pixels import PixelEncoder, write_images

ENCODER = PixelEncoder()


def size(rows: int, dead: int = 0, flat: bool = False) -> Size:
    return Size(rows, dead, flat)


@pytest.mark.parametrize(
    ("sizes", "tail", "expected"),
    [
        ([], 0, None),
        ([size(0, 5)], 0, 0),  # everything is deleted: the index goes too
        ([], 3, 0),
        ([size(900, flat=True)], 1000, None),  # a small archive waits for 1024 more
        ([size(900, flat=True)], 1025, 0),
        ([size(900, 1100, flat=True)], 0, 0),
        ([size(100_000)], 8000, None),  # a large one for 8192
        ([size(100_000)], 8193, 1),  # not worth touching the large segment for
        ([size(100_000), size(9000)], 8193, 1),
        ([size(100_000), size(20_000), size(9000)], 8193, 0),  # one takes over the next
        ([size(1_000_000), size(200_000), size(9000)], 8193, 2),
        ([size(100_000, 30_000)], 0, 0),
        ([size(300_000), size(50_000, 20_000)], 0, 1),
        ([size(50_000, flat=True)], 500, 0),  # flat from when it was small
    ],
)
def test_which_segments_a_new_one_takes_over(sizes: list[Size], tail: int, expected: int | None) -> None:
    assert merge_from(sizes, tail, flat_below=50_000) == expected


def test_a_growing_archive_keeps_few_segments_and_indexes_each_row_a_few_times() -> None:
    sizes: list[Size] = []
    written = 0
    tail = 0
    for _ in range(2000):
        tail += 1000
        after = merge_from(sizes, tail, flat_below=50_000)
        if after is not None:
            merged = sum(one.rows for one in sizes[after:]) + tail
            written, tail = written + merged, 0
            sizes = [*sizes[:after], size(merged, flat=merged + sum(s.rows for s in sizes[:after]) < 50_000)]
        assert len(sizes) <= 6
    assert written < 8 * 2_000_000


def test_an_archive_of_several_segments_finds_what_brute_force_finds(tmp_path: Path) -> None:
    settings = IndexSettings(flat_below=4000, recall_target=0.95)
    archive = Archive.create(tmp_path / "archive", ENCODER, index=settings)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((38_000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids: list[str] = []
    for start, stop in ((0, 30_000), (30_000, 35_000), (35_000, 38_000)):
        uris = [f"mem://{i}" for i in range(start, stop)]
        metadata = [{"row": i} for i in range(start, stop)]
        piece = vectors[start:stop]
        ids += archive.add_vectors(uris, piece, fingerprint=ENCODER.fingerprint, metadata=metadata)
    assert len(archive.stats()["segments"]) == 2
    assert archive.stats()["tail"] == 3000
    archive.delete(ids[::3])
    assert archive.recall_at_k(sample=100).recall >= 0.93
    queries = vectors[1:40:3]
    for filter, keep in (("row >= 20000 AND row < 37000", (20_000, 37_000)), ("row < 90", (0, 90))):
        living = np.array([i for i in range(*keep) if i % 3])
        for query, hits in zip(queries, archive.nearest(queries, 20, filter), strict=True):
            best = np.sort(vectors[living] @ query)[::-1][:20]
            assert [hit.similarity for hit in hits] == pytest.approx(best.tolist(), abs=2e-3)
            assert all(keep[0] <= hit.metadata["row"] < keep[1] for hit in hits)
    assert archive.check().ok


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    images = write_images(tmp_path / "world" / "images", 12)
    made = Archive.create(tmp_path / "archive", ENCODER)
    made.add(images[0].parent, ENCODER)
    return made


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, halve])
def test_damage_to_any_file_of_the_table_is_refused_with_the_file_named(
    archive: Archive, damage: Callable[[Path], None]
) -> None:
    table = archive.folder / "table.lance"
    files = [file for file in table.rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 4
    for file in files:
        before = file.read_bytes()
        damage(file)
        report = Archive.open(archive.path).check()
        if file.name == HINT:  # Lance finds the newest version without it
            assert report.ok
        else:
            assert not report.ok
            assert str(file) in report.problems[0]
        file.write_bytes(before)
    assert Archive.open(archive.path).check().ok


@pytest.mark.parametrize("damage", [flip, halve])
@pytest.mark.parametrize("name", ["manifest.json", "*.faiss", "*.arrow"])
def test_damage_to_any_file_of_the_index_is_repaired(
    archive: Archive, name: str, damage: Callable[[Path], None]
) -> None:
    file = next((archive.folder / "index").glob(name))
    damage(file)
    report = Archive.open(archive.path).check()
    assert report.ok
    assert report.repaired
    assert len(Archive.open(archive.path).search(SearchQuery(text="red", k=20), ENCODER)) == 12


@pytest.mark.parametrize("damage", [flip, halve])
def test_damage_to_the_description_is_refused(archive: Archive, damage: Callable[[Path], None]) -> None:
    described = archive.path / "archive.json"
    damage(described)
    with pytest.raises(IntegrityError, match=re.escape(str(described))):
        Archive.open(archive.path).search(SearchQuery(text="red"), ENCODER)


def test_no_bit_of_the_description_flips_unnoticed(archive: Archive) -> None:
    described = archive.path / "archive.json"
    data = described.read_bytes()
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        described.write_bytes(flipped)
        with pytest.raises(FovealError):
            Archive.open(archive.path)


@pytest.mark.parametrize("damage", [flip, halve])
@pytest.mark.parametrize("name", ["checksums.jsonl", "archive.json", "../../quarantine.jsonl"])
def test_damage_to_a_list_or_a_copy_is_told_and_repaired(
    archive: Archive, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    for bad in ("a.png", "b.png", "c.png"):
        (tmp_path / bad).write_bytes(b"no image")
        archive.add(tmp_path / bad, ENCODER)
    file = (archive.folder / name).resolve()
    damage(file)
    told = Archive.open(archive.path).check(repair=False)
    assert not told.ok
    assert any(str(file) in problem for problem in told.problems)
    report = Archive.open(archive.path).check()
    assert (report.ok, report.repaired) == (True, told.problems)
    again = Archive.open(archive.path).check()
    assert (again.ok, again.repaired) == (True, [])


def test_a_damaged_keyword_index_is_told_and_built_anew(archive: Archive) -> None:
    archive.search(SearchQuery(text="red", words="0003"), ENCODER)
    file = archive.folder / "words.sqlite"
    whole = file.read_bytes()
    for damaged in (whole.replace(b"cam0", b"cbm0", 1), whole[: len(whole) // 2], b"no database" * 1000):
        file.write_bytes(damaged)
        told = Archive.open(archive.path).check(repair=False)
        assert any(str(file) in problem for problem in told.problems)
        report = Archive.open(archive.path).check()
        assert (report.ok, report.repaired) == (True, told.problems)
        assert Archive.open(archive.path).check().repaired == []


def test_damaged_judgements_are_told_with_what_can_be_read(archive: Archive) -> None:
    feedback = Feedback(archive.path / "feedback.sqlite")
    feedback.add([Judgement("red" * 50, f"{i:020}", True) for i in range(300)])
    data = bytearray(feedback.file.read_bytes())
    assert len(data) > 10 * 4096
    data[6 * 4096 : 7 * 4096] = bytes(4096)
    feedback.file.write_bytes(data)
    report = archive.check()
    (problem,) = report.problems
    assert problem.startswith(str(feedback.file))
    found = re.search(r"(\d+) of its judgements can still be read", problem)
    assert found is not None
    assert 0 < int(found[1]) < 300
    with pytest.raises(IntegrityError, match="backup"):
        feedback.read()


def test_files_of_an_earlier_foveal_have_no_checksum_and_are_taken(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    archive.add(tmp_path / "bad.png", ENCODER)
    for file in (archive.path / "archive.json", archive.folder / "archive.json"):
        record = json.loads(file.read_text())
        del record["checksum"]
        file.write_text(json.dumps({**record, "format": 2}))
    sums = archive.folder / "checksums.jsonl"
    records = [json.loads(line) for line in sums.read_text().splitlines() if line]
    sums.write_text("".join("\n" + json.dumps([record["file"], record["sha256"]]) for record in records))
    held = archive.path / "quarantine.jsonl"
    held.write_text("".join(json.dumps({"uri": uri, "reason": why}) + "\n" for uri, why in archive.quarantined()))
    opened = Archive.open(archive.path)
    assert opened.quarantined() == archive.quarantined()
    opened.add(write_images(tmp_path / "more", 3), ENCODER)
    report = opened.check()
    assert (report.ok, report.repaired) == (True, [])


def test_a_write_does_not_take_what_it_finds_for_right(archive: Archive, tmp_path: Path) -> None:
    (archive.folder / "checksums.jsonl").write_text("")
    old = {str(file) for file in (archive.folder / "table.lance" / "data").iterdir()}
    opened = Archive.open(archive.path)
    opened.add(write_images(tmp_path / "more", 3), ENCODER)
    report = opened.check(repair=False)
    assert not report.ok
    assert "have no checksum" in report.problems[0]
    (name,) = (file for file in old if Path(file).is_file())
    data = bytearray(Path(name).read_bytes())
    vectors = archive.table().vectors(archive.snapshot().rows[:1]).tobytes()
    data[data.index(vectors) + 1] ^= 0x40
    Path(name).write_bytes(data)
    report = opened.check()
    assert not report.ok
    assert any("not finite or not of length 1" in problem for problem in report.problems)
    assert any("have no checksum" in problem for problem in report.problems)


def test_each_batch_has_its_checksums_when_the_next_begins(archive: Archive, tmp_path: Path) -> None:
    def stopped(*given: Any) -> Generator[Batch]:
        yield from embed(*given)
        raise Unavailable("stopped here")

    with pytest.raises(Unavailable, match="stopped here"):
        archive.add(write_images(tmp_path / "more", 3), ENCODER, through=stopped)
    report = archive.check(repair=False)
    assert (report.ok, report.images) == (True, 15)


def test_compact_leaves_no_trace_of_what_was_deleted(tmp_path: Path) -> None:
    images = write_images(tmp_path / "world" / "images", 12)
    (tmp_path / "world" / "metadata.csv").write_text(
        "file_name,owner\n" + "\n".join(f"{file.name},person-{i:04d}-secret" for i, file in enumerate(images))
    )
    archive = Archive.create(tmp_path / "archive", ENCODER)
    archive.add(images[0].parent, ENCODER)
    hits = archive.search(SearchQuery(image=images[3], k=12), ENCODER)
    found = archive.search(SearchQuery(text="red", words="0003", k=12), ENCODER)  # which indexes the texts too
    assert "0003" in found[[hit.uri for hit in found].index(str(images[3]))].keywords
    secret = images[7].rename(images[7].with_name("secretname.png"))
    archive.add(secret, ENCODER)
    secret.write_bytes(b"no image any more")
    archive.add(secret, ENCODER)
    chosen = [hit.id for hit in hits if hit.metadata["owner"] in ("person-0003-secret", "person-0007-secret")]
    archive.delete([*chosen, identity(str(secret))])

    def traces(word: str) -> list[Path]:
        return [f for f in archive.path.rglob("*") if f.is_file() and word.encode() in f.read_bytes()]

    assert traces("person-0003-secret")
    assert archive.path / "quarantine.jsonl" in traces("secretname")
    archive.compact()
    assert not traces("person-0003-secret")
    assert not traces("person-0007-secret")
    assert not traces("secretname")
    assert traces("person-0004-secret")
    stale = Archive.open(archive.path)
    assert len(stale.search(SearchQuery(text="red", k=20), ENCODER)) == 10
    assert stale.check().ok
    assert json.loads((archive.path / "archive.json").read_text())["generation"] == 1


def streamed(archive: Archive, batches: list[int], seed: int = 0) -> AddReport:
    """Adds batches of so many random rows by `add`."""
    rng = np.random.default_rng(seed)

    def through(items: object, encoder: object, known: object) -> Iterator[Batch]:
        for number, count in enumerate(batches):
            uris = [f"mem://{seed}/{number}/{i}" for i in range(count)]
            vectors = rng.standard_normal((count, ENCODER.dimension))
            vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
            rows = [Row(identity(uri), uri, "", 1, 1, {}, vector) for uri, vector in zip(uris, vectors, strict=True)]
            yield Batch(rows=rows, seen=uris)

    return archive.add(Sources([]), ENCODER, through=through)


def test_a_kind_fits_beside_the_segments_that_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.segments.APPROXIMATE_FROM", 500)
    monkeypatch.setattr("retrieval.upkeep.APPROXIMATE_FROM", 500)
    monkeypatch.setattr("retrieval.tuning.TUNE_QUERIES", 16)
    monkeypatch.setattr("retrieval.index.RECIPES", {name: RECIPES[name] for name in ("IVF-SQ8", "IVF-RaBitQ")})
    allowed = needed_mb("IVF-SQ8", 8100, 32)
    settings = IndexSettings(flat_below=1500, recall_target=0.9, memory_mb=allowed)
    archive = Archive.create(tmp_path / "archive", ENCODER, index=settings)
    streamed(archive, [8000])
    assert [segment["index"].split(",")[1] for segment in archive.stats()["segments"]] == ["SQ8"]
    streamed(archive, [1100], seed=1)  # RaBitQ of these alone fits into what is allowed, not into what is left of it
    stats = archive.stats()
    assert {segment["index"].split(",")[1] for segment in stats["segments"]} == {"RaBitQfs"}
    assert 0 < stats["codes_mb"] <= allowed
    assert stats["tail"] == 0


def test_memory_is_a_budget_of_all_segments_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.segments.APPROXIMATE_FROM", 500)
    monkeypatch.setattr("retrieval.upkeep.APPROXIMATE_FROM", 500)
    monkeypatch.setattr("retrieval.tuning.TUNE_QUERIES", 16)
    monkeypatch.setattr("retrieval.index.RECIPES", dict(reversed(RECIPES.items())))  # the fat ones while there is room
    least = needed_mb(leanest(32), 1, 32)
    settings = IndexSettings(flat_below=1500, recall_target=0.95, memory_mb=9000 * least)
    archive = Archive.create(tmp_path / "archive", ENCODER, index=settings)
    kinds: set[str] = set()
    for number, count in enumerate((2000, 1100, 600, 1500, 1200, 300, 1400, 800)):
        report = streamed(archive, [count], seed=number)
        stats = archive.stats()
        kinds |= {segment["index"].split(",")[1] for segment in stats["segments"]}
        assert stats["codes_mb"] == sum(segment["codes_mb"] for segment in stats["segments"])
        assert 0 < stats["codes_mb"] <= settings.memory_mb
        assert (report.notes, stats["notes"]) == ([], [])
        assert stats["tail"] <= 1024
    assert kinds == {"SQ8", "RaBitQfs", "PQ16x4fs"}
    assert archive.recall_at_k(sample=50).recall > 0.9


def test_an_archive_that_outgrows_its_memory_goes_on_and_says_so(tmp_path: Path) -> None:
    settings = IndexSettings(flat_below=4000, recall_target=0.9, memory_mb=0.01)
    archive = Archive.create(tmp_path / "archive", ENCODER, index=settings)
    report = streamed(archive, [1024] * 8)
    assert (report.added, len(archive)) == (8192, 8192)
    assert report.notes == [
        "the index keeps codes of 0.12 MB in memory, 0.01 MB are allowed; 8,192 images need 0.12 MB at least"
    ]
    again = streamed(archive, [2000], seed=1)
    assert (again.added, len(archive)) == (2000, 10_192)
    assert len(again.notes) == 1
    stats = archive.stats()
    assert stats["notes"] == again.notes
    assert stats["tail"] < 1024
    assert stats["codes_mb"] > stats["memory_mb"] == 0.01
    assert archive.check().ok


def test_what_fails_while_images_come_in_is_told_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive.create(tmp_path / "archive", ENCODER)
    build, calls = archive._segments.build, 0

    def failing(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("cannot write index segment: No space left on device")
        build(*args)

    monkeypatch.setattr(archive._segments, "build", failing)
    report = streamed(archive, [100, 100, 100])
    assert report.added == 300
    assert report.notes == [
        "the index could not be built while images came in: cannot write index segment: No space left on device"
    ]
    assert calls == 2
    assert archive.stats()["tail"] == 0
    assert archive.check().ok
