"""The labeller: a teacher, an exemplar memory and what a gold set says of both, as one thing that labels images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from distill.attributes import AttributeReader, Told
from distill.judge import (
    BACKGROUND,
    Bank,
    Banks,
    GoldImage,
    GoldVerdicts,
    Judge,
    Verdicts,
    fit_judge,
    gold_exemplars,
    joined,
    with_crops,
)
from distill.ontology import Ontology
from distill.routing import Routing, choose_routing, review_values
from distill.teacher import Candidates, DenseDetector, candidates
from foveal.dataset import Dataset
from foveal.detections import Attributes, Detections, FloatArray, IntArray, Neighbour, Provenance, pairwise_iou
from foveal.errors import BadImage, BadInput
from foveal.masks import box as box_of
from foveal.masks import encode
from foveal.models import Encoder, OpenDetector
from foveal.progress import Progress, track

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
class GoldSummary:
    """What the gold set says about the labeller, out of fold."""

    images: int
    skipped: tuple[tuple[str, str], ...]
    boxes: int
    found: int  # of them covered by some candidate, whatever its label
    with_memory: GoldVerdicts
    without_memory: GoldVerdicts


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


def fit_labeller(
    ontology: Ontology,
    teacher: OpenDetector | DenseDetector,
    gold: Dataset,
    memory: Memory | None,
    settings: PrelabelSettings,
    progress: Progress | None = None,
    segmenter: Segmenter | None = None,
) -> tuple[Labeller, GoldSummary]:
    """A labeller calibrated on the gold set, and what the gold set says about it.

    Raises:
        BadInput: the gold set is empty, unlabelled, or has no box of the ontology's classes.
    """
    check_gold(gold, ontology)
    looked: list[GoldImage] = []
    skipped: list[tuple[str, str]] = []
    told: list[Told] = []
    schema = ontology.schema_of_attributes
    if schema and memory is None:
        raise BadInput("attributes are read with the memory's encoder", remedy="Give a memory, or take them out.")
    for sample in track(progress, gold, "calibrate on gold", len(gold)):
        if sample.truth is None:
            skipped.append((sample.id, "no labels"))
            continue
        try:
            image = sample.image()
        except BadImage as error:
            skipped.append((sample.id, str(error)))
            continue
        looked.append(GoldImage(sample.id, see(teacher, [image], ontology, memory, settings)[0], sample.truth))
        if schema and memory is not None and sample.truth.attributes is not None:
            crops = memory.embed(image, sample.truth.boxes)
            told += map(Told, [sample.id] * len(crops), sample.truth.label_names, crops, sample.truth.attributes)
    names = ontology.names
    banks = Banks(
        gold_exemplars(looked, names, "features"),
        joined(remembered(memory, names), gold_exemplars(looked, names, "crops")) if memory is not None else None,
    )
    if not sum(len(g.found) for g in looked):
        raise BadInput(
            f"the teacher finds nothing in the {len(looked)} gold images",
            remedy="Lower `threshold`, reword the prompts or take another teacher.",
        )
    judge, verdicts = fit_judge(looked, names, banks, regions=True, crops=True)
    plain, plain_verdicts = fit_judge(looked, names, banks, regions=False, crops=False)
    verdicts = _surviving(verdicts, looked, ontology, settings)
    routing = choose_routing(
        verdicts,
        ontology,
        target=settings.target_precision,
        confidence=settings.confidence,
        review=settings.review_from,
    )
    reader = None
    if schema and memory is not None:
        reader = AttributeReader.fit(ontology, memory.encoder, told, settings.target_precision, settings.confidence)
    model = f"{getattr(teacher, 'name', 'teacher')}@{getattr(teacher, 'fingerprint', '')[:12]}"
    covered = sum(
        int((pairwise_iou(g.truth.boxes, g.found.boxes).max(axis=1, initial=0.0) >= 0.5)[known].sum())
        for g in looked
        if (known := np.isin(g.truth.label_names, names)).any()
    )
    summary = GoldSummary(
        len(looked),
        tuple(skipped),
        verdicts.truth_boxes,
        covered,
        verdicts,
        _surviving(plain_verdicts, looked, ontology, settings),
    )
    labeller = Labeller(
        ontology, teacher, memory, settings, banks, judge, plain, routing, "labeller", model, reader, segmenter
    )
    return labeller, summary


def check_gold(gold: Dataset, ontology: Ontology) -> None:
    """Raise `BadInput` where a gold set cannot calibrate anything."""
    if not len(gold):
        raise BadInput("the gold set is empty", expected="30 to 200 labelled images")
    wanted = set(ontology.names)
    if not wanted & set(gold.classes):
        raise BadInput(
            "the gold set has none of the ontology's classes",
            expected=", ".join(ontology.names),
            received=", ".join(gold.classes) or "no classes",
            remedy="Use the same class names in both.",
        )
    if not any(name in wanted for s in gold if s.truth is not None for name in s.truth.label_names):
        raise BadInput("the gold set has no box of the ontology's classes", expected="labelled images")


def remembered(memory: Memory | None, names: Sequence[str]) -> Bank | None:
    """The memory's exemplars as a bank over `names`; crops of other classes speak for background."""
    if memory is None:
        return None
    vectors, labels, images, ids = memory.exemplars()
    if not len(vectors):
        return None
    index = {name: k for k, name in enumerate(names)}
    numbers = np.array([index.get(label, BACKGROUND) if label is not None else BACKGROUND for label in labels])
    return Bank(np.asarray(vectors, dtype=np.float32), numbers.astype(np.int64), tuple(images), tuple(ids))


def _surviving(
    verdicts: GoldVerdicts, gold: Sequence[GoldImage], ontology: Ontology, settings: PrelabelSettings
) -> GoldVerdicts:
    """The verdicts on those gold boxes that labelling would have kept."""
    rows: list[int] = []
    start = 0
    for image in gold:
        mine = slice(start, start + len(image.found))
        here = Verdicts(verdicts.labels[mine], verdicts.probabilities[mine])
        rows += (start + survivors(image.found.boxes, here, ontology, settings.nms_iou)).tolist()
        start += len(image.found)
    keep = np.array(sorted(rows), dtype=np.int64)
    return replace(
        verdicts,
        labels=verdicts.labels[keep],
        probabilities=verdicts.probabilities[keep],
        correct=verdicts.correct[keep],
        images=verdicts.images[keep],
    )


def save_banks(banks: Banks, path: Path) -> None:
    """The exemplars as one .npz file (plain arrays, no pickle)."""
    arrays: dict[str, Any] = {}
    for name in ("regions", "crops"):
        bank: Bank | None = getattr(banks, name)
        if bank is not None:
            arrays |= {
                f"{name}_vectors": bank.vectors,
                f"{name}_labels": bank.labels,
                f"{name}_images": np.array(bank.images, dtype=np.str_),
                f"{name}_ids": np.array(bank.ids, dtype=np.str_),
            }
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def load_banks(path: Path) -> Banks:
    """The exemplars `save_banks` wrote."""
    with np.load(path, allow_pickle=False) as arrays:

        def bank(name: str) -> Bank | None:
            if f"{name}_vectors" not in arrays:
                return None
            return Bank(
                arrays[f"{name}_vectors"],
                arrays[f"{name}_labels"],
                tuple(arrays[f"{name}_images"].tolist()),
                tuple(arrays[f"{name}_ids"].tolist()),
            )

        return Banks(bank("regions"), bank("crops"))
