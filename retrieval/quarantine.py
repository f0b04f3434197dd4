"""The files an archive could not take, and why; kept beside it as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from foveal.artifacts import write_text
from retrieval.ingest import Rejected


class Quarantine:
    """`quarantine.jsonl`: one line a file; a file leaves it when it is added after all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Rejected]:
        """Every file in quarantine; a line cut off by a crash is passed over."""
        if not self.path.is_file():
            return []
        entries: list[Rejected] = []
        for line in self.path.read_text("utf-8", "surrogateescape").splitlines():
            try:
                entries.append(Rejected(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return entries

    def update(self, rejected: Iterable[Rejected], seen: Iterable[str]) -> None:
        """Replaces what is known about the files `seen` (URIs) by `rejected`; untouched when nothing changes."""
        before = {entry.uri: entry for entry in self.read()}
        after = {uri: entry for uri, entry in before.items() if uri not in set(seen)}
        after |= {entry.uri: entry for entry in rejected}
        if after != before:
            write_text(self.path, "".join(json.dumps(asdict(entry)) + "\n" for entry in after.values()))
