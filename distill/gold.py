"""What a gold set says of a teacher and a memory: a labeller calibrated on it, and figures out of fold.

Shape letters: N boxes, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill.attributes import AttributeReader, Told
from distill.judge import BACKGROUND, Bank, Banks, GoldImage, GoldVerdicts, Verdicts, fit_judge, gold_exemplars, joined
from distill.labeller import Labeller, Memory, PrelabelSettings, see, survivors
from distill.ontology import Ontology
from distill.routing import choose_routing
from distill.teacher import DenseDetector
from foveal.dataset import Dataset
from foveal.detections import pairwise_iou
from foveal.errors import BadImage, BadInput
from foveal.models import OpenDetector
from foveal.progress import Progress, track
from foveal.segmenters import Segmenter

CROWDED = 0.5  # share of gold images from which a teacher that finds too much is told of


@dataclass(frozen=True, slots=True)
class GoldSummary:
    """What the gold set says about the labeller, out of fold."""

    images: int
    skipped: tuple[tuple[str, str], ...]
    boxes: int
    found: int  # of them covered by some candidate, whatever its label
    full: int  # images in which there may be more candidates than are judged
    with_memory: GoldVerdicts
    without_memory: GoldVerdicts


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
        sum(len(g.found) >= settings.candidates for g in looked),
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
