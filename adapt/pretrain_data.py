"""Rendered scenes as training views: zoomed crops with the boxes, tokens and words that stay in sight.

Shape letters: B views in a batch, S pixels a side, G patches a side, T = G * G patch tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from foveal.artifacts import staged
from foveal.progress import Progress, SilentProgress
from foveal.world import Domain, render

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)  # CLIP's, as both preprocessors use them
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
SHORT_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "one {}")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, slots=True)
class Mix:
    """How views are drawn: shares of whole scenes and of crops, the rest being close-ups of one object."""

    whole: float
    crop: float
    area: tuple[float, float]  # of a crop, as a share of the scene's


@dataclass(frozen=True, slots=True)
class Thing:
    """One object as the training views need it."""

    kind: str
    words: frozenset[str]  # kind, colour, material and state: what a query phrase may ask for
    phrase: str
    box: tuple[float, float, float, float]  # xyxy pixels of the scene


@dataclass(frozen=True, slots=True)
class View:
    """One augmented crop."""

    pixels: npt.NDArray[np.float32]  # (3, S, S), normalised
    caption: str
    things: tuple[Thing, ...]  # boxes in [0, 1] of the view
    owner: npt.NDArray[np.int64]  # (T,) index into `things`, -1 where a patch shows background


def _pack(job: tuple[int, Domain, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], str]:
    seed, domain, size = job
    scene = render(seed, domain, size)
    owner = np.zeros((size, size), dtype=np.uint8)
    things: list[dict[str, Any]] = []
    for i, item in enumerate(scene.objects):
        owner[item.mask] = i + 1
        words = sorted({item.kind, item.colour, item.material, item.state})
        things.append({"kind": item.kind, "words": words, "phrase": item.phrase, "box": [float(v) for v in item.box]})
    return scene.image, owner, json.dumps({"captions": scene.captions, "things": things})


def render_scenes(
    out: Path, domain: Domain, count: int, *, seed: int, size: int, workers: int, progress: Progress | None = None
) -> Path:
    """Render `count` scenes into `out` as memory-mappable arrays; a folder already complete is left as it is."""
    progress = progress or SilentProgress()
    if (out / "scenes.jsonl").exists():
        return out
    with staged(out) as folder:
        shape = (count, size, size)
        images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(*shape, 3))
        owners = np.lib.format.open_memmap(folder / "owners.npy", mode="w+", dtype=np.uint8, shape=shape)
        progress.start(f"render {domain} scenes", count)
        jobs: list[tuple[int, Domain, int]] = [(seed * 1_000_003 + i, domain, size) for i in range(count)]
        with get_context("spawn").Pool(workers) as pool, (folder / "scenes.jsonl").open("w") as lines:
            for i, (image, owner, text) in enumerate(pool.imap(_pack, jobs, chunksize=32)):
                images[i], owners[i] = image, owner
                lines.write(text + "\n")
                progress.advance()
        progress.finish()
    return out


class SceneViews:
    """Random views of the scenes in a folder of `render_scenes`."""

    def __init__(self, folder: Path) -> None:
        self.images: npt.NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="r")
        self.owners: npt.NDArray[np.uint8] = np.load(folder / "owners.npy", mmap_mode="r")
        self.captions: list[list[str]] = []
        self.things: list[list[Thing]] = []
        for line in (folder / "scenes.jsonl").open():
            record = json.loads(line)
            self.captions.append(record["captions"])
            self.things.append(
                [Thing(t["kind"], frozenset(t["words"]), t["phrase"], tuple(t["box"])) for t in record["things"]]
            )

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """sha256 over every pixel and word."""
        digest = hashlib.sha256(json.dumps(self.captions).encode())
        for image in self.images:
            digest.update(image.tobytes())
        return digest.hexdigest()

    def patches(self, patch: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Random (count, 3 * patch * patch) squares of normalised pixels, laid out like a patch embedding's weights."""
        side = self.images.shape[1]
        out = np.empty((count, 3, patch, patch), np.float32)
        for n in range(count):
            i, y, x = rng.integers(len(self)), *rng.integers(0, side - patch, 2)
            square = self.images[i, y : y + patch, x : x + patch].astype(np.float32)
            out[n] = ((square / 255 - MEAN) / STD).transpose(2, 0, 1)
        return out.reshape(count, -1)

    def sentences(self) -> list[str]:
        """Every caption and phrase, to learn the tokenizer from."""
        phrases = [template.format(t.phrase) for things in self.things for t in things for template in SHORT_TEMPLATES]
        return [c for captions in self.captions for c in captions] + phrases

    def plain(self, i: int, size: int, patch: int) -> View:
        """Scene `i` whole and unaugmented, with its fullest caption."""
        side = self.images.shape[1]
        return self._cut(i, (0, 0, side, side), False, size, patch, self.captions[i][0], None)

    def random(self, i: int, size: int, patch: int, rng: np.random.Generator, mix: Mix) -> View:
        """A random view of scene `i`: whole, cropped, or close to one object; mirrored and recoloured at random."""
        side = self.images.shape[1]
        mirror, draw = bool(rng.random() < 0.5), rng.random()
        if draw < mix.whole or not self.things[i]:
            captions = self.captions[i]
            caption = captions[0] if rng.random() < 0.6 else captions[int(rng.integers(len(captions)))]
            margin = rng.uniform(0, 0.06, 4) * side
            window = (margin[0], margin[1], side - margin[2], side - margin[3])
        elif draw < mix.whole + mix.crop:
            extent = side * np.sqrt(rng.uniform(*mix.area))
            x1, y1, x2, y2 = self.things[i][int(rng.integers(len(self.things[i])))].box
            aim = np.array([x1 + x2, y1 + y2]) / 2 + rng.uniform(-0.3, 0.3, 2) * extent
            x, y = np.clip(aim - extent / 2, 0, side - extent)
            window, caption = (x, y, x + extent, y + extent * rng.uniform(0.85, 1.0)), None
        else:
            box = np.array(self.things[i][int(rng.integers(len(self.things[i])))].box)
            spread = (box[2:] - box[:2]) * rng.uniform(1.0, 1.7) / 2
            centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.12, 0.12, 2) * (box[2:] - box[:2])
            low, high = np.clip(centre - spread, 0, side), np.clip(centre + spread, 0, side)
            window, caption = (low[0], low[1], max(high[0], low[0] + 8), max(high[1], low[1] + 8)), None
        return self._cut(i, window, mirror, size, patch, caption, rng)

    def _cut(
        self,
        i: int,
        window: Sequence[float],
        mirror: bool,
        size: int,
        patch: int,
        caption: str | None,
        rng: np.random.Generator | None,
    ) -> View:
        x1, y1, x2, y2 = (round(v) for v in window)
        cut = np.asarray(self.images[i, y1:y2, x1:x2])
        pixels = np.asarray(cv2.resize(cut, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
        owner = np.asarray(self.owners[i, y1:y2, x1:x2])
        extent = np.array([x2 - x1, y2 - y1] * 2, dtype=np.float64)
        things, keep = [], {}
        for j, thing in enumerate(self.things[i]):
            box = (np.array(thing.box) - [x1, y1, x1, y1]) / extent
            seen = np.clip(box, 0, 1)
            area, whole = np.prod(seen[2:] - seen[:2]), np.prod(box[2:] - box[:2])
            if (seen[2:] <= seen[:2]).any() or area < 0.4 * whole:
                continue
            if mirror:
                seen = np.array([1 - seen[2], seen[1], 1 - seen[0], seen[3]])
            keep[j + 1] = len(things)
            things.append(Thing(thing.kind, thing.words, thing.phrase, tuple(seen.tolist())))
        if mirror:
            pixels, owner = pixels[:, ::-1], owner[:, ::-1]
        if caption is None:
            caption = _describe(things, rng)
        elif mirror:
            caption = _swap_sides(caption)
        tokens = _token_owner(owner, keep, things, size // patch)
        if rng is not None:
            pixels = _recolour(pixels, rng)
        normal = ((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)
        return View(np.ascontiguousarray(normal, np.float32), caption, tuple(things), tokens)


def _describe(things: list[Thing], rng: np.random.Generator | None) -> str:
    if not things:
        return "an empty place"
    if len(things) == 1:
        template = SHORT_TEMPLATES[int(rng.integers(len(SHORT_TEMPLATES))) if rng else 0]
        return template.format(things[0].phrase if rng is None or rng.random() < 0.8 else things[0].kind)
    counts: dict[str, int] = {}
    for thing in things:
        counts[thing.phrase] = counts.get(thing.phrase, 0) + 1
    parts = [f"a {p}" if n == 1 else f"{NUMBERS[min(n, 10)]} {p}s" for p, n in counts.items()]
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts)


def _swap_sides(caption: str) -> str:
    swap = {"left": "right", "right": "left"}
    return " ".join(swap.get(word, word) for word in caption.split(" "))


def _token_owner(
    owner: npt.NDArray[np.uint8], keep: dict[int, int], things: list[Thing], grid: int
) -> npt.NDArray[np.int64]:
    """Which thing each patch centre shows; a thing no centre falls on gets the patch nearest its middle."""
    height, width = owner.shape
    rows = ((np.arange(grid) + 0.5) / grid * height).astype(int)
    columns = ((np.arange(grid) + 0.5) / grid * width).astype(int)
    lookup = np.full(256, -1, dtype=np.int64)
    for old, new in keep.items():
        lookup[old] = new
    tokens = lookup[owner[np.ix_(rows, columns)]]
    for j in set(range(len(things))) - set(tokens.ravel().tolist()):
        x1, y1, x2, y2 = things[j].box
        row, column = (min(int((a + b) / 2 * grid), grid - 1) for a, b in ((y1, y2), (x1, x2)))
        tokens[row, column] = j
    return tokens.reshape(-1)


def _recolour(pixels: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Exposure, contrast, tint, blur and noise, in the ranges ordinary cameras differ by."""
    gain = rng.uniform(0.75, 1.3) * rng.uniform(0.94, 1.06, 3)
    offset = rng.uniform(-12, 12)
    out = np.clip(pixels.astype(np.float32) * gain.astype(np.float32) + np.float32(offset), 0, 255)
    if rng.random() < 0.2:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.4:
        out += rng.standard_normal(out.shape, dtype=np.float32) * np.float32(rng.uniform(1, 7))
    return np.clip(out, 0, 255).astype(np.uint8)
