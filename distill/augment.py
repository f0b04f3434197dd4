"""Training images in memory, and the random views of them that a student sees.

Images are stretched to one small square and kept as uint8, so an epoch decodes nothing. A view is one affine warp
(scale, stretch, shift, mirror) or a mosaic of four (arXiv 2004.10934), then a random colour matrix: brightness,
contrast, saturation and tint in one pass.

Shape letters: M images, K cache side, S view side, N boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from foveal.dataset import Dataset
from foveal.detections import BoolArray, Detections, FloatArray, IntArray
from foveal.errors import BadImage, BadInput
from foveal.progress import Progress, track

Review = Literal["ignore", "drop", "learn"]  # what boxes under review become
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
GREY = (114, 114, 114)  # fill outside the image, as in the YOLO family
VISIBLE = 0.35  # a box cut below this share of its area is neither there nor absent: it is ignored


@dataclass(frozen=True, slots=True)
class Labels:
    """Boxes of one image as a student learns them."""

    boxes: FloatArray  # (N, 4) xyxy in [0, 1] of the image
    labels: IntArray  # (N,)
    weights: FloatArray  # (N,) probability that the box is right
    ignore: BoolArray  # (N,) True: inside the box nothing is learned

    @classmethod
    def of(cls, truth: Detections, width: int, height: int, *, soft: bool = True, review: Review = "ignore") -> Labels:
        """Labels from truth or pseudo-labels: rejected boxes leave, accepted ones and those without a route are
        positives, weighted when `soft` by their calibrated probability. Boxes without area are dropped."""
        routes = [p.route for p in truth.provenance] if truth.provenance is not None else [None] * len(truth)
        scale = np.array([width, height, width, height], dtype=np.float32)
        boxes = np.clip(truth.boxes / scale, 0, 1)
        unwanted = ("reject", "review") if review == "drop" else ("reject",)
        keep = np.array([route not in unwanted for route in routes], dtype=bool)
        keep &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        weights = np.ones(len(truth), dtype=np.float32)
        if soft and truth.probabilities is not None:
            weights = truth.probabilities
        ignore = np.array([route == "review" and review == "ignore" for route in routes], dtype=bool)
        return cls(boxes[keep], truth.labels[keep], weights[keep].astype(np.float32), ignore[keep])


class ImageCache:
    """Every labelled image of a dataset as a uint8 square, with its labels; `skipped` lists the unreadable ones.

    Args:
        dataset: images with truth or pseudo-labels; those that nobody looked at (truth None) are left out.
        side: K, the side they are stretched to.
        soft: weigh each box by its calibrated probability.
        review: what boxes under review become: regions without a lesson, nothing, or positives.
        max_bytes: refuse to hold more than this.

    Raises:
        BadInput: no labelled image, no positive box, or more pixels than fit in `max_bytes`.
    """

    def __init__(
        self,
        dataset: Dataset,
        side: int,
        *,
        soft: bool = True,
        review: Review = "ignore",
        max_bytes: int = 4 << 30,
        progress: Progress | None = None,
    ) -> None:
        need = len(dataset) * side * side * 3
        if need > max_bytes:
            raise BadInput(
                f"{len(dataset)} images at {side} px need {need >> 20} MiB of memory",
                expected=f"at most {max_bytes >> 20} MiB",
                remedy="Train on a subset, or at a smaller size.",
            )
        pixels: npt.NDArray[np.uint8] = np.empty((len(dataset), side, side, 3), dtype=np.uint8)
        self.labels: list[Labels] = []
        self.skipped: list[tuple[str, str]] = []
        for sample in track(progress, dataset, "read training images", len(dataset)):
            if sample.truth is None:
                continue
            try:
                image = sample.image()
            except BadImage as error:
                self.skipped.append((sample.id, str(error)))
                continue
            small = image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
            pixels[len(self.labels)] = np.asarray(small)
            self.labels.append(Labels.of(sample.truth, *image.size, soft=soft, review=review))
        self.pixels = pixels[: len(self.labels)]
        self.positives = sum(int((~item.ignore).sum()) for item in self.labels)
        self.ignored = sum(int(item.ignore.sum()) for item in self.labels)
        if self.positives == 0:
            raise BadInput(
                f"there is nothing to learn from in {len(self.labels)} labelled images",
                expected="at least one accepted box",
                remedy="Lower the target precision of the ontology, or add gold images.",
            )

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, slots=True)
class Pane:
    """One image's part of a view: where it lies, and how a place there comes from the image."""

    row: int  # of the cache
    area: tuple[int, int, int, int]  # x1, y1, x2, y2 in view pixels
    scale: tuple[float, float]  # view pixels that the whole image would cover
    offset: tuple[float, float]  # of the image's left and top edge from the pane's, view pixels
    mirror: bool

    def to_image(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """View pixels -> shares of the image's width and height; outside [0, 1] nothing of it is seen."""
        u = (x - self.area[0] - self.offset[0]) / self.scale[0]
        v = (y - self.area[1] - self.offset[1]) / self.scale[1]
        return (1 - u if self.mirror else u), v


@dataclass(frozen=True, slots=True)
class Augment:
    """How far a view may stray from its image. `mosaic` is the share of views made of four images."""

    mosaic: float = 0.5
    scale: tuple[float, float] = (0.6, 1.5)
    mosaic_scale: tuple[float, float] = (0.35, 0.8)
    stretch: float = 0.15
    shift: float = 0.2
    mirror: bool = True
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.4
    tint: float = 0.08

    def view(
        self, cache: ImageCache, row: int, side: int, rng: np.random.Generator, *, calm: bool = False
    ) -> tuple[npt.NDArray[np.uint8], Labels, list[Pane]]:
        """One random view (S, S, 3) of image `row`, its labels and what it is made of; `calm` leaves out the mosaic."""
        canvas = np.full((side, side, 3), GREY, dtype=np.uint8)
        if not calm and rng.random() < self.mosaic:
            cx, cy = (rng.uniform(0.3, 0.7, 2) * side).astype(int).tolist()
            rows = [row, *rng.integers(0, len(cache), 3).tolist()]
            panes = [(0, 0, cx, cy), (cx, 0, side, cy), (0, cy, cx, side), (cx, cy, side, side)]
            order = rng.permutation(4)
            parts = [
                self._warp(cache, rows[i], canvas, panes[pane], rng.uniform(*self.mosaic_scale), rng)
                for i, pane in enumerate(order.tolist())
            ]
        else:
            low, high = self.scale
            zoom = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            parts = [self._warp(cache, row, canvas, (0, 0, side, side), zoom, rng)]
        labels = [part for part, _ in parts]
        merged = Labels(
            np.concatenate([p.boxes for p in labels]),
            np.concatenate([p.labels for p in labels]),
            np.concatenate([p.weights for p in labels]),
            np.concatenate([p.ignore for p in labels]),
        )
        return self._recolour(canvas, rng), merged, [pane for _, pane in parts]

    def _warp(
        self,
        cache: ImageCache,
        row: int,
        canvas: npt.NDArray[np.uint8],
        pane: tuple[int, int, int, int],
        zoom: float,
        rng: np.random.Generator,
    ) -> tuple[Labels, Pane]:
        """Draw image `row` into the pane (x1, y1, x2, y2) of the canvas and carry its labels along."""
        x1, y1, x2, y2 = pane
        side, pixels, labels = canvas.shape[0], cache.pixels[row], cache.labels[row]
        size = np.array([x2 - x1, y2 - y1], dtype=np.float64)
        scale = side * zoom * np.exp(rng.uniform(-self.stretch, self.stretch, 2) / 2)
        # Larger than the pane: any crop of it. Smaller: anywhere in it. `shift` lets either hang over an edge.
        slack, over = size - scale, self.shift * np.minimum(size, scale)
        offset = rng.uniform(np.minimum(slack, 0) - over, np.maximum(slack, 0) + over)
        mirror = bool(self.mirror and rng.random() < 0.5)
        factor = scale / pixels.shape[0]
        matrix = np.array([[factor[0], 0, offset[0]], [0, factor[1], offset[1]]])
        if mirror:
            matrix[0] = [-factor[0], 0, offset[0] + scale[0]]
        canvas[y1:y2, x1:x2] = cv2.warpAffine(
            pixels, matrix, (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=GREY
        )
        boxes = labels.boxes.astype(np.float64)
        if mirror:
            boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
        whole = boxes * np.tile(scale, 2) + np.tile(offset, 2)
        cut = np.clip(whole, 0, np.tile(size, 2))
        extent = cut[:, 2:] - cut[:, :2]
        seen = extent.prod(1) / np.maximum((whole[:, 2:] - whole[:, :2]).prod(1), 1e-9)
        keep = (extent > 2.0).all(1)
        moved = ((cut + np.array([x1, y1, x1, y1])) / side).astype(np.float32)
        drawn = Pane(row, pane, (float(scale[0]), float(scale[1])), (float(offset[0]), float(offset[1])), mirror)
        ignore = (labels.ignore | (seen < VISIBLE))[keep]
        return Labels(moved[keep], labels.labels[keep], labels.weights[keep], ignore), drawn

    def _recolour(self, image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        gain = 1 + rng.uniform(-self.brightness, self.brightness)
        contrast = 1 + rng.uniform(-self.contrast, self.contrast)
        saturation = 1 + rng.uniform(-self.saturation, self.saturation)
        tint = 1 + rng.uniform(-self.tint, self.tint, 3)
        mix = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
        matrix = gain * contrast * (tint[:, None] * mix)
        offset = 128 * gain * (1 - contrast)
        moved = cv2.transform(image, np.concatenate([matrix, np.full((3, 1), offset)], 1).astype(np.float32))
        return np.asarray(moved, np.uint8)


# The image as it is.
STILL = Augment(0, (1, 1), stretch=0, shift=0, mirror=False, brightness=0, contrast=0, saturation=0, tint=0)


def collate(views: list[tuple[npt.NDArray[np.uint8], Labels]]) -> dict[str, npt.NDArray[np.generic]]:
    """Views as one padded batch: images (B, 3, S, S) uint8, boxes (B, N, 4), labels, weights and ignore (B, N)."""
    count = max(1, max(len(item.labels) for _, item in views))
    batch = len(views)
    boxes = np.zeros((batch, count, 4), np.float32)
    labels = np.full((batch, count), -1, np.int64)
    weights, ignore = np.zeros((batch, count), np.float32), np.zeros((batch, count), bool)
    for row, (_, item) in enumerate(views):
        n = len(item.labels)
        boxes[row, :n], labels[row, :n] = item.boxes, item.labels
        weights[row, :n], ignore[row, :n] = item.weights, item.ignore
    images = np.stack([image for image, _ in views]).transpose(0, 3, 1, 2)
    return {"images": images, "boxes": boxes, "labels": labels, "weights": weights, "ignore": ignore}
