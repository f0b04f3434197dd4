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
from evals.reliability import TINY
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


def quantile_of(column: str, share: float) -> Callable[[Items, Weights], Figures]:
    """A quantile of a column, straight between order statistics as numpy has it; a weight is how often one counts."""

    def measure(items: Items, weights: Weights) -> Figures:
        values, known = _numbers(items[column])
        order = np.argsort(np.where(known, values, np.inf), kind="stable")[: int(known.sum())]
        if not len(order):
            return np.full(len(weights), np.nan)
        heights = np.cumsum(weights[:, order], axis=1)  # (B, N)
        at = np.maximum(heights[:, -1] - 1, 0) * share
        low = np.floor(at)
        below, above = ((heights <= k[:, None]).sum(axis=1).clip(max=len(order) - 1) for k in (low, low + 1))
        lower, upper = values[order][below], values[order][above]
        return np.where(heights[:, -1] > 0, lower + (upper - lower) * (at - low), np.nan)

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


def squared_error(column: str, truth: str) -> Callable[[Items, Weights], Figures]:
    """The mean of (probability - outcome)^2: Brier's score of `column` against `truth` (0 or 1)."""

    def measure(items: Items, weights: Weights) -> Figures:
        (p, known), (y, told) = _numbers(items[column]), _numbers(items[truth])
        both = known & told
        return _ratio(weights @ np.where(both, (p - y) ** 2, 0.0), weights @ both.astype(np.float64))

    return measure


def log_loss(column: str, truth: str) -> Callable[[Items, Weights], Figures]:
    """The mean negative log-likelihood of the outcomes `truth` (0 or 1) under the probabilities of `column`."""

    def measure(items: Items, weights: Weights) -> Figures:
        (p, known), (y, told) = _numbers(items[column]), _numbers(items[truth])
        both = known & told
        q = np.clip(np.where(both, p, 0.5), TINY, 1 - TINY)
        loss = np.where(both, -(y * np.log(q) + (1 - y) * np.log1p(-q)), 0.0)
        return _ratio(weights @ loss, weights @ both.astype(np.float64))

    return measure


def calibration_error(column: str, truth: str, bins: int = 15) -> Callable[[Items, Weights], Figures]:
    """Expected calibration error of `column` against `truth`, over bins of equal width as `evals.reliability.ece`."""

    def measure(items: Items, weights: Weights) -> Figures:
        (p, known), (y, told) = _numbers(items[column]), _numbers(items[truth])
        both = np.flatnonzero(known & told)
        place = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), p[both], side="left") - 1, 0, bins - 1)
        member = np.zeros((len(both), bins))
        member[np.arange(len(both)), place] = y[both] - p[both]
        chosen = weights[:, both]
        return _ratio(np.abs(chosen @ member).sum(axis=1), chosen.sum(axis=1))

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
    "few-shot": {f"{method}_top1": Measure(mean_of(method)) for method in ("zero_shot", "tip_adapter", "linear_probe")},
    "retrieval": {
        "recall_at_1": Measure(share_within("rank", 1)),
        "recall_at_5": Measure(share_within("rank", 5)),
        "recall_at_10": Measure(share_within("rank", 10)),
        "median_rank": Measure(median_of("rank"), higher_is_better=False),
        "map": Measure(mean_of("precision")),
    },
    "calibration": {
        "ece": Measure(calibration_error("confidence", "right"), higher_is_better=False),
        "brier": Measure(squared_error("confidence", "right"), higher_is_better=False),
        "nll": Measure(log_loss("confidence", "right"), higher_is_better=False),
        "accuracy": Measure(mean_of("right")),
        "mean_confidence": Measure(mean_of("confidence")),
    },
    "speed": {
        "p50_ms": Measure(quantile_of("ms", 0.50), higher_is_better=False),
        "p95_ms": Measure(quantile_of("ms", 0.95), higher_is_better=False),
        "p99_ms": Measure(quantile_of("ms", 0.99), higher_is_better=False),
        "mean_ms": Measure(mean_of("ms"), higher_is_better=False),
    },
    "scenarios": {"pass_rate": Measure(mean_of("passed"))},
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
    "search": {
        "index_recall": Measure(mean_of("index_recall")),
        "precision": Measure(mean_of("precision")),
        "recall": Measure(mean_of("recall")),
        "ndcg": Measure(mean_of("ndcg")),
        "first_right": Measure(mean_of("first_right")),
        "right_refusals": Measure(mean_of("right_refusal")),
        "false_refusals": Measure(mean_of("false_refusal"), higher_is_better=False),
        "refusal_precision": Measure(ratio_of("refused_rightly", "known_refusal")),
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
