"""An archive that keeps up with a folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from foveal.models import Encoder
from foveal.progress import Progress
from retrieval.adding import AddReport
from retrieval.archive import Archive
from retrieval.ingest import Embedding, embed, identity
from retrieval.sources import Sources
from retrieval.sources_item import local_uri
from retrieval.sources_local import Folder
from retrieval.watch import watch


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

    What happened while nobody followed is caught up with first, removals included. Raises as `Archive.add`.
    """
    caught_up = False
    for changes in watch(folder, seconds, stop):
        report = AddReport()
        if not caught_up:
            if changes.changed:
                report = archive.add(folder, encoder, progress, sync=True, through=through)
            caught_up = True
        elif changes.changed:
            report = archive.add(Sources([Folder(folder, only=changes.changed)]), encoder, progress, through=through)
        if changes.removed:
            report.removed += archive.delete([identity(local_uri(path)) for path in changes.removed])
        yield report
