"""Gathers the crops of an exemplar memory from a labelled dataset and embeds them.

Shape letters: M crops, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray, pairwise_iou
from foveal.errors import BadImage, BadInput
from foveal.models import Encoder
from foveal.progress import Progress, track
from retrieval.crops import backgrounds, crop, jittered

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST = 2.0  # pixels; a thinner box shows nothing
WRONG_BELOW = 0.4  # IoU with every object under which a proposal is an example of a wrong one
BATCH = 128


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One remembered crop."""

    id: str  # of the box; its variants share it
    image: str  # id of the sample it comes from
    label: str | None  # None: no object of any class
    box: tuple[float, float, float, float]  # xyxy pixels
    variant: str  # "drawn", "flipped" or "moved"
    reviewed: bool = False  # a person looked at this very crop


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything a memory remembers."""

    classes: tuple[str, ...]
    exemplars: tuple[Exemplar, ...]
    vectors: FloatArray  # (M, D) unit length
    skipped: dict[str, str]  # sample id -> why it could not be used


def collect(
    encoder: Encoder,
    dataset: Dataset,
    *,
    context: float,
    variants: int,
    background_count: int,
    rejected: Mapping[str, Detections],
    seed: int,
    progress: Progress | None,
) -> Collected:
    """The crops of every labelled sample; see `ExemplarMemory.build`.

    Raises:
        BadInput: no sample has a usable labelled box, or a label.
    """
    sizes = _sizes(dataset)
    if not len(sizes):
        raise BadInput(
            "the labelled images have no boxes",
            expected="a dataset with truth boxes, or with a label for each image",
            received="none",
        )
    exemplars: list[Exemplar] = []
    vectors: list[FloatArray] = []
    skipped: dict[str, str] = {}
    waiting: list[Image] = []
    for number, sample in enumerate(track(progress, map(whole, dataset), "remember", len(dataset))):
        if sample.truth is None:
            continue
        try:
            image = sample.image()
        except BadImage as error:
            skipped[sample.id] = str(error)
            continue
        rng = np.random.default_rng([seed, number])
        for exemplar, picture in _crops(sample, image, context, variants, background_count, sizes, rejected, rng):
            exemplars.append(exemplar)
            waiting.append(picture)
        if len(waiting) >= BATCH:
            vectors.append(encoder.encode_images(waiting))
            waiting = []
    if waiting:
        vectors.append(encoder.encode_images(waiting))
    if not any(exemplar.label for exemplar in exemplars):
        first = next(iter(skipped.values()), "no boxes")
        raise BadInput("none of the labelled images can be used", expected="at least one box", received=first)
    return Collected(dataset.classes, tuple(exemplars), np.concatenate(vectors).astype(np.float32), skipped)


def whole(sample: Sample) -> Sample:
    """The sample; one that has a label and no boxes gets a box of that label around all of it."""
    if sample.truth is not None or sample.label is None:
        return sample
    box = Detections.build([[0, 0, sample.width, sample.height]], 1.0, [sample.label], [sample.label])
    return replace(sample, truth=box)


def of_box(
    drawn: Exemplar, box: FloatArray, image: Image, context: float, variants: int, rng: np.random.Generator
) -> Iterator[tuple[Exemplar, Image]]:
    """The crop of a remembered box (4,) as it was drawn, then `variants` of it, mirrored and moved in turn."""
    from PIL import ImageOps

    yield drawn, crop(image, box, context)
    for variant in range(variants):
        moved, mirrored = jittered(box, rng), variant % 2 == 0
        picture = crop(image, moved, context)
        altered = replace(drawn, box=as_tuple(moved), variant="flipped" if mirrored else "moved")
        yield altered, ImageOps.mirror(picture) if mirrored else picture


def _sizes(dataset: Dataset) -> FloatArray:
    """Width and height (S, 2) of every usable labelled box."""
    boxes = [sample.truth.boxes for sample in map(whole, dataset) if sample.truth is not None]
    sides = [box[:, 2:] - box[:, :2] for box in boxes]
    together = np.concatenate(sides) if sides else np.zeros((0, 2), np.float32)
    return together[together.min(axis=1, initial=np.inf) >= SMALLEST]


def _crops(
    sample: Sample,
    image: Image,
    context: float,
    variants: int,
    background_count: int,
    sizes: FloatArray,
    rejected: Mapping[str, Detections],
    rng: np.random.Generator,
) -> Iterator[tuple[Exemplar, Image]]:
    assert sample.truth is not None
    truth = sample.truth
    for n, (box, label) in enumerate(zip(truth.boxes, truth.label_names, strict=True)):
        if (box[2:] - box[:2]).min() >= SMALLEST:
            drawn = Exemplar(f"{sample.id}#{n}", sample.id, label, as_tuple(box), "drawn")
            yield from of_box(drawn, box, image, context, variants, rng)
    empty = backgrounds(truth.boxes, image.width, image.height, background_count, sizes, rng)
    for n, box in enumerate(empty):
        yield (
            Exemplar(f"{sample.id}#background{n}", sample.id, None, as_tuple(box), "drawn"),
            crop(image, box, context),
        )
    for n, box in enumerate(_wrong(rejected.get(sample.id), truth)):
        yield Exemplar(f"{sample.id}#rejected{n}", sample.id, None, as_tuple(box), "drawn"), crop(image, box, context)


def _wrong(proposals: Detections | None, truth: Detections) -> FloatArray:
    """The proposals (N, 4) that lie on no object, whatever its label."""
    if proposals is None:
        return np.zeros((0, 4), np.float32)
    best = pairwise_iou(proposals.boxes, truth.boxes).max(axis=1, initial=0.0)
    return proposals.boxes[best < WRONG_BELOW]


def as_tuple(box: FloatArray) -> tuple[float, float, float, float]:
    """A box (4,), to a hundredth of a pixel."""
    x1, y1, x2, y2 = (round(float(v), 2) for v in box)
    return x1, y1, x2, y2
