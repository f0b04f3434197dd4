"""What befalls pictures on their way to a model: the 15 common corruptions of arXiv 1903.12261 at 5 severities.

The severities are the paper's, in pixels of the picture as it is, whatever its size. Elastic takes the variant of
arXiv 1907.07484, without the affine part, so nothing moves farther than a few pixels and boxes stay valid: all other
corruptions leave every object where it is. Two textures differ from the originals: frost is grown here instead of
being cut from six photographs, and the glass moves every pixel at once rather than one after the other.

Two sweeps lie beside them: `resolution` (a share of the side is kept, then enlarged back) and `compression` (JPEG).

Shape letters: H, W pixels. Pictures inside are (H, W, 3) float32 in [0, 1].
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import cv2 as _cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.detections import FloatArray
from foveal.errors import BadInput, UnknownName

cv2: Any = _cv2  # whose stubs know neither float kernels nor scalars

SEVERITIES = (1, 2, 3, 4, 5)
Rng = np.random.Generator
Corruption = Callable[[FloatArray, int, Rng], FloatArray]  # picture, severity - 1, randomness


def corrupt(image: Image.Image, name: str, severity: int, key: str = "") -> Image.Image:
    """The picture under one corruption, of the same size and mode; the same for the same key, name and severity.

    Args:
        image: RGB or grey (L).
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        key: what tells this picture from others, such as its id: another draw of the noise. All severities share one
            draw, so that the stronger differs from the weaker in strength alone.

    Raises:
        UnknownName: no such corruption.
        BadInput: a severity outside 1 to 5, or another mode.
    """
    if name not in CORRUPTIONS:
        raise UnknownName("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise BadInput(f"{name} has no such severity", expected="1 to 5", received=str(severity))
    digest = hashlib.sha256(f"{name}/{key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    return _changed(image, lambda x: CORRUPTIONS[name](x, severity - 1, rng))


def sweep(image: Image.Image, name: str, level: int) -> Image.Image:
    """The picture at one level of a sweep: `resolution` in percent of the side, `compression` as JPEG quality.

    Raises:
        UnknownName: no such sweep.
        BadInput: a level outside 1 to 100, or a mode other than RGB or L.
    """
    if name not in SWEEPS:
        raise UnknownName("sweep", name, SWEEPS)
    if not 1 <= level <= 100:
        raise BadInput(f"{name} has no such level", expected="1 to 100", received=str(level))
    change = _resolved if name == "resolution" else _jpeg
    return _changed(image, lambda x: change(x, level))


def _changed(image: Image.Image, change: Callable[[FloatArray], FloatArray]) -> Image.Image:
    if image.mode not in ("RGB", "L"):
        raise BadInput("this picture cannot be corrupted", expected="mode RGB or L", received=image.mode)
    clean = np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)
    found = np.clip(change(clean), 0, 1)
    return Image.fromarray(np.round(found * 255).astype(np.uint8)).convert(image.mode)


def gaussian_noise(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Noise of a sensor in low light."""
    return x + _normal(rng, x.shape, (0.08, 0.12, 0.18, 0.26, 0.38)[s])


