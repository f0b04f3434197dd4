"""The rows of a snapshot that may become hits, with their vectors and exact similarities.

A similarity that decides an order across pages must not depend on which index answered, nor on how many rows it was
asked for; FAISS sums in another order for batches, and a row moves from the flat tail into a segment. Candidates are
therefore scored anew, in float64 from the stored half-precision values.

Shape letters: N candidates, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.detections import BoolArray, FloatArray, IntArray
from retrieval.index import Subset, contained
from retrieval.snapshot import Found, Part, Snapshot

SLACK = 16  # candidates beyond those needed: of equal ones at the edge the index returns any
MOST = 65_536  # candidates, beyond which equal ones may be missed
NOISE = 1e-5  # by which similarities of an index differ from exact ones


@dataclass(frozen=True, slots=True)
class Candidates:
    """Live rows, in an order of their own."""

    seqs: IntArray  # (N,)
    part: IntArray  # (N,) index into the snapshot's parts
    position: IntArray  # (N,) within that part
    similarity: FloatArray  # (N,) cosine to the query
    vectors: FloatArray  # (N, D) unit length up to rounding

    def __len__(self) -> int:
        return len(self.seqs)

    def take(self, places: IntArray | BoolArray) -> Candidates:
        """Those at `places` (N,), a mask or positions."""
        return Candidates(
            self.seqs[places], self.part[places], self.position[places], self.similarity[places], self.vectors[places]
        )

    def found(self) -> Found:
        """As one row of a search."""
        return Found(self.similarity[None], self.part[None], self.position[None])


def scored(view: Snapshot, vector: FloatArray, part: IntArray, position: IntArray) -> Candidates:
    """The rows at `position` (N,) of `part` (N,), best first, equals by seq."""
    if len(view.parts) == 1:
        vectors, seqs = _stored(view.parts[0], position)
    else:
        vectors, seqs = np.empty((len(part), len(vector)), np.float32), np.empty(len(part), np.int64)
        for number in np.unique(part).tolist():
            here = part == number
            vectors[here], seqs[here] = _stored(view.parts[number], position[here])
    # A sum along each row comes out the same however many rows there are; a matrix product does not.
    exact = (vectors.astype(np.float64) * vector.astype(np.float64)).sum(axis=1)
    similarity = np.clip(exact, -1, 1).astype(np.float32)
    order = np.lexsort((seqs, -similarity))
    return Candidates(seqs, part, position, similarity, vectors).take(order)


def _stored(part: Part, position: IntArray) -> tuple[FloatArray, IntArray]:
    return part.index.store.reconstruct_batch(np.ascontiguousarray(position)), part.seqs[position]


def best(
    view: Snapshot,
    vector: FloatArray,
    allowed: Sequence[Subset] | None,
    bound: int,
    start: int,
    enough: Callable[[Candidates], bool],
) -> Candidates:
    """The best rows for a unit vector (D,) up to the seq `bound`, without gaps, as many as it takes until `enough`.

    Args:
        allowed: the rows that a filter keeps, a subset for each part.
        start: how many to begin with.
    """
    wanted = start + SLACK
    while True:
        found = view.nearest(vector[None], wanted, allowed)
        rows = scored(view, vector, found.part[0], found.position[0])
        complete = len(rows) < wanted or wanted >= MOST
        # Of rows as good as the worst one here there may be more than these.
        sure = rows.similarity > (-np.inf if complete else float(found.similarity.min()) + NOISE)
        rows = rows.take(sure & (rows.seqs <= bound))
        if complete or enough(rows):
            return rows
        wanted *= 2


def located(
    view: Snapshot, vector: FloatArray, seqs: IntArray, allowed: Sequence[Subset] | None, bound: int
) -> Candidates:
    """Those of the rows with these seqs (N,) that are live, allowed and not beyond `bound`, best first."""
    parts: list[IntArray] = []
    positions: list[IntArray] = []
    seqs = np.sort(seqs[seqs <= bound])
    for number, part in enumerate(view.parts):
        place = np.searchsorted(part.seqs, seqs)[contained(seqs, part.seqs)]
        among = part.alive if allowed is None else allowed[number]
        if among is not None:
            place = place[contained(place, among.positions)]
        positions.append(place.astype(np.int64))
        parts.append(np.full(len(place), number, np.int64))
    none = np.zeros(0, np.int64)
    return scored(view, vector, np.concatenate([none, *parts]), np.concatenate([none, *positions]))
