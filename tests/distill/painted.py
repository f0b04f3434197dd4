"""Painted scenes and a teacher that really looks at them: blobs found by colour, with mistakes of its own.

Discs of five colours lie on grey; `mauve` is a colour the teacher has no notion of. Striped squares have a disc's mean
colour, so the teacher takes them for discs; their texture gives them away to whoever remembers crops.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from distill.teacher import Dense
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray
from foveal.formats import coco
from retrieval.memory import ExemplarMemory

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 70, 200),
    "yellow": (220, 200, 40),
    "mauve": (150, 90, 160),
}
CLASSES = tuple(COLOURS)
SIDE = 96


def paint(rng: np.random.Generator) -> tuple[Image.Image, Detections]:
    """One scene of 3 to 6 things on a 3 x 3 grid, with the truth of its discs."""
    pixels = rng.normal(128, 6, (SIDE, SIDE, 3))
    ys, xs = np.mgrid[:SIDE, :SIDE]
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[str] = []
    for cell in rng.choice(9, rng.integers(3, 7), replace=False).tolist():
        radius = int(rng.integers(7, 13))
        x, y = 16 + 32 * (cell % 3), 16 + 32 * (cell // 3)
        name = CLASSES[int(rng.integers(len(CLASSES)))]
        colour = np.array(COLOURS[name]) + rng.normal(0, 22, 3)
        inside = (xs - x) ** 2 + (ys - y) ** 2 <= radius**2
        if rng.random() < 0.25:  # a striped square of the same mean colour
            inside = (np.abs(xs - x) <= radius) & (np.abs(ys - y) <= radius)
            stripes = np.where((xs + ys) % 6 < 3, 30.0, -30.0)[..., None]
            pixels = np.where(inside[..., None], colour + stripes, pixels)
            continue
        pixels = np.where(inside[..., None], colour + rng.normal(0, 5, pixels.shape), pixels)
        boxes.append((x - radius, y - radius, x + radius + 1, y + radius + 1))
        labels.append(name)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return picture, Detections.build(boxes, 1.0, labels, CLASSES)


def painted(folder: Path, count: int, seed: int, *, labels: bool = True) -> Dataset:
    """A dataset of `count` scenes; the same seed gives the same scenes, with labels or without."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for i in range(count):
        picture, truth = paint(rng)
        path = folder / f"{folder.name}-{seed}-{i:03d}.png"
        picture.save(path)
        samples.append(Sample(path.name, path, SIDE, SIDE, truth if labels else None))
    return Dataset.build(samples, CLASSES if labels else ())


class Blobs:
    """An open detector: what differs from the grey ground is an object, its mean colour tells which."""

    name = "blobs"
    fingerprint = "blobs-1"
    KNOWN = frozenset(CLASSES) - {"mauve"}

    def __init__(self, sensitivity: float = 1.0) -> None:
        self.sensitivity = sensitivity
        self.looked: list[int] = []  # how many images each call had

    def detect(
        self, images: Sequence[Image.Image], prompts: Sequence[str], threshold: float = 0.05
    ) -> list[Detections]:
        self.looked.append(len(images))
        result: list[Detections] = []
        for image in images:
            boxes, scores = self._scored(image, prompts)
            best = scores.argmax(axis=1) if len(boxes) else np.zeros(0, dtype=np.int64)
            found = Detections.build(boxes, scores.max(axis=1, initial=0.0), best.tolist(), prompts)
            found = found[found.scores >= threshold]
            result.append(found[np.argsort(-found.scores, kind="stable")])
        return result

    def _scored(self, image: Image.Image, prompts: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        pixels = np.asarray(image, dtype=np.float32)
        blobs, _ = ndimage.label(np.abs(pixels - 128).max(axis=2) > 34)
        boxes: list[tuple[int, int, int, int]] = []
        scores: list[list[float]] = []
        for number, (rows, columns) in enumerate(ndimage.find_objects(blobs), start=1):
            inside = blobs[rows, columns] == number
            if inside.sum() < 30:
                continue
            mean = pixels[rows, columns][inside].mean(axis=0)
            boxes.append((columns.start, rows.start, columns.stop, rows.stop))
            scores.append([self._likeness(mean, prompt) for prompt in prompts])
        return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(scores, dtype=np.float32).reshape(
            -1, len(prompts)
        )

    def _likeness(self, mean: FloatArray, prompt: str) -> float:
        if prompt not in self.KNOWN:
            return 0.03
        return float(np.exp(-np.linalg.norm(mean - np.array(COLOURS[prompt])) / (60 * self.sensitivity)))


class DenseBlobs(Blobs):
    """The same, telling every prompt's score and how sure it is that a box is anything."""

    def dense(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Dense]:
        self.looked.append(len(images))
        scored = [self._scored(image, prompts) for image in images]
        return [Dense(boxes, scores, np.full(len(boxes), 0.6, dtype=np.float32)) for boxes, scores in scored]


class Swatches:
    """An image encoder: mean colour and texture of the picture's middle; texts are not understood."""

    name = "swatches"
    fingerprint = "swatches-1"
    dimension = 7
    logit_scale = 20.0

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        rows = np.stack([self._one(image) for image in images]) if len(images) else np.zeros((0, self.dimension))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)).astype(np.float32)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.full((len(texts), self.dimension), self.dimension**-0.5, dtype=np.float32)

    @staticmethod
    def _one(image: Image.Image) -> FloatArray:
        pixels = np.asarray(image.convert("RGB").resize((24, 24)), dtype=np.float32)[6:18, 6:18] / 255
        mean, spread = pixels.mean(axis=(0, 1)) - 0.5, pixels.std(axis=(0, 1))
        return np.concatenate([mean, 3 * spread, [0.2]]).astype(np.float32)


def remember(gold: Dataset) -> ExemplarMemory:
    """The exemplar memory of a gold set."""
    return ExemplarMemory.build(Swatches(), gold, context=0.0, variants=1, backgrounds=2)


class Fatal(DenseBlobs):
    """Dies of an image that is 33 pixels wide, as a decoder does of a crafted file."""

    def dense(self, images, prompts):  # type: ignore[no-untyped-def]
        if any(image.width == 33 for image in images) and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().dense(images, prompts)


@dataclass(frozen=True)
class Toys:
    """Loads the blob teacher and its memory in another process."""

    gold: Path
    fatal: bool = False

    def __call__(self) -> tuple[DenseBlobs, ExemplarMemory, None]:
        return (Fatal() if self.fatal else DenseBlobs()), remember(coco.read(self.gold)), None
