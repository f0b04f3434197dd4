"""The labeller: a teacher, an exemplar memory and what a gold set says of both, as one thing that labels images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from distill.attributes import AttributeReader
from distill.judge import Banks, Judge, Verdicts, with_crops
from distill.ontology import Ontology
from distill.routing import Routing, review_values
from distill.teacher import Candidates, DenseDetector, candidates
from foveal.detections import Attributes, Detections, FloatArray, IntArray, Neighbour, Provenance, pairwise_iou
from foveal.masks import box as box_of
from foveal.masks import encode
from foveal.models import Encoder, OpenDetector

if TYPE_CHECKING:
    from PIL.Image import Image

    from foveal.segmenters import Segmenter

LIKE_BOX = 0.5  # IoU with its box from which a mask is believed


class Memory(Protocol):
    """What the labeller needs of `retrieval.memory.ExemplarMemory`."""

    encoder: Encoder

    @property
    def fingerprint(self) -> str:
        """sha256 over the exemplars and their encoder."""
        ...

    def embed(self, image: Image, boxes: FloatArray) -> FloatArray:
        """The boxes (N, 4) xyxy pixels of one image, cropped as exemplars are -> (N, D) unit length."""
        ...

    def exemplars(self) -> tuple[FloatArray, Sequence[str | None], Sequence[str], Sequence[str]]:
        """Vectors (E, D), class names (None for a rejected crop), the ids of their images, their own ids."""
        ...


class PrelabelSettings(BaseModel):
    """How a labelling job decides; plain numbers, so that a job can be named by them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_precision: float = Field(default=0.90, gt=0, lt=1, description="Precision the accepted boxes must keep.")
    confidence: float | None = Field(
        default=0.95, gt=0.5, lt=1, description="Of the one-sided bound on it; null for the point estimate."
    )
    review_from: float = Field(default=0.10, ge=0, lt=1, description="Probability below which a box is rejected.")
    keep_from: float = Field(default=0.01, ge=0, lt=1, description="Probability below which a box is not even written.")
    threshold: float = Field(default=0.05, ge=0, lt=1, description="Teacher score or objectness a candidate needs.")
    candidates: int = Field(default=16, ge=1, description="Most boxes an image that are judged.")
    proposal_iou: float = Field(
        default=0.6, gt=0, le=1, description="Class-agnostic suppression of the teacher's boxes."
    )
    nms_iou: float = Field(default=0.5, gt=0, le=1, description="Suppression among judged boxes of one label.")
    neighbours: int = Field(default=3, ge=0, description="Exemplars recorded for and against each box.")
    batch: int = Field(default=8, ge=1, description="Images a step; one journal write each.")


@dataclass(frozen=True, slots=True)
class Labelled:
    """The judged boxes of one image, most probable first, and what they would be without the memory."""

    detections: Detections  # with raw teacher score, calibrated probability, route and neighbours
    values: FloatArray  # (N,) worth of a reviewer's look
    plain_labels: IntArray  # (N,) label and probability by the teacher's evidence alone
    plain_probabilities: FloatArray  # (N,)
    teacher_labels: IntArray  # (N,) the teacher's own best class; `detections.scores` is the score of the judged label
    teacher_scores: FloatArray  # (N,) its score


