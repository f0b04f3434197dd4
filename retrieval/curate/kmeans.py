"""Spherical k-means over many unit vectors, and how many clusters there are.

Shape letters: N vectors, D dimensions, C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss as _faiss
import numpy as np

from evals.clusters import SEED, centres_of
from foveal.detections import FloatArray, IntArray
from foveal.progress import Progress, SilentProgress
from retrieval.curate.selection import distance
from retrieval.index import Vectors

faiss: Any = _faiss

SAMPLE_EACH = 256  # vectors a cluster that k-means learns from, as FAISS would sample
CHOICES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
CHOICE_SAMPLE = 16_384  # vectors that the number of clusters is chosen on
AS_GOOD = 0.9  # of the best silhouette


@dataclass(frozen=True, slots=True)
class Partition:
    """Vectors in clusters, none of them empty, the largest first."""

    centres: FloatArray  # (C, D) unit length
    label: IntArray  # (N,)
    cosine: FloatArray  # (N,) to the own centre

    @property
    def sizes(self) -> IntArray:
        """(C,)"""
        return np.bincount(self.label, minlength=len(self.centres))


def partition(vectors: Vectors, k: int) -> Partition:
    """At most k clusters (Dhillon and Modha, doi 10.1023/A:1007612920971); the same for the same vectors."""
    centres = centres_of(vectors.at(_spread(len(vectors), SAMPLE_EACH * k)), k)
    label = np.empty(len(vectors), np.int64)
    cosine = np.empty(len(vectors), np.float32)
    for start, chunk in vectors.chunks():
        best, which = faiss.knn(chunk, centres, 1, metric=faiss.METRIC_INNER_PRODUCT)
        cosine[start : start + len(chunk)], label[start : start + len(chunk)] = best[:, 0], which[:, 0]
    sizes = np.bincount(label, minlength=k)
    order = np.argsort(-sizes, kind="stable")[: int((sizes > 0).sum())]
    rank = np.zeros(k, np.int64)
    rank[order] = np.arange(len(order))
    return Partition(centres[order], rank[label], cosine)


def choose_k(vectors: Vectors, progress: Progress | None = None) -> tuple[int, dict[int, float]]:
    """The most clusters whose silhouette is nine tenths of the best or more, and the silhouette of every number tried.

    A vector's silhouette is (b - a) / b, where a is the distance to its own centre and b to the next one; 1 where
    clusters are tight and far apart, 0 where they touch (Rousseeuw, doi 10.1016/0377-0427(87)90125-7, with centres in
    the place of all members, as Hruschka, de Castro and Campello did for large sets). Centres are learnt from one half
    of a sample and judged on the other, as on the same vectors more centres would always seem better; and the most that
    are about as good are taken, since images without clear clusters would else come out as two. Tried are 2 to 64, at
    most a quarter of that half; fewer than 15 vectors are one cluster.
    """
    progress = progress or SilentProgress()
    drawn = np.random.default_rng(SEED).permutation(len(vectors))[:CHOICE_SAMPLE].astype(np.int64)
    learnt, judged = vectors.at(np.sort(drawn[::2])), vectors.at(np.sort(drawn[1::2]))
    tried: dict[int, float] = {}
    choices = [k for k in CHOICES if 4 * k <= len(learnt)]
    progress.start("choose the number of clusters", len(choices))
    for k in choices:
        nearest = faiss.knn(judged, centres_of(learnt, k), 2, metric=faiss.METRIC_INNER_PRODUCT)[0]
        own, other = distance(nearest).T
        tried[k] = float(((other - own) / np.maximum(other, 1e-6)).mean())
        progress.advance()
    progress.finish()
    enough = AS_GOOD * max(tried.values(), default=0)
    return max((k for k, value in tried.items() if value >= enough), default=1), tried


def _spread(count: int, at_most: int) -> IntArray:
    return np.sort(np.random.default_rng(SEED).permutation(count)[:at_most]).astype(np.int64)
