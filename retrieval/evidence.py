"""What tells a relevant image from one that is merely the most similar: a text's similarities seen against others.

Raw cosines of a text are not comparable with those of another text. Two things make them so: how the text does on
images at large (a fixed sample of the archive), and how a hit does on texts at large (generic ones, as in cross-domain
similarity local scaling, arXiv 1710.04087, and QB-Norm, arXiv 2112.12777). Similarities enter in the units of the
softmax that the encoder was trained with, so that weights carry over between encoders.

Shape letters: N hits, B images of the background, C contrast texts, D embedding dimensions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foveal.detections import FloatArray

Array = npt.NDArray[np.float64]

TOP = 10  # hits that a query is judged by
BACKGROUND = 1000  # images
CONTRAST = (
    "a photo", "an image", "a picture of something", "a scene", "a thing", "objects", "nothing", "a room",
    "a photograph of a place", "something else", "background", "text", "a person", "an animal", "a vehicle",
    "a building", "food", "nature", "a tool", "furniture",
)  # fmt: skip
_EMPTY = frozenset(
    (
        "a",
        "an",
        "and",
        "are",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "the",
        "there",
        "to",
        "with",
    )
)
_WORD = re.compile(r"[^\W\d_][\w'-]*")
OF_QUERY = (
    "contrast of the best ten",
    "deviations of the best ten from contrast",
    "deviations of the best ten from background",
    "contrast of the best",
    "deviations of the best from contrast",
    "deviations of the best from background",
    "skewness of the background",
    "spread of the background",
    "mean of the background",
    "log10 of the images searched",
)
OF_HIT = ("deviations from background", "contrast", "deviations from contrast", "log2 of the words that say something")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Features of one text and of its hits."""

    query: Array  # (OF_QUERY,)
    hits: Array  # (N, OF_HIT)


@dataclass(frozen=True, slots=True)
class Backdrop:
    """What a text and its hits are seen against."""

    background: FloatArray  # (B, D) unit vectors of images
    contrast: FloatArray  # (C, D) unit vectors of texts
    scale: float  # multiplier of a cosine before softmax

    def look(self, text: str, vector: FloatArray, hits: FloatArray, best: FloatArray, images: int) -> Evidence:
        """The evidence on a text and its unit vector (D,).

        Args:
            hits: (N, D) unit vectors of the images to be judged.
            best: (., D) those most similar to the text among all searched, best first; `TOP` of them are looked at.
            images: how many were searched.
        """
        at_large: Any = (self.background @ vector).astype(np.float64)
        mean, spread = float(at_large.mean()), max(float(at_large.std()), 1e-6)
        skew = float((((at_large - mean) / spread) ** 3).mean())
        leading = self._features(vector, best[:TOP], mean, spread)
        third = leading[:, [1, 2, 0]]
        head = third[0] if len(third) else np.zeros(3)
        mid = third.mean(axis=0) if len(third) else np.zeros(3)
        unit = self.scale / 10
        query = np.array([*mid, *head, skew, spread * unit, mean * unit, np.log10(max(images, 1))], np.float64)
        length = np.full((len(hits), 1), np.log2(max(1, len(telling(text)))))
        return Evidence(query, np.concatenate([self._features(vector, hits, mean, spread), length], axis=1))

    def _features(self, vector: FloatArray, images: FloatArray, mean: float, spread: float) -> Array:
        similarity = (images @ vector).astype(np.float64)
        others = (images @ self.contrast.T).astype(np.float64)
        above = similarity - others.mean(axis=1)
        deviation = np.maximum(others.std(axis=1), 1e-6)
        return np.stack([(similarity - mean) / spread, above * self.scale / 10, above / deviation], axis=1)


def telling(text: str) -> list[str]:
    """The words of a text that say something: the more there are, the more a hit has to show."""
    return [word.lower() for word in _WORD.findall(text) if word.lower() not in _EMPTY]
