"""What was added or taken too long ago goes for good, and nothing else does."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from PIL import Image

from foveal.errors import BadInput, Unavailable
from foveal.progress import SilentProgress
from retrieval.ages import ADDED
from retrieval.archive import Archive
from retrieval.reembed import reembed
from retrieval.retention import DAY, MARK, Retained, Rule, due, retain
from retrieval.table import Table
from tests.command import foveal
from tests.retrieval.pixels import COLOURS, PixelEncoder, write_images

DAYS = 30


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Eight images that are 40 days old, and four that are 20."""
    archive = Archive.create(tmp_path / "archive", PixelEncoder())
    write_images(tmp_path / "old" / "images", 8)
    archive.add(tmp_path / "old", PixelEncoder())
    age(archive, 40)
    write_images(tmp_path / "new" / "images", 4, seed=1)
    archive.add(tmp_path / "new", PixelEncoder())
    age(archive, 20, "new")
    return archive


def age(archive: Archive, days: float, name: str = "") -> None:
    """Says of the images whose URI holds `name` that they came so long ago."""
    dataset: Any = lance.dataset(str(archive.folder / "table.lance"))
    dataset.update({ADDED: str(int(time.time() - days * DAY))}, where=f"uri LIKE '%/{name}%'")


def names(archive: Archive) -> list[str]:
    ids = archive.matching("width > 0")
    uris = [Path(row["uri"]) for row in archive.items(ids, ["uri"]).values()]
    return sorted(f"{uri.parts[-3]}/{uri.stem}" for uri in uris)


def test_what_is_older_goes_and_nothing_younger(archive: Archive, tmp_path: Path) -> None:
    kept = [name for name in names(archive) if name.startswith("new")]
    before = {path: path.read_bytes() for path in tmp_path.glob("*/images/*")}
    told: list[str] = []
    gone = retain(archive, Rule(DAYS), tell=told.extend)
    assert (gone.deleted, gone.files, len(told)) == (8, 0, 8)
    assert gone.freed_bytes > 0
    assert names(archive) == kept
    assert len(archive.nearest(PixelEncoder().encode_texts(["red"]), 20)[0]) == 4
    assert {path: path.read_bytes() for path in tmp_path.glob("*/images/*")} == before
    held = b"".join(path.read_bytes() for path in archive.path.rglob("*") if path.is_file())
    assert b"/old/images/" not in held
    assert b"/new/images/" in held
    assert retain(archive, Rule(DAYS)) == Retained()
    assert retain(archive, Rule(DAYS), time.time() + 11 * DAY).deleted == 4


def test_a_filter_keeps_the_others(archive: Archive) -> None:
    rule = Rule(DAYS, "uri LIKE '%/0003.png' OR uri LIKE '%/0001.png'")
    assert len(due(archive, rule)) == 2
    assert retain(archive, rule).deleted == 2
    assert [name for name in names(archive) if name.startswith("old")] == [f"old/000{n}" for n in (0, 2, 4, 5, 6, 7)]
    assert "new/0001" in names(archive)
    with pytest.raises(BadInput, match="nowhere"):
        retain(archive, Rule(DAYS, "nowhere = 1"))
    with pytest.raises(BadInput):
        retain(archive, Rule(DAYS, "nowhere = 1", by="taken"))


def test_time_since_it_was_taken(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "archive", PixelEncoder())
    for number, moment in enumerate(("2020:01:01 00:00:00", time.strftime("%Y:%m:%d %H:%M:%S", time.gmtime()), None)):
        exif = Image.Exif()
        if moment is not None:
            exif[0x0132] = moment
        (tmp_path / "a" / "images").mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (24, 24), COLOURS[number])
        image.save(tmp_path / "a" / "images" / f"{number}.jpg", exif=exif)
    archive.add(tmp_path / "a", PixelEncoder())
    assert due(archive, Rule(DAYS)) == []
    assert retain(archive, Rule(DAYS, "width = 1", by="taken")) == Retained()
    assert retain(archive, Rule(DAYS, by="taken")).deleted == 1
    assert names(archive) == ["a/1", "a/2"]


