"""The nearest neighbours of many images among many: exact while that is affordable, else through an index.

Shape letters: Q images asked for, N images to find, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foveal.detections import FloatArray, IntArray
from foveal.progress import Progress
from retrieval.curate.selection import Selection
from retrieval.index import VectorIndex, Vectors

EXACT_PAIRS = 2.5e9  # compared by brute force; at 512 dimensions some 20 s of one core
BATCH = 2048  # queries a call


class Neighbourhood:
    """The images of a selection, ready to be searched."""

    def __init__(self, images: Selection, vectors: Vectors, queries: int) -> None:
        """Prepares for so many queries: exact where their comparisons are few, then through the archive's own index if
        that holds just these images, else through an index built for the purpose. Indexes keep the archive's recall
        target (0.99 by default), so a few neighbours in a thousand are not the very nearest.
        """
        self.images = images
        self._count = len(images)
        self._search = self._chosen(images, vectors, queries)

    def nearest(
        self, queries: Vectors, k: int, progress: Progress, *, own: bool = False
    ) -> tuple[FloatArray, IntArray]:
        """The k nearest images of each query -> cosines and places (Q, min(k, N)), best first.

        Args:
            own: the queries are these very images, in the same order, and none is its own neighbour; one less to find.
        """
        return self.of(queries, np.arange(len(queries)), k, progress, own=own)

    def of(
        self, queries: Vectors, which: IntArray, k: int, progress: Progress, *, own: bool = False
    ) -> tuple[FloatArray, IntArray]:
        """The same for those queries alone whose positions are in `which` (Q,)."""
        width = max(min(k, self._count - own), 0)
        cosine = np.empty((len(which), width), np.float32)
        place = np.empty((len(which), width), np.int64)
        progress.start("find neighbours", len(which))
        for start in range(0, len(which) if width else 0, BATCH):
            part = slice(start, start + BATCH)
            found = self._search(queries.at(which[part]), width + own)
            cosine[part], place[part] = _others(*found, which[part]) if own else found
            progress.advance(len(cosine[part]))
        progress.finish()
        return cosine, place

    def _chosen(
        self, images: Selection, vectors: Vectors, queries: int
    ) -> Callable[[FloatArray, int], tuple[FloatArray, IntArray]]:
        if float(queries) * len(images) <= EXACT_PAIRS:
            return VectorIndex.flat(vectors).search
        if not images.is_whole:
            return VectorIndex.build(vectors, images.index.recall_target).search

        def through_archive(queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
            found = images.view.nearest(queries, k)
            return found.similarity, np.searchsorted(images.seqs, images.view.seqs_of(found))

        return through_archive


def _others(cosine: FloatArray, place: IntArray, itself: IntArray) -> tuple[FloatArray, IntArray]:
    """Less the query's own place (Q,) -> (Q, k - 1); of more equal copies than k any one is left out instead."""
    mine = place == itself[:, None]
    mine[~mine.any(axis=1), -1] = True
    shape = len(place), place.shape[1] - 1
    return cosine[~mine].reshape(shape), place[~mine].reshape(shape)
