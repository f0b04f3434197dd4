"""Light and cameras: what happens to a drawn room between the lamp and the file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import cv2
import numpy as np

from foveal.worldkit.scene import Domain, Floats, Image

LEVELS = {"bright": (1.02, 1.14), "even": (0.84, 0.98), "dim": (0.56, 0.72)}
TONES: dict[str, tuple[float, float, float]] = {
    "warm": (1.11, 1.0, 0.80),
    "neutral": (1.0, 1.0, 1.0),
    "cool": (0.86, 0.98, 1.13),
}


@dataclass(frozen=True, slots=True)
class Light:
    """One scene's light."""

    level: str
    tone: str
    side: int  # -1: it comes from the left, 1: from the right

    @property
    def name(self) -> str:
        """ "dim warm light"."""
        return f"{self.level} light" if self.tone == "neutral" else f"{self.level} {self.tone} light"


@dataclass(frozen=True, slots=True)
class Camera:
    """A mounted camera: what it does to every picture it takes."""

    name: str
    tint: tuple[float, float, float]
    exposure: float
    contrast: float
    blur: float  # sigma in pixels of a 224-pixel picture
    noise: float  # standard deviation in grey levels
    vignette: float


CAMERAS: dict[Domain, tuple[Camera, ...]] = {
    "base": (
        Camera("cam-01", (1.00, 1.00, 1.00), 1.02, 1.02, 0.30, 2.5, 0.12),
        Camera("cam-02", (1.03, 1.00, 0.96), 1.00, 0.96, 0.42, 4.0, 0.20),
        Camera("cam-03", (0.97, 1.00, 1.04), 1.05, 1.06, 0.25, 3.0, 0.10),
        Camera("cam-04", (1.00, 1.01, 0.98), 0.95, 1.00, 0.50, 5.5, 0.26),
        Camera("cam-05", (1.02, 0.99, 1.01), 1.00, 0.92, 0.36, 3.5, 0.16),
    ),
    "site": (
        Camera("cam-11", (0.93, 1.06, 0.92), 1.08, 0.90, 0.60, 7.0, 0.34),
        Camera("cam-12", (1.10, 1.00, 0.82), 1.04, 0.96, 0.52, 8.5, 0.40),
        Camera("cam-13", (0.90, 1.00, 1.10), 1.10, 0.86, 0.68, 6.5, 0.30),
    ),
}
_LEVEL_SHARES: dict[Domain, tuple[float, float, float]] = {"base": (0.34, 0.44, 0.22), "site": (0.18, 0.42, 0.40)}
_TONE_SHARES: dict[Domain, tuple[float, float, float]] = {"base": (0.3, 0.42, 0.28), "site": (0.42, 0.18, 0.40)}
_FIRST_DAY = {"base": datetime(2024, 3, 4, tzinfo=UTC), "site": datetime(2025, 9, 1, tzinfo=UTC)}


@lru_cache(maxsize=4)
def _noise(size: int) -> Floats:
    """Sensor noise (2 * size, 2 * size, 3) to cut pictures' noise from: drawing it anew costs a fifth of a scene."""
    rng = np.random.Generator(np.random.PCG64(17))
    grey = rng.standard_normal((2 * size, 2 * size, 1), np.float32)
    coloured = rng.standard_normal((2 * size, 2 * size, 3), np.float32)
    return np.asarray(grey * np.float32(0.7) + coloured * np.float32(0.6), np.float32)


def draw_light(rng: np.random.Generator, domain: Domain) -> Light:
    """A light of the domain."""
    level = str(rng.choice(list(LEVELS), p=_LEVEL_SHARES[domain]))
    return Light(level, str(rng.choice(list(TONES), p=_TONE_SHARES[domain])), int(rng.choice((-1, 1))))


def draw_time(rng: np.random.Generator, domain: Domain, light: Light) -> str:
    """ISO 8601 time; dim pictures are taken early or late."""
    hour = int(rng.integers(18, 30)) % 24 if light.level == "dim" else int(rng.integers(7, 18))
    moment = timedelta(days=int(rng.integers(0, 60)), hours=hour, seconds=int(rng.integers(0, 3600)))
    return (_FIRST_DAY[domain] + moment).isoformat()


def illuminate(rng: np.random.Generator, picture: Floats, light: Light) -> None:
    """Light (H, W, 3) in place: a slope from the lit side, one pool, a level and a tone."""
    size = picture.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(0.10, 0.26)
    pool_x, pool_y = float(rng.uniform(-0.5, 0.5)) + 0.5 * light.side, float(rng.uniform(-1.1, 0.2))
    pool = np.exp(-((axis[None, :] - pool_x) ** 2)) * np.exp(-((axis[:, None] - pool_y) ** 2) / 0.9)
    gain = 0.84 + slope * light.side * axis[None, :] + 0.34 * pool - 0.05 * axis[:, None]
    level = float(rng.uniform(*LEVELS[light.level]))
    picture *= gain.astype(np.float32)[..., None] * (np.asarray(TONES[light.tone], np.float32) * level)


def expose(rng: np.random.Generator, picture: Floats, camera: Camera) -> Image:
    """What `camera` records of (H, W, 3) light in about 0..255 -> (H, W, 3) uint8."""
    size = picture.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    radius = axis[None, :] ** 2 + axis[:, None] ** 2
    gain = (1 - camera.vignette * radius * 0.5) * (camera.exposure * camera.contrast)
    sigma = camera.blur * size / 224 * float(rng.uniform(0.8, 1.3))
    seen = cv2.GaussianBlur(picture, (0, 0), sigma) if sigma > 0.2 else picture
    seen = seen * (gain[..., None] * np.asarray(camera.tint, np.float32))
    seen += 128 * (1 - camera.contrast) * camera.exposure
    tile = _noise(size)
    y, x = (int(v) for v in rng.integers(0, tile.shape[0] - size, 2))
    seen += tile[y : y + size, x : x + size] * np.float32(camera.noise * float(rng.uniform(0.8, 1.2)))
    return np.clip(np.round(seen), 0, 255).astype(np.uint8)
