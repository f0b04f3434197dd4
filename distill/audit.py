"""How good pre-labels turned out, once truth is known: precision promised against found, and what the memory added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.prelabel import load_report
from distill.prelabels import detections, records
from distill.records import Record
from evals.detection import Curve, assign, sweep
from evals.intervals import wilson
from evals.reliability import ece
from foveal.dataset import Dataset
from foveal.detections import BoolArray, Detections, FloatArray
from foveal.errors import BadInput

RECALLS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def _by_teacher(box: Record) -> tuple[str, float]:
    return box["teacher"]["label"], box["teacher"]["score"]


def _without_memory(box: Record) -> tuple[str, float]:
    return box["without_memory"]["label"], box["without_memory"]["probability"]


def _with_memory(box: Record) -> tuple[str, float]:
    return box["label"], box["probability"]


# What a ranking is called -> the label and key it gives a recorded box.
RANKINGS: dict[str, Callable[[Record], tuple[str, float]]] = {
    "teacher_score": _by_teacher,
    "without_memory": _without_memory,
    "with_memory": _with_memory,
}


@dataclass(frozen=True, slots=True)
class Quality:
    """Pre-labels against truth: `boxes` are those not rejected, `accepted` those that nobody would look at."""

    images: int
    truth_boxes: int
    boxes: int
    precision: float | None  # of accepted and review boxes
    recall: float | None
    accepted: int
    accepted_precision: float | None
    accepted_interval: tuple[float, float]  # two-sided 95% Wilson interval
    accepted_recall: float | None  # share of all true boxes that were accepted, rightly
    accepted_share: float | None  # share of the boxes that were accepted
    target_precision: float
    per_class: dict[str, dict[str, int]]  # truth, accepted, correct


def measure(out: str | Path, truth: Dataset, iou: float = 0.5) -> Quality:
    """Precision and recall of a finished labelling job against the truth of its images.

    Raises:
        BadInput: the truth lacks one of the images.
    """
    classes = _classes(out)
    pairs = _paired(out, truth)
    shown = accepted = shown_right = accepted_right = 0
    per_class = {name: {"truth": 0, "accepted": 0, "correct": 0} for name in classes}
    for record, known in pairs:
        for name in known.label_names:
            if name in per_class:
                per_class[name]["truth"] += 1
        found = detections(record, classes)
        routes = np.array([p.route for p in found.provenance or ()], dtype=object)
        offered, taken = found[routes != "reject"], found[routes == "accept"]
        shown, shown_right = shown + len(offered), shown_right + int(_right(offered, known, iou).sum())
        hits = _right(taken, known, iou)
        accepted, accepted_right = accepted + len(taken), accepted_right + int(hits.sum())
        for name, hit in zip(taken.label_names, hits.tolist(), strict=True):
            per_class[name]["accepted"] += 1
            per_class[name]["correct"] += hit
    truths = sum(counts["truth"] for counts in per_class.values())
    return Quality(
        images=len(pairs),
        truth_boxes=truths,
        boxes=shown,
        precision=shown_right / shown if shown else None,
        recall=shown_right / truths if truths else None,
        accepted=accepted,
        accepted_precision=accepted_right / accepted if accepted else None,
        accepted_interval=wilson(accepted_right, accepted),
        accepted_recall=accepted_right / truths if truths else None,
        accepted_share=accepted / shown if shown else None,
        target_precision=load_report(out).target_precision,
        per_class=per_class,
    )


def compare_verification(out: str | Path, truth: Dataset, iou: float = 0.5) -> dict[str, dict[str, Any]]:
    """The same boxes ranked three ways against truth: by the teacher's score, by its calibrated evidence, and with the
    memory's word -> for each `average_precision`, `precision_at_recall`, `recall` of all, `ece`, and the `curve`.

    Raises:
        BadInput: the truth lacks one of the images.
    """
    classes = _classes(out)
    pairs = _paired(out, truth)
    truths = sum(name in classes for _, known in pairs for name in known.label_names)
    result: dict[str, dict[str, Any]] = {}
    for name, read in RANKINGS.items():
        keys, correct = _ranked(pairs, classes, read, iou)
        curve = sweep(keys, correct, truths)
        result[name] = {
            "average_precision": curve.average_precision,
            "precision_at_recall": {str(r): curve.precision_at_recall(r) for r in RECALLS},
            "recall": float(curve.recall[-1]) if len(curve.recall) else 0.0,
            "ece": ece(keys, correct),
            "curve": _thinned(curve),
        }
    return result


def _ranked(
    pairs: list[tuple[Record, Detections]], classes: list[str], read: Callable[[Record], tuple[str, float]], iou: float
) -> tuple[FloatArray, BoolArray]:
    keys: list[FloatArray] = [np.zeros(0, dtype=np.float32)]
    correct: list[BoolArray] = [np.zeros(0, dtype=bool)]
    for record, known in pairs:
        boxes = record.get("boxes", [])
        said = [read(box) for box in boxes]
        found = Detections.build(
            [box["box"] for box in boxes], np.array([s for _, s in said]), [label for label, _ in said], classes
        )
        keys.append(found.scores)
        correct.append(assign(found, known, iou) >= 0)
    return np.concatenate(keys), np.concatenate(correct)


def _right(found: Detections, known: Detections, iou: float) -> BoolArray:
    return assign(found, known, iou, order=found.probabilities) >= 0


def _classes(out: str | Path) -> list[str]:
    return list(load_report(out).classes)


def _paired(out: str | Path, truth: Dataset) -> list[tuple[Record, Detections]]:
    """Each record with its image's truth, found by sample id, or by file name where ids differ."""
    by_id = {sample.id: sample.truth for sample in truth if sample.truth is not None}
    by_file = {sample.path.name: sample.truth for sample in truth if sample.truth is not None}
    pairs: list[tuple[Record, Detections]] = []
    for record in records(out):
        if "error" in record:
            continue
        name = record["image"]
        known = by_file.get(Path(record["file"]).name)
        if known is None:
            known = by_id.get(name)
        if known is None:
            raise BadInput(
                f"the truth has no labels for image {name}", expected="the images that were labelled", received=str(out)
            )
        pairs.append((record, known))
    return pairs


def _thinned(curve: Curve, points: int = 200) -> dict[str, list[float]]:
    last = len(curve.recall) - 1
    rows = sorted({round(i * last / (points - 1)) for i in range(points)}) if last >= 0 else []
    return {
        "recall": [round(float(curve.recall[i]), 5) for i in rows],
        "precision": [round(float(curve.precision[i]), 5) for i in rows],
        "threshold": [round(float(curve.thresholds[i]), 5) for i in rows],
    }