def test_what_is_no_time_never_decides(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "images"
    day = time.strftime("%m/%d/%Y", time.gmtime())
    old = time.strftime("%Y-%m-%d 10:30", time.gmtime(time.time() - 40 * DAY))
    taken = {name: moment for (name, moment) in zip(write_images(folder, 3), (day, old, "01/01/2020"), strict=True)}
    for path, moment in taken.items():
        path.with_suffix(".json").write_text(f'{{"taken_at": "{moment}", "seen_at": "{moment}"}}')
    archive = Archive.create(tmp_path / "archive", PixelEncoder())
    report = archive.add(tmp_path / "a", PixelEncoder())
    assert (report.added, len(report.notes)) == (3, 2)
    [id] = due(archive, Rule(DAYS, by="taken"))
    assert Path(archive.items([id], ["uri"])[id]["uri"]).stem == "0001"
    dataset: Any = lance.dataset(str(archive.folder / "table.lance"))
    for column in ("taken_at", "seen_at"):  # as an earlier Foveal wrote them
        dataset.update({column: f"'{day}'"}, where="uri LIKE '%/0000.png'")
        dataset.update({column: "'01/01/2020'"}, where="uri LIKE '%/0002.png'")
    assert len(archive.matching("taken_at < '2026-01-01'")) == 2
    assert due(archive, Rule(DAYS, by="taken")) == [id]
    assert due(archive, Rule(DAYS, "seen_at < '2999-01-01'"), time.time() + 60 * DAY) == [id]
    assert retain(archive, Rule(DAYS, by="taken")).deleted == 1
    assert names(archive) == ["a/0000", "a/0002"]


def test_a_dry_run_changes_nothing(archive: Archive) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.path.rglob("*") if path.is_file()}
    said = foveal("archive", "retain", "--archive", str(archive.path), "--days", "30", "--dry-run", "--json").json
    assert (said["due"], said["deleted"], said["images"]) == (8, 0, 12)
    assert {path: path.stat().st_mtime_ns for path in archive.path.rglob("*") if path.is_file()} == before
    said = foveal("archive", "retain", "--archive", str(archive.path), "--days", "30", "--json").json
    assert (said["due"], said["deleted"], said["images"]) == (8, 8, 4)
    assert foveal("archive", "retain", "--archive", str(archive.path), "--days", "0").code == 1


