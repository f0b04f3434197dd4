"""The commands that look after an archive."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from foveal.errors import BadInput, FovealError, IntegrityError, Unavailable
from foveal.progress import SilentProgress
from retrieval import check, feedback, turns
from retrieval.archive import Archive
from retrieval.feedback import Feedback, Judgement
from retrieval.query import SearchQuery
from retrieval.reembed import reembed
from retrieval.transfer import backup
from tests.command import foveal
from tests.retrieval.pixels import PixelEncoder, write_images

ENCODER = PixelEncoder()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    images = write_images(tmp_path / "world" / "images", 12)
    made = Archive.create(tmp_path / "archive", ENCODER)
    made.add(images[0].parent, ENCODER)
    return made


def test_quarantine_lists_what_could_not_be_added_and_why(archive: Archive, tmp_path: Path) -> None:
    assert foveal("archive", "quarantine", "--archive", str(archive.path), "--json").json == {"quarantined": []}
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    archive.add(bad, ENCODER)
    (row,) = foveal("archive", "quarantine", "--archive", str(archive.path), "--json").json["quarantined"]
    assert row["uri"] == str(bad)
    assert row["reason"] in dict(archive.quarantined()).values()
    assert "reason" in foveal("archive", "quarantine", "--archive", str(archive.path)).out


# Turns.


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Another process holds the lock."""
    code = "import sys, filelock; _ = filelock.FileLock(sys.argv[1]).acquire(); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.communicate()


@pytest.mark.parametrize(
    "call",
    [Archive.check, Archive.compact, Archive.rebuild, lambda archive: backup(archive, archive.path.with_name("copy"))],
)
def test_who_finds_another_process_indexing_is_told_to_wait(
    archive: Archive, call: Callable[[Archive], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SECONDS", 0.1)
    with (
        held(archive.folder / ".index-lock"),
        pytest.raises(Unavailable, match=r"another process is building the index.* Wait for it"),
    ):
        call(archive)
    call(archive)


def test_compact_is_told_to_wait_while_keywords_are_indexed(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.search(SearchQuery(text="red", words="red"), ENCODER)
    monkeypatch.setattr(turns, "SECONDS", 0.1)
    with held(archive.folder / ".words.sqlite-lock"), pytest.raises(Unavailable, match="indexing keywords"):
        archive.compact()


def test_adding_leaves_the_index_to_who_is_at_it_and_reembedding_waits(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SECONDS", 0.1)
    with held(archive.folder / ".index-lock"):
        assert archive.add(write_images(tmp_path / "more", 3), ENCODER).added == 3
    with ExitStack() as stack:
        stack.enter_context(held(archive.folder / ".index-lock"))
        threading.Timer(1.0, stack.pop_all().close).start()
    assert reembed(archive, PixelEncoder(seed=1), "pixels-1", SilentProgress()).images == 15


# What may not be written.


@pytest.fixture
def denied(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive may be read only; for root too, which permissions do not stop."""
    opened = os.open

    def refusing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and os.fspath(path).startswith(str(archive.path)):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)


@pytest.mark.usefixtures("denied")
def test_an_archive_that_may_only_be_read_can_be_looked_at(archive: Archive, tmp_path: Path) -> None:
    where = ("--archive", str(archive.path))
    found = foveal("archive", "check", *where, "--no-repair", "--json")
    assert (found.code, found.json["ok"], found.json["images"]) == (0, True, 12)
    assert "--no-repair" in foveal("archive", "check", *where).error
    assert "may write there" in foveal("archive", "backup", *where, "--out", str(tmp_path / "copy")).error
    assert "permissions" in foveal("archive", "compact", *where).error


@pytest.mark.usefixtures("denied")
def test_what_changes_while_it_is_looked_at_is_not_called_damaged(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*args: Any) -> list[str]:
        table = archive.table()
        table.delete([])
        table.delete(archive.some(1))
        return ["changed"]

    monkeypatch.setattr(check, "_index_problems", look)
    with pytest.raises(Unavailable, match="written to meanwhile"):
        archive.check(repair=False)


# SQLite's errors.


@contextmanager
def sqlite_with(pragma: str, monkeypatch: pytest.MonkeyPatch, of: str) -> Iterator[None]:
    """Databases whose path contains `of` are opened with a pragma."""
    connect = sqlite3.connect

    def connected(path: Any, **kwargs: Any) -> sqlite3.Connection:
        database = connect(path, **kwargs)
        if of in str(path):
            database.execute(pragma)
        return database

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connected)
        yield


def test_judgements_on_a_full_disk_or_in_a_locked_or_read_only_file_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Feedback(tmp_path / "feedback.sqlite")
    kept.add([Judgement("red", "1", True)])
    more = [Judgement("red" * 100, str(id), True) for id in range(1000)]
    with sqlite_with("PRAGMA query_only = 1", monkeypatch, "feedback"), pytest.raises(BadInput, match="permissions"):
        kept.add(more)
    with (
        sqlite_with("PRAGMA max_page_count = 4", monkeypatch, "feedback"),
        pytest.raises(FovealError, match="no space"),
    ):
        kept.add(more)
    monkeypatch.setattr(feedback, "WAIT", 0.1)
    other = sqlite3.connect(kept.file)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable, match="another process is writing"):
        kept.add(more)
    other.close()
    with pytest.raises(BadInput, match="permissions"):
        Feedback(tmp_path / "none" / "feedback.sqlite").add(more)
    assert len(kept.read()) == 1
    kept.file.write_bytes(b"no database" * 1000)
    with pytest.raises(IntegrityError, match="backup"):
        kept.add(more)


def test_compact_on_a_full_disk_says_so_and_can_be_called_again(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.search(SearchQuery(text="red", words="red"), ENCODER)
    archive.delete(archive.some(3))
    with sqlite_with("PRAGMA max_page_count = 2", monkeypatch, "words.sqlite"):
        assert "no space left" in foveal("archive", "compact", "--archive", str(archive.path)).error
    archive.compact()
    assert archive.check().ok


@pytest.mark.parametrize("command", ["compact", "duplicates", "backup --out copy", "import x.parquet"])
def test_a_server_is_refused_where_only_a_folder_will_do(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = foveal("archive", *command.split(), "--archive", "milvus://localhost/x").error
    assert "only archives in a folder" in error
    assert not list(tmp_path.iterdir())


def test_a_backup_inside_the_archive_is_refused(archive: Archive) -> None:
    with pytest.raises(BadInput, match="lies in the archive"):
        backup(archive, archive.path / "copy")
