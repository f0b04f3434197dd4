from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from foveal.errors import BadInput
from foveal.progress import RichProgress, SilentProgress
from retrieval.archive import Archive
from retrieval.follow import follow
from retrieval.query import SearchQuery
from tests.retrieval.pixels import PixelEncoder, write_images

ENCODER = PixelEncoder()


def test_an_archive_keeps_up_with_a_folder_and_catches_up_first(tmp_path: Path) -> None:
    images = write_images(tmp_path / "world" / "images", 6)
    archive = Archive.create(tmp_path / "archive", ENCODER)
    archive.add(images[0].parent, ENCODER)
    images[0].unlink()  # while nobody followed
    bad = images[0].with_name("bad.png")
    bad.write_bytes(b"no image")
    stop = threading.Event()
    reports = follow(archive, images[0].parent, ENCODER, 0.05, stop, SilentProgress())
    first = next(reports)
    assert (first.added, first.unchanged, first.removed) == (0, 5, 1)
    late = images[0].with_name("late.png")
    images[1].rename(late)
    assert [uri for uri, _ in archive.quarantined()] == [str(bad)]
    bad.unlink()
    added = removed = 0
    for report in reports:
        added, removed = added + report.added, removed + report.removed
        if added and removed:
            stop.set()
    assert (added, removed) == (1, 1)
    assert archive.quarantined() == []
    found = {hit.uri for hit in archive.search(SearchQuery(text="red", k=20), ENCODER)}
    assert found == {str(file) for file in (late, *images[2:])}


HOLD = "import sys, time; from filelock import FileLock\nwith FileLock(sys.argv[1]): print(flush=True), time.sleep(60)"


@contextmanager
def another_writer(archive: Archive) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the writer's lock until it is terminated."""
    words = [sys.executable, "-c", HOLD, str(archive.path / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.terminate()


def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Archive, list[Path]]:
    """An archive whose writers wait 50 ms for each other, and four images beside it."""
    monkeypatch.setattr("retrieval.turns.SECONDS", 0.05)
    return Archive.create(tmp_path / "archive", ENCODER), write_images(tmp_path / "world" / "images", 4)


def test_it_waits_for_another_writer_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, images = followed(tmp_path, monkeypatch)
    said, stop = io.StringIO(), threading.Event()
    progress = RichProgress(Console(file=said))
    reports = follow(archive, images[0].parent, ENCODER, 0.05, stop, progress)
    for expected in ((4, 0), (0, 1)):  # what comes, then what goes
        said.truncate(0)
        with another_writer(archive) as other:
            threading.Timer(0.6, other.terminate).start()
            report = next(reports)
        assert (report.added, report.removed) == expected
        assert said.getvalue().count("another process is writing") == 1
        images[0].unlink(missing_ok=True)
    stop.set()
    assert list(reports) == []


def test_it_ends_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, images = followed(tmp_path, monkeypatch)
    stop = threading.Event()
    with another_writer(archive):
        threading.Timer(0.3, stop.set).start()
        assert list(follow(archive, images[0].parent, ENCODER, 0.05, stop, SilentProgress())) == []
    assert len(archive) == 0


def test_what_waiting_does_not_mend_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, images = followed(tmp_path, monkeypatch)

    def denied(*_: object, **__: object) -> None:
        raise BadInput("the archive cannot be written")

    monkeypatch.setattr(Archive, "add", denied)
    with pytest.raises(BadInput, match="cannot be written"):
        next(follow(archive, images[0].parent, ENCODER, 0.05, threading.Event(), SilentProgress()))
