"""What a labelling job did, and what its gold set lets one expect of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.gold import CROWDED, GoldSummary
from distill.labeller import Labeller
from distill.records import RecordFile
from distill.routing import Routing
from evals.detection import sweep
from evals.reliability import adaptive_ece, brier, ece
from foveal.dataset import Dataset
from foveal.errors import BadInput

REPORT = "prelabel.json"


@dataclass(frozen=True, slots=True)
class PrelabelReport:
    """What a labelling job did, and what the gold set lets one expect of it."""

    out: str
    job: str  # sha256 over everything that decides the result
    images: int
    skipped: list[list[str]]  # [image id, why]
    boxes: dict[str, int]  # accept, review, reject
    classes: dict[str, dict[str, int]]  # the same, a class
    expected_precision: float | None  # mean calibrated probability of the accepted boxes
    target_precision: float
    confidence: float | None
    proven: bool  # the gold set proves the target at that confidence
    warnings: list[str]
    gold: dict[str, Any]  # what it holds, and precision, recall and calibration measured on it
    seconds: float
    images_per_second: float
    cost: float | None = None  # of these seconds, where a price was given

    @property
    def total_boxes(self) -> int:
        """All boxes written."""
        return sum(self.boxes.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def load_report(out: str | Path) -> PrelabelReport:
    """The report of a finished job.

    Raises:
        BadInput: `out` is not the folder of one.
    """
    path = Path(out) / REPORT
    if not path.is_file():
        raise BadInput(f"{out} holds no pre-labels", expected=f"a folder with {REPORT}, as `foveal prelabel` writes")
    return PrelabelReport(**json.loads(path.read_text(encoding="utf-8")))


def gold_report(summary: GoldSummary, routing: Routing) -> dict[str, Any]:
    """The gold set's own figures: calibration, precision and recall out of fold, with the memory and without."""
    result: dict[str, Any] = {
        "images": summary.images,
        "skipped": [list(item) for item in summary.skipped],
        "boxes": summary.boxes,
        "found_by_teacher": summary.found / summary.boxes if summary.boxes else None,
        "full_images": summary.full,
    }
    for name, gold in (("with_memory", summary.with_memory), ("without_memory", summary.without_memory)):
        curve = sweep(gold.probabilities, gold.correct, gold.truth_boxes)
        result[name] = {
            "average_precision": curve.average_precision,
            "precision_at_recall": {str(r): curve.precision_at_recall(r) for r in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)},
            "ece": ece(gold.probabilities, gold.correct),
            "adaptive_ece": adaptive_ece(gold.probabilities, gold.correct),
            "brier": brier(gold.probabilities, gold.correct),
        }
    correct = sum(c.correct for c in routing.choices)
    accepted = sum(c.accepted for c in routing.choices)
    result["accepted"] = {
        "boxes": accepted,
        "precision": correct / accepted if accepted else None,
        "recall": correct / summary.boxes if summary.boxes else None,
        "lower_bounds": [c.lower_bound for c in routing.choices],
    }
    return result


def report_of(
    records: RecordFile,
    out: Path,
    job: str,
    source: Dataset,
    labeller: Labeller,
    gold: dict[str, Any],
    seconds: float,
    price: float | None,
) -> PrelabelReport:
    """The report of a job whose images are all labelled.

    Raises:
        BadInput: none of them could be read.
    """
    skipped = [[str(path), why] for path, why in getattr(source, "skipped", ())]
    routes: Counter[str] = Counter()
    classes = {name: Counter[str]() for name in labeller.classes}
    sure, images = 0.0, 0
    for record in records:
        if "error" in record:
            skipped.append([record["image"], record["error"]])
            continue
        images += 1
        for box in record["boxes"]:
            routes[box["route"]] += 1
            classes[box["label"]][box["route"]] += 1
            sure += box["probability"] if box["route"] == "accept" else 0.0
    if not images:
        raise BadInput("no image of the source can be read", received=skipped[0][1] if skipped else None)
    order = ("accept", "review", "reject")
    return PrelabelReport(
        out=str(out),
        job=job,
        images=images,
        skipped=skipped,
        boxes={r: routes[r] for r in order},
        classes={name: {r: counts[r] for r in order} for name, counts in classes.items()},
        expected_precision=sure / routes["accept"] if routes["accept"] else None,
        target_precision=labeller.settings.target_precision,
        confidence=labeller.settings.confidence,
        proven=labeller.routing.proven,
        warnings=_warnings(labeller, gold),
        gold=gold,
        seconds=seconds,
        images_per_second=images / seconds,
        cost=None if price is None else price * seconds / 3600,
    )


def _warnings(labeller: Labeller, gold: dict[str, Any]) -> list[str]:
    warnings = [*labeller.routing.warnings, *(labeller.reader.warnings if labeller.reader else ())]
    limit, images = labeller.settings.candidates, gold["images"]
    if gold["full_images"] >= CROWDED * images:
        warnings.append(
            f"In {gold['full_images']} of {images} gold images the teacher finds {limit} boxes or more, and only that "
            "many are judged: raise candidates where images hold so many objects, else threshold."
        )
    return warnings
