"""The one prediction record: boxes, raw scores, calibrated probabilities, and where each came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foveal.errors import BadInput

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Route = Literal["accept", "review", "reject"]
Attributes = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A remembered crop that spoke for or against a detection's label."""

    id: str
    similarity: float  # cosine, [-1, 1]
    label: str
    supports: bool


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who made one detection, and on what evidence."""

    model: str  # reference and fingerprint of the model that proposed the box
    adapter: str | None = None
    teachers: tuple[str, ...] = ()  # every teacher that agreed, when several were fused
    neighbours: tuple[Neighbour, ...] = ()
    route: Route | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Detections of one image; truth uses the same type with scores of 1.

    Raises:
        BadInput: on construction, when shapes disagree, a value is not finite, a score lies outside [0, 1], a box has
            negative extent or a label has no name.
    """

    boxes: FloatArray  # (N, 4) xyxy pixels of the upright image, origin top left
    scores: FloatArray  # (N,) raw model score in [0, 1]
    labels: IntArray  # (N,) index into `names`
    names: tuple[str, ...]
    probabilities: FloatArray | None = None  # (N,) calibrated P(correct) in [0, 1]
    masks: tuple[str, ...] | None = None  # one per box, COCO polygons or run lengths (`foveal.masks`); empty: none
    attributes: tuple[Attributes, ...] | None = None  # one per box: name -> value
    provenance: tuple[Provenance, ...] | None = None  # one per box

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4):
            raise BadInput("boxes have the wrong shape", expected="(N, 4) xyxy", received=str(self.boxes.shape))
        for name, values in (("scores", self.scores), ("labels", self.labels), ("probabilities", self.probabilities)):
            if values is not None and values.shape != (count,):
                raise BadInput(f"{name} have the wrong shape", expected=f"({count},)", received=str(values.shape))
        for name, values in (("boxes", self.boxes), ("scores", self.scores), ("probabilities", self.probabilities)):
            if values is not None and not np.isfinite(values).all():
                raise BadInput(f"{name} hold NaN or infinity", expected="finite numbers")
        if count and ((self.boxes[:, 2] < self.boxes[:, 0]) | (self.boxes[:, 3] < self.boxes[:, 1])).any():
            raise BadInput("a box has negative width or height", expected="x1 <= x2 and y1 <= y2")
        for name, values in (("score", self.scores), ("probability", self.probabilities)):
            if values is not None and count and (values.min() < 0 or values.max() > 1):
                raise BadInput(f"a {name} lies outside its range", expected="[0, 1]", received=f"{values.max():g}")
        if count and (self.labels.min() < 0 or self.labels.max() >= len(self.names)):
            raise BadInput("a label has no name", expected=f"0..{len(self.names) - 1}", received=str(self.labels.max()))
        for name in ("masks", "attributes", "provenance"):
            told: tuple[Any, ...] | None = getattr(self, name)
            if told is not None and len(told) != count:
                raise BadInput(f"{name} must be one a box", expected=str(count), received=str(len(told)))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: IntArray | BoolArray | slice | Sequence[int]) -> Detections:
        """The selected rows (integer index array, boolean mask or slice), order kept as given."""
        chosen = index if isinstance(index, slice) else np.asarray(index)
        if not isinstance(chosen, slice) and not chosen.size:
            chosen = np.zeros(0, dtype=np.int64)  # an empty list has no dtype to index with
        rows: IntArray = np.arange(len(self))[chosen]
        return Detections(
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            names=self.names,
            probabilities=None if self.probabilities is None else self.probabilities[rows],
            masks=None if self.masks is None else tuple(self.masks[i] for i in rows.tolist()),
            attributes=None if self.attributes is None else tuple(self.attributes[i] for i in rows.tolist()),
            provenance=None if self.provenance is None else tuple(self.provenance[i] for i in rows.tolist()),
        )

    @classmethod
    def build(cls, boxes: Any, scores: Any, labels: Any, names: Sequence[str], **rest: Any) -> Detections:
        """Detections from anything array-like: boxes (N, 4) xyxy pixels, scores (N,) or one, labels (N,) or names.

        Raises:
            BadInput: as construction, or a label that `names` lacks.
        """
        boxes_array = np.asarray(boxes, dtype=np.float32)
        if not boxes_array.size:
            boxes_array = boxes_array.reshape(0, 4)
        count = len(boxes_array)
        index = {name: i for i, name in enumerate(names)}
        unknown = sorted({v for v in labels if isinstance(v, str)} - index.keys())
        if unknown:
            raise BadInput(f"no class {unknown[0]!r}", expected=f"one of {', '.join(names)}")
        label_list = [index[v] if isinstance(v, str) else int(v) for v in labels]
        return cls(
            boxes=boxes_array,
            scores=np.broadcast_to(np.asarray(scores, dtype=np.float32), (count,)).copy(),
            labels=np.asarray(label_list, dtype=np.int64).reshape(count),
            names=tuple(names),
            **rest,
        )

    @classmethod
    def empty(cls, names: Sequence[str]) -> Detections:
        """No detections, over the given class names."""
        return cls.build(np.zeros((0, 4)), np.zeros(0), [], names)

    @property
    def label_names(self) -> list[str]:
        """The class name of each box."""
        return [self.names[i] for i in self.labels.tolist()]

    def clipped(self, width: int, height: int) -> Detections:
        """Boxes cut to an image of `width` x `height` pixels."""
        limit = np.array([width, height, width, height], dtype=np.float32)
        return replace(self, boxes=np.clip(self.boxes, 0, limit))

    def nms(self, iou: float = 0.5, *, class_agnostic: bool = False) -> Detections:
        """Greedy non-maximum suppression by score, a class at a time unless `class_agnostic`; best first."""
        order = np.argsort(-self.scores, kind="stable")
        overlap = pairwise_iou(self.boxes, self.boxes)
        alive = np.ones(len(self), dtype=bool)
        keep: list[int] = []
        for i in order.tolist():
            if not alive[i]:
                continue
            keep.append(i)
            rivals = overlap[i] > iou
            if not class_agnostic:
                rivals &= self.labels == self.labels[i]
            alive &= ~rivals
        return self[np.array(keep, dtype=np.int64)]


def pairwise_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """IoU of each box of `a` (N, 4) with each of `b` (M, 4), both xyxy pixels -> (N, M) in [0, 1]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = (np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), axis=1) for x in (a, b))
    union = area_a[:, None] + area_b[None, :] - overlap
    return np.where(union > 0, overlap / np.maximum(union, 1e-9), 0.0).astype(np.float32)
