"""Groups of embeddings, and texts that say what is in them.

Shape letters: N vectors, C centres, T texts, D embedding dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss as _faiss
import numpy as np

from foveal.detections import FloatArray
from foveal.models import Encoder

faiss: Any = _faiss

ITERATIONS, ATTEMPTS, SEED = 25, 3, 1
TEXTS_AT_ONCE = 256

_WORD = re.compile(r"[^\W\d_][\w'-]*")
_EMPTY = {
    "a", "an", "and", "are", "at", "by", "for", "from", "in", "is", "it", "its", "of", "on", "or", "that", "the",
    "there", "this", "to", "was", "with",
}  # fmt: skip


def centres_of(vectors: FloatArray, k: int) -> FloatArray:
    """k centres (C, D) of unit vectors (N, D) by spherical k-means, doi 10.1023/A:1007612920971; repeatable."""
    model = faiss.Kmeans(
        vectors.shape[1],
        k,
        spherical=True,
        niter=ITERATIONS,
        nredo=ATTEMPTS,
        seed=SEED,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    model.train(np.ascontiguousarray(vectors, dtype=np.float32))
    return np.asarray(model.centroids, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Near:
    """A text that is nearer to a centre than to all images."""

    text: str
    cosine: float  # to the centre
    gain: float  # over its mean cosine to all images


def nearest_texts(encoder: Encoder, texts: Sequence[str], centres: FloatArray, mean: FloatArray) -> list[Near]:
    """For each centre (C, D) the text that is nearest, less the text's mean cosine to all images.

    Without that a generic text, near to everything, would name every cluster. Dividing by the deviation as well would
    let it win again, as what is near to everything varies little. `mean` (D,) is the mean of all images.
    """
    parts = [encoder.encode_texts(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
    vectors = np.concatenate(parts)
    usual = vectors @ mean
    gain = centres @ vectors.T - usual
    best = gain.argmax(axis=1).tolist()
    return [Near(str(texts[t]), float(usual[t] + gain[c, t]), float(gain[c, t])) for c, t in enumerate(best)]


def telling_terms(text: str) -> Iterator[str]:
    """The telling words of a text, and those pairs of them between which only a space lies."""
    before: re.Match[str] | None = None
    for word in _WORD.finditer(text):
        if word[0] in _EMPTY:
            before = None
            continue
        yield word[0]
        if before is not None and not text[before.end() : word.start()].strip(" "):
            yield f"{before[0]} {word[0]}"
        before = word
