"""Following a folder as images come, change and go."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retrieval.sources_local import list_folder

Listed = dict[str, str | None]  # path -> stamp


@dataclass(frozen=True, slots=True)
class Changes:
    """What has happened in a folder; absolute paths in order."""

    changed: tuple[Path, ...]  # new or written again, and complete
    removed: tuple[Path, ...]


def watch(folder: Path | str, seconds: float, stop: threading.Event) -> Iterator[Changes]:
    """What is below `folder`, then what happens there, looked at every `seconds` until `stop` is set.

    It compares listings, because nothing else works on network drives, in containers and on every system alike. A file
    counts once its size and time are the same in two listings, so that none is taken while it is being written. Folders
    that cannot be listed, the whole one included, count as they were: a drive that drops out removes nothing.
    """
    root = os.path.abspath(folder)
    known, before = Listed(), Listed()
    while not stop.is_set():
        now = _list(root, known)
        changed = [
            path for path, stamp in now.items() if before.get(path, "") == stamp and known.get(path, "") != stamp
        ]
        removed = [path for path in known if path not in now]
        if changed or removed:
            yield Changes(tuple(map(Path, sorted(changed))), tuple(map(Path, sorted(removed))))
            known = {path: stamp for path, stamp in known.items() if path in now} | {
                path: now[path] for path in changed
            }
        before = now
        stop.wait(seconds)


def _list(root: str, known: Listed) -> Listed:
    """What lies below `root`, and what was `known` below folders that cannot be listed."""
    listing = list_folder(root)
    now = dict(listing.images)
    for denied, _ in listing.denied:
        now |= {path: stamp for path, stamp in known.items() if path.startswith(denied.rstrip(os.sep) + os.sep)}
    return now
