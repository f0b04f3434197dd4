"""A square canvas of 100 x 100 units on which sprites are drawn: shapes with a material's grain and a body's shading.

Letters: S canvas pixels a side; h, w a shape's own rectangle in pixels. Colours are RGB in 0..255, y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from foveal.worldkit.scene import Floats, Image

RGB = tuple[float, float, float] | tuple[int, int, int]
Points = Sequence[tuple[float, float]]
AnyFloats = npt.NDArray[np.floating]
TILE = 512  # pixels a side of a grain tile
_SHIFT = 4  # cv2 sub-pixel bits


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Floats:
    """Noise (height, width) in about -1..1 whose features are `cell` pixels wide."""
    small = rng.uniform(-1, 1, (max(2, round(height / cell)), max(2, round(width / cell)))).astype(np.float32)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


@lru_cache(maxsize=16)
def grain(material: str) -> Floats:
    """Brightness (TILE, TILE) around 1 of a material's surface; the same for every process."""
    rng = np.random.Generator(np.random.PCG64([7, sum(map(ord, material))]))
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    fine = rng.standard_normal((TILE, TILE)).astype(np.float32)
    if material == "wood":
        wander = smooth_noise(rng, TILE, TILE, 90) * 3
        rings = np.sin(y / 5.5 + wander * 2.2 + x / 160) * 0.10 + np.sin(y / 1.9 + wander * 3) * 0.05
        fibre = cv2.blur(fine, (41, 1)) * 0.45
        return np.asarray(1 + rings + fibre, np.float32)
    if material == "metal":
        return np.asarray(1 + cv2.blur(fine, (1, 61)) * 0.27 + smooth_noise(rng, TILE, TILE, 40) * 0.04, np.float32)
    if material == "cardboard":
        flutes = np.sin(x * 0.9) * 0.035
        return np.asarray(1 + flutes + cv2.blur(fine, (9, 3)) * 0.08 + fine * 0.015, np.float32)
    if material == "fabric":
        weave = np.sin(x * 1.05) * np.sin(y * 1.05) * 0.17
        return np.asarray(1 + weave + smooth_noise(rng, TILE, TILE, 26) * 0.10, np.float32)
    if material == "rubber":
        return np.asarray(1 + fine * 0.05 + smooth_noise(rng, TILE, TILE, 14) * 0.07, np.float32)
    return np.asarray(1 + smooth_noise(rng, TILE, TILE, 60) * 0.02, np.float32)


def shading(shade: str, height: int, width: int) -> tuple[Floats, Floats]:
    """Diffuse gain and specular amount, each broadcastable to (height, width), of a body lit from the upper left."""
    u = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    none = np.zeros((1, 1), np.float32)
    if shade in ("column", "log"):
        across = u if shade == "column" else v
        round_ = 0.50 + 0.62 * np.sqrt(np.maximum(0, 1 - (across + 0.30) ** 2 / 1.75))
        return np.asarray(round_, np.float32), np.asarray(np.exp(-(((across + 0.42) / 0.13) ** 2)), np.float32)
    if shade == "ball":
        far = (u + 0.35) ** 2 + (v + 0.45) ** 2
        return np.asarray(1.14 - 0.26 * far, np.float32), np.asarray(np.exp(-far / 0.05), np.float32)
    if shade == "down":
        return np.asarray(1.06 - 0.13 * (v + 1), np.float32), none
    return np.ones((1, 1), np.float32), none


GLOSS = {"metal": 120.0, "plastic": 62.0, "glass": 150.0, "rubber": 14.0}


