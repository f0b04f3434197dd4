"""Paint for an empty room: walls, floors that recede, boards and lines.

Lengths are in pixels of a 224-pixel picture and scaled by `unit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from foveal.worldkit.canvas import RGB, TILE, grain, smooth_noise
from foveal.worldkit.scene import Floats, Image

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Style:
    """What a domain's rooms are built from."""

    walls: tuple[tuple[str, RGB], ...]
    floors: tuple[tuple[str, RGB], ...]
    posts: tuple[RGB, ...]
    decks: tuple[tuple[str, RGB], ...]
    signs: tuple[RGB, ...]
    zoom: tuple[float, float]


@lru_cache(maxsize=32)
def _texture(name: str) -> Floats:
    """Brightness (TILE, TILE, 1) of a wall or floor, around 1."""
    rng = np.random.Generator(np.random.PCG64([11, sum(map(ord, name))]))
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    fine = rng.standard_normal((TILE, TILE)).astype(np.float32)
    gain = 1 + smooth_noise(rng, TILE, TILE, 120) * 0.07 + smooth_noise(rng, TILE, TILE, 22) * 0.03
    if name == "sheet":
        gain = gain + np.sin(x * (2 * math.pi / 11)) * 0.10
    elif name == "panel":
        gain = gain - 0.22 * ((x % 64 < 1.5) | (y % 128 < 1.5))
    elif name in ("brick", "block"):
        tall, wide = (10, 26) if name == "brick" else (22, 46)
        row = y // tall
        shifted = x + (row % 2) * wide / 2
        tones = rng.uniform(0.80, 1.16, (TILE // tall + 2, TILE // wide + 3))
        gain = gain * tones[row.astype(int), (shifted // wide).astype(int)]
        gain = np.where((y % tall < 1.6) | (shifted % wide < 1.6), 1.24 if name == "brick" else 0.72, gain)
    elif name == "tiles":
        gain = gain - 0.28 * ((x % 64 < 2) | (y % 64 < 2))
        gain = gain + rng.uniform(-0.05, 0.05, (8, 8)).repeat(64, 0).repeat(64, 1)
    elif name == "concrete":
        gain = gain + smooth_noise(rng, TILE, TILE, 60) * 0.07 - 0.22 * ((x % 256 < 2) | (y % 256 < 2))
    elif name == "plate":
        gain = gain + 0.16 * ((((x + y) % 16 < 3) & ((x - y) % 32 < 16)) | (((x - y) % 16 < 3) & ((x + y) % 32 < 16)))
    rough = 0.012 if name == "epoxy" else 0.03
    return np.asarray(gain + fine * rough, np.float32)[..., None]


class Room:
    """Paint for a background: a uint8 picture, a generator, and the picture's scale."""

    def __init__(self, rng: np.random.Generator, style: Style, size: int) -> None:
        self.rng, self.style, self.size = rng, style, size
        self.unit = size / 224
        self.image: Image = np.zeros((size, size, 3), np.uint8)

    def pick(self, options: Sequence[tuple[str, RGB]]) -> tuple[str, RGB]:
        """One of the style's textures, its colour a little off."""
        name, rgb = options[int(self.rng.integers(len(options)))]
        return name, self.off(rgb)

    def off(self, rgb: RGB, spread: float = 9.0) -> RGB:
        """A colour near `rgb`."""
        r, g, b = (float(v) for v in np.clip(np.asarray(rgb) + self.rng.uniform(-spread, spread, 3), 8, 250))
        return (r, g, b)

    def at(self, low: float, high: float) -> float:
        """A number between the two."""
        return float(self.rng.uniform(low, high))

    def poly(self, points: Sequence[Point], rgb: RGB) -> None:
        fixed = np.round(np.asarray(points) * (self.unit * 16)).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], rgb, cv2.LINE_AA, 4)

    def rect(self, x0: float, y0: float, x1: float, y1: float, rgb: RGB) -> None:
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], rgb)

    def line(self, points: Sequence[Point], rgb: RGB, width: float) -> None:
        fixed = np.round(np.asarray(points) * (self.unit * 16)).astype(np.int32)
        cv2.polylines(self.image, [fixed], False, rgb, max(1, round(width * self.unit)), cv2.LINE_AA, 4)

    def wall(self, top: float, bottom: float, option: tuple[str, RGB] | None = None) -> None:
        """Cover rows top..bottom with a wall."""
        name, rgb = option or self.pick(self.style.walls)
        rows = np.s_[round(top * self.unit) : round(bottom * self.unit)]
        high = self.image[rows].shape[0]
        off = self.rng.integers(0, TILE - 300, 2)
        reach = (math.ceil(high / self.unit), 224)
        piece = _texture(name)[off[0] : off[0] + reach[0], off[1] : off[1] + reach[1]]
        if self.size != 224:
            piece = cv2.resize(piece, (self.size, high), interpolation=cv2.INTER_LINEAR)[..., None]
        self.image[rows] = np.clip(piece * np.asarray(rgb, np.float32), 0, 255)

    def floor(self, horizon: float, vanish: Point) -> None:
        """Cover everything below `horizon` with a floor that recedes to `vanish`."""
        name, rgb = self.pick(self.style.floors)
        (vx, vy), low = vanish, 224.0
        spread = (horizon - vy) / (low - vy)
        wide = 150.0
        far_left, far_right = vx - wide, vx + wide
        near_left, near_right = vx - wide / spread, vx + wide / spread
        target = np.asarray(
            [(far_left, horizon), (far_right, horizon), (near_right, low), (near_left, low)], np.float32
        )
        source = np.asarray([(0, 0), (TILE, 0), (TILE, TILE * 0.55), (0, TILE * 0.55)], np.float32)
        turn = cv2.getPerspectiveTransform(source, target * self.unit)
        top = round(horizon * self.unit)
        turn = np.asarray([[1, 0, 0], [0, 1, -top], [0, 0, 1]], np.float64) @ turn
        shape = (self.size, self.size - top)
        flags = cv2.INTER_LINEAR
        warped = cv2.warpPerspective(_texture(name), turn, shape, flags=flags, borderMode=cv2.BORDER_REFLECT)
        fade = np.linspace(0.82, 1.06, shape[1], dtype=np.float32)[:, None, None]
        lit = warped[..., None] * fade * np.asarray(rgb, np.float32)
        if name == "epoxy":
            mirror = self.image[max(0, 2 * top - self.size) : top][::-1].astype(np.float32)
            lit[: mirror.shape[0]] += (cv2.blur(mirror, (5, 15)) - lit[: mirror.shape[0]]) * 0.24
        self.image[top:] = np.clip(lit, 0, 255)

    def board(self, x0: float, y0: float, x1: float, y1: float, option: tuple[str, RGB]) -> None:
        """A board, sheet or mesh deck."""
        name, rgb = option
        a, b, c, d = (max(0, round(v * self.unit)) for v in (x0, y0, x1, y1))
        here = self.image[b:d, a:c]
        if here.size == 0:
            return
        if name == "mesh":
            x = np.arange(here.shape[1], dtype=np.float32)[None, :, None]
            tile = np.broadcast_to(0.75 + 0.4 * ((x % max(3, 4 * self.unit)) < 2 * self.unit), (*here.shape[:2], 1))
        else:
            off = int(self.rng.integers(0, TILE // 2))
            tile = np.resize(grain("wood" if name == "wood" else "metal"), (TILE, TILE))
            tile = tile[off : off + here.shape[0], : here.shape[1]][..., None]
        self.image[b:d, a:c] = np.clip(tile * np.asarray(rgb, np.float32), 0, 255)
