"""Images with boxes for training detectors: decoded and resized once, augmented as tensors, in a resumable order.

Shape letters: B images, N objects of an image, M the most objects in a batch, H and W as the model sees the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adapt.job import Order
from adapt.pairs import augmented
from adapt.run import check_share
from foveal.dataset import Dataset
from foveal.errors import BadImage, BadInput
from foveal.open_detectors import OwlDetector, TransformersOpenDetector
from foveal.progress import Progress, track

DRAWS = 9  # random numbers an image takes: whether it is mirrored, and eight for `augmented`
LEAST_VISIBLE = 0.3  # of a box's area, for it to count after cropping
SIDED = ("left", "right")  # words that a mirrored image would belie


@dataclass
class Scenes:
    """Pixels and boxes in memory, ready for batches."""

    pixels: list[Tensor]  # each (3, H, W) uint8, resized (and padded to a square) as the detector does
    boxes: list[Tensor]  # each (N, 4) centre-size in [0, 1] of what the model calls the image
    labels: list[Tensor]  # each (N,) index into `classes`
    extent: list[int]  # columns that are picture; padding follows
    classes: tuple[str, ...]
    mean: Tensor  # (3, 1, 1)
    deviation: Tensor  # (3, 1, 1)
    paths: list[Path]
    skipped: list[tuple[Path, str]]

    def __len__(self) -> int:
        return len(self.pixels)


def load_scenes(
    detector: TransformersOpenDetector, dataset: Dataset, max_skipped: float = 0.1, progress: Progress | None = None
) -> Scenes:
    """Decode and resize every annotated image of `dataset` once; images known to hold nothing teach too.

    An image takes 3·H·W bytes: 2.8 MB at 960 px.

    Raises:
        BadInput: no image has a box, or more than the share `max_skipped` cannot be read.
    """
    annotated = [sample for sample in dataset if sample.truth is not None]
    if not any(sample.truth is not None and len(sample.truth) for sample in annotated):
        raise BadInput("nothing to learn from", expected="images with boxes", received="none")
    processor = detector.processor.image_processor
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))
    scenes = Scenes([], [], [], [], dataset.classes, mean, deviation, [], [])
    for sample in track(progress, annotated, "decode images"):
        try:
            image = sample.image()
        except BadImage as error:
            scenes.skipped.append((sample.path, str(error)))
            continue
        assert sample.truth is not None
        pixels: Tensor = processor(images=[image], return_tensors="pt")["pixel_values"][0]
        width, height = seen_size(detector, image.size)
        low, high = np.split(sample.truth.boxes, 2, axis=1)
        boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / np.array([width, height] * 2, np.float32)
        scenes.pixels.append(((pixels * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8))
        scenes.boxes.append(torch.from_numpy(boxes))
        scenes.labels.append(torch.from_numpy(sample.truth.labels))
        scenes.extent.append(round(image.width / width * pixels.shape[-1]))
        scenes.paths.append(sample.path)
    check_share(scenes.skipped, len(annotated), max_skipped)
    return scenes


def seen_size(detector: TransformersOpenDetector, size: tuple[int, int]) -> tuple[int, int]:
    """Width and height that the detector's boxes are shares of: OWLv2 pads to a square at the bottom and right."""
    return (max(size), max(size)) if isinstance(detector, OwlDetector) and detector.pads_to_square else size


def may_mirror(classes: Sequence[str]) -> bool:
    """Whether no class name tells left from right."""
    return not any(word in name.lower() for name in classes for word in SIDED)


