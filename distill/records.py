"""The records of a labelling job, one an image: in chunks while it runs, in one JSONL file when it is done.

A chunk is a fixed run of images in the source's order. Its file appears whole or not at all, so what is there is done,
whoever made it and however the job ended.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from foveal.artifacts import write_text
from foveal.errors import BadInput

Record = dict[str, Any]
CHUNK = 32  # images


class Chunks:
    """The chunks of one job over `images` images, in a folder that one process at a time may hold.

    Raises:
        BadInput: the folder belongs to another job, or another process is at work in it.
    """

    def __init__(self, folder: Path, job: str, images: int) -> None:
        self.folder, self.job, self.images = folder, job, images
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise BadInput(
                f"another process is labelling into {folder}", remedy="Wait for it, or choose another --out."
            ) from error
        named = folder / "job"
        if named.is_file() and named.read_text() != job:
            known = named.read_text()
            self._lock.close()
            raise BadInput(
                f"{folder} holds the chunks of another job",
                expected=f"job {job[:12]}",
                received=f"job {known[:12]}",
                remedy=f"Remove {folder} to start over, or give back the settings it was started with.",
            )
        write_text(named, job)

    def rows(self, chunk: int) -> range:
        """The images of a chunk, by their place in the source."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.images))

    @property
    def missing(self) -> list[int]:
        """Chunks not done yet, in order."""
        return [k for k in range(-(-self.images // CHUNK)) if not self._path(k).is_file()]

    def write(self, chunk: int, records: Sequence[Record]) -> None:
        """Add a chunk; when this returns, it is on the disk."""
        write_text(self._path(chunk), "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))

    def join(self, path: Path) -> RecordFile:
        """All chunks, in order, as one file."""
        with path.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps({"job": self.job}) + "\n")
            for chunk in range(-(-self.images // CHUNK)):
                with self._path(chunk).open(encoding="utf-8") as part:
                    stream.writelines(part)
        return RecordFile(path)

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:07d}.jsonl"

    def __enter__(self) -> Chunks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()


class RecordFile:
    """A finished job's records; any number of passes, one record in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as stream:
            next(stream, None)  # names the job
            for line in stream:
                yield json.loads(line)

    def pick(self, order: Sequence[int]) -> Iterator[Record]:
        """The records numbered `order`, in that order."""
        starts: list[int] = []
        with self.path.open("rb") as stream:
            position = len(stream.readline())
            for line in stream:
                starts.append(position)
                position += len(line)
            for number in order:
                stream.seek(starts[number])
                yield json.loads(stream.readline())
