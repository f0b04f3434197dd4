"""The derived side of an archive: immutable FAISS segments on disk, swapped in by a manifest.

Shape letters: N vectors of a segment.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from foveal.artifacts import file_hash, write_text
from foveal.detections import FloatArray, IntArray
from foveal.errors import IntegrityError
from retrieval.index import IndexSettings, Tuning, VectorIndex, kind_of

faiss: Any = _faiss

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Segment:
    """A FAISS index and the table rows it was built from."""

    name: str
    seqs: IntArray  # (N,) ascending, the seq of each position
    index: VectorIndex


class SegmentStore:
    """The index folder of an archive. Readers need no lock; writers hold the archive's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[str, Segment] = {}

    def signature(self) -> tuple[int, ...] | None:
        """Changes whenever a manifest is swapped in; None before the first."""
        try:
            status = (self.folder / MANIFEST).stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def entries(self) -> list[dict[str, Any]]:
        """The manifest's segments; IntegrityError when it cannot be read."""
        path = self.folder / MANIFEST
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}")
            return list(data["segments"])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"index manifest {path} cannot be read: {error}", remedy=_REMEDY) from error

    def load(self) -> list[Segment]:
        """Every segment of the current manifest.

        Raises:
            IntegrityError: a segment is missing or unreadable; the archive can still be searched exactly.
        """
        for attempt in range(3):
            try:
                segments = [self._loaded.get(entry["name"]) or self._read(entry) for entry in self.entries()]
            except FileNotFoundError as error:
                if attempt == 2:
                    raise IntegrityError(f"index segment {error.filename} is missing", remedy=_REMEDY) from error
                continue  # a writer swapped the manifest between our reading it and the segment
            self._loaded = {segment.name: segment for segment in segments}
            return segments
        raise AssertionError("unreachable")

    def replace(self, seqs: IntArray, vectors: FloatArray, settings: IndexSettings) -> None:
        """Builds one segment of `vectors` (N, D) and makes it the whole index, atomically."""
        self.folder.mkdir(exist_ok=True)
        name = f"segment-{uuid.uuid4().hex[:12]}"
        built = VectorIndex.build(vectors, settings)
        files = {f"{name}.faiss": self.folder / f"{name}.faiss", f"{name}.npy": self.folder / f"{name}.npy"}
        try:
            faiss.write_index(built.index, str(files[f"{name}.faiss"]))
            np.save(files[f"{name}.npy"], seqs, allow_pickle=False)
            for path in files.values():
                _fsync(path)
            entry = {
                "name": name,
                "kind": built.kind,
                "count": len(seqs),
                "tuning": None if built.tuning is None else built.tuning.as_json(),
                "sha256": {file: file_hash(path) for file, path in files.items()},
            }
            write_text(self.folder / MANIFEST, json.dumps({"format": FORMAT, "segments": [entry]}, indent=1))
        except BaseException as error:
            for path in self.folder.glob(f"*{name}*"):
                path.unlink(missing_ok=True)
            if isinstance(error, RuntimeError):  # how faiss reports a full disk
                raise OSError(f"cannot write index segment under {self.folder}: {error}") from error
            raise
        self.sweep()

    def sweep(self) -> list[str]:
        """Removes files that no manifest names, as a killed writer leaves them; returns their names."""
        if not self.folder.is_dir():
            return []
        named = {file for entry in self.entries() for file in entry["sha256"]}
        stray = [path for path in self.folder.glob("segment-*") if path.name not in named]
        for path in stray:
            path.unlink(missing_ok=True)
        return sorted(path.name for path in stray)

    def clear(self) -> None:
        """Forgets the whole index; searches are exact until the next `replace`."""
        self._loaded = {}
        for path in [self.folder / MANIFEST, *self.folder.glob("segment-*")]:
            path.unlink(missing_ok=True)

    def damage(self) -> list[str]:
        """What is wrong with the files on disk, comparing every hash."""
        try:
            entries = self.entries()
        except IntegrityError as error:
            return [error.message]
        problems: list[str] = []
        for entry in entries:
            for file, expected in entry["sha256"].items():
                path = self.folder / file
                if not path.is_file():
                    problems.append(f"index file {path} is missing")
                elif file_hash(path) != expected:
                    problems.append(f"index file {path} has changed since it was written")
        return problems

    def _read(self, entry: dict[str, Any]) -> Segment:
        name = entry["name"]
        path = self.folder / f"{name}.faiss"
        path.stat()  # FileNotFoundError, where faiss would raise a RuntimeError
        try:
            seqs = np.load(self.folder / f"{name}.npy", allow_pickle=False)
            index = faiss.read_index(str(path))
            if not len(seqs) == index.ntotal == entry["count"]:
                raise ValueError(f"{index.ntotal} vectors, {len(seqs)} rows, {entry['count']} promised")
        except (RuntimeError, ValueError, EOFError) as error:
            raise IntegrityError(f"index segment {path} cannot be read: {error}", remedy=_REMEDY) from error
        tuning = None if entry["tuning"] is None else Tuning.from_json(entry["tuning"])
        return Segment(name, seqs.astype(np.int64), VectorIndex(index, kind_of(index), tuning))


_REMEDY = "Run `foveal archive check` to rebuild the index."


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
