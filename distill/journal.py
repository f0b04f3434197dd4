"""An append-only JSONL journal: a killed job continues after the last whole line it wrote.

The first line names the job; a journal of another job is refused rather than continued.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from foveal.errors import BadInput

Record = dict[str, Any]


class Journal:
    """Records of finished work in the order it was done; `done` counts those already on disk."""

    def __init__(self, path: Path, job: str) -> None:
        """Open or create the journal of the job with fingerprint `job`.

        Raises:
            BadInput: the file belongs to another job.
        """
        self.path, self.done = path, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab+")
        end = 0
        self._stream.seek(0)
        for line in self._stream:
            if not line.endswith(b"\n"):
                break  # cut off by a kill
            if end == 0 and json.loads(line).get("job") != job:
                self._stream.close()
                raise BadInput(
                    f"{path} is the journal of another job",
                    expected=f"job {job[:12]}",
                    remedy=f"Remove {path.parent} to start over, or give back the settings it was started with.",
                )
            self.done += end > 0
            end += len(line)
        self._stream.truncate(end)
        if end == 0:
            self._append([{"job": job}])

    def append(self, records: Sequence[Record]) -> None:
        """Add records; when this returns they are on the disk, all of them or (after a kill) a whole number."""
        self._append(records)
        self.done += len(records)

    def _append(self, records: Sequence[Record]) -> None:
        lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
        self._stream.write(lines.encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def __iter__(self) -> Iterator[Record]:
        return read(self.path)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> Iterator[Record]:
    """The records of a journal, one at a time, without its first line."""
    with path.open("rb") as stream:
        next(stream, None)
        for line in stream:
            if line.endswith(b"\n"):
                yield json.loads(line)


def pick(path: Path, order: Sequence[int]) -> Iterator[Record]:
    """The records numbered `order`, in that order, one at a time."""
    starts: list[int] = []
    with path.open("rb") as stream:
        position = len(stream.readline())
        for line in stream:
            starts.append(position)
            position += len(line)
        for number in order:
            stream.seek(starts[number])
            yield json.loads(stream.readline())
