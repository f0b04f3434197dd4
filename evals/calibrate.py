"""How far what a result was sure of can be trusted, what would mend it, and where to cut.

Shape letters: N predictions, M things there were to find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.calibrator_choice import METHODS, Choice, Criterion, choose
from evals.intervals import share_bounds
from evals.reliability import Array, adaptive_ece, brier, by_class, ece, nll
from evals.results import Measured, Result
from evals.thresholds import threshold_for_precision, threshold_for_recall
from foveal.errors import BadInput

TARGETS = (0.8, 0.9, 0.95)
DETECTED = 0.05  # confidence below which a detector's boxes are left out: thousands that nobody would show
MOST_CLASSES = 200  # that the figures list
IOUS = {round(0.5 + 0.05 * t, 2): t for t in range(10)}  # overlap that makes a box right -> its bit in `hits`


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What was predicted, how surely, and whether it was right."""

    confidence: Array  # (N,) in [0, 1]
    right: npt.NDArray[np.bool_]  # (N,)
    labels: tuple[str, ...]  # (N,) what was said
    images: tuple[str, ...]  # (N,)
    ids: tuple[str, ...]  # (N,)
    found_at: Array  # (M,) confidence that each real thing was found with, NaN where it was not
    things: tuple[str, ...]  # (M,) the image of each
    slices: Mapping[str, Sequence[str | None]]  # (N,) each: what the result can be divided by

    def __len__(self) -> int:
        return len(self.confidence)


def outcomes(result: Result, *, iou: float = 0.5, floor: float | None = None) -> Outcomes:
    """The predictions that a result kept: any whose items say `confidence` and `right`, or a detection's boxes.

    Args:
        iou: overlap from which a detected box is right: 0.5, 0.55, ... 0.95.
        floor: confidence below which predictions are left out; 0.05 for detections and 0 for others when None.

    Raises:
        BadInput: the result kept no such items, or a confidence lies outside [0, 1].
    """
    items = result.items
    if {"confidence", "right"} <= items.keys():
        found = _single(result)
    elif {"scores", "hits", "ignored", "classes", "truths"} <= items.keys():
        found = _boxes(result, iou)
        floor = DETECTED if floor is None else floor
    else:
        raise BadInput(
            f"the result {result.name!r} does not say how sure each answer was and whether it was right",
            expected="items with the columns confidence and right, or a detection's scores and hits",
            received=", ".join(sorted(items)) or "no items",
            remedy="Measure again with --out, by a task that keeps them: `foveal eval zero-shot` or `detection`.",
        )
    if len(found) and not (
        np.isfinite(found.confidence).all() and 0 <= found.confidence.min() <= found.confidence.max() <= 1
    ):
        raise BadInput(f"confidences of the result {result.name!r} are none", expected="numbers in [0, 1]")
    found = found if not floor else _above(found, floor)
    if not len(found):
        raise BadInput(
            f"the result {result.name!r} holds no prediction" + (f" of {floor:g} or more" if floor else ""),
            remedy="Lower --floor." if floor else None,
        )
    return found


def _single(result: Result) -> Outcomes:
    """One answer an item; `said` is what was answered where the item tells, else its class."""
    items = result.items
    known = [i for i, sure in enumerate(items["confidence"]) if sure is not None and items["right"][i] is not None]
    confidence = np.array([items["confidence"][i] for i in known], dtype=np.float64)
    right = np.array([bool(items["right"][i]) for i in known], dtype=bool)
    said = items.get("said", items.get("class", [""] * len(result)))
    images = [str(result.images[i]) for i in known]
    return Outcomes(
        confidence,
        right,
        tuple(str(said[i]) for i in known),
        tuple(images),
        tuple(str(items["id"][i]) for i in known),
        np.where(right, confidence, np.nan),  # each item is a thing, found where the answer is right
        tuple(images),
        {name: [column[i] for i in known] for name, column in result.slices.items()},
    )


def _boxes(result: Result, iou: float) -> Outcomes:
    """Every box that counts one way or the other at this overlap."""
    if round(iou, 2) not in IOUS:
        raise BadInput(f"no overlap of {iou:g} was kept", expected=f"one of {', '.join(f'{v:g}' for v in IOUS)}")
    bit = 1 << IOUS[round(iou, 2)]
    names = list(result.figures.get("per_class", {}))
    rows: list[tuple[float, bool, str, str, str, int]] = []
    found_at: list[float] = []
    things: list[str] = []
    items = result.items
    for i, image in enumerate(map(str, items["id"])):
        hits: list[float] = []
        for rank, (score, hit, skip, kind) in enumerate(
            zip(items["scores"][i], items["hits"][i], items["ignored"][i], items["classes"][i], strict=True)
        ):
            if skip & bit:
                continue
            label = names[kind] if 0 <= kind < len(names) else str(kind)
            rows.append((float(score), bool(hit & bit), label, image, f"{image}#{rank}", i))
            hits += [float(score)] if hit & bit else []
        missed = max(len(items["truths"][i]) - len(hits), 0)
        found_at += [*hits, *[float("nan")] * missed]
        things += [image] * (len(hits) + missed)
    columns: Sequence[Any] = list(zip(*rows, strict=True)) if rows else [()] * 6
    return Outcomes(
        np.array(columns[0], dtype=np.float64), np.array(columns[1], dtype=bool), tuple(columns[2]), tuple(columns[3]),
        tuple(columns[4]), np.array(found_at, dtype=np.float64), tuple(things),
        {name: [column[i] for i in columns[5]] for name, column in result.slices.items()},
    )  # fmt: skip


