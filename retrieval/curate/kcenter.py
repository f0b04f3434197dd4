"""Greedy k-center over many vectors: always the point farthest from all chosen so far.

Covers with at most twice the best possible radius (Gonzalez, doi 10.1016/0304-3975(85)90224-5); as a way to choose what
to label: Sener and Savarese, arXiv 1708.00489. Distances only shrink as centres are added, so an old distance bounds
the true one from above, and a point whose bound lies below the best needs no look: lazy evaluation as in Minoux's
accelerated greedy (doi 10.1007/BFb0006528). The choice is that of the plain algorithm, which compares all points with
each centre; at a million points and ten thousand centres that is the difference between minutes and hours.

Shape letters: N points, D dimensions, B points of a block, C centres so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveal.detections import FloatArray, IntArray
from foveal.progress import Progress, SilentProgress
from retrieval.curate.selection import distance
from retrieval.index import Vectors

BLOCK = 4096  # points whose vectors are at hand
PIECE = 512  # of a block, brought up to date at a time
SAME = 2e-3  # two vectors closer than this are equal but for rounding


@dataclass(frozen=True, slots=True)
class Cover:
    """Places chosen, in order."""

    places: IntArray  # (C,)
    distance: FloatArray  # (C,) to what was chosen before, when chosen; infinite for the first of all
    radius: float  # the farthest that any point lies from a centre, times its weight; 0 when every one is chosen


def farthest_first(
    vectors: Vectors,
    n: int,
    *,
    bound: FloatArray | None = None,
    weight: FloatArray | None = None,
    progress: Progress | None = None,
) -> Cover:
    """Up to n points of unit vectors (N, D), each the one with the largest weight x distance to those before it.

    Fewer only when all others equal chosen ones or weigh nothing.

    Args:
        bound: distances (N,) to centres that are there already. Without it, the first is the heaviest point, and of
            equally heavy ones that nearest to the mean.
        weight: (N,), at least 0; 1 when None.
    """
    progress = progress or SilentProgress()
    progress.start("choose", n)
    front = _Front(vectors, n, bound, np.ones(len(vectors), np.float32) if weight is None else weight)
    while len(front) < n and front.advance():
        progress.advance()
    progress.finish()
    return Cover(front.places[: len(front)], front.distances[: len(front)], front.radius())


class _Front:
    """What is known of each point's distance to the centres."""

    def __init__(self, vectors: Vectors, n: int, bound: FloatArray | None, weight: FloatArray) -> None:
        n = min(n, len(vectors))
        self._vectors, self._weight = vectors, weight
        self._bound = np.full(len(vectors), np.inf, np.float32) if bound is None else _told(bound)
        self._seen = np.zeros(len(vectors), np.int64)  # (N,) how many centres each bound takes into account
        self._centres = np.empty((n, vectors.dimension), np.float32)
        self._count = 0
        self.places = np.empty(n, np.int64)
        self.distances = np.empty(n, np.float32)
        self._block = np.zeros(0, np.int64)  # (B,) places, whose bounds are up to date
        self._near = np.zeros((0, vectors.dimension), np.float32)  # (B, D)
        self._outside = np.float32(np.inf)  # the largest weighted bound of all other points
        if bound is None and n:
            self._open()

    def __len__(self) -> int:
        return self._count

    def advance(self) -> bool:
        """Chooses one more, unless only equals of chosen points are left."""
        best = self._best()
        if best is None:
            return False
        place = int(self._block[best])
        self._choose(place, float(self._bound[place]), self._near[best])
        self._bound[self._block] = np.minimum(self._bound[self._block], _apart(self._near @ self._near[best]))
        self._bound[place] = 0
        self._seen[self._block] = self._count
        return True

    def radius(self) -> float:
        """The largest weighted distance that is left."""
        best = self._best() if len(self._bound) else None
        return 0.0 if best is None else float(self._score(self._block)[best])

    def _open(self) -> None:
        """Chooses the first centre, and measures every point's distance to it."""
        mean = np.zeros(self._vectors.dimension, np.float64)
        for _, chunk in self._vectors.chunks():
            mean += chunk.sum(axis=0)
        heaviest = np.flatnonzero(self._weight == self._weight.max())
        central = np.concatenate(
            [self._vectors.at(heaviest[i : i + BLOCK]) @ mean for i in range(0, len(heaviest), BLOCK)]
        )
        place = int(heaviest[central.argmax()])
        centre = self._vectors.at(np.array([place]))[0]
        self._choose(place, float("inf"), centre)
        for start, chunk in self._vectors.chunks():
            self._bound[start : start + len(chunk)] = _apart(chunk @ centre)
        self._bound[place] = 0
        self._seen[:] = self._count

    def _choose(self, place: int, apart: float, vector: FloatArray) -> None:
        self.places[self._count], self.distances[self._count] = place, apart
        self._centres[self._count] = vector
        self._count += 1

    def _best(self) -> int | None:
        """The position in the block of the point that is truly farthest of all; None when all equal centres."""
        while True:
            if len(self._block):
                scores = self._score(self._block)
                best = int(scores.argmax())
                if scores[best] >= self._outside:
                    return best if scores[best] > 0 else None
            self._refill()

    def _score(self, places: IntArray) -> FloatArray:
        return self._bound[places] * self._weight[places]

    def _refill(self) -> None:
        """Takes the points with the largest weighted bounds as the block, and brings their bounds up to date."""
        scores = self._bound * self._weight
        size = min(BLOCK, len(scores))
        order = np.argpartition(-scores, size - 1)
        block, rest = order[:size], order[size:]
        self._outside = scores[rest].max() if len(rest) else np.float32(-np.inf)
        self._block = block[np.argsort(self._seen[block], kind="stable")]
        self._near = self._vectors.at(self._block)
        for start in range(0, size, PIECE):
            part = self._block[start : start + PIECE]
            missing = self._centres[self._seen[part[0]] : self._count]
            if len(missing):
                cosine = (self._near[start : start + PIECE] @ missing.T).max(axis=1)
                self._bound[part] = np.minimum(self._bound[part], _apart(cosine))
        self._seen[self._block] = self._count


def _apart(cosine: FloatArray) -> FloatArray:
    """Distances, 0 between equal vectors."""
    return _told(distance(cosine))


def _told(apart: FloatArray) -> FloatArray:
    return np.where(apart > SAME, apart, np.float32(0)).astype(np.float32)
