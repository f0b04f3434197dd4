"""A small, exact and real encoder for the archive's tests: a fixed random projection of an 8 x 8 thumbnail."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from foveal.detections import FloatArray

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")


class PixelEncoder:
    """Images by their thumbnail; a text is the colour it names."""

    logit_scale = 10.0

    def __init__(self, dimension: int = 32, seed: int = 0) -> None:
        self.name = f"pixels-{seed}"
        self.fingerprint = hashlib.sha256(f"pixels {dimension} {seed}".encode()).hexdigest()
        self.dimension = dimension
        self._projection = np.random.default_rng(seed).standard_normal((192, dimension)).astype(np.float32)

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        pixels = [np.asarray(i.resize((8, 8), Image.Resampling.BOX), dtype=np.float32).reshape(-1) for i in images]
        vectors = (np.stack(pixels) / 255 - 0.45) @ self._projection
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return self.encode_images([Image.new("RGB", (8, 8), ImageColor.getrgb(text)) for text in texts])


def write_images(folder: Path, count: int, seed: int = 0, colour: str | None = None) -> list[Path]:
    """`count` different noisy images of the colours in turn, 40 x 24 px, and a metadata.csv beside `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths: list[Path] = []
    for i in range(count):
        name = colour or COLOURS[i % len(COLOURS)]
        base = np.array(ImageColor.getrgb(name), dtype=np.float32)
        cells = np.clip(base + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{i:04d}.png")
        Image.fromarray(cells).resize((40, 24), Image.Resampling.NEAREST).save(paths[-1])
    with (folder.parent / "metadata.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", "camera", "hour", "colour"])
        for i, path in enumerate(paths):
            writer.writerow([path.name, f"cam{i % 3}", i % 24, colour or COLOURS[i % len(COLOURS)]])
    return paths
