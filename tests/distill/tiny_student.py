"""A few painted images and a student that learned them, made once a test run."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from distill.train import TrainReport, TrainSettings, train
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections

CLASSES = ("disc", "square")
SIDE = 64
SETTINGS = TrainSettings(size=SIDE, epochs=40, batch=8, learning_rate=3e-3, mosaic=0.3, ema=0.98, evaluations=0)


@cache
def scratch() -> Path:
    """A folder for the whole run."""
    return Path(tempfile.mkdtemp(prefix="foveal-student-"))


def paint(folder: Path, count: int, seed: int) -> Dataset:
    """Images with one to three bright discs and squares on dark noise, and their true boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for i in range(count):
        image = Image.fromarray(rng.integers(20, 70, (SIDE, SIDE, 3), dtype=np.uint8))
        pen, boxes, labels = ImageDraw.Draw(image), [], []
        for corner in rng.permutation(4)[: int(rng.integers(1, 4))].tolist():
            x, y = 4 + 32 * (corner % 2) + rng.integers(0, 6), 4 + 32 * (corner // 2) + rng.integers(0, 6)
            box, kind = (int(x), int(y), int(x + 18), int(y + 18)), int(rng.integers(2))
            (pen.ellipse if kind == 0 else pen.rectangle)(box, fill=(230, 60, 60) if kind == 0 else (60, 90, 240))
            boxes.append(box)
            labels.append(kind)
        path = folder / f"{i:03d}.png"
        image.save(path)
        samples.append(Sample(path.stem, path, SIDE, SIDE, Detections.build(boxes, 1.0, labels, CLASSES)))
    return Dataset.build(samples, CLASSES)


@cache
def painted(count: int = 24, seed: int = 0) -> Dataset:
    """`paint` into the run's folder."""
    return paint(scratch() / f"images-{count}-{seed}", count, seed)


@cache
def trained() -> tuple[Path, TrainReport]:
    """A student that has learned the painted images, and its report."""
    out = scratch() / "student"
    return out, train(painted(), "fcos-resnet", out, SETTINGS)
