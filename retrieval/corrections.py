"""What reviewers say of boxes, as crops that a memory remembers at once.

Shape letters: N boxes, M remembered crops, D embedding dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray, pairwise_iou
from foveal.models import Encoder
from retrieval.collect import SMALLEST, WRONG_BELOW, Collected, Exemplar, as_tuple, of_box, whole
from retrieval.crops import CLEAR, covered, crop

if TYPE_CHECKING:
    from PIL.Image import Image

SAME_PLACE = 0.5  # IoU from which on two boxes of an image are about the same thing
SAME_PICTURE = 0.99  # cosine between a crop and what is remembered of its place, below which the image is another
LOOKED = 8  # remembered boxes that are compared for it


@dataclass(frozen=True, slots=True)
class Correction:
    """A reviewer's word on boxes of one image; an approved box wins over a rejected one in its place."""

    image: str  # id of the sample
    picture: Image
    approved: Detections  # with the labels that are right
    rejected: FloatArray  # (N, 4) xyxy pixels: boxes that show no object

    def boxes(self) -> Iterator[tuple[FloatArray, str | None]]:
        """Each box (4,) that is large enough to see, with its label; None where there is no object."""
        for box, label in zip(self.approved.boxes, self.approved.label_names, strict=True):
            if (box[2:] - box[:2]).min() >= SMALLEST:
                yield box, label
        for box in self.rejected:
            taken = pairwise_iou(box[None], self.approved.boxes).max(initial=0.0) >= WRONG_BELOW
            if not taken and (box[2:] - box[:2]).min() >= SMALLEST:
                yield box, None


def corrections(approved: Dataset | None, rejected: Dataset | None) -> Iterator[Correction]:
    """What two labelled sets say, an image at a time; they name the same image by the same sample id.

    Raises:
        BadImage: an image cannot be decoded, or is of another size than its boxes were drawn on.
    """
    wrong = {sample.id: sample for sample in map(whole, rejected or ())}
    for sample in map(whole, approved or ()):
        other = wrong.pop(sample.id, None)
        if _boxes(sample) is not None or (other is not None and _boxes(other) is not None):
            yield _correction(sample, sample.truth, other)
    for sample in wrong.values():
        if _boxes(sample) is not None:
            yield _correction(sample, None, sample)


def after(
    known: Collected, said: Iterable[Correction], encoder: Encoder, *, context: float, variants: int, seed: int
) -> tuple[Collected, int]:
    """What is remembered after corrections, and how many boxes they added.

    Sample ids may be numbers that mean another image in another file: an image of a known id that does not look as
    remembered is a new one. A box takes the place of what was remembered at the same place of its image (IoU of at
    least `SAME_PLACE`), an approved one also that of background crops that it lies on. Classes that are new come last.
    """
    classes = list(known.classes)
    kept = np.ones(len(known.exemplars), dtype=bool)
    by_image: dict[str, list[int]] = {}
    for row, exemplar in enumerate(known.exemplars):
        by_image.setdefault(exemplar.image, []).append(row)
    added: dict[str, list[tuple[Exemplar, FloatArray]]] = {}  # id of a box -> its crops
    for number, correction in enumerate(said):
        rng = np.random.default_rng([seed, len(known.exemplars), number])
        image = _identity(correction, known, by_image, encoder, context)
        rows = by_image.get(image, [])
        for box, label in correction.boxes():
            gone = _superseded([known.exemplars[row] for row in rows], box, label)
            kept[[row for row in rows if known.exemplars[row].id in gone]] = False
            if label is not None and label not in classes:
                classes.append(label)
            edges = as_tuple(box)
            drawn = Exemplar(
                f"{image}#{'-'.join(f'{edge:g}' for edge in edges)}", image, label, edges, "drawn", reviewed=True
            )  # fmt: skip
            crops = list(of_box(drawn, box, correction.picture, context, variants, rng))
            vectors = encoder.encode_images([picture for _, picture in crops])
            added[drawn.id] = [(one, vector) for (one, _), vector in zip(crops, vectors, strict=True)]
    new = [pair for pairs in added.values() for pair in pairs]
    exemplars = (*(e for e, keep in zip(known.exemplars, kept, strict=True) if keep), *(e for e, _ in new))
    vectors = np.concatenate([known.vectors[kept], *(vector[None] for _, vector in new)]).astype(np.float32)
    return replace(known, classes=tuple(classes), exemplars=exemplars, vectors=vectors), len(added)


def _identity(
    correction: Correction, known: Collected, by_image: Mapping[str, Sequence[int]], encoder: Encoder, context: float
) -> str:
    """The image's id; with a hash of its pixels where the memory knows another picture by that id."""
    rows = [row for row in by_image.get(correction.image, ()) if known.exemplars[row].variant == "drawn"][:LOOKED]
    if not rows:
        return correction.image
    boxes = [np.array(known.exemplars[row].box, dtype=np.float32) for row in rows]
    vectors = encoder.encode_images([crop(correction.picture, box, context) for box in boxes])
    if (vectors * known.vectors[rows]).sum(axis=1).min() >= SAME_PICTURE:
        return correction.image
    return f"{correction.image}@{hashlib.sha256(correction.picture.tobytes()).hexdigest()[:12]}"


def _superseded(there: Sequence[Exemplar], box: FloatArray, label: str | None) -> set[str]:
    """Ids of the remembered boxes of an image that a reviewer's box (4,) speaks about."""
    drawn = [e for e in there if e.variant == "drawn"]
    if not drawn:
        return set()
    boxes = np.array([e.box for e in drawn], dtype=np.float32)
    overlap = pairwise_iou(box[None], boxes)[0]
    return {
        e.id
        for e, value, where in zip(drawn, overlap.tolist(), boxes, strict=True)
        if value >= SAME_PLACE or (label is not None and e.label is None and covered(where, box[None]) > CLEAR)
    }


def _boxes(sample: Sample) -> FloatArray | None:
    return None if sample.truth is None or not len(sample.truth) else sample.truth.boxes


def _correction(sample: Sample, approved: Detections | None, rejected: Sample | None) -> Correction:
    wrong = None if rejected is None else _boxes(rejected)
    return Correction(
        sample.id,
        sample.image(),
        Detections.empty(()) if approved is None else approved,
        np.zeros((0, 4), np.float32) if wrong is None else wrong,
    )
