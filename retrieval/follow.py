"""An archive that keeps up with a folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from foveal.errors import Unavailable
from foveal.models import Encoder
from foveal.progress import Progress
from retrieval.adding import AddReport
from retrieval.archive import Archive
from retrieval.ingest import Embedding, embed, identity
from retrieval.sources import Sources
from retrieval.sources_item import local_uri
from retrieval.sources_local import Folder
from retrieval.watch import watch

T = TypeVar("T")


def follow(
    archive: Archive,
    folder: Path,
    encoder: Encoder,
    seconds: float,
    stop: threading.Event,
    progress: Progress,
    through: Embedding = embed,
) -> Iterator[AddReport]:
    """Adds what comes to `folder` and removes what goes, looked for every `seconds`, until `stop` is set.

    What happened while nobody followed is caught up with first, removals included. While another process writes to the
    archive it is tried again every `seconds`, and `progress` told once. Raises as `Archive.add` otherwise.
    """

    def add(changed: Sequence[Path] | None) -> AddReport:
        if changed is None:
            return archive.add(folder, encoder, progress, sync=True, through=through)
        return archive.add(Sources([Folder(folder, only=changed)]), encoder, progress, through=through)

    caught_up = False
    for changes in watch(folder, seconds, stop):
        report: AddReport | None = AddReport()
        if changes.changed:
            report = _insisting(partial(add, changes.changed if caught_up else None), seconds, stop, progress)
        if report is None:
            return
        caught_up = True
        if changes.removed:
            gone = [identity(local_uri(path)) for path in changes.removed]
            report.removed += _insisting(partial(archive.delete, gone), seconds, stop, progress) or 0
        yield report


def _insisting(work: Callable[[], T], seconds: float, stop: threading.Event, progress: Progress) -> T | None:
    """What `work` returns once nothing keeps it from being done; None when `stop` is set while it waits."""
    told = False
    while True:
        try:
            return work()
        except Unavailable as error:
            if not told:
                progress.note(f"{error.message}; trying again every {seconds:g} s until that is over")
            told = True
        if stop.wait(seconds):
            return None