class Canvas:
    """RGBA paint; `rgb` (S, S, 3) and `alpha` (S, S) in 0..1, not premultiplied."""

    def __init__(self, pixels: int, rng: np.random.Generator) -> None:
        self.unit = pixels / 100
        self.rgb = np.zeros((pixels, pixels, 3), np.float32)
        self.alpha = np.zeros((pixels, pixels), np.float32)
        self.rng = rng

    def _fixed(self, points: Points, left: int = 0, top: int = 0) -> npt.NDArray[np.int32]:
        flat = np.asarray(points, np.float64) * self.unit - (left, top)
        return np.round(flat * (1 << _SHIFT)).astype(np.int32)

    def _blend(self, cover: AnyFloats, left: int, top: int, value: AnyFloats, opacity: float) -> None:
        here = np.s_[top : top + cover.shape[0], left : left + cover.shape[1]]
        added = cover * opacity
        below = self.alpha[here]
        above = added + below * (1 - added)
        weight = (added / np.maximum(above, 1e-4))[..., None]
        self.rgb[here] += (value - self.rgb[here]) * weight
        self.alpha[here] = above

    def poly(
        self,
        points: Points,
        colour: RGB,
        material: str = "plastic",
        shade: str = "",
        *,
        edge: float = 0.55,
        opacity: float = 1.0,
        upright: bool = False,
    ) -> None:
        """Fill a polygon in units; `edge` darkens its outline (1 leaves none); `upright` turns the grain."""
        spots = np.asarray(points, np.float64) * self.unit
        limit = self.alpha.shape[0]
        left, top = (int(max(0, math.floor(v))) for v in spots.min(0) - 1)
        right, bottom = (int(min(limit, math.ceil(v))) for v in spots.max(0) + 2)
        width, height = right - left, bottom - top
        if width < 2 or height < 2:
            return
        cover = np.zeros((height, width), np.uint8)
        fixed = self._fixed(points, left, top)
        cv2.fillPoly(cover, [fixed], 255, cv2.LINE_AA, _SHIFT)
        tile = grain(material).T if upright else grain(material)
        oy, ox = (int(v) for v in self.rng.integers(0, TILE // 4, 2))
        gain, shine = shading(shade, height, width)
        grained = tile[np.arange(oy, oy + height) % TILE][:, np.arange(ox, ox + width) % TILE]
        surface = grained * gain
        if edge < 1:
            line = np.zeros((height, width), np.uint8)
            cv2.polylines(line, [fixed], True, 255, max(1, round(self.unit * 1.1)), cv2.LINE_AA, _SHIFT)
            surface = surface * (1 - line.astype(np.float32) * ((1 - edge) / 255))
        value = surface[..., None] * np.asarray(colour, np.float32)
        value = value + (shine * GLOSS.get(material, 0.0))[..., None]
        self._blend(cover.astype(np.float32) / 255, left, top, np.clip(value, 0, 255), opacity)

    def rect(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        colour: RGB,
        material: str = "plastic",
        shade: str = "",
        *,
        edge: float = 0.55,
        opacity: float = 1.0,
        upright: bool = False,
        radius: float = 0.0,
    ) -> None:
        """Fill a rectangle with corners of `radius` units."""
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)] if radius <= 0 else rounded(x0, y0, x1, y1, radius)
        self.poly(points, colour, material, shade, edge=edge, opacity=opacity, upright=upright)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: RGB,
        material: str = "plastic",
        shade: str = "",
        *,
        edge: float = 0.55,
        opacity: float = 1.0,
    ) -> None:
        """Fill an ellipse around (x, y)."""
        self.poly(arc(x, y, rx, ry, 0, 360), colour, material, shade, edge=edge, opacity=opacity)

    def line(self, points: Points, colour: RGB, width: float, *, rim: float = 0.5) -> None:
        """Stroke a path `width` units wide, with a darker rim (1 leaves none) that reads as a round bar."""
        strokes = ((width, rim), (width * 0.62, 1.0), (width * 0.22, 1.25)) if rim < 1 else ((width, 1.0),)
        for thick, gain in strokes:
            if gain > 1 and width < 3:
                continue
            cover = np.zeros(self.alpha.shape, np.uint8)
            pixels = max(1, round(thick * self.unit))
            cv2.polylines(cover, [self._fixed(points)], False, 255, pixels, cv2.LINE_AA, _SHIFT)
            x, y, w, h = cv2.boundingRect(cover)
            value = np.clip(np.asarray(colour, np.float32) * gain, 0, 255)
            self._blend(cover[y : y + h, x : x + w].astype(np.float32) / 255, x, y, value[None, None], 1.0)

    def erase(self, points: Points) -> None:
        """Cut a polygon out."""
        cover = np.zeros(self.alpha.shape, np.uint8)
        cv2.fillPoly(cover, [self._fixed(points)], 255, cv2.LINE_AA, _SHIFT)
        self.alpha *= 1 - cover.astype(np.float32) / 255

    def sprite(self, longer: int) -> Image:
        """Crop to the paint and shrink its longer side to `longer` pixels -> (h, w, 4) premultiplied RGBA."""
        x, y, w, h = cv2.boundingRect((self.alpha > 0.03).astype(np.uint8))
        alpha = self.alpha[y : y + h, x : x + w]
        paint = np.dstack([self.rgb[y : y + h, x : x + w] * alpha[..., None], alpha * 255])
        scale = longer / max(h, w)
        shape = (max(4, round(w * scale)), max(4, round(h * scale)))
        small = cv2.resize(paint, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        return np.clip(np.round(small), 0, 255).astype(np.uint8)


def arc(
    x: float, y: float, rx: float, ry: float, start: float, end: float, steps: int = 40
) -> list[tuple[float, float]]:
    """Points along an ellipse from `start` to `end` degrees, clockwise from the right."""
    turns = np.radians(np.linspace(start, end, steps))
    return [(float(x + rx * math.cos(t)), float(y + ry * math.sin(t))) for t in turns]


def rounded(x0: float, y0: float, x1: float, y1: float, r: float) -> list[tuple[float, float]]:
    """Outline of a rectangle with round corners."""
    return [
        *arc(x1 - r, y0 + r, r, r, -90, 0, 8),
        *arc(x1 - r, y1 - r, r, r, 0, 90, 8),
        *arc(x0 + r, y1 - r, r, r, 90, 180, 8),
        *arc(x0 + r, y0 + r, r, r, 180, 270, 8),
    ]


def tone(colour: RGB, gain: float, lift: float = 0.0) -> RGB:
    """`colour` times `gain`, moved `lift` of the way to white."""
    r, g, b = (min(255.0, c * gain) for c in colour)
    return (r + (255 - r) * lift, g + (255 - g) * lift, b + (255 - b) * lift)
