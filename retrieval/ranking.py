"""Orders of candidates other than by similarity: fused rankings, without near-duplicates, diverse.

Shape letters: N candidates, best first; D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from foveal.detections import FloatArray, IntArray

RRF_K = 60  # as in the paper: how little the very first ranks stand out


def fuse(rankings: Sequence[Sequence[int]]) -> dict[int, float]:
    """Item -> score of several rankings (best first) of items, larger is better.

    Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): it needs no scores that compare.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (RRF_K + rank)
    return scores


def groups(vectors: FloatArray, hashes: Sequence[int | None], cosine: float | None, bits: int | None) -> IntArray:
    """The position (N,) of the candidate that stands for each: the first before it that is the same, or itself.

    Args:
        vectors: (N, D) unit length, in the order of their ranking.
        hashes: 64-bit perceptual hashes, None where unknown.
        cosine: from which on two are the same; None: never by vector.
        bits: by how many two hashes of the same may differ; None: never by hash.
    """
    mine = np.arange(len(vectors))
    codes = np.array([value or 0 for value in hashes], dtype=np.int64).view(np.uint64)
    known = np.bitwise_count(codes) > 1  # an image without any structure has no more, and is like others of its kind
    firsts: list[int] = []
    for place in range(len(vectors)):
        if firsts:
            before = np.array(firsts)
            same = np.zeros(len(before), dtype=bool)
            if cosine is not None:
                same |= vectors[before] @ vectors[place] >= cosine
            if bits is not None and known[place]:
                differing = np.bitwise_count(codes[before] ^ codes[place])
                same |= known[before] & (differing <= bits)
            if same.any():
                mine[place] = before[int(np.argmax(same))]
                continue
        firsts.append(place)
    return mine.astype(np.int64)


def diverse(
    relevance: npt.NDArray[np.float64], vectors: FloatArray, taken: Sequence[int], diversity: float, k: int
) -> list[int]:
    """The positions of k candidates, each chosen for its relevance less its likeness to those chosen before.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) with lambda = 1 - diversity. Both terms are brought
    to a common scale, as cosines between text and image lie far below those between images.

    Args:
        relevance: (N,), larger is better.
        vectors: (N, D) unit length.
        taken: positions of those chosen already, on earlier pages.
    """
    if not len(vectors):
        return []
    worth = (relevance - relevance.min()) / (float(np.ptp(relevance)) or 1.0)
    typical = float(np.linalg.norm(vectors.mean(axis=0)) ** 2)  # the mean cosine of any two
    likeness = np.full(len(vectors), -1.0, np.float32)
    left = np.ones(len(vectors), dtype=bool)
    for place in taken:
        left[place] = False
        likeness = np.maximum(likeness, vectors @ vectors[place])
    chosen: list[int] = []
    while left.any() and len(chosen) < k:
        near = np.clip((likeness - typical) / max(1 - typical, 1e-6), 0, 1)
        best = int(np.argmax(np.where(left, (1 - diversity) * worth - diversity * near, -np.inf)))
        chosen.append(best)
        left[best] = False
        likeness = np.maximum(likeness, vectors @ vectors[best])
    return chosen
