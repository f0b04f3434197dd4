"""What is looked for, and what is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveal.detections import FloatArray
from foveal.errors import BadInput
from foveal.images import decode
from foveal.models import Encoder

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_K = 10_000
MAX_TEXT = 10_000  # characters
# Shorter side below which a large JPEG is never shrunk while decoding: twice the input of the largest usual encoder.
MIN_SIDE = 1024


@dataclass(frozen=True, slots=True)
class Hit:
    """One image found."""

    id: str
    uri: str
    similarity: float  # cosine to the query, [-1, 1]
    metadata: Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A query by text, image or both, minus a negative text, among the rows that `filter` keeps.

    Raises:
        BadInput: on construction, when there is nothing to look for or a number lies outside its range.
    """

    text: str | None = None
    image: Image | Path | str | None = None  # pixels, or a file
    negative: str | None = None
    filter: str | None = None  # SQL over metadata columns, e.g. camera = 'north' AND hour >= 18
    k: int = field(default=10)
    image_weight: float = 0.5  # of an image beside a text, [0, 1]
    negative_weight: float = 0.5  # of the negative text against the rest, [0, 1]

    def __post_init__(self) -> None:
        if self.text is None and self.image is None:
            raise BadInput("the query has neither text nor image", remedy="Pass --text, --image or both.")
        if not 1 <= self.k <= MAX_K:
            raise BadInput("k lies outside its range", expected=f"1 to {MAX_K}", received=str(self.k))
        for name, text in (("text", self.text), ("negative text", self.negative)):
            if text is not None and not (text.strip() and len(text) <= MAX_TEXT):
                raise BadInput(
                    f"the {name} is empty or too long", expected=f"1 to {MAX_TEXT} characters", received=str(len(text))
                )
        for name, weight in (("image_weight", self.image_weight), ("negative_weight", self.negative_weight)):
            if not 0 <= weight <= 1:
                raise BadInput(f"{name} lies outside its range", expected="[0, 1]", received=f"{weight:g}")

    def vector(self, encoder: Encoder) -> FloatArray:
        """The query as one unit vector (D,): the weighted sum of its parts' unit vectors.

        Raises:
            BadImage: the image cannot be decoded.
        """
        total = np.zeros(encoder.dimension, dtype=np.float32)
        texts = [text for text in (self.text, self.negative) if text is not None]
        encoded = dict(zip(texts, encoder.encode_texts(texts), strict=True)) if texts else {}
        if self.text is not None:
            total += (1 - self.image_weight if self.image is not None else 1) * encoded[self.text]
        if self.image is not None:
            image = decode(self.image, min_side=MIN_SIDE) if isinstance(self.image, (str, Path)) else self.image
            total += (self.image_weight if self.text is not None else 1) * encoder.encode_images([image])[0]
        if self.negative is not None:
            total -= self.negative_weight * encoded[self.negative]
        length = float(np.linalg.norm(total))
        if not np.isfinite(length) or length < 1e-6:
            raise BadInput("the parts of the query cancel each other out", remedy="Change the negative text.")
        return total / length
