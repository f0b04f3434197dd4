"""What the files of a table held when they were written, so that a flipped bit is noticed and its file named.

Lance never changes a file once written, and keeps no checksum of it. The sums are lines of JSON beside the table, added
with each commit for the files that it made, and for no others: a file whose sum was lost, or whose writer was killed
before it came to that, is told by `check`, which looks at its rows before it gives it one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from foveal.artifacts import file_hash, write_text
from retrieval import json_files

FILE = "checksums.jsonl"
LINE_BYTES = 150  # of one sum, at least
MANY, FEW = 3, 100  # times as many lines as files, and lines besides, before gone files are forgotten
HINT = "latest_version_hint.json"  # the one file Lance writes again, and does without


class Checksums:
    """The sums of every file of the table at `table`."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.path = table.parent / FILE

    @contextmanager
    def recording(self) -> Generator[None]:
        """Records the files that are made meanwhile."""
        before = self._present()
        yield
        self.record(self._present() - before)

    def record(self, names: Collection[str]) -> None:
        """Adds the sums of files that are right as they are."""
        added = {name: file_hash(self.table / name) for name in sorted(names)}
        if added:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(_lines(added))
                stream.flush()
                os.fsync(stream.fileno())

    def tidy(self) -> None:
        """Forgets the files that are gone once there are several times as many lines as files."""
        present = self._present()
        if not self.path.is_file() or self.path.stat().st_size < LINE_BYTES * (MANY * len(present) + FEW):
            return
        known, damaged = self._read()
        if not damaged:
            self._write(known, present)

    def mend(self, names: Collection[str]) -> None:
        """Rewrites the list without what is damaged in it or gone, and with the sums of `names`."""
        self._write(self._read()[0], self._present())
        self.record(names)

    def changed(self) -> list[str]:
        """Which files differ from what was written."""
        known, _ = self._read()
        present = sorted(self._present() & known.keys())
        changed = [name for name in present if file_hash(self.table / name) != known[name]]
        return [f"table file {self.table / name} has changed since it was written" for name in changed]

    def unknown(self) -> list[str]:
        """Names of the files without a sum, in order."""
        return sorted(self._present() - self._read()[0].keys())

    def damaged(self) -> list[str]:
        """Which lines of the list say nothing that can be relied on."""
        return [f"line {number} of {self.path} is damaged or was cut off" for number in self._read()[1]]

    def _write(self, known: Mapping[str, str], present: Iterable[str]) -> None:
        write_text(self.path, _lines({name: known[name] for name in sorted(known.keys() & set(present))}))

    def _present(self) -> set[str]:
        """Names relative to the table; asked for with every commit, and there may be thousands."""
        found: set[str] = set()
        folders = [""] if self.table.is_dir() else []
        while folders:
            folder = folders.pop()
            with os.scandir(self.table / folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append(f"{folder}{entry.name}/")
                    elif entry.name != HINT:
                        found.add(f"{folder}{entry.name}")
        return found

    def _read(self) -> tuple[dict[str, str], list[int]]:
        """File -> sum, and the numbers, from 1, of the lines that are damaged."""
        known: dict[str, str] = {}
        damaged: list[int] = []
        if not self.path.is_file():
            return known, damaged
        for number, line in enumerate(self.path.read_text("utf-8", errors="replace").split("\n"), 1):
            if not line:
                continue
            try:
                name, digest = _pair(line)
            except (ValueError, LookupError):
                damaged.append(number)
            else:
                known[name] = digest
        return known, damaged


def _pair(line: str) -> tuple[str, str]:
    if line.startswith("["):  # as an earlier Foveal wrote them
        name, digest = json.loads(line)
        return str(name), str(digest)
    record = json_files.parse(line)
    return str(record["file"]), str(record["sha256"])


def _lines(sums: Mapping[str, str]) -> str:
    """Each begins with a line break, so that a line cut off before it spoils nothing."""
    return "".join("\n" + json_files.line({"file": name, "sha256": digest}) for name, digest in sums.items())
