"""Mistakes of a detector, one by one and by kind, and what each kind costs (TIDE, arXiv 2008.08115).

A false alarm with an IoU of a half or more with a truth has the wrong class or is a duplicate; with a tenth or more it
is badly placed, or that and of the wrong class; below, it fired on background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evals.average_precision import Fates, precision_by_class
from evals.coco_boxes import Doubles
from evals.matching import Matches
from evals.overlaps import Overlaps, overlaps
from foveal.detections import BoolArray, Detections, FloatArray, IntArray, pairwise_iou

MistakeKind = Literal["class", "localisation", "both", "duplicate", "background", "missed"]
KINDS: tuple[MistakeKind, ...] = ("class", "localisation", "both", "duplicate", "background", "missed")
RIGHT, BACKGROUND = 0.5, 0.1  # IoU from which a box is right, and below which it touches nothing


@dataclass(frozen=True, slots=True)
class Mistake:
    """One false alarm or one missed object, with what it was confused with."""

    image: int  # index in the sequences compared
    kind: MistakeKind
    label: str  # predicted label; of a missed truth, its true label
    score: float  # of the prediction; 0 for a missed truth
    box: tuple[float, float, float, float]
    truth_label: str | None = None  # label of the truth it overlaps most, where there is one
    overlap: float = 0.0  # IoU with that truth

    @property
    def words(self) -> str:
        """What happened, in a few words."""
        said = f"{self.label} at {self.score:.2f}"
        return {
            "missed": f"missed: {self.label}",
            "background": f"nothing there: {said}",
            "class": f"wrong kind: {said} is a {self.truth_label}",
            "localisation": f"badly placed: {said}, IoU {self.overlap:.2f}",
            "both": f"wrong kind and badly placed: {said} near a {self.truth_label}",
            "duplicate": f"found twice: {said}",
        }[self.kind]


def mistakes(
    predictions: Sequence[Detections],
    truth: Sequence[Detections],
    iou: float = RIGHT,
    background: float = BACKGROUND,
) -> list[Mistake]:
    """Every mistake, worst first: false alarms by falling score, then all truths that were not found, by falling size.

    Raises:
        BadInput: the two sequences differ in length.
    """
    from evals.detection import assign, same_length

    same_length(predictions, truth)
    false_alarms: list[Mistake] = []
    missed: list[Mistake] = []
    for image, (found, known) in enumerate(zip(predictions, truth, strict=True)):
        taken = assign(found, known, iou)
        overlap = pairwise_iou(found.boxes, known.boxes)
        for i in np.flatnonzero(taken < 0).tolist():
            false_alarms.append(_false_alarm(image, found, known, i, overlap[i], iou, background))
        for j in sorted(set(range(len(known))) - set(taken.tolist())):
            missed.append(Mistake(image, "missed", known.label_names[j], 0.0, _box(known, j)))
    false_alarms.sort(key=lambda m: -m.score)
    missed.sort(key=lambda m: -(m.box[2] - m.box[0]) * (m.box[3] - m.box[1]))
    return false_alarms + missed


def _false_alarm(
    image: int, found: Detections, known: Detections, i: int, overlap: FloatArray, iou: float, background: float
) -> Mistake:
    label, box, score = found.label_names[i], _box(found, i), float(found.scores[i])
    if not len(known):
        return Mistake(image, "background", label, score, box)
    same = np.array([name == label for name in known.label_names])
    own, other = np.where(same, overlap, 0), np.where(same, 0, overlap)
    kind = KINDS[int(_kinds(own.max(keepdims=True), other.max(keepdims=True), iou, background)[0])]
    if kind == "background":
        return Mistake(image, kind, label, score, box)
    best = int((own if kind in ("localisation", "duplicate") else other).argmax())
    return Mistake(image, kind, label, score, box, known.label_names[best], float(overlap[best]))


def _kinds(
    own: npt.NDArray[np.floating], other: npt.NDArray[np.floating], iou: float, background: float
) -> npt.NDArray[np.int64]:
    """The kind (N,), an index into `KINDS`, of false alarms by their best overlaps with truths of their class, and of
    other classes, in the order in which TIDE's code asks.
    """
    cases = [
        (own >= background) & (own < iou),  # localisation
        other >= iou,  # class
        own >= iou,  # duplicate
        np.maximum(own, other) <= background,  # background
    ]
    named = [KINDS.index(kind) for kind in ("localisation", "class", "duplicate", "background")]
    return np.select(cases, named, KINDS.index("both")).astype(np.int64)


def _box(detections: Detections, i: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = detections.boxes[i].tolist()
    return x1, y1, x2, y2


def gains(matches: Matches, classes: int) -> dict[str, float | None]:
    """How much AP50 would rise if one kind of mistake alone were undone; None where there is nothing to find.

    Wrong classes and places become hits where their truth was not found and no surer one claims it, else they vanish
    like duplicates, background and what is both; of missed truths, those that no such correction reaches, are taken
    out of what was to be found. The gains do not add up to what is missing.
    """
    found, truth = matches.predictions, matches.truth
    hit, ignored = matches.hit[:, 0, 0], matches.ignored[:, 0, 0]
    counted = matches.counted[:, 0]
    false = ~hit & ~ignored
    near = overlaps(found, truth, BACKGROUND, same_class=False)
    real = counted[near.truth] & false[near.prediction]
    near = Overlaps(near.prediction[real], near.truth[real], near.iou[real])
    same = found.category[near.prediction] == truth.category[near.truth]
    own, own_iou = _nearest(near, same, len(found))
    other, other_iou = _nearest(near, ~same, len(found))
    kind = np.where(false, _kinds(own_iou, other_iou, RIGHT, BACKGROUND), -1)
    free = counted.copy()
    free[matches.taken[hit]] = False

    def precision(category: IntArray, hit: BoolArray, gone: BoolArray, left: BoolArray) -> float | None:
        keep = ~gone
        rows = np.flatnonzero(left)
        fates = Fates.build(
            found.image[keep],
            category[keep],
            found.score[keep],
            hit[keep, None],
            ignored[keep, None],
            truth.image[rows],
            truth.category[rows],
        )
        of_class = precision_by_class(fates, classes)
        # A class whose truths were all missed leaves nothing to find: what it still fires on is wrong.
        fires = np.bincount(category[keep & ~ignored], minlength=classes) > 0
        of_class = np.where(np.isnan(of_class) & fires & to_find, 0.0, of_class)
        known = of_class[np.isfinite(of_class)]
        return float(known.mean()) if known.size else None

    to_find = np.bincount(truth.category[counted], minlength=classes) > 0
    nobody = np.zeros(len(found), bool)
    base = precision(found.category, hit, nobody, counted)
    if base is None:
        return dict.fromkeys(KINDS)
    fixed: dict[str, float | None] = {}
    target = np.where(kind == KINDS.index("class"), other, own)
    may_become = np.isin(kind, [KINDS.index("class"), KINDS.index("localisation")]) & free[target]
    surest = _surest(found.score, target, may_become)
    reached = np.zeros(len(truth), bool)
    reached[target[surest]] = True
    for name in ("class", "localisation"):
        these = kind == KINDS.index(name)
        chosen = surest[these[surest]]
        category = found.category.copy()
        category[chosen] = truth.category[target[chosen]]
        right = hit.copy()
        right[chosen] = True
        fixed[name] = precision(category, right, these & ~right, counted)
    for name in ("both", "duplicate", "background"):
        fixed[name] = precision(found.category, hit, kind == KINDS.index(name), counted)
    fixed["missed"] = precision(found.category, hit, nobody, counted & (~free | reached))
    # Fewer false alarms may move a hit past one of the 101 recalls: less than nothing is not a loss but rounding.
    return {name: max((fixed[name] or 0.0) - base, 0.0) for name in KINDS}


def _nearest(near: Overlaps, rows: BoolArray, count: int) -> tuple[IntArray, Doubles]:
    """The truth (N,) that each prediction overlaps most among the pairs `rows`, 0 where none, and the IoU (N,), 0."""
    which, iou = np.zeros(count, np.int64), np.zeros(count)
    chosen = np.flatnonzero(rows)
    # By rising overlap: what is assigned last stays, of equals the first truth.
    order = chosen[np.lexsort((-near.truth[chosen], near.iou[chosen]))]
    which[near.prediction[order]], iou[near.prediction[order]] = near.truth[order], near.iou[order]
    return which, iou


def _surest(score: Doubles, target: IntArray, rows: BoolArray) -> IntArray:
    """Of the predictions `rows`, the one of best score for each target -> their rows."""
    chosen = np.flatnonzero(rows)
    order = chosen[np.argsort(-score[chosen], kind="stable")]
    _, first = np.unique(target[order], return_index=True)
    return order[first]
