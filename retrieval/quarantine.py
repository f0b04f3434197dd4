"""The files an archive could not take, and why; kept beside it as JSON lines that are only ever appended."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from foveal.artifacts import write_text
from retrieval import json_files
from retrieval.ingest import Rejected

WASTE = 1000  # lines that say nothing any more, beside as many as do, before the file is rewritten


class Quarantine:
    """`quarantine.jsonl`: of the lines about a file the last one holds; one with `removed` says that it has left.

    Writers take turns, by the archive's lock; anyone may read at any time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Rejected] = {}
        self._lines = 0
        self._damaged: list[int] = []  # numbers of lines, from 1
        self._signature: tuple[int, int, int] | None = None  # of the file as `_entries` has it
        self._lock = threading.Lock()

    def read(self) -> list[Rejected]:
        """Every file in quarantine; a line that is damaged, or cut off by a crash, is passed over: `damage` tells."""
        with self._lock:
            self._refresh()
            return list(self._entries.values())

    def damage(self) -> list[str]:
        """Which lines say nothing that can be relied on; `compact` removes them."""
        with self._lock:
            self._signature = None  # read again: a flipped bit changes neither size nor time
            self._refresh()
            return [f"line {number} of {self.path} is damaged or was cut off" for number in self._damaged]

    def update(self, rejected: Iterable[Rejected], seen: Iterable[str]) -> None:
        """Replaces what is known about the files `seen` (URIs) by `rejected`; untouched when nothing changes.

        Durable when it returns. It costs as much as there is to change, however long the list.
        """
        with self._lock:
            self._refresh()
            now = {entry.uri: entry for entry in rejected}
            left = [uri for uri in seen if uri in self._entries and uri not in now]
            come = [entry for uri, entry in now.items() if self._entries.get(uri) != entry]
            if not left and not come:
                return
            for uri in left:
                del self._entries[uri]
            self._entries |= now
            self._lines += len(left) + len(come)
            if self._lines > 2 * len(self._entries) + WASTE:
                self._rewrite()
            else:
                self._append("".join([*(_line(uri) for uri in left), *map(_line, come)]).encode())
            self._signature = _signature(self.path)

    def compact(self) -> None:
        """Leaves nothing in the file of what is in quarantine no more."""
        with self._lock:
            self._refresh()
            if self._lines > len(self._entries):
                self._rewrite()
                self._signature = _signature(self.path)

    def _rewrite(self) -> None:
        write_text(self.path, "".join(map(_line, self._entries.values())))
        self._lines, self._damaged = len(self._entries), []

    def _refresh(self) -> None:
        signature = _signature(self.path)
        if signature is not None and signature == self._signature:
            return
        self._entries, self._lines, self._damaged, self._signature = {}, 0, [], signature
        if signature is None:
            return
        with self.path.open(encoding="ascii", errors="replace") as stream:
            for line in stream:
                self._lines += 1
                try:
                    record = json_files.parse(line)
                    uri = str(record["uri"])
                    if record.get("removed"):
                        self._entries.pop(uri, None)
                    else:
                        self._entries[uri] = Rejected(uri, str(record["reason"]))
                except (ValueError, LookupError):
                    self._damaged.append(self._lines)

    def _append(self, data: bytes) -> None:
        with self.path.open("ab+") as stream:
            end = stream.seek(0, os.SEEK_END)
            if end:
                stream.seek(end - 1)
                data = data if stream.read(1) == b"\n" else b"\n" + data  # behind a line that a crash cut off
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())


def _line(entry: Rejected | str) -> str:
    """One line of ASCII: that a file is in quarantine, or by its URI alone that it has left."""
    record = {"uri": entry, "removed": True} if isinstance(entry, str) else {"uri": entry.uri, "reason": entry.reason}
    return json_files.line(record) + "\n"


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
