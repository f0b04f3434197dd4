"""What one search sees: a version of the table, the FAISS segments that cover it, and the rest searched exactly.

Shape letters: N live rows, P rows of a part, Q queries, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveal.detections import FloatArray, IntArray
from retrieval.index import Subset, VectorIndex, Vectors, contained
from retrieval.segments import Segment
from retrieval.table import Table
from retrieval.told import COLUMNS, Told

SETTLED_NS = 50_000_000  # file times younger than this may still stand for a second commit in the same clock tick


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows, the index that holds their vectors, and what a hit tells of them."""

    index: VectorIndex
    seqs: IntArray  # (P,) ascending, by position
    told: Told  # P
    alive: Subset | None  # positions whose row still exists; None when all do

    @classmethod
    def of(cls, segment: Segment, live: IntArray) -> Part:
        """The part of `segment` whose rows are among the ascending seqs `live`."""
        if np.array_equal(live, segment.seqs):
            return cls(segment.index, segment.seqs, segment.told, None)
        positions = np.flatnonzero(contained(segment.seqs, live))
        return cls(segment.index, segment.seqs, segment.told, segment.index.subset(positions, gather=False))

    def __len__(self) -> int:
        return len(self.seqs) if self.alive is None else len(self.alive)

    def living(self) -> IntArray:
        """Positions of the live rows, ascending."""
        return np.arange(len(self.seqs)) if self.alive is None else self.alive.positions


@dataclass(frozen=True, slots=True)
class Found:
    """The best rows for each query; of fewer than k rows, all of them."""

    similarity: FloatArray  # (Q, k) best first
    part: IntArray  # (Q, k) index into the snapshot's parts
    position: IntArray  # (Q, k) within that part


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent view of an archive; never changes once made."""

    table: Table
    signature: tuple[int, ...]  # of the files it was made from
    settled: bool  # whether those files' times can be trusted to change with the next commit
    seqs: IntArray  # (N,) ascending
    rows: IntArray = field(repr=False)  # (N,) Lance row ids
    parts: tuple[Part, ...] = ()  # ascending by seq; the last is the tail when there is one
    tail: int = 0  # rows in no segment yet
    damage: str | None = None  # why a segment could not be used

    @classmethod
    def take(
        cls,
        table: Table,
        segments: Sequence[Segment],
        signature: tuple[int, ...],
        previous: Snapshot | None,
        damage: str | None = None,
    ) -> Snapshot:
        """The view of `table` through `segments`; rows in none of them are indexed in memory."""
        settled = time.time_ns() - signature[0] > SETTLED_NS  # before the table was read, not after
        seqs, rows = table.keys()
        parts: list[Part] = []
        loose = np.ones(len(seqs), dtype=bool)
        for segment in segments:
            first, last = np.searchsorted(seqs, segment.seqs[0]), np.searchsorted(seqs, segment.seqs[-1], side="right")
            part = Part.of(segment, seqs[first:last])
            if len(part) != last - first:
                damage = f"index segment {segment.name} lacks rows of the table"
                continue
            parts.append(part)
            loose[first:last] = False
        tail = int(loose.sum())
        if tail:
            parts.append(_tail(table, seqs[loose], rows[loose], previous))
        return cls(table, signature, settled, seqs, rows, tuple(parts), tail, damage)

    def settles(self) -> bool:
        """Whether the files' times are old enough by now to be trusted."""
        return time.time_ns() - self.signature[0] > SETTLED_NS

    @property
    def dead(self) -> int:
        """Indexed vectors whose row is gone."""
        return sum(len(part.seqs) - len(part) for part in self.parts)

    def select(self, seqs: IntArray) -> tuple[Subset, ...]:
        """The live rows with the given ascending seqs, a subset for each part."""
        chosen: list[Subset] = []
        for part in self.parts:
            positions = np.searchsorted(part.seqs, seqs)
            here = contained(seqs, part.seqs)
            chosen.append(part.index.subset(positions[here], gather=True))
        return tuple(chosen)

    def tuned(self, chosen: Sequence[Subset]) -> tuple[Subset, ...]:
        """What `select` gave, with what `VectorIndex.tuned` measures."""
        return tuple(part.index.tuned(among) for part, among in zip(self.parts, chosen, strict=True))

    def nearest(self, queries: FloatArray, k: int, allowed: Sequence[Subset] | None = None) -> Found:
        """Best k rows of `queries` (Q, D) among the `allowed`, which are searched exactly unless they say how else.

        A filter that goes with the vectors (one camera, one class) starves IVF and HNSW: see docs/decisions/0004.
        """
        if allowed is None:
            found = [part.index.search(queries, k, part.alive) for part in self.parts]
        else:
            found = [
                part.index.exact(queries, k, among) if among.point is None else part.index.search(queries, k, among)
                for part, among in zip(self.parts, allowed, strict=True)
            ]
        if len(found) == 1:
            return Found(found[0][0], np.zeros(found[0][1].shape, np.int64), found[0][1])
        if not found:
            nothing = np.zeros((len(queries), 0), np.int64)
            return Found(nothing.astype(np.float32), nothing, nothing)
        similarity = np.concatenate([pair[0] for pair in found], axis=1)
        position = np.concatenate([pair[1] for pair in found], axis=1)
        part = np.repeat(np.arange(len(found)), [pair[1].shape[1] for pair in found])[None].repeat(len(queries), axis=0)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        part, position = np.take_along_axis(part, order, axis=1), np.take_along_axis(position, order, axis=1)
        return Found(np.take_along_axis(similarity, order, axis=1), part, position)

    def told(self, found: Found) -> list[Any]:
        """[id, URI, metadata] of each row found, query after query, best first."""
        numbers, positions = found.part.reshape(-1), found.position.reshape(-1)
        if len(self.parts) == 1:
            return self.parts[0].told.at(positions)
        rows: list[Any] = [None] * len(numbers)
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(numbers == number)
            for place, row in zip(places.tolist(), part.told.at(positions[places]), strict=True):
                rows[place] = row
        return rows

    def seqs_of(self, found: Found) -> IntArray:
        """seqs (Q, k) of the rows found."""
        seqs = np.empty(found.position.shape, np.int64)
        for number, part in enumerate(self.parts):
            here = found.part == number
            seqs[here] = part.seqs[found.position[here]]
        return seqs

    def brute_force(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """The true best k, computed from the table's vectors without any index -> similarities and seqs (Q, k)."""
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

    def _chunks(self, size: int = 32_768) -> Iterator[tuple[IntArray, FloatArray]]:
        for start in range(0, len(self.rows), size):
            piece = slice(start, start + size)
            yield self.seqs[piece], self.table.vectors(self.rows[piece]).astype(np.float32)


def _tail(table: Table, seqs: IntArray, rows: IntArray, previous: Snapshot | None) -> Part:
    """The rows (P,) in no segment, indexed flat; what the previous snapshot's tail holds is not read again."""
    before = previous.parts[-1] if previous is not None and previous.tail else None
    old = np.zeros(len(seqs), dtype=bool) if before is None else contained(seqs, before.seqs)
    told = Told.of(table.take(rows[~old], COLUMNS))
    vectors = np.empty((len(seqs), table.dimension), np.float32)
    vectors[~old] = table.vectors(rows[~old])
    if before is not None and old.any():
        places = np.searchsorted(before.seqs, seqs[old])
        vectors[old] = before.index.store.reconstruct_batch(places)
        told = before.told.chosen(places).followed_by(told)  # what is new comes last: seqs only grow
    return Part(VectorIndex.flat(Vectors.of(vectors)), seqs, told, None)