@pytest.mark.parametrize("method", ["delete", "compact"])
def test_an_interrupted_run_is_gone_on_with(archive: Archive, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def stop(self: Archive, *_: object) -> int:
        raise Unavailable("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(Archive, method, stop)
        with pytest.raises(Unavailable):
            retain(archive, Rule(DAYS))
    assert (archive.path / MARK).exists()
    left = Archive.open(archive.path)
    retain(left, Rule(DAYS))
    assert len(left) == 4
    assert b"/old/images/" not in b"".join(path.read_bytes() for path in left.path.rglob("*") if path.is_file())
    assert not (archive.path / MARK).exists()


def test_what_cannot_be_told_does_not_go(archive: Archive) -> None:
    def refuse(ids: object) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        retain(archive, Rule(DAYS), tell=refuse)
    assert len(archive) == 12


def test_the_same_content_keeps_its_time_and_new_content_does_not(archive: Archive, tmp_path: Path) -> None:
    images = tmp_path / "old" / "images"
    (images / "0000.json").write_text('{"camera": "north"}')
    Image.new("RGB", (30, 30), "red").save(images / "0001.png")
    assert archive.add(tmp_path / "old", PixelEncoder()).updated == 2
    assert retain(archive, Rule(DAYS)).deleted == 7
    assert [name for name in names(archive) if name.startswith("old")] == ["old/0001"]


def test_another_encoder_keeps_the_times(archive: Archive) -> None:
    encoder = PixelEncoder(seed=1)
    reembed(archive, encoder, "other", SilentProgress())
    assert retain(Archive.open(archive.path), Rule(DAYS)).deleted == 8


def test_files_of_an_add_that_was_killed_go_too(archive: Archive) -> None:
    folder = archive.path / "uploads" / "ab"
    folder.mkdir(parents=True)
    for name in ("old.png", "young.png"):
        (folder / name).write_bytes(b"a picture")
        (folder / f"{name}.json").write_text("{}")
    os.utime(folder / "old.png", (0, time.time() - 31 * DAY))
    assert len(archive.add(folder, PixelEncoder()).quarantined) == 2
    assert retain(archive, Rule(DAYS, "width < 0")).files == 0
    assert retain(archive, Rule(DAYS)).files == 1
    assert sorted(path.name for path in folder.iterdir()) == ["young.png", "young.png.json"]
    assert [uri for uri, _ in archive.quarantined()] == [str(folder / "young.png")]
    assert b"old.png" not in (archive.path / "quarantine.jsonl").read_bytes()


def test_an_archive_of_an_earlier_foveal_is_read_and_ages_from_what_is_known(archive: Archive, tmp_path: Path) -> None:
    dataset: Any = lance.dataset(str(archive.folder / "table.lance"))
    dataset.drop_columns([ADDED])
    assert len(archive.nearest(PixelEncoder().encode_texts(["red"]), 20)[0]) == 12
    since = archive.table().added()
    assert len(since) == 12
    assert all(0 <= time.time() - moment + 2 < 120 for moment in since.values())
    assert due(archive, Rule(DAYS)) == []
    archive.compact()  # with it go the versions that tell
    time.sleep(1.1)
    write_images(tmp_path / "more" / "images", 1, seed=2)
    archive.add(tmp_path / "more", PixelEncoder())
    assert ADDED in lance.dataset(str(archive.folder / "table.lance")).schema.names
    assert len(due(archive, Rule(DAYS), time.time() + 31 * DAY)) == 13


def test_rows_that_an_earlier_foveal_adds_again_are_dated(archive: Archive) -> None:
    dataset: Any = lance.dataset(str(archive.folder / "table.lance"))
    dataset.update({ADDED: "NULL"}, where="uri LIKE '%/old/%'")
    assert due(archive, Rule(DAYS)) == []
    assert retain(archive, Rule(DAYS)).deleted == 0
    table = lance.dataset(str(archive.folder / "table.lance")).to_table(columns=[ADDED])
    assert table[ADDED].null_count == 0
    assert retain(archive, Rule(DAYS), time.time() + 31 * DAY).deleted == 12


def test_a_time_is_never_before_the_row_came(tmp_path: Path) -> None:
    """By the versions that Lance still has, which here come seconds apart."""
    archive = Archive.create(tmp_path / "archive", PixelEncoder())
    came: dict[str, float] = {}
    for number in range(3):
        write_images(tmp_path / str(number) / "images", 2, seed=number)
        archive.add(tmp_path / str(number), PixelEncoder())
        came |= dict.fromkeys(set(archive.matching("width > 0")) - came.keys(), time.time())
        time.sleep(1.2)
    lance.dataset(str(archive.folder / "table.lance")).drop_columns([ADDED])
    table: Table = archive.table()
    read = table.added()
    table.date()
    written = archive.table().added()
    for id, moment in came.items():
        assert -1 <= written[id] - moment <= 2
        assert -1 <= read[id] - moment <= 2
    assert isinstance(table.schema(["id"]), pa.Schema)


@pytest.mark.parametrize("text", ["", "x", "-3", "0", "900000", "nan", "inf", ":camera = 'a'"])
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(BadInput):
        Rule.parse(text)
    assert Rule.parse("7: a = 'x:y'") == Rule(7, "a = 'x:y'")
    assert str(Rule.parse("0.5")) == "0.5"