class Collator:
    """Items -> a batch of tensors, augmented by random numbers drawn from seed and position alone.

    A batch holds `pixels` (B, 3, H, W) normalised and padded at the bottom and right, `mask` (B, H, W) of what is
    image, `boxes` (B, M, 4), `labels` (B, M) with -1 where an image has fewer objects, and `asked` (B, P): the classes
    an image is asked about, its own and at most `negatives` others. `count` () is what the losses of this piece of a
    batch of `order` are divided by: their mean over all pieces is the whole batch's loss by its number of boxes.
    """

    def __init__(self, scenes: Scenes, order: Order, augment: bool, negatives: int) -> None:
        self.scenes, self.order, self.seed = scenes, order, order.seed
        self.augment, self.negatives = augment, negatives
        self.mirror = augment and may_mirror(scenes.classes)

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        examples = [self._example(position, index) for position, index in items]
        height, width = (max(pixels.shape[i] for pixels, *_ in examples) for i in (1, 2))
        most = max(len(labels) for _, _, labels, _ in examples)
        pixels = torch.zeros(len(items), 3, height, width)
        mask = torch.zeros(len(items), height, width, dtype=torch.long)
        boxes, labels = torch.zeros(len(items), most, 4), torch.full((len(items), most), -1)
        for i, (picture, known, names, _) in enumerate(examples):
            pixels[i, :, : picture.shape[1], : picture.shape[2]] = picture
            mask[i, : picture.shape[1], : picture.shape[2]] = 1
            boxes[i, : len(known)], labels[i, : len(names)] = known, names
        asked = torch.stack([chosen for *_, chosen in examples])
        first = items[0][0] - items[0][0] % self.order.batch
        shown = [self.order[first + i] for i in range(self.order.batch)]
        whole = sum(int(self._boxes(i, self._random(position)[0])[1].sum()) for position, i in shown)
        count = torch.tensor(max(whole, 1) * len(items) / self.order.batch)
        return {"pixels": pixels, "mask": mask, "boxes": boxes, "labels": labels, "asked": asked, "count": count}

    def _random(self, position: int) -> tuple[Tensor, np.random.Generator]:
        """The numbers (DRAWS,) that augment an example, and what draws further ones."""
        rng = np.random.default_rng((self.seed, position))
        return torch.from_numpy(rng.random(DRAWS)).float(), rng

    def _mirrors(self, random: Tensor) -> bool:
        return self.mirror and bool(random[0] < 0.5)

    def _boxes(self, index: int, random: Tensor) -> tuple[Tensor, Tensor]:
        """An example's boxes (N, 4) once it is augmented, and which (N,) of them still count."""
        scenes, boxes = self.scenes, self.scenes.boxes[index]
        if self._mirrors(random):
            boxes = mirrored_boxes(boxes, scenes.extent[index] / scenes.pixels[index].shape[-1])
        return cropped(boxes, random[1:]) if self.augment else (boxes, torch.ones(len(boxes), dtype=torch.bool))

    def _example(self, position: int, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scenes, (random, rng) = self.scenes, self._random(position)
        pixels = scenes.pixels[index].float() / 255
        boxes, kept = self._boxes(index, random)
        boxes, labels = boxes[kept], scenes.labels[index][kept]
        if self._mirrors(random):
            pixels = mirrored(pixels, scenes.extent[index])
        if self.augment:
            pixels = augmented(pixels[None], random[None, 1:])[0]
        asked = torch.zeros(len(scenes.classes), dtype=torch.bool)
        asked[torch.from_numpy(rng.permutation(len(scenes.classes)))[: self.negatives]] = True
        asked[labels] = True
        return (pixels - scenes.mean) / scenes.deviation, boxes, labels, asked


def mirrored(pixels: Tensor, extent: int) -> Tensor:
    """Pixels (3, H, W) with their first `extent` columns mirrored; the rest is padding."""
    return torch.cat([pixels[..., :extent].flip(-1), pixels[..., extent:]], dim=-1)


def mirrored_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes (N, 4) in a picture that fills `width` of the columns, mirrored with it."""
    boxes = boxes.clone()
    boxes[:, 0] = width - boxes[:, 0]
    return boxes


def cropped(boxes: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
    """Where boxes (N, 4) lie after `adapt.pairs.augmented` with the numbers `random` (8,), cut to the image, and a mask
    (N,) of those of which enough is left."""
    zoom = 0.85 + 0.15 * random[0]
    move = (2 * random[1:3] - 1) * (1 - zoom)
    centre = ((2 * boxes[:, :2] - 1 - move) / zoom + 1) / 2
    half = boxes[:, 2:] / zoom / 2
    low, high = (centre - half).clamp(0, 1), (centre + half).clamp(0, 1)
    size = high - low
    visible = size.prod(dim=1) / (4 * half.prod(dim=1)).clamp(min=1e-9)
    return torch.cat([(low + high) / 2, size], dim=1), visible >= LEAST_VISIBLE
