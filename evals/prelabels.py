"""What pre-labels are worth against a gold set: are accepted boxes right, how much is left to look at, what is saved.

A box is right when its class is and its IoU with the gold box reaches a bound; each gold box serves one. Boxes of an
image err together, so bounds count images (`evals.intervals.lower_bounds`).

Shape letters: N boxes, M gold boxes, both of one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.coco_boxes import some
from evals.detection import assign
from evals.intervals import lower_bounds
from evals.reliability import adaptive_ece, brier, ece
from evals.results import Measured, slices_of
from foveal.dataset import Dataset, Sample
from foveal.detections import BoolArray, Detections, FloatArray
from foveal.errors import BadInput

TAIL = 0.025  # of each bound of a two-sided interval of 95%


@dataclass(frozen=True, slots=True)
class Judged:
    """The pre-labels of one image, with what the gold set says of each."""

    sample: Sample  # whose truth is gold
    boxes: Detections
    right: BoolArray  # (N,)
    right_shown: BoolArray  # (N,) among those that people see: a rejected box takes no gold box from them
    corrections: int  # to turn what people see into gold: boxes relabelled, removed, and drawn

    @property
    def gold(self) -> Detections:
        """The gold boxes."""
        assert self.sample.truth is not None  # `judge` lets no other in
        return self.sample.truth

    @property
    def certainty(self) -> FloatArray:
        """The calibrated probability (N,) of each box; its score where it has none."""
        return self.boxes.scores if self.boxes.probabilities is None else self.boxes.probabilities

    def routed(self, route: str) -> BoolArray:
        """Which boxes (N,) went this way."""
        return np.array([one.route == route for one in self.boxes.provenance or ()], dtype=bool)


def judge(prelabels: Dataset, gold: Dataset, iou: float = 0.5) -> list[Judged]:
    """Every gold image's pre-labels, found by sample id, or by file name where ids differ.

    Raises:
        BadInput: gold images that were not pre-labelled, or without labels; boxes without route, or of classes that the
            gold set does not have.
    """
    pairs = list(_paired(prelabels, gold))
    classes = {name for _, boxes in pairs for name in boxes.label_names}
    unknown = sorted(classes - set(gold.classes))
    if unknown:
        raise BadInput(
            f"the pre-labels name classes the gold set does not have: {some(unknown)}",
            expected=f"classes among {some(gold.classes)}",
        )
    return [_judged(sample, boxes, iou) for sample, boxes in pairs]


def measure(prelabels: Dataset, gold: Dataset, iou: float = 0.5) -> Measured:
    """Figures over the gold images, and each image's part.

    `accepted_precision` with `accepted_low` and `accepted_high` (95%), `accepted_recall` (share of gold boxes accepted
    rightly), `review_rate` (of boxes shown, those in doubt), `images_to_review` (share of images with one), `precision`
    and `recall` of what is shown, `corrections_saved_per_1000_images` (boxes to draw without pre-labels, less those to
    relabel, remove and draw with them), `ece`, `adaptive_ece` and `brier` of the probabilities of all boxes.

    Raises:
        BadInput: as `judge`.
    """
    judged = judge(prelabels, gold, iou)
    accept, review = ([one.routed(route) for one in judged] for route in ("accept", "review"))
    shown = [a | r for a, r in zip(accept, review, strict=True)]
    columns = {
        "accepted": [int(a.sum()) for a in accept],
        "accepted_right": [int((a & one.right_shown).sum()) for a, one in zip(accept, judged, strict=True)],
        "in_review": [int(r.sum()) for r in review],
        "any_review": [int(r.any()) for r in review],
        "shown": [int(s.sum()) for s in shown],
        "shown_right": [int((s & one.right_shown).sum()) for s, one in zip(shown, judged, strict=True)],
        "gold": [len(one.gold) for one in judged],
        "corrections": [one.corrections for one in judged],
        "saved_per_1000": [1000 * (len(one.gold) - one.corrections) for one in judged],
    }
    total = {name: sum(column) for name, column in columns.items()}
    low, high = _interval(judged, accept)
    sure = np.concatenate([np.zeros(0, np.float32), *(one.certainty for one in judged)])
    right = np.concatenate([np.zeros(0, bool), *(one.right for one in judged)])
    figures: dict[str, Any] = {
        "accepted_precision": _share(total["accepted_right"], total["accepted"]),
        "accepted_low": low,
        "accepted_high": high,
        "accepted_recall": _share(total["accepted_right"], total["gold"]),
        "review_rate": _share(total["in_review"], total["shown"]),
        "images_to_review": _share(total["any_review"], len(judged)),
        "precision": _share(total["shown_right"], total["shown"]),
        "recall": _share(total["shown_right"], total["gold"]),
        "corrections_saved_per_1000_images": _share(total["saved_per_1000"], len(judged)),
        "ece": ece(sure, right) if len(sure) else None,
        "adaptive_ece": adaptive_ece(sure, right) if len(sure) else None,
        "brier": brier(sure, right) if len(sure) else None,
        "images": len(judged),
        "gold_boxes": total["gold"],
        "accepted_boxes": total["accepted"],
        "review_boxes": total["in_review"],
        "per_class": _per_class(judged, gold.classes),
    }
    samples = [one.sample for one in judged]
    items: dict[str, list[Any]] = {"id": [sample.id for sample in samples], **columns}
    items["probabilities"] = [one.certainty.tolist() for one in judged]
    items["right"] = [one.right.astype(int).tolist() for one in judged]
    wrong = [one.boxes[a & ~one.right_shown] for a, one in zip(accept, judged, strict=True)]
    items["wrong_boxes"] = [boxes.boxes.round(2).tolist() for boxes in wrong]
    items["wrong_classes"] = [boxes.label_names for boxes in wrong]
    return Measured(figures, items, slices_of(samples))


def _paired(prelabels: Dataset, gold: Dataset) -> Iterator[tuple[Sample, Detections]]:
    by_id = {sample.id: sample for sample in prelabels}
    by_file = {sample.path.name: sample for sample in prelabels}
    found = [(sample, by_file.get(sample.path.name) or by_id.get(sample.id)) for sample in gold]
    if not found:
        raise BadInput("the gold set has no images")
    bare = [sample.id for sample, _ in found if sample.truth is None]
    if bare:
        raise BadInput(
            f"{len(bare)} gold images have no labels: {some(bare)}", expected="boxes (possibly none) for all"
        )
    lost = [sample.id for sample, known in found if known is None or known.truth is None]
    if lost:
        raise BadInput(
            f"{len(lost)} of {len(found)} gold images were not pre-labelled: {some(lost)}",
            expected=f"images such as {some(by_id)}",
            remedy="Give the gold set of the same source.",
        )
    for sample, known in found:
        assert known is not None  # those were refused
        boxes = known.truth
        assert boxes is not None
        if len(boxes) and (boxes.provenance is None or not all(one.route for one in boxes.provenance)):
            raise BadInput(
                f"the boxes of {known.id} have no route",
                expected="accept, review or reject a box",
                remedy="Give a folder that `foveal prelabel` wrote.",
            )
        yield sample, boxes


def _judged(sample: Sample, boxes: Detections, iou: float) -> Judged:
    assert sample.truth is not None  # others were refused
    gold = sample.truth
    order = boxes.scores if boxes.probabilities is None else boxes.probabilities
    routes = np.array([one.route for one in boxes.provenance or ()], dtype=object)
    shown = routes != "reject"
    right_shown = np.zeros(len(boxes), bool)
    accepted_first = order + 2 * (routes == "accept").astype(np.float32)
    own = assign(boxes[shown], gold, iou, order=accepted_first[shown])
    right_shown[shown] = own >= 0
    # What is left on both sides and lies at the same place is relabelled; the rest is removed, or drawn.
    extra = boxes[shown & ~right_shown]
    free = gold[np.setdiff1d(np.arange(len(gold)), own)]
    relabelled = int((assign(extra, free, iou, class_agnostic=True) >= 0).sum())
    corrections = len(extra) + len(free) - relabelled
    return Judged(sample, boxes, assign(boxes, gold, iou, order=order) >= 0, right_shown, corrections)


def _interval(judged: Sequence[Judged], accept: Sequence[BoolArray]) -> tuple[float, float]:
    """95% of the accepted boxes' precision, exact, with as many outcomes as their images are worth; 0 to 1 for none."""
    right = np.concatenate([np.zeros(0, bool), *(one.right_shown[a] for one, a in zip(judged, accept, strict=True))])
    image = np.repeat(np.arange(len(judged)), [int(a.sum()) for a in accept])
    if not len(right):
        return 0.0, 1.0
    low = lower_bounds(right, image, 1 - TAIL)[-1]
    return float(low), 1 - float(lower_bounds(~right, image, 1 - TAIL)[-1])


def _per_class(judged: Sequence[Judged], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {
        name: {"gold": 0, "accepted": 0, "right": 0, "review": 0, "rejected": 0} for name in classes
    }
    for one in judged:
        for name in one.gold.label_names:
            counts[name]["gold"] += 1
        for name, told, right in zip(one.boxes.label_names, one.boxes.provenance or (), one.right_shown, strict=True):
            column = {"accept": "accepted", "review": "review", "reject": "rejected"}[str(told.route)]
            counts[name][column] += 1
            counts[name]["right"] += int(right and told.route == "accept")
    return counts


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
