"""Where an archive's images lie among all that could be embedded, and whether other images lie there too.

Shape letters: N vectors, D dimensions, C regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss as _faiss
import numpy as np

from foveal.detections import FloatArray, IntArray
from retrieval.archive import Archive
from retrieval.curate.kmeans import partition
from retrieval.index import Vectors

faiss: Any = _faiss
SAMPLE = 4096  # vectors that are looked at
EACH = 50  # vectors a region
MOST = 16  # regions
FAR = 0.05  # share of the archive's own images that lie outside of all regions


@dataclass(frozen=True, slots=True)
class Regions:
    """Clusters with a radius each."""

    centres: FloatArray  # (C, D) unit length
    nearest: FloatArray  # (C,) cosine from which on a vector lies in the region
    usual: IntArray  # (C + 1,) images of the archive in each region, the last in none

    @classmethod
    def of(cls, archive: Archive) -> Regions:
        """The regions of an archive: learnt from one half of a sample, counted on the other."""
        table = archive.snapshot().table
        _, rows = table.keys(None)
        drawn = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
        return cls.fit(table.vectors(rows[drawn]).astype(np.float32))

    @classmethod
    def fit(cls, vectors: FloatArray) -> Regions:
        """The regions of vectors (N, D) in random order."""
        learnt, counted = vectors[::2], vectors[1::2]
        found = partition(Vectors.of(learnt), max(1, min(MOST, len(learnt) // EACH)))
        nearest = [np.quantile(found.cosine[found.label == one], FAR) for one in range(len(found.centres))]
        blank = cls(found.centres, np.array(nearest, dtype=np.float32), np.zeros(len(found.centres) + 1, np.int64))
        return cls(blank.centres, blank.nearest, blank.counts(counted))

    def counts(self, vectors: FloatArray) -> IntArray:
        """How many of the vectors (N, D) lie in each region, and in none -> (C + 1,)."""
        if not len(vectors):
            return np.zeros(len(self.centres) + 1, np.int64)
        best, which = faiss.knn(np.ascontiguousarray(vectors), self.centres, 1, metric=faiss.METRIC_INNER_PRODUCT)
        place = np.where(best[:, 0] >= self.nearest[which[:, 0]], which[:, 0], len(self.centres))
        return np.bincount(place, minlength=len(self.centres) + 1).astype(np.int64)
