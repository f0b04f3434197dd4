"""Crops of an image for the exemplar memory: objects with some of their surroundings, variants, and plain background.

Boxes are xyxy pixels of the upright image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.detections import FloatArray

if TYPE_CHECKING:
    from PIL.Image import Image

CLEAR = 0.2  # share of a background box that objects may cover
TRIES = 30  # per background box before giving up on a crowded image


def crop(image: Image, box: FloatArray, context: float) -> Image:
    """The square around `box` (4,), its longer side widened by `context` of itself on each side.

    Square, because encoders that cut a centre square out of an oblong crop would lose both ends of the object. Shifted
    to lie inside the image, and cut only where the image is smaller than the square.
    """
    x1, y1, x2, y2 = box.tolist()
    side = max(x2 - x1, y2 - y1, 2.0) * (1 + 2 * context)
    left, right = _window((x1 + x2) / 2, side, image.width)
    top, bottom = _window((y1 + y2) / 2, side, image.height)
    return image.crop((left, top, right, bottom))


def _window(centre: float, side: float, limit: int) -> tuple[int, int]:
    """A stretch of `side` pixels around `centre`, moved into [0, limit]."""
    length = min(max(round(side), 2), limit)
    start = min(max(round(centre - length / 2), 0), limit - length)
    return start, start + length


def jittered(box: FloatArray, rng: np.random.Generator, amount: float = 0.1) -> FloatArray:
    """`box` (4,) moved and scaled by up to `amount` of its sides, as a detector's boxes miss."""
    size = np.tile(box[2:] - box[:2], 2)
    moved = box + rng.uniform(-amount, amount, 4).astype(np.float32) * size
    return np.concatenate([np.minimum(moved[:2], moved[2:] - 1), moved[2:]]).astype(np.float32)


def backgrounds(
    objects: FloatArray, width: int, height: int, count: int, sizes: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Up to `count` boxes (B, 4) of sizes from `sizes` (S, 2), none covered beyond `CLEAR` by an object (N, 4)."""
    found: list[FloatArray] = []
    for _ in range(count * TRIES):
        if len(found) == count:
            break
        side = np.minimum(sizes[rng.integers(len(sizes))] * rng.uniform(0.7, 1.3), [width, height])
        corner = rng.uniform(0, 1, 2) * (np.array([width, height]) - side)
        box = np.concatenate([corner, corner + side]).astype(np.float32)
        if covered(box, objects) <= CLEAR:
            found.append(box)
    return np.stack(found) if found else np.zeros((0, 4), np.float32)


def covered(box: FloatArray, objects: FloatArray) -> float:
    """The largest share of `box` (4,) that any one of `objects` (N, 4) covers, [0, 1]."""
    if not len(objects):
        return 0.0
    low = np.maximum(box[:2], objects[:, :2])
    high = np.minimum(box[2:], objects[:, 2:])
    overlap = np.prod(np.clip(high - low, 0, None), axis=1)
    return float(overlap.max() / max(float(np.prod(box[2:] - box[:2])), 1e-6))
