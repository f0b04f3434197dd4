"""What a teacher sees in one image: class-agnostic candidate boxes with its opinion of every class.

Shape letters: N candidates, K classes, P prompts, Q raw queries of a teacher, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from distill.ontology import Ontology
from foveal.detections import BoolArray, Detections, FloatArray, IntArray, pairwise_iou
from foveal.models import OpenDetector

if TYPE_CHECKING:
    from PIL.Image import Image

    from foveal.open_detectors import OwlDetector

SAME_BOX = 0.7  # IoU above which two boxes of a teacher speak of one object


@dataclass(frozen=True, slots=True)
class Dense:
    """Everything a teacher says of one image in one pass, before any suppression."""

    boxes: FloatArray  # (Q, 4) xyxy pixels
    scores: FloatArray  # (Q, P) in [0, 1], 0 where the teacher said nothing
    objectness: FloatArray | None = None  # (Q,) in [0, 1]: is it anything at all
    features: FloatArray | None = None  # (Q, D) unit length: the teacher's own view of the box
    seen_by: BoolArray | None = None  # (Q, T) which of an ensemble's T members proposed the box

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: IntArray | BoolArray) -> Dense:
        """The selected rows."""
        return Dense(
            self.boxes[rows],
            self.scores[rows],
            None if self.objectness is None else self.objectness[rows],
            None if self.features is None else self.features[rows],
            None if self.seen_by is None else self.seen_by[rows],
        )

    @property
    def worth(self) -> FloatArray:
        """How much is made of each box: the better of its objectness and its best score -> (Q,)."""
        best = self.scores.max(axis=1, initial=0.0)
        return best if self.objectness is None else np.maximum(self.objectness, best)

    @classmethod
    def joined(cls, parts: Sequence[Dense]) -> Dense:
        """One after the other; what only some have is dropped."""

        def column(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else np.concatenate(values)

        return cls(*(column(name) for name in ("boxes", "scores", "objectness", "features", "seen_by")))


@runtime_checkable
class DenseDetector(Protocol):
    """An open detector that can tell all prompts' scores of each box, not only the best one's."""

    def dense(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Dense]:
        """One `Dense` an image, boxes in that image's own pixels."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """The boxes of one image that are worth a judgement, best first."""

    boxes: FloatArray  # (N, 4) xyxy pixels, inside the image, with area
    teacher: FloatArray  # (N, K) best score of any prompt of the class
    objectness: FloatArray  # (N,)
    negative: FloatArray  # (N,) best score of a negative prompt
    crowding: FloatArray  # (N,) raw boxes that were suppressed in favour of this one
    features: FloatArray | None = None  # (N, D) the teacher's, unit length
    crops: FloatArray | None = None  # (N, D') the memory encoder's, unit length
    seen_by: BoolArray | None = None  # (N, T) which of an ensemble's members proposed the box

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def rank(self) -> FloatArray:
        """How much the teacher alone makes of each box -> (N,)."""
        return self.objectness + self.teacher.max(axis=1, initial=0.0)


def candidates(
    teacher: OpenDetector | DenseDetector,
    images: Sequence[Image],
    ontology: Ontology,
    *,
    threshold: float = 0.05,
    limit: int = 16,
    nms_iou: float = 0.6,
) -> list[Candidates]:
    """At most `limit` boxes an image, after class-agnostic suppression at `nms_iou`.

    The teacher is asked for every prompt of the ontology, negative ones included; a class has the best score of its
    prompts. Objects no prompt names still become candidates where the teacher has an opinion on objectness.
    """
    owners = ontology.classes_of_prompts()
    found = look(teacher, images, ontology.prompts, threshold)
    return [
        _reduce(dense, owners, len(ontology.names), image.size, threshold, limit, nms_iou)
        for dense, image in zip(found, images, strict=True)
    ]


def look(
    teacher: OpenDetector | DenseDetector, images: Sequence[Image], prompts: Sequence[str], threshold: float
) -> list[Dense]:
    """The richest answer the teacher can give: dense where it offers that, else its detections above `threshold`."""
    if isinstance(teacher, DenseDetector):
        return teacher.dense(images, prompts)
    from foveal.open_detectors import OwlDetector

    if isinstance(teacher, OwlDetector):
        return _owl(teacher, images, tuple(prompts))
    return [dense_of(found) for found in teacher.detect(images, prompts, threshold)]