@dataclass(frozen=True, slots=True)
class Labeller:
    """Labels images; also a `Detector` whose scores are the calibrated probabilities."""

    ontology: Ontology
    teacher: OpenDetector | DenseDetector
    memory: Memory | None
    settings: PrelabelSettings
    banks: Banks
    judge: Judge
    plain: Judge  # the same evidence without the memory's
    routing: Routing
    name: str
    fingerprint: str
    reader: AttributeReader | None = None  # of attributes, where the ontology has some
    segmenter: Segmenter | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The ontology's class names."""
        return self.ontology.names

    def detect(self, images: Sequence[Image], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image, scores being P(correct), best first: the labeller as a `Detector`."""
        found = [item.detections for item in self.label(images)]
        sure = [replace(d, scores=d.probabilities) for d in found if d.probabilities is not None]
        return [d[d.scores >= threshold] for d in sure]

    def label(self, images: Sequence[Image]) -> list[Labelled]:
        """The judged boxes of upright RGB images."""
        seen = see(self.teacher, images, self.ontology, self.memory, self.settings)
        judged = [self._judged(found) for found in seen]
        if self.segmenter is None:
            return judged
        return [self._drawn(one, image) for one, image in zip(judged, images, strict=True)]

    def _drawn(self, judged: Labelled, image: Image) -> Labelled:
        """With a mask for each box that somebody will look at."""
        assert self.segmenter is not None
        found = judged.detections
        rows = [i for i, p in enumerate(found.provenance or ()) if p.route != "reject"]
        masks = [""] * len(found)
        for row, mask in zip(rows, self.segmenter.masks(image, found.boxes[rows]), strict=True):
            text = encode(mask)
            around = np.array([box_of(text, *mask.shape) or (0, 0, 0, 0)], np.float32)
            if pairwise_iou(found.boxes[[row]], around)[0, 0] >= LIKE_BOX:
                masks[row] = text
        return replace(judged, detections=replace(found, masks=tuple(masks)))

    def _judged(self, found: Candidates) -> Labelled:
        names = self.classes
        verdicts = self.judge.verdicts(found, self.banks)
        plain = self.plain.verdicts(found, self.banks)
        keep = survivors(found.boxes, verdicts, self.ontology, self.settings.nms_iou)
        keep = keep[verdicts.probabilities[keep] >= self.settings.keep_from]
        kept = Verdicts(verdicts.labels[keep], verdicts.probabilities[keep])
        routes = self.routing.routes(kept)
        accepted = {name: p.accepted for name, p in self.routing.promises.items()}
        total = max(sum(accepted.values()), 1)
        provenance = tuple(
            Provenance(self.fingerprint, teachers=agreed, neighbours=near, route=route)
            for agreed, near, route in zip(
                self._agreed(found, keep), self._neighbours(found, keep, kept.labels), routes, strict=True
            )
        )
        return Labelled(
            Detections(
                boxes=np.round(found.boxes[keep], 2),
                scores=found.teacher[keep, kept.labels],
                labels=kept.labels,
                names=names,
                probabilities=kept.probabilities,
                attributes=self._said(found, keep, kept.labels),
                provenance=provenance,
            ),
            review_values(kept, routes, {name: n / total for name, n in accepted.items()}, names),
            plain.labels[keep],
            plain.probabilities[keep],
            found.teacher[keep].argmax(axis=1),
            found.teacher[keep].max(axis=1, initial=0.0),
        )

    def _said(self, found: Candidates, keep: IntArray, labels: IntArray) -> tuple[Attributes, ...] | None:
        if self.reader is None or found.crops is None:
            return None
        return self.reader(found.crops[keep], [self.classes[k] for k in labels.tolist()])

    def _agreed(self, found: Candidates, keep: IntArray) -> list[tuple[str, ...]]:
        """Which teachers proposed each kept box; of one teacher nothing is said."""
        members: tuple[str, ...] = getattr(self.teacher, "members", ())
        if found.seen_by is None:
            return [()] * len(keep)
        return [tuple(np.array(members)[row].tolist()) for row in found.seen_by[keep]]

    def _neighbours(self, found: Candidates, keep: IntArray, labels: IntArray) -> list[tuple[Neighbour, ...]]:
        bank, queries = self.banks.crops, found.crops
        if bank is None or queries is None:
            bank, queries = self.banks.regions, found.features
        if bank is None or queries is None or self.settings.neighbours == 0:
            return [()] * len(keep)
        return bank.neighbours(queries[keep], labels, self.classes, count=self.settings.neighbours)


def see(
    teacher: OpenDetector | DenseDetector,
    images: Sequence[Image],
    ontology: Ontology,
    memory: Memory | None,
    settings: PrelabelSettings,
) -> list[Candidates]:
    """The candidates of each image, with their crops' embeddings where there is a memory."""
    found = candidates(
        teacher,
        images,
        ontology,
        threshold=settings.threshold,
        limit=settings.candidates,
        nms_iou=settings.proposal_iou,
    )
    if memory is None:
        return found
    return [with_crops(item, memory.embed(image, item.boxes)) for item, image in zip(found, images, strict=True)]


def survivors(boxes: FloatArray, verdicts: Verdicts, ontology: Ontology, nms_iou: float) -> IntArray:
    """Indices of the boxes that stay, most probable first: big enough for their class, no duplicate of a better one."""
    smallest = np.array([c.min_size for c in ontology.classes])
    big = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= smallest[verdicts.labels]
    overlap = pairwise_iou(boxes, boxes)
    same = verdicts.labels[:, None] == verdicts.labels[None, :]
    alive = big.copy()
    keep: list[int] = []
    for i in np.argsort(-verdicts.probabilities, kind="stable").tolist():
        if alive[i]:
            keep.append(i)
            alive &= ~((overlap[i] > nms_iou) & same[i])
    return np.array(keep, dtype=np.int64)
