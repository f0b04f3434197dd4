"""Figures worked out again from the items of a result, for any weights of the items.

One function a figure serves all who need it for a part of the items: a slice weighs its own items 1 and the others 0,
a bootstrap weighs each as often as it was drawn (Efron 1979). With all weights 1 it gives the figure of the result.

Shape letters: N items, B sets of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals import average_precision
from evals.average_precision import Fates
from evals.results import Result
from foveal.errors import BadInput, UnknownName

Weights = NDArray[np.float64]  # (B, N)
Figures = NDArray[np.float64]  # (B,), NaN where the weights leave nothing to measure
Items = Mapping[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure: how it follows from weighted items, and whether more of it is better."""

    of: Callable[[Items, Weights], Figures]
    higher_is_better: bool = True
    needs: tuple[str, ...] = ()  # columns that not every result of the task has


def mean_of(column: str) -> Callable[[Items, Weights], Figures]:
    """The mean of a column; items without a value (None) do not count."""

    def measure(items: Items, weights: Weights) -> Figures:
        values, known = _numbers(items[column])
        return _ratio(weights @ np.where(known, values, 0.0), weights @ known.astype(np.float64))

    return measure


def share_within(column: str, most: float) -> Callable[[Items, Weights], Figures]:
    """The share of items whose column is at most `most`: recall@k of ranks."""

    def measure(items: Items, weights: Weights) -> Figures:
        values, known = _numbers(items[column])
        inside = known & (values <= most)
        return _ratio(weights @ inside.astype(np.float64), weights @ known.astype(np.float64))

    return measure


def median_of(column: str) -> Callable[[Items, Weights], Figures]:
    """The median of a column: the middle value, or the mean of the middle two."""

    def measure(items: Items, weights: Weights) -> Figures:
        values, known = _numbers(items[column])
        order = np.argsort(np.where(known, values, np.inf), kind="stable")[: int(known.sum())]
        if not len(order):
            return np.full(len(weights), np.nan)
        heights = np.cumsum(weights[:, order], axis=1)
        half = heights[:, -1:] / 2
        low = (heights < half).sum(axis=1).clip(max=len(order) - 1)
        high = (heights <= half).sum(axis=1).clip(max=len(order) - 1)
        middle = (values[order][low] + values[order][high]) / 2
        return np.where(half[:, 0] > 0, middle, np.nan)

    return measure


def mean_by(column: str, group: str) -> Callable[[Items, Weights], Figures]:
    """The mean over groups of each group's mean: every class counts alike, however many items it has."""

    def measure(items: Items, weights: Weights) -> Figures:
        names, place = np.unique(np.array([str(value) for value in items[group]]), return_inverse=True)
        values, known = _numbers(items[column])
        member = np.zeros((len(values), len(names)))
        member[np.arange(len(values)), place] = known
        totals = weights @ member  # (B, groups)
        sums = weights @ (member * np.where(known, values, 0.0)[:, None])
        means = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
        return _ratio(means.sum(axis=1), (totals > 0).sum(axis=1).astype(np.float64))

    return measure


def precision_at(*thresholds: int) -> Callable[[Items, Weights], Figures]:
    """COCO's average precision at some of the IoU thresholds 0.5 + 0.05 t, all when none are named."""

    def measure(items: Items, weights: Weights) -> Figures:
        return average_precision.precision_of(Fates.of_items(items), weights, list(thresholds or range(10)))

    return measure


def average_recall(items: Items, weights: Weights) -> Figures:
    """COCO's average recall with 100 predictions an image and class."""
    return average_precision.recall_of(Fates.of_items(items), weights)


def ratio_of(top: str, bottom: str) -> Callable[[Items, Weights], Figures]:
    """The mean of one column over the mean of another; NaN where that is 0."""

    def measure(items: Items, weights: Weights) -> Figures:
        return _ratio(mean_of(top)(items, weights), mean_of(bottom)(items, weights))

    return measure


DETECTION = {
    "AP": Measure(precision_at()),
    "AP50": Measure(precision_at(0)),
    "AP75": Measure(precision_at(5)),
    "AR100": Measure(average_recall),
}
MEASURES: dict[str, dict[str, Measure]] = {
    "zero-shot": {
        "top1": Measure(mean_of("right")),
        "top5": Measure(share_within("rank", 5)),
        "mean_class_accuracy": Measure(mean_by("right", "class")),
    },
    "retrieval": {
        "recall_at_1": Measure(share_within("rank", 1)),
        "recall_at_5": Measure(share_within("rank", 5)),
        "recall_at_10": Measure(share_within("rank", 10)),
        "median_rank": Measure(median_of("rank"), higher_is_better=False),
        "map": Measure(mean_of("precision")),
    },
    "detection": DETECTION,
    "segmentation": DETECTION,
    "prelabel": {
        "accepted_precision": Measure(ratio_of("accepted_right", "accepted")),
        "accepted_recall": Measure(ratio_of("accepted_right", "gold")),
        "review_rate": Measure(ratio_of("in_review", "shown"), higher_is_better=False),
        "images_to_review": Measure(mean_of("any_review"), higher_is_better=False),
        "precision": Measure(ratio_of("shown_right", "shown")),
        "recall": Measure(ratio_of("shown_right", "gold")),
        "corrections_saved_per_1000_images": Measure(mean_of("saved_per_1000")),
    },
    "vqa": {
        "exact_match": Measure(mean_of("exact_match")),
        "anls": Measure(mean_of("anls")),
        "grounding_iou": Measure(mean_of("iou")),
        "located": Measure(mean_of("located")),
    },
    "slices": {"error": Measure(mean_of("error"), higher_is_better=False)},
    "robustness": {
        "mean_corrupted": Measure(mean_of("corrupted"), needs=("corrupted",)),
        "clean": Measure(mean_of("clean"), needs=("clean",)),
        "relative": Measure(ratio_of("corrupted", "clean"), needs=("corrupted", "clean")),
        "image_corrupted": Measure(mean_of("image_corrupted"), needs=("image_corrupted",)),
        "image_clean": Measure(mean_of("image_clean"), needs=("image_clean",)),
    },
}


def measures_of(result: Result) -> dict[str, Measure]:
    """The figures of a result that its items allow to be worked out again; none when it kept no items."""
    return {
        name: measure
        for name, measure in MEASURES.get(result.task, {}).items()
        if len(result) and name in result.figures and all(column in result.items for column in measure.needs)
    }


def measure_of(result: Result, figure: str) -> Measure:
    """One of `measures_of`.

    Raises:
        BadInput: the result kept no items.
        UnknownName: no such figure, or none that follows from items.
    """
    known = measures_of(result)
    if not known:
        raise BadInput(f"the result {result.name!r} keeps no items, so nothing can be said of parts of it")
    if figure not in known:
        raise UnknownName("figure that follows from items", figure, known)
    return known[figure]


def _numbers(column: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A column as numbers (N,), and which of them are there."""
    values = np.array([np.nan if value is None else float(value) for value in column])
    return values, np.isfinite(values)


def _ratio(top: Figures, bottom: Figures) -> Figures:
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
