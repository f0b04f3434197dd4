"""What the files of a table held when they were written, so that a flipped bit is noticed and its file named.

Lance never changes a file once written, and keeps no checksum of it. The sums are lines of JSON beside the table; a
line that a crash cut off is passed over, and the file it was for is recorded with the next commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from foveal.artifacts import file_hash, write_text

FILE = "checksums.jsonl"
HINT = "latest_version_hint.json"  # the one file Lance writes again, and does without


class Checksums:
    """The sums of every file of the table at `table`."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.path = table.parent / FILE

    def record(self) -> None:
        """Adds the files that are new, and forgets those that are gone once they outnumber the rest."""
        known, present = self._read(), self._present()
        added = {name: file_hash(self.table / name) for name in sorted(present - known.keys())}
        if len(known.keys() - present) > len(present):
            kept = {name: known[name] for name in sorted(known.keys() & present)} | added
            write_text(self.path, _lines(kept))
        elif added:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(_lines(added))
                stream.flush()
                os.fsync(stream.fileno())

    def damage(self) -> list[str]:
        """Which files differ from what was written."""
        known = self._read()
        present = sorted(self._present() & known.keys())
        changed = [name for name in present if file_hash(self.table / name) != known[name]]
        return [f"table file {self.table / name} has changed since it was written" for name in changed]

    def _present(self) -> set[str]:
        return {
            os.path.relpath(os.path.join(root, name), self.table)
            for root, _, files in os.walk(self.table)
            for name in files
            if name != HINT
        }

    def _read(self) -> dict[str, str]:
        known: dict[str, str] = {}
        if not self.path.is_file():
            return known
        for line in self.path.read_text("utf-8").splitlines():
            try:
                name, digest = json.loads(line)
            except ValueError:
                continue
            known[name] = digest
        return known


def _lines(sums: dict[str, str]) -> str:
    """Each begins with a line break, so that a line cut off before it spoils nothing."""
    return "".join("\n" + json.dumps(pair) for pair in sums.items())
