"""What every engine of archives keeps to, asked of each of them: a folder, and Milvus by way of Milvus Lite."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput, FingerprintMismatch, UnknownName
from retrieval.archive import Archive
from retrieval.filters import parse
from retrieval.ingest import identity
from retrieval.milvus_server import Place
from retrieval.query import Collapse, Part, SearchQuery
from retrieval.stores import AnyArchive, create_archive, find_archive, open_archive
from tests.retrieval.pixels import PixelEncoder, write_images

ENCODER = PixelEncoder()
NUMBERS = count()
Record = Mapping[str, str | int | float | None]

needs_milvus = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pymilvus", "milvus_lite"))),
    reason="needs pymilvus and milvus-lite: pip install 'foveal[milvus]' milvus-lite",
)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the archives of this module lie; starting Milvus Lite anew for each would take longer than the tests."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(params=["folder", pytest.param("milvus", marks=needs_milvus)])
def uri(request: pytest.FixtureRequest, shelf: Path) -> str:
    name = f"archive{next(NUMBERS)}"
    return f"milvus://{shelf}/lite.db/{name}" if request.param == "milvus" else str(shelf / name)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "world" / "images", 48)


@pytest.fixture
def archive(uri: str, images: list[Path]) -> AnyArchive:
    made = create_archive(uri, ENCODER, reference="open_clip:./pixels")
    made.add(images[0].parent, ENCODER)
    return made


def everything(archive: AnyArchive) -> set[str]:
    return {hit.id for hit in archive.search(SearchQuery(text="red", k=1000), ENCODER)}


def test_every_added_image_is_found_by_itself(archive: AnyArchive, images: list[Path]) -> None:
    assert len(archive) == 48
    for path in images[:8]:
        hit = archive.search(SearchQuery(image=path, k=1), ENCODER)[0]
        assert (hit.uri, hit.similarity) == (str(path), pytest.approx(1, abs=1e-3))


def test_text_finds_its_colour_best_first_and_hits_explain_themselves(archive: AnyArchive) -> None:
    found = archive.search(SearchQuery(text="red", k=6), ENCODER)
    assert {hit.metadata["colour"] for hit in found} == {"red"}
    assert [hit.similarity for hit in found] == sorted((hit.similarity for hit in found), reverse=True)
    assert (found.kept, found.reason, found.filter) == (48, None, None)
    for hit in found:
        assert sum(part.amount for part in hit.parts) == pytest.approx(hit.similarity, abs=1e-3)


def test_a_negative_text_pushes_away_and_an_item_draws_near(archive: AnyArchive) -> None:
    plain = archive.search(SearchQuery(text="white", k=48), ENCODER)
    pushed = archive.search(SearchQuery(text="white", negative="yellow", k=48), ENCODER)
    place = [[hit.metadata["colour"] for hit in hits].index("yellow") for hits in (plain, pushed)]
    assert place[1] > place[0]
    drawn = archive.search(SearchQuery(parts=(Part(id=plain[7].id),), k=1), ENCODER)
    assert (drawn[0].id, drawn[0].parts[0].part) == (plain[7].id, f"item {plain[7].id}")
    with pytest.raises(BadInput, match="no item 'f00d'"):
        archive.search(SearchQuery(parts=(Part(id="f00d"),)), ENCODER)


def test_nearest_is_exact_and_filtered(archive: AnyArchive, images: list[Path]) -> None:
    vectors = ENCODER.encode_images([Image.open(path).convert("RGB") for path in images])
    truth = vectors @ vectors.T
    for row, hits in enumerate(archive.nearest(vectors[:5], k=7)):
        assert [hit.similarity for hit in hits] == pytest.approx(np.sort(-truth[row])[:7] * -1, abs=2e-3)
    among = archive.nearest(vectors[:1], k=48, filter="hour < 5")[0]
    assert sorted(hit.uri for hit in among) == sorted(str(path) for i, path in enumerate(images) if i % 24 < 5)
    with pytest.raises(BadInput, match="wrong shape"):
        archive.nearest(vectors[:, :5])
    with pytest.raises(BadInput, match="k lies outside"):
        archive.nearest(vectors, k=0)


def test_k_beyond_the_archive_returns_all_of_it(archive: AnyArchive) -> None:
    assert len(everything(archive)) == 48


@pytest.mark.parametrize("filter", [None, "hour < 12"])
def test_pages_show_each_image_once(archive: AnyArchive, filter: str | None) -> None:
    pages: list[list[str]] = []
    cursor = None
    while cursor is not None or not pages:
        found = archive.search(SearchQuery(text="red", k=7, filter=filter, cursor=cursor), ENCODER)
        pages.append([hit.id for hit in found])
        cursor = found.cursor
    whole = [hit.id for hit in archive.search(SearchQuery(text="red", k=48, filter=filter), ENCODER)]
    assert [id for page in pages for id in page] == whole
    assert len(whole) == (48 if filter is None else 24)


def test_pages_of_equal_images_show_each_once_while_others_go(uri: str) -> None:
    archive = create_archive(uri, ENCODER)
    vector = ENCODER.encode_texts(["red", "blue"])
    names = [f"/same/{i}.png" for i in range(20)]
    ids = archive.add_vectors(names, vector[[0] * 15 + [1] * 5], fingerprint=ENCODER.fingerprint)
    first = archive.search(SearchQuery(text="red", k=6), ENCODER)
    gone = first[0].id, next(id for id in ids if id not in {hit.id for hit in first})
    assert archive.delete(gone) == 2
    shown, cursor = [hit.id for hit in first], first.cursor
    while cursor is not None:
        found = archive.search(SearchQuery(text="red", k=6, cursor=cursor), ENCODER)
        shown += [hit.id for hit in found]
        cursor = found.cursor
    assert sorted(shown) == sorted(set(ids) - {gone[1]})


def test_a_cursor_belongs_to_its_query(archive: AnyArchive) -> None:
    cursor = archive.search(SearchQuery(text="red", k=5), ENCODER).cursor
    for query in (SearchQuery(text="blue", cursor=cursor), SearchQuery(text="red", cursor="nonsense")):
        with pytest.raises(BadInput, match="cursor"):
            archive.search(query, ENCODER)


RECORDS: list[Record] = [
    {"camera": "north", "hour": 6, "taken_at": "2026-11-01T23:59:59Z", "tags": "night; rain"},
    {"camera": "south", "hour": 18.5, "taken_at": "2026-11-02T00:00:00Z", "tags": "midnight"},
    {"camera": "north", "taken_at": "2026-11-02T07:30:00Z", "tags": "rain;night ;x"},
    {"hour": 22},
    {"camera": "it's 100%", "hour": 0, "gps_lat": 59.3, "gps_lon": 18.0, "tags": ""},
    {"camera": "a_b", "hour": 1, "gps_lat": -17.0, "gps_lon": 179.5, "Größe in": "XL"},
    {"camera": "a\\b", "hour": 2, "gps_lat": -17.0, "gps_lon": -179.5, "tags": " night "},
    {"camera": "", "hour": -3, "note": 'say "no"\nor \\ leave'},
]
SIZES = [(640, 480), (640, 480), (800, 600), (800, 600), (1, 1), (2, 1), (3, 1), (4000, 3000)]
FILTERS = [
    "camera = 'north'",
    "camera == 'north' and hour <= 6",
    "CAMERA <> 'north'",
    "NOT camera = 'north'",
    "NOT (camera = 'north' OR hour > 18.4)",
    "NOT (camera = 'north' AND hour > 7)",
    "camera = 'south' OR camera = 'north' AND hour = 6",
    "(camera = 'south' OR camera = 'north') AND hour = 6",
    "camera IN ('north', 'a_b')",
    "camera NOT IN ('a_b', 'x')",
    "hour NOT IN (1, 2.5)",
    "width IN (640, 3)",
    "hour BETWEEN 1 AND 6 AND width = 640",
    "hour NOT BETWEEN 1 AND 20",
    "hour > -1.5e0 AND hour < +1.0",
    "width > 2 AND width <= 640 AND height != 1",
    "uri LIKE '%/2.png'",
    "uri NOT LIKE '/records/_.png'",
    "camera LIKE '%th'",
    "camera NOT LIKE '_o%'",
    "camera = 'it''s 100%'",
    "camera = ''",
    "note = 'say \"no\"\nor \\ leave'",
    "camera IS NULL",
    "tags IS NOT NULL",
    "hour is not null and not hour is not null",
    "HAS(tags, 'night')",
    "NOT HAS(tags, 'night')",
    "has(tags, ' rain ')",
    "taken_at < '2026-11-02'",
    "taken_at BETWEEN '2026-11-02' AND '2026-11-02 09:30+02:00'",
    "NOT taken_at >= '2026-11-02T08:30:00+01:00'",
    "INSIDE(59.2, 17.8, 59.5, 18.3)",
    "INSIDE(-20, 179, -10, -179)",
    "NOT INSIDE(-20, -180, -10, 180)",
    "Größe_in = 'XL'",
    "content_hash = ''",
    'camera = \'" or "1"=="1\'',
    "NOT (HAS(tags, 'night') OR hour IN (0, 18.5)) OR (gps_lat IS NULL AND width < 700)",
]


def test_filters_keep_what_they_mean(uri: str) -> None:
    """All in one, as they share the archive: each is asked of the engine and of `Filter.matches`."""
    archive = create_archive(uri, ENCODER)
    names = [f"/records/{i}.png" for i in range(len(RECORDS))]
    ids = archive.add_vectors(
        names,
        np.random.default_rng(0).standard_normal((len(RECORDS), ENCODER.dimension)).astype(np.float32),
        fingerprint=ENCODER.fingerprint,
        sizes=SIZES,
        metadata=[{key: value for key, value in record.items() if value is not None} for record in RECORDS],
    )
    rows: list[Record] = [
        {"id": id, "uri": name, "content_hash": "", "width": w, "height": h, "Größe_in": record.get("Größe in")}
        | record
        for id, name, (w, h), record in zip(ids, names, SIZES, RECORDS, strict=True)
    ]
    kept_some = 0
    for expression in FILTERS:
        meant = [id for id, row in zip(ids, rows, strict=True) if parse(expression, archive.columns).matches(row)]
        assert sorted(archive.matching(expression)) == sorted(meant), expression
        found = archive.search(SearchQuery(text="red", filter=expression), ENCODER)
        assert (sorted(hit.id for hit in found), found.kept) == (sorted(meant), len(meant)), expression
        assert found.nothing == (not meant), expression
        kept_some += 0 < len(meant) < len(ids)
    assert kept_some > 30


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("camra = 'cam1'", "Did you mean camera"),
        ("camera = ", r"hour \(number\)"),
        ("hour > 'noon'", "noon"),
        ("1=1; drop table x", "filter"),
        ("id IN (SELECT id FROM t)", "filter"),
        (" ", "empty"),
    ],
)
def test_a_bad_filter_is_refused_and_lists_the_columns(archive: AnyArchive, expression: str, message: str) -> None:
    for ask in (archive.matching, lambda filter: archive.search(SearchQuery(text="red", filter=filter), ENCODER)):
        with pytest.raises(BadInput, match=message):
            ask(expression)


def test_columns_that_another_handle_adds_can_be_filtered(archive: AnyArchive, uri: str) -> None:
    reader = open_archive(uri)
    assert reader.matching("hour = 3")
    vector = ENCODER.encode_texts(["red"])
    [id] = archive.add_vectors(["/x.png"], vector, fingerprint=ENCODER.fingerprint, metadata=[{"site": "quay"}])
    assert reader.matching("site = 'quay'") == [id]
    assert reader.columns["site"] == "text"


def test_values_that_do_not_fit_their_column_are_noted(uri: str, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 3)
    values: list[str | int] = [0, "many", 2]
    samples = [Sample(p.stem, p, 40, 24, metadata={"hour": v}) for p, v in zip(paths, values, strict=True)]
    archive = create_archive(uri, ENCODER)
    report = archive.add(Dataset.build(samples, ()), ENCODER)
    assert (report.added, report.notes) == (3, ["hour: 1 values are not numbers like the others: 'many'"])
    assert len(archive.matching("hour >= 0")) == 2
    assert {hit.metadata["hour"] for hit in archive.search(SearchQuery(text="red"), ENCODER)} == {0, "many", 2}


def test_times_are_kept_and_compared_in_one_form(uri: str) -> None:
    given: list[str | int] = [
        "2026-11-02", "2026-11-02 10:30:00", "2026-11-02T12:30:00+02:00", "2026-11-02T10:30:00.250Z",
        "20261102T103000Z", "11/30/2026", "1761234567890", 20261102,
    ]  # fmt: skip
    archive = create_archive(uri, ENCODER)
    names = [f"/times/{i}.png" for i in range(len(given))]
    vectors = np.random.default_rng(0).standard_normal((len(given), ENCODER.dimension)).astype(np.float32)
    records = [{"uri": name, "metadata": {"shot_at": value}} for name, value in zip(names, given, strict=True)]
    if isinstance(archive, Archive):
        notes = archive.add_records(records, vectors, fingerprint=ENCODER.fingerprint)
        assert notes == [
            "shot_at: 3 values are no times in ISO 8601 such as 2026-11-02T09:30:00+02:00, and cannot be filtered by: "
            "'11/30/2026'"
        ]
    else:
        metadata = [record["metadata"] for record in records]
        archive.add_vectors(names, vectors, fingerprint=ENCODER.fingerprint, metadata=metadata)
    ids = [identity(name) for name in names]
    kept = archive.items(ids, ["shot_at", "metadata"])
    same = "2026-11-02T10:30:00Z"
    assert [kept[id]["shot_at"] for id in ids] == ["2026-11-02T00:00:00Z", *[same] * 4, None, None, None]
    assert [json.loads(kept[id]["metadata"])["shot_at"] for id in ids] == given

    def matching(filter: str) -> list[int]:
        return sorted(ids.index(id) for id in archive.matching(filter))

    assert matching("shot_at BETWEEN '2026-11-02 09:00' AND '2026-11-02 11:00'") == [1, 2, 3, 4]
    assert matching("shot_at < '2026-11-02'") == []
    assert [matching(f"shot_at = '{value}'") for value in given[1:5]] == [[1, 2, 3, 4]] * 4
    assert matching("shot_at IS NULL") == [5, 6, 7]
    with pytest.raises(BadInput, match="11/30/2026"):
        archive.matching("shot_at < '11/30/2026'")


def test_adding_again_changes_nothing(archive: AnyArchive, images: list[Path]) -> None:
    before = archive.items(sorted(everything(archive)), ["uri", "content_hash", "metadata", "vector"])
    report = archive.add(images[0].parent, ENCODER)
    assert (report.added, report.updated, report.unchanged) == (0, 0, 48)
    assert archive.items(sorted(everything(archive)), ["uri", "content_hash", "metadata", "vector"]) == before


def test_a_changed_file_is_embedded_again_under_the_same_id(archive: AnyArchive, images: list[Path]) -> None:
    before = archive.search(SearchQuery(image=images[3], k=1), ENCODER)[0]
    Image.new("RGB", (30, 30), "cyan").save(images[3])
    report = archive.add(images[0].parent, ENCODER)
    assert (report.added, report.updated, report.unchanged) == (0, 1, 47)
    after = archive.search(SearchQuery(image=images[3], k=48), ENCODER)
    assert (after[0].id, len({hit.id for hit in after}), len(archive)) == (before.id, 48, 48)
    assert archive.items([before.id], ["width"])[before.id]["width"] == 30


def test_changed_metadata_keeps_the_vector(archive: AnyArchive, images: list[Path]) -> None:
    sidecar = images[0].parent.parent / "metadata.csv"
    sidecar.write_text(sidecar.read_text().replace("0005.png,cam2", "0005.png,roof"))
    report = archive.add(images[0].parent, ENCODER)
    assert (report.updated, report.unchanged) == (1, 47)
    hit = archive.search(SearchQuery(image=images[5], filter="camera = 'roof'", k=1), ENCODER)[0]
    assert (hit.uri, hit.similarity) == (str(images[5]), pytest.approx(1, abs=1e-3))


def test_what_is_deleted_never_comes_back(archive: AnyArchive, uri: str, images: list[Path], tmp_path: Path) -> None:
    gone = [hit.id for hit in archive.search(SearchQuery(text="red", k=3), ENCODER)]
    reader = open_archive(uri)
    everything(reader)
    assert archive.delete([*gone, "never-was"]) == 3
    for view in (archive, reader, open_archive(uri)):
        assert not everything(view) & set(gone)
        assert not view.items(gone, ["uri"])
        assert len(view) == 45
    assert archive.delete(gone) == 0
    extra = write_images(tmp_path / "more" / "images", 3, seed=9)
    archive.add(extra[0].parent, ENCODER)
    assert len(everything(reader)) == 48
    assert not everything(reader) & set(gone)
    assert archive.check().ok


def test_syncing_removes_what_the_folder_no_longer_has(archive: AnyArchive, images: list[Path]) -> None:
    images[7].unlink()
    report = archive.add(images[0].parent, ENCODER, sync=True)
    assert (report.removed, report.unchanged, len(archive)) == (1, 47, 47)
    assert not archive.matching("uri LIKE '%/0007.png'")


def test_another_encoder_is_refused_for_adding_and_searching(archive: AnyArchive, uri: str, images: list[Path]) -> None:
    other = PixelEncoder(seed=1)
    with pytest.raises(FingerprintMismatch, match="foveal archive add"):
        archive.add(images[0].parent, other)
    with pytest.raises(FingerprintMismatch, match=r"open_clip:\./pixels"):
        archive.search(SearchQuery(text="red"), other)
    with pytest.raises(FingerprintMismatch):
        archive.add_vectors(["/x.png"], ENCODER.encode_texts(["red"]), fingerprint=other.fingerprint)
    reopened = open_archive(uri)
    assert (reopened.encoder, reopened.fingerprint) == ("open_clip:./pixels", ENCODER.fingerprint)
    assert everything(reopened) == everything(archive)


def test_unreadable_files_are_quarantined_until_they_can_be_read(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    good = write_images(folder, 3)
    (folder / "page.jpg").write_text("<html>not found</html>")
    whole = good[0].read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    archive = create_archive(uri, ENCODER)
    report = archive.add(folder, ENCODER)
    assert report.added == 3
    assert {Path(path).name for path, _ in report.quarantined} == {"page.jpg", "cut.png"}
    assert sorted(open_archive(uri).quarantined()) == sorted(report.quarantined)
    (folder / "cut.png").write_bytes(whole + b" ")
    assert archive.add(folder, ENCODER).added == 1
    assert [Path(path).name for path, _ in archive.quarantined()] == ["page.jpg"]


def test_files_leave_the_quarantine_with_their_folder_or_their_image(uri: str, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "mixed", tmp_path / "elsewhere"
    good = write_images(folder, 3)
    for file in (folder / "gone.png", folder / "kept.png", *write_images(elsewhere, 2)[:1]):
        file.write_bytes(b"no image")
    archive = create_archive(uri, ENCODER)
    archive.add([folder, elsewhere], ENCODER)
    good[0].write_bytes(b"no image any more")
    archive.add(folder, ENCODER)
    assert {Path(path).name for path, _ in archive.quarantined()} == {"gone.png", "kept.png", "0000.png"}
    assert len(archive.quarantined()) == 4
    (folder / "gone.png").unlink()
    archive.add(folder, ENCODER)
    assert len(archive.quarantined()) == 4
    assert archive.add(folder, ENCODER, sync=True).removed == 0
    assert {path for path, _ in archive.quarantined()} == {
        str(file) for file in (folder / "kept.png", good[0], elsewhere / "0000.png")
    }
    assert archive.delete([identity(str(good[0]))]) == 1
    left = {path for path, _ in archive.quarantined()}
    assert left == {path for path, _ in open_archive(uri).quarantined()}
    assert left == {str(folder / "kept.png"), str(elsewhere / "0000.png")}


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.zeros((2, 32)), "length 0"), (np.full((2, 32), np.nan), "finite"), (np.ones((3, 32)), "do not fit")],
)
def test_vectors_without_direction_are_refused(uri: str, vectors: np.ndarray, message: str) -> None:
    archive = create_archive(uri, ENCODER)
    with pytest.raises(BadInput, match=message):
        archive.add_vectors(["/a", "/b"], vectors.astype(np.float32), fingerprint=ENCODER.fingerprint)
    assert len(archive) == 0


def test_an_empty_archive_answers_with_nothing(uri: str) -> None:
    archive = create_archive(uri, ENCODER)
    found = archive.search(SearchQuery(text="red"), ENCODER)
    assert (len(found), found.reason) == (0, "the archive is empty")
    assert archive.check().ok
    assert archive.stats()["images"] == 0


def test_create_refuses_what_exists_and_open_what_does_not(archive: AnyArchive, uri: str) -> None:
    with pytest.raises(BadInput, match="exists already"):
        create_archive(uri, ENCODER)
    with pytest.raises(BadInput, match="foveal archive add"):
        open_archive(f"{uri}_none")
    assert find_archive(f"{uri}_none") is None
    assert find_archive(uri) is not None


def test_check_counts_what_is_there(archive: AnyArchive) -> None:
    report = archive.check()
    assert (report.ok, report.images, report.problems) == (True, 48, [])


def test_images_inside_a_tar_are_there_for_check(uri: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in write_images(tmp_path / "images", 2):
            tar.add(path, path.name)
    archive = create_archive(uri, ENCODER)
    assert archive.add(tmp_path / "shard.tar", ENCODER).added == 2
    assert archive.check().problems == []


@pytest.mark.parametrize("uri", [pytest.param("milvus", marks=needs_milvus)], indirect=True)
@pytest.mark.parametrize(
    ("asked", "name"),
    [({"words": "red"}, "words"), ({"collapse": Collapse()}, "collapse"), ({"diversity": 0.5}, "diversity")],
)
def test_milvus_names_what_it_cannot_do(archive: AnyArchive, asked: dict, name: str) -> None:
    with pytest.raises(BadInput, match=f"Milvus cannot search with {name}"):
        archive.search(SearchQuery(text="red", **asked), ENCODER)


@pytest.mark.parametrize("uri", [pytest.param("milvus", marks=needs_milvus)], indirect=True)
def test_metadata_too_large_for_milvus_goes_into_quarantine(uri: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "w" / "images", 2)
    lines = ["file_name," + ",".join(f"k{i}" for i in range(20)), "0001.png," + ",".join(["x" * 4000] * 20)]
    (tmp_path / "w" / "metadata.csv").write_text("\n".join(lines))
    archive = create_archive(uri, ENCODER)
    report = archive.add(images[0].parent, ENCODER)
    assert (report.added, len(archive)) == (1, 1)
    assert "Milvus takes 65,535" in report.quarantined[0][1]


@pytest.mark.parametrize("uri", [pytest.param("milvus", marks=needs_milvus)], indirect=True)
def test_check_of_milvus_finds_crooked_vectors(archive: AnyArchive) -> None:
    rows = archive._rows  # type: ignore[attr-defined]
    [hit] = archive.search(SearchQuery(text="red", k=1), ENCODER)
    [row] = rows.ask("query", filter=f'id == "{hit.id}"', output_fields=["*"])
    rows.upsert([{**row, "vector": [2.0] * 32}])
    report = archive.check()
    assert not report.ok
    assert hit.id in report.problems[0]


def test_a_token_is_taken_from_the_uri_or_the_environment_and_never_shown() -> None:
    place = Place.parse("milvus+tls://host/base/images?token=s3cret", {"MILVUS_TOKEN": "other"})
    assert (place.server, place.database, place.collection, place.token) == ("https://host", "base", "images", "s3cret")
    assert "s3cret" not in f"{place} {place!r}"
    assert Place.parse("milvus://host:19530/images", {"MILVUS_TOKEN": "other"}).token == "other"
    assert Place.parse("milvus:runs/lite.db/images", {}).server == "runs/lite.db"


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("milvus://host:19530", BadInput),
        ("milvus://host:19530/a/b/c", BadInput),
        ("milvus://user:secret@host/images", BadInput),
        ("milvus:///folder/images", BadInput),
        ("milvus:/host:19530/images", BadInput),
        ("milvus://host/no-name", BadInput),
        ("postgres://host/images", UnknownName),
    ],
)
def test_a_wrong_place_is_refused_before_anyone_is_asked(place: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        open_archive(place)


@needs_milvus
def test_another_process_goes_on_with_it(images: list[Path], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from retrieval.stores import create_archive, open_archive\n"
        "from retrieval.query import SearchQuery\n"
        "from tests.retrieval.pixels import PixelEncoder\n"
        "uri, images, encoder = *sys.argv[1:], PixelEncoder()\n"
    )
    made = "create_archive(uri, encoder).add(images, encoder)"
    read = "found = open_archive(uri)\nprint(len(found), len(found.search(SearchQuery(text='red', k=5), encoder)))"
    said = ""
    for piece in (made, read):
        line = [sys.executable, "-c", script + piece, f"milvus://{tmp_path}/lite.db/archive", str(images[0].parent)]
        said = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said.split()[-2:] == ["48", "5"]