def shot_noise(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Noise of light itself, which comes in photons."""
    photons = (60, 25, 12, 5, 3)[s]
    return (rng.poisson(x * photons) / photons).astype(np.float32)


def impulse_noise(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Salt and pepper: dead and saturated pixels."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[s]
    hit = rng.random(x.shape)
    return np.where(hit < share / 2, 0.0, np.where(hit < share, 1.0, x)).astype(np.float32)


def defocus_blur(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """A lens out of focus: every point becomes a disc."""
    radius, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[s]
    reach = max(8, radius)
    near = np.arange(-reach, reach + 1)
    disc = (near[:, None] ** 2 + near[None] ** 2 <= radius**2).astype(np.float32)
    return _filtered(x, cv2.GaussianBlur(disc / disc.sum(), (3, 3) if radius <= 8 else (5, 5), soft))


def glass_blur(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Frosted glass: pixels change places with near ones."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[s]
    height, width = x.shape[:2]
    found = _gaussian(x, sigma)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(times):
        down, across = rng.integers(-reach, reach + 1, (2, height, width))
        found = found[np.clip(rows + down, 0, height - 1), np.clip(columns + across, 0, width - 1)]
    return _gaussian(found, sigma)


def motion_blur(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """A camera that moves while it exposes."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[s]
    return _moved(x, radius, sigma, float(rng.uniform(-45, 45)))


def zoom_blur(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """A camera that comes nearer while it exposes."""
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[s]
    layers = [_zoomed(x, factor) for factor in np.arange(1, most, step)]
    return (x + np.sum(layers, axis=0)) / np.float32(len(layers) + 1)


def snow(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Flakes that fall aslant, before a picture that they whiten."""
    mean, spread, zoom, least, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[s]
    flakes = _zoomed(mean + _normal(rng, x.shape[:2], spread), zoom)
    flakes = np.where(flakes < least, 0, np.clip(flakes, 0, 1)).astype(np.float32)
    flakes = _moved(flakes, radius, sigma, float(rng.uniform(-135, -45)))[..., None]
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    whitened = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return (whitened + flakes + flakes[::-1, ::-1]).astype(np.float32)


def frost(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Ice on the lens: crystals that grow in from the rim over a picture that they darken."""
    kept, laid = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[s]
    return (kept * x + laid * _ice(x.shape[:2], rng)).astype(np.float32)


def fog(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Clouds of light before everything."""
    amount, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[s]
    top = float(x.max())
    lit = x + amount * _plasma(x.shape[:2], decay, rng)[..., None]
    return (lit * (top / (top + amount))).astype(np.float32)


def brightness(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """More light: the value of each colour is raised."""
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + (0.1, 0.2, 0.3, 0.4, 0.5)[s], 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def contrast(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Less difference between light and dark."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[s]) + mean


def elastic_transform(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """A picture that is bent in small places: by one to three pixels as a rule, by ten at the very most."""
    strength = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[s]
    height, width = x.shape[:2]
    moves = rng.uniform(-1, 1, (2, height, width)).astype(np.float32) * np.float32(0.005 * height)
    down, across = (
        cv2.GaussianBlur(move, (0, 0), max(0.01 * width, 0.1), sigmaY=max(0.01 * height, 0.1)) * np.float32(strength)
        for move in moves
    )
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(x, columns + across, rows + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def pixelate(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Too few pixels, shown large."""
    small = _shrunk(x, (0.6, 0.5, 0.4, 0.3, 0.25)[s], cv2.INTER_AREA)
    return cv2.resize(small, x.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def jpeg_compression(x: FloatArray, s: int, rng: Rng) -> FloatArray:
    """Too few bytes: blocks and rings of JPEG."""
    return _jpeg(x, (25, 18, 15, 10, 7)[s])


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
SWEEPS: dict[str, tuple[int, ...]] = {  # name -> the levels that are measured, mildest first
    "resolution": (75, 50, 35, 25, 18, 12),
    "compression": (90, 70, 50, 30, 15, 5),
}


def _normal(rng: Rng, shape: tuple[int, ...], spread: float) -> FloatArray:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)


def _gaussian(x: FloatArray, sigma: float) -> FloatArray:
    return cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _filtered(x: FloatArray, kernel: NDArray[Any]) -> FloatArray:
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT)


def _moved(x: FloatArray, radius: int, sigma: float, angle: float) -> FloatArray:
    """Smeared one way along `angle` (degrees), fading as half a bell of `sigma` pixels does."""
    steps = np.arange(2 * radius + 1)
    weight = np.exp(-(steps**2) / (2 * sigma**2))
    down, across = (np.round(steps * turn(np.deg2rad(angle))).astype(int) for turn in (np.sin, np.cos))
    kernel = np.zeros((4 * radius + 1,) * 2, dtype=np.float32)
    np.add.at(kernel, (2 * radius + down, 2 * radius + across), weight / weight.sum())
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _zoomed(x: FloatArray, factor: float) -> FloatArray:
    """The middle of a picture, enlarged to the size of the whole."""
    height, width = x.shape[:2]
    inner = (max(1, int(np.ceil(height / factor))), max(1, int(np.ceil(width / factor))))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return cv2.resize(x[top : top + inner[0], left : left + inner[1]], (width, height), interpolation=cv2.INTER_LINEAR)


def _shrunk(x: FloatArray, share: float, how: int) -> FloatArray:
    height, width = x.shape[:2]
    return cv2.resize(x, (max(1, int(width * share)), max(1, int(height * share))), interpolation=how)


def _resolved(x: FloatArray, percent: int) -> FloatArray:
    return cv2.resize(_shrunk(x, percent / 100, cv2.INTER_AREA), x.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def _jpeg(x: FloatArray, quality: int) -> FloatArray:
    buffer = io.BytesIO()
    Image.fromarray(np.round(x * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), dtype=np.float32) / np.float32(255)


def _plasma(shape: tuple[int, int], decay: float, rng: Rng) -> FloatArray:
    """Clouds in [0, 1] (H, W) by midpoint displacement on a torus: each halving is `decay`² times less rough."""
    side = 1 << max(1, (max(shape) - 1).bit_length())
    cloud = np.zeros((1, 1), dtype=np.float32)
    rough = 1.0
    while len(cloud) < side:
        n = len(cloud)
        finer = np.empty((2 * n, 2 * n), dtype=np.float32)
        finer[::2, ::2] = cloud
        right, below = np.roll(cloud, -1, axis=1), np.roll(cloud, -1, axis=0)
        middle = (cloud + right + below + np.roll(right, -1, axis=0)) / 4 + _uniform(rng, n, rough)
        finer[1::2, 1::2] = middle
        finer[::2, 1::2] = (cloud + right + middle + np.roll(middle, 1, axis=0)) / 4 + _uniform(rng, n, rough)
        finer[1::2, ::2] = (cloud + below + middle + np.roll(middle, 1, axis=1)) / 4 + _uniform(rng, n, rough)
        cloud, rough = finer, rough / decay**2
    cloud -= cloud.min()
    return (cloud / max(float(cloud.max()), 1e-9))[: shape[0], : shape[1]]


def _uniform(rng: Rng, side: int, reach: float) -> FloatArray:
    return rng.uniform(-reach, reach, (side, side)).astype(np.float32)


def _ice(shape: tuple[int, int], rng: Rng) -> FloatArray:
    """Frost (H, W, 3): long needles of a few directions over veins of ice, thickest at the rim, a little blue."""
    height, width = shape
    needles = np.zeros(shape, dtype=np.float32)
    for angle in rng.uniform(0, 360, 6):  # each half a bell of its own length: sharp at the root, fading to a tip
        long = max(2, int(min(shape) * rng.uniform(0.05, 0.15)))
        roots = (rng.random(shape) < 0.25 / long).astype(np.float32)
        needles = np.maximum(needles, _moved(roots, long, long / 1.5, float(angle)) * np.float32(0.8 * long))
    veins = 1 - np.abs(2 * _plasma(shape, 1.4, rng) - 1)
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    rim = np.clip(0.1 + 0.45 * (rows**2 + columns**2) + (_plasma(shape, 1.5, rng) - 0.5), 0, 1)
    white = np.clip(0.08 + (0.5 * veins**2 + 0.6 * np.clip(needles, 0, 1)) * rim, 0, 1)
    return (white[..., None] * np.array([0.9, 0.97, 1.0])).astype(np.float32)
