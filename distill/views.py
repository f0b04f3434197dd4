"""More than one look at an image: in tiles, for small objects and panoramas, and mirrored.

Shape letters: Q boxes, P prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from distill.teacher import Dense, DenseDetector, look
from foveal.detections import FloatArray
from foveal.errors import BadInput
from foveal.models import OpenDetector

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 300  # boxes of one tile or image that are kept: thousands of tiles must fit in memory
FLOOR = 0.01
EDGE = 2.0  # pixels; a box this near to a cut is taken for a part of something


class Tiled:
    """A teacher that looks at the whole image and at overlapping square tiles of it.

    A box that touches a cut between tiles is dropped: up to `overlap` of a tile in size, the object lies whole in a
    neighbouring tile, and larger ones are seen in the whole image. (Slicing aided inference, arXiv 2202.06934, keeps
    and merges such parts instead.) Images no larger than a tile are looked at once.

    Args:
        tile: side in pixels.
        overlap: of neighbouring tiles, as a share of the side.
        batch: tiles a call.

    Raises:
        BadInput: tile or overlap out of range.
    """

    def __init__(
        self, teacher: OpenDetector | DenseDetector, tile: int = 640, overlap: float = 0.25, batch: int = 8
    ) -> None:
        if tile < 32 or not 0 <= overlap < 1:
            raise BadInput(
                "impossible tiles", expected="a side of 32 or more, an overlap below 1", received=f"{tile}, {overlap}"
            )
        self._teacher, self.tile, self.overlap, self.batch = teacher, tile, overlap, batch
        self.name = f"{_name(teacher)} in tiles of {tile}"
        self.fingerprint = _print(teacher, f"tiled {tile} {overlap}")

    def dense(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Dense]:
        """One `Dense` an image, the tiles' boxes in the image's own pixels."""
        whole = [most(dense) for dense in look(self._teacher, images, prompts, FLOOR)]
        return [self._with_tiles(image, prompts, dense) for image, dense in zip(images, whole, strict=True)]

    def _with_tiles(self, image: Image, prompts: Sequence[str], whole: Dense) -> Dense:
        if max(image.size) <= self.tile:
            return whole
        parts = [whole]
        corners = [(x, y) for y in self._starts(image.height) for x in self._starts(image.width)]
        for start in range(0, len(corners), self.batch):
            mine = corners[start : start + self.batch]
            tiles = [
                image.crop((x, y, min(x + self.tile, image.width), min(y + self.tile, image.height))) for x, y in mine
            ]
            for (x, y), tile, found in zip(mine, tiles, look(self._teacher, tiles, prompts, FLOOR), strict=True):
                kept = most(found)
                at = np.array([x, y, x, y], dtype=np.float32)
                kept = replace(kept, boxes=kept.boxes + at)
                parts.append(kept[~self._cut(kept.boxes, (x, y, x + tile.width, y + tile.height), image.size)])
        return Dense.joined(parts)

    def _starts(self, extent: int) -> list[int]:
        """Where tiles begin along one side: evenly, the last one ending with the image."""
        if extent <= self.tile:
            return [0]
        count = int(np.ceil((extent - self.tile * self.overlap) / (self.tile * (1 - self.overlap))))
        return np.linspace(0, extent - self.tile, max(count, 2)).round().astype(int).tolist()

    @staticmethod
    def _cut(boxes: FloatArray, tile: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
        """Which boxes touch a side of the tile that is not the image's own."""
        x1, y1, x2, y2 = tile
        return (
            ((boxes[:, 0] < x1 + EDGE) & (x1 > 0))
            | ((boxes[:, 1] < y1 + EDGE) & (y1 > 0))
            | ((boxes[:, 2] > x2 - EDGE) & (x2 < size[0]))
            | ((boxes[:, 3] > y2 - EDGE) & (y2 < size[1]))
        )


class Flipped:
    """A teacher that also looks at the mirrored image: twice the time, usually a little more recall."""

    def __init__(self, teacher: OpenDetector | DenseDetector) -> None:
        self._teacher = teacher
        self.name = f"{_name(teacher)} and mirrored"
        self.fingerprint = _print(teacher, "flipped")

    def dense(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Dense]:
        """One `Dense` an image with the boxes of both views."""
        from PIL.Image import Transpose

        plain = look(self._teacher, images, prompts, FLOOR)
        turned = [image.transpose(Transpose.FLIP_LEFT_RIGHT) for image in images]
        mirrored = look(self._teacher, turned, prompts, FLOOR)
        return [
            Dense.joined([one, replace(other, boxes=_unmirrored(other.boxes, image.width))])
            for one, other, image in zip(plain, mirrored, images, strict=True)
        ]


def most(dense: Dense, count: int = MOST) -> Dense:
    """The `count` boxes of which most is made, in their order."""
    if len(dense) <= count:
        return dense
    return dense[np.sort(np.argsort(-dense.worth, kind="stable")[:count])]


def _unmirrored(boxes: FloatArray, width: int) -> FloatArray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _name(teacher: OpenDetector | DenseDetector) -> str:
    return getattr(teacher, "name", type(teacher).__name__)


def _print(teacher: OpenDetector | DenseDetector, how: str) -> str:
    return hashlib.sha256(f"{getattr(teacher, 'fingerprint', '')} {how}".encode()).hexdigest()