def _above(found: Outcomes, floor: float) -> Outcomes:
    keep = np.flatnonzero(found.confidence >= floor).tolist()
    reached = np.where(found.found_at >= floor, found.found_at, np.nan)
    labels, images, ids = (tuple(column[i] for i in keep) for column in (found.labels, found.images, found.ids))
    slices = {name: [column[i] for i in keep] for name, column in found.slices.items()}
    return Outcomes(found.confidence[keep], found.right[keep], labels, images, ids, reached, found.things, slices)


def measure(
    found: Outcomes,
    *,
    criterion: Criterion = "nll",
    folds: int = 5,
    precision: Sequence[float] = TARGETS,
    recall: Sequence[float] = TARGETS,
    confidence: float = 0.95,
) -> Measured:
    """Calibration of the predictions as they are and after each way to mend it, by class, and thresholds.

    Figures: `ece`, `adaptive_ece`, `brier`, `nll`, `accuracy`, `mean_confidence`, `predictions`, `images` of the
    confidences as stated; the first four under `after` for each method, out of fold; `chosen`, `why` and the
    `calibrator` to use; `per_class`; `thresholds`, on confidences as stated, each with what lies above it, the
    interval of that share at `confidence`, and whether the target is proven.
    Items, one a prediction: `confidence`, `right`, `class` (what was said) and `calibrated` (out of fold).
    """
    p, y, groups = found.confidence, found.right, np.asarray(found.images)
    choice = choose(p, y, groups, criterion=criterion, folds=folds)
    calibrated = choice.outside[choice.chosen]
    classes = by_class(p, y, found.labels)
    after = by_class(calibrated, y, found.labels)
    figures: dict[str, Any] = {
        **_errors(p, y),
        "accuracy": float(y.mean()),
        "mean_confidence": float(p.mean()),
        "predictions": len(found),
        "images": len(set(found.images)),
        "after": {name: _errors(choice.outside[name], y) for name in METHODS[1:] if name in choice.outside},
        "chosen": choice.chosen,
        "why": choice.reason,
        "temperature": _temperature(choice, p, y),
        "calibrator": None if choice.calibrator is None else choice.calibrator.to_json(),
        "per_class": {
            name: {**asdict(one), "ece_after": after[name].ece} for name, one in list(classes.items())[:MOST_CLASSES]
        },
        "thresholds": [
            *[_precise(found, target, confidence) for target in precision],
            *[_complete(found, target, confidence) for target in recall],
        ],
    }
    items: dict[str, list[Any]] = {
        "id": list(found.ids),
        "image": list(found.images),
        "class": list(found.labels),
        "confidence": p.tolist(),
        "right": y.astype(int).tolist(),
        "calibrated": calibrated.tolist(),
    }
    slices = {name: list(column) for name, column in found.slices.items() if name != "class"}
    if 1 < len(classes) <= MOST_CLASSES:
        slices["class"] = list(found.labels)
    return Measured(figures, items, slices)


def _errors(p: Array, y: npt.NDArray[np.bool_]) -> dict[str, float]:
    return {"ece": ece(p, y), "adaptive_ece": adaptive_ece(p, y), "brier": brier(p, y), "nll": nll(p, y)}


def _temperature(choice: Choice, p: Array, y: npt.NDArray[np.bool_]) -> float | None:
    """Above 1 where the model is too sure of itself, below where it is too modest; None where nothing was fitted."""
    from evals.calibration import Calibrator

    return Calibrator.fit(p, y, method="temperature").temperature if "temperature" in choice.outside else None


def _precise(found: Outcomes, target: float, confidence: float) -> dict[str, Any]:
    groups = np.asarray(found.images)
    choice = threshold_for_precision(found.confidence, found.right, target, confidence, groups=groups)
    told: dict[str, Any] = {"target": "precision", **_told(choice.threshold, target, choice.proven, choice.reason)}
    if choice.threshold is None:
        return told
    above = found.confidence >= choice.threshold
    reached = np.isfinite(found.found_at) & (found.found_at >= choice.threshold)
    return {
        **told,
        "precision": choice.precision,
        "interval": list(share_bounds(found.right[above], groups[above], confidence)),
        "recall": float(reached.mean()) if len(reached) else None,
        "accepted": choice.accepted,
    }


def _complete(found: Outcomes, target: float, confidence: float) -> dict[str, Any]:
    things = np.asarray(found.things)
    choice = threshold_for_recall(found.found_at, target, confidence, groups=things)
    told: dict[str, Any] = {"target": "recall", **_told(choice.threshold, target, choice.proven, choice.reason)}
    if choice.threshold is None:
        return told
    above = found.confidence >= choice.threshold
    reached = np.isfinite(found.found_at) & (found.found_at >= choice.threshold)
    return {
        **told,
        "recall": choice.recall,
        "interval": list(share_bounds(reached, things, confidence)),
        "precision": float(found.right[above].mean()),
        "accepted": int(above.sum()),
    }


def _told(threshold: float | None, target: float, proven: bool, reason: str) -> Mapping[str, Any]:
    return {"at_least": target, "threshold": threshold, "proven": proven, "reason": reason}
