from __future__ import annotations

import threading
from pathlib import Path

from foveal.progress import SilentProgress
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
