"""The derived side of an archive: immutable FAISS segments on disk, swapped in by a manifest.

A segment is two files: the FAISS index, and an Arrow file with the seq of each of its vectors and what a search tells
of it, so that a search needs nothing else. Both are mapped into memory. The segments of a manifest follow each other
by seq.

Shape letters: N vectors of a segment.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss as _faiss
import pyarrow as _pyarrow  # pyright: ignore[reportMissingTypeStubs]

from foveal.artifacts import file_hash
from foveal.detections import IntArray
from foveal.errors import IntegrityError
from retrieval import json_files
from retrieval.gpu import Gpu
from retrieval.index import VectorIndex, Vectors
from retrieval.table import Table
from retrieval.told import COLUMNS, Told
from retrieval.tuning import Tuning

faiss: Any = _faiss
pa: Any = _pyarrow

FORMAT = 2
MANIFEST = "manifest.json"
APPROXIMATE_FROM = 4096  # rows of a segment; fewer are searched exactly at no cost worth saving
PIECE = 65_536  # rows read from the table at a time


@dataclass(frozen=True, slots=True)
class Segment:
    """A FAISS index and what a search tells of the table rows it was built from."""

    name: str
    seqs: IntArray  # (N,) ascending, the seq of each position
    told: Told  # N
    index: VectorIndex


class SegmentStore:
    """The index folder of an archive. Readers need no lock; whoever builds holds the index lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gpu: Gpu | None = None  # that holds the vectors of segments loaded from now on
        self._loaded: dict[str, Segment] = {}

    def entries(self) -> list[dict[str, Any]]:
        """The manifest's segments; IntegrityError when it cannot be read."""
        path = self.folder / MANIFEST
        try:
            data = json_files.read(path, remedy=_REMEDY)
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
                entries = self.entries()
                self._release({entry["name"] for entry in entries})
                segments = [self._loaded.get(entry["name"]) or self._read(entry) for entry in entries]
            except FileNotFoundError as error:
                if attempt == 2:
                    raise IntegrityError(f"index segment {error.filename} is missing", remedy=_REMEDY) from error
                continue  # a writer swapped the manifest between our reading it and the segment
            self._loaded = {segment.name: segment for segment in segments}
            return segments
        raise AssertionError("unreachable")

    def build(
        self, table: Table, seqs: IntArray, rows: IntArray, after: int, recall_target: float, kinds: Sequence[str]
    ) -> None:
        """Swaps in one new segment for every segment from the `after`-th on, atomically.

        It holds the rows given by seq (N,) ascending and Lance row id (N,); none at all when there are none.

        Args:
            kinds: of approximate index, in the order to try them; none: an exact one.
        """
        self.folder.mkdir(exist_ok=True)
        kept = self.entries()[:after] if after else []
        if not len(rows):
            self._swap(kept)
            return
        vectors = Vectors(len(rows), table.dimension, lambda at: table.vectors(rows[at]))
        exact = not kinds or len(rows) < APPROXIMATE_FROM
        built = VectorIndex.flat(vectors) if exact else VectorIndex.build(vectors, recall_target, kinds)
        name = f"segment-{uuid.uuid4().hex[:12]}"
        files = {f"{name}.faiss": self.folder / f"{name}.faiss", f"{name}.arrow": self.folder / f"{name}.arrow"}
        try:
            faiss.write_index(built.index, str(files[f"{name}.faiss"]))
            _write_told(files[f"{name}.arrow"], table, seqs, rows)
            for path in files.values():
                _fsync(path)
            entry = {
                "name": name,
                "kind": built.kind,
                "count": len(seqs),
                "tuning": None if built.tuning is None else built.tuning.as_json(),
                "sha256": {file: file_hash(path) for file, path in files.items()},
            }
            self._swap([*kept, entry])
        except BaseException as error:
            for path in self.folder.glob(f"*{name}*"):
                path.unlink(missing_ok=True)
            if isinstance(error, RuntimeError):  # how faiss reports a full disk
                raise OSError(f"cannot write index segment under {self.folder}: {error}") from error
            raise

    def _swap(self, entries: list[dict[str, Any]]) -> None:
        json_files.write(self.folder / MANIFEST, {"format": FORMAT, "segments": entries})
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

    def _release(self, kept: set[str]) -> None:
        """Makes room on the GPU for what follows segments that others may still be searching."""
        for name, segment in self._loaded.items():
            if name not in kept and segment.index.gpu is not None:
                segment.index.gpu.release()

    def _read(self, entry: dict[str, Any]) -> Segment:
        name = entry["name"]
        path = self.folder / f"{name}.faiss"
        path.stat()  # FileNotFoundError, where faiss would raise a RuntimeError
        try:
            with pa.ipc.open_file(pa.memory_map(str(self.folder / f"{name}.arrow"))) as reader:
                batch = reader.get_batch(0)
            seqs = batch["seq"].to_numpy()
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            if not len(seqs) == index.ntotal == entry["count"]:
                raise ValueError(f"{index.ntotal} vectors, {len(seqs)} rows, {entry['count']} promised")
        except (RuntimeError, ValueError, EOFError) as error:
            raise IntegrityError(f"index segment {path} cannot be read: {error}", remedy=_REMEDY) from error
        tuning = None if entry["tuning"] is None else Tuning.from_json(entry["tuning"])
        found = VectorIndex(index, entry["kind"], tuning)
        if self.gpu is not None and tuning is not None:
            found = replace(found, gpu=self.gpu.hold(found.store))
        return Segment(name, seqs, Told(batch["told"]), found)


_REMEDY = "Run `foveal archive check` to rebuild the index."


def _write_told(path: Path, table: Table, seqs: IntArray, rows: IntArray) -> None:
    """One record batch, so that a row is found without looking for its piece."""
    pieces = [Told.of(table.take(rows[start : start + PIECE], COLUMNS)).array for start in range(0, len(rows), PIECE)]
    batch = pa.record_batch({"seq": pa.array(seqs), "told": pa.concat_arrays(pieces)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