def dense_of(found: Detections) -> Dense:
    """Detections, whose names are the prompts, as a `Dense`: boxes of one object know each other's scores."""
    scores = np.zeros((len(found), len(found.names)), dtype=np.float32)
    scores[np.arange(len(found)), found.labels] = found.scores
    same = pairwise_iou(found.boxes, found.boxes) >= SAME_BOX
    columns = [np.where(same, column, 0.0).max(axis=1, initial=0.0) for column in scores.T]
    return Dense(found.boxes, np.stack(columns, axis=1).astype(np.float32))


def _owl(teacher: OwlDetector, images: Sequence[Image], prompts: tuple[str, ...]) -> list[Dense]:
    """One forward pass of an OWL model: boxes, all prompts' scores, objectness (OWLv2) and region embeddings."""
    import torch

    model = teacher.model
    answers: list[Dense] = []
    with torch.inference_mode():
        pixels = {
            k: v.to(teacher.device)
            for k, v in teacher.processor.image_processor(images=list(images), return_tensors="pt").items()
        }
        features_map, _ = model.image_embedder(pixel_values=pixels["pixel_values"])
        flat = features_map.flatten(1, 2)  # (B, Q, D)
        queries = teacher.embed_prompts(prompts).expand(len(images), -1, -1)
        logits, embedded = model.class_predictor(flat, queries)
        boxes = model.box_predictor(flat, features_map)
        has_objectness = hasattr(model, "objectness_predictor")
        objectness = model.objectness_predictor(flat).float().sigmoid().cpu().numpy() if has_objectness else None
        embedded = torch.nn.functional.normalize(embedded.float(), dim=-1).cpu().numpy()
        scores = logits.float().sigmoid().cpu().numpy()
        half = boxes[..., 2:] / 2
        corners = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1).float().cpu().numpy()
    for i, image in enumerate(images):
        # OWLv2 pads to a square at the bottom and right; OWL-ViT, which has no objectness, stretches.
        width, height = (max(image.size), max(image.size)) if has_objectness else image.size
        scale = np.array([width, height, width, height], dtype=np.float32)
        answers.append(Dense(corners[i] * scale, scores[i], None if objectness is None else objectness[i], embedded[i]))
    return answers


def _reduce(
    dense: Dense,
    owners: Sequence[int | None],
    classes: int,
    size: tuple[int, int],
    threshold: float,
    limit: int,
    nms_iou: float,
) -> Candidates:
    extent = np.array([*size, *size], dtype=np.float32)
    boxes = np.clip(dense.boxes, 0, extent).astype(np.float32)
    teacher = np.zeros((len(boxes), classes), dtype=np.float32)
    negative = np.zeros(len(boxes), dtype=np.float32)
    for p, owner in enumerate(owners):
        column = teacher[:, owner] if owner is not None else negative
        np.maximum(column, dense.scores[:, p], out=column)
    any_prompt = dense.scores.max(axis=1, initial=0.0)
    objectness = any_prompt if dense.objectness is None else dense.objectness
    rank = objectness + teacher.max(axis=1, initial=0.0)
    sides = boxes[:, 2:] - boxes[:, :2]
    usable = (sides >= 1).all(axis=1) & (np.maximum(objectness, any_prompt) >= threshold)
    order = np.flatnonzero(usable)[np.argsort(-rank[usable], kind="stable")][: 20 * limit]
    overlap = pairwise_iou(boxes[order], boxes[order])
    alive = np.ones(len(order), dtype=bool)
    keep: list[int] = []
    crowding: list[int] = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        rivals = alive & (overlap[i] > nms_iou)
        keep.append(int(order[i]))
        crowding.append(int(rivals.sum()) - 1)
        alive &= ~rivals
        if len(keep) == limit:
            break
    return Candidates(
        boxes[keep].reshape(-1, 4),
        teacher[keep].reshape(-1, classes),
        objectness[keep].astype(np.float32),
        negative[keep],
        np.array(crowding, dtype=np.float32),
        None if dense.features is None else dense.features[keep],
        seen_by=None if dense.seen_by is None else dense.seen_by[keep],
    )
