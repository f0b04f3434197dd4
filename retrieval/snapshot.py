"""What one search sees: a version of the table, the FAISS segments that cover it, and the rest searched exactly.

Shape letters: N live rows, Q queries, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveal.detections import BoolArray, FloatArray, IntArray
from retrieval.index import VectorIndex
from retrieval.segments import Segment
from retrieval.table import Table


@dataclass(frozen=True, slots=True)
class Part:
    """Some live rows and the index that holds their vectors."""

    index: VectorIndex
    seqs: IntArray  # (P,) ascending, by position
    alive: BoolArray | None  # (P,) positions whose row still exists; None when all do

    def nearest(self, queries: FloatArray, k: int, allowed: IntArray | None) -> tuple[FloatArray, IntArray]:
        """Best k live rows -> similarities and seqs (Q, k); exact when only the `allowed` seqs may be returned."""
        if allowed is None:
            similarity, position = self.index.search(queries, k, self.alive)
        else:
            # A filter that correlates with the vectors (one camera, one class) starves IVF and HNSW: see measurements.
            keep = contained(self.seqs, allowed)
            positions = np.flatnonzero(keep if self.alive is None else keep & self.alive)
            similarity, position = self.index.exact(queries, k, positions)
        return similarity, self.seqs[position]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent view of an archive; never changes once made."""

    table: Table
    signature: tuple[int, ...] | None  # of the segment manifest it was made from
    seqs: IntArray  # (N,) ascending
    rows: IntArray  # (N,) Lance row ids
    parts: tuple[Part, ...]
    tail: int  # rows in no segment yet
    damage: str | None = None  # why the segments could not be used

    @classmethod
    def take(
        cls, table: Table, segments: list[Segment], signature: tuple[int, ...] | None, damage: str | None = None
    ) -> Snapshot:
        """The view of `table` through `segments`; rows in none of them are indexed in memory."""
        seqs, rows = table.keys()
        parts: list[Part] = []
        covered = np.zeros(len(seqs), dtype=bool)
        for segment in segments:
            alive = contained(segment.seqs, seqs)
            covered |= contained(seqs, segment.seqs)
            parts.append(Part(segment.index, segment.seqs, None if alive.all() else alive))
        tail = int((~covered).sum())
        if tail:
            tail_seqs, vectors = table.vectors(rows[~covered])
            parts.append(Part(VectorIndex.flat(vectors.astype(np.float32)), tail_seqs, None))
        return cls(table, signature, seqs, rows, tuple(parts), tail, damage)

    @property
    def dead(self) -> int:
        """Indexed vectors whose row is gone."""
        return sum(0 if part.alive is None else int((~part.alive).sum()) for part in self.parts)

    def nearest(self, queries: FloatArray, k: int, allowed: IntArray | None = None) -> tuple[FloatArray, IntArray]:
        """Best k rows of `queries` (Q, D) -> similarities and seqs (Q, min(k, rows)), best first."""
        found = [part.nearest(queries, k, allowed) for part in self.parts]
        if not found:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        similarity = np.concatenate([pair[0] for pair in found], axis=1)
        seqs = np.concatenate([pair[1] for pair in found], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(seqs, order, axis=1)

    def brute_force(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """The true best k, computed from the table's vectors without any index; shapes as `nearest`."""
        best = np.zeros((len(queries), 0), np.float32)
        best_seqs = np.zeros((len(queries), 0), np.int64)
        for seqs, vectors in self._chunks():
            similarity = np.concatenate([best, queries @ vectors.T], axis=1)
            candidates = np.concatenate([best_seqs, np.broadcast_to(seqs, (len(queries), len(seqs)))], axis=1)
            keep = min(k, similarity.shape[1])
            top = np.argpartition(-similarity, keep - 1, axis=1)[:, :keep]
            best = np.take_along_axis(similarity, top, axis=1)
            best_seqs = np.take_along_axis(candidates, top, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1), np.take_along_axis(best_seqs, order, axis=1)

    def row_ids(self, seqs: IntArray) -> IntArray:
        """Lance row ids of the given live seqs."""
        return self.rows[np.searchsorted(self.seqs, seqs)]

    def _chunks(self, size: int = 32_768) -> Iterator[tuple[IntArray, FloatArray]]:
        for start in range(0, len(self.rows), size):
            seqs, vectors = self.table.vectors(self.rows[start : start + size])
            yield seqs, vectors.astype(np.float32)


def contained(values: IntArray, ascending: IntArray) -> BoolArray:
    """Which of `values` (N,) occur in the sorted `ascending` (M,) -> (N,)."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[place] == values
