"""COCO's interpolated average precision from what became of each prediction, for many weights of the images at once.

Shape letters: n predictions of one class by falling score, h of them hits, C columns (sets of weights, or thresholds).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from evals.coco_boxes import Doubles
from foveal.detections import BoolArray, IntArray

RECALLS = np.linspace(0, 1, 101)
CELLS = 4_000_000  # numbers held at once, so that memory stays flat


def interpolated(found: Doubles, above: Doubles, positives: Doubles) -> Doubles:
    """Mean precision at 101 recalls -> (C,), NaN where there is nothing to find.

    Args:
        found: (h, C) hits up to and with each hit.
        above: (h, C) predictions that count up to and with each hit.
        positives: (C,) truths.
    """
    if not len(found):
        return np.where(positives > 0, 0.0, np.nan)
    precision = np.divide(found, above, out=np.zeros_like(found), where=above > 0)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = np.divide(found, positives, out=np.zeros_like(found), where=positives > 0)
    # A precision counts once for each of the recalls that its hit is the first to reach.
    reached = np.searchsorted(RECALLS, recall, side="right")
    steps = np.diff(reached, axis=0, prepend=0)
    return np.where(positives > 0, (steps * envelope).sum(axis=0) / len(RECALLS), np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class Fates:
    """What became of predictions, by class and falling score, equal scores by image; T thresholds, M truths."""

    image: IntArray  # (N,)
    category: IntArray  # (N,) rises
    hit: BoolArray  # (N, T)
    ignored: BoolArray  # (N, T)
    truth_image: IntArray  # (M,) of the truths that count
    truth_category: IntArray  # (M,)

    @classmethod
    def build(
        cls,
        image: IntArray,
        category: IntArray,
        score: Doubles,
        hit: BoolArray,
        ignored: BoolArray,
        truth_image: IntArray,
        truth_category: IntArray,
    ) -> Fates:
        """In order, from predictions that come by image and within an image by falling score."""
        order = np.lexsort((-score, category))
        return cls(image[order], category[order], hit[order], ignored[order], truth_image, truth_category)

    @classmethod
    def of_items(cls, items: Mapping[str, Sequence[Any]], thresholds: int = 10) -> Fates:
        """From the columns that `evals.detection.measure` keeps of each image."""
        bits = np.arange(thresholds)
        image = np.repeat(np.arange(len(items["scores"])), [len(part) for part in items["scores"]])
        hits, ignored = (_flat(items[name], np.int64)[:, None] >> bits & 1 for name in ("hits", "ignored"))
        return cls.build(
            image,
            _flat(items["classes"], np.int64),
            _flat(items["scores"], np.float64),
            hits.astype(bool),
            ignored.astype(bool),
            np.repeat(np.arange(len(items["truths"])), [len(part) for part in items["truths"]]),
            _flat(items["truths"], np.int64),
        )

    def of_class(self, category: int) -> tuple[slice, IntArray]:
        """The rows of one class, and the images (one a truth) of its truths."""
        first, last = np.searchsorted(self.category, [category, category + 1])
        return slice(int(first), int(last)), self.truth_image[self.truth_category == category]

    @property
    def classes(self) -> list[int]:
        """Those with truths: the others have nothing to measure."""
        return np.unique(self.truth_category).tolist()


def precision_by_class(fates: Fates, classes: int) -> Doubles:
    """Average precision at the first threshold, every image counted once -> (classes,), NaN without truths."""
    result = np.full(classes, np.nan)
    for category in fates.classes:
        rows, truths = fates.of_class(category)
        hit = fates.hit[rows, :1]
        above = np.cumsum(~fates.ignored[rows, :1], axis=0, dtype=np.float64)
        at = hit[:, 0]
        found = np.arange(1.0, 1 + at.sum())[:, None]
        result[category] = interpolated(found, above[at], np.array([float(len(truths))]))[0]
    return result


def curve_of(fates: Fates, threshold: int) -> Doubles:
    """The precision that is averaged, at each of the 101 recalls, mean over the classes with truths -> (101,)."""
    curves: list[Doubles] = []
    for category in fates.classes:
        rows, truths = fates.of_class(category)
        hit = fates.hit[rows, threshold]
        found = np.cumsum(hit)
        above = np.cumsum(~fates.ignored[rows, threshold])
        best = np.maximum.accumulate((found / np.maximum(above, 1))[::-1])[::-1]
        reached = np.searchsorted(found / len(truths), RECALLS)
        curves.append(np.append(best, 0.0)[reached])
    return np.mean(curves, axis=0) if curves else np.full(len(RECALLS), np.nan)


def precision_of(fates: Fates, weights: Doubles, thresholds: list[int]) -> Doubles:
    """Average precision over the classes that the weights leave truths of, and over thresholds -> (B,).

    Args:
        weights: (B, images) how often each image counts.
    """
    return np.concatenate([_precision_of(fates, block, thresholds) for block in _blocks(fates, weights)])


def _precision_of(fates: Fates, weights: Doubles, thresholds: list[int]) -> Doubles:
    total, count = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for category in fates.classes:
        rows, truths = fates.of_class(category)
        positives = weights[truths].sum(axis=0)
        drawn = weights[fates.image[rows]]  # (n, B)
        above = drawn.cumsum(axis=0)
        for t in thresholds:
            hit, ignored = fates.hit[rows, t], fates.ignored[rows, t]
            counted = above[hit]
            if ignored.any():
                counted = counted - (drawn * ignored[:, None]).cumsum(axis=0)[hit]
            ap = interpolated(drawn[hit].cumsum(axis=0), counted, positives)
            total += np.where(positives > 0, ap, 0.0)
        count += positives > 0
    return np.divide(total, count * len(thresholds), out=np.full(len(total), np.nan), where=count > 0)


def recall_of(fates: Fates, weights: Doubles) -> Doubles:
    """Share of truths found, over the classes that the weights leave truths of, and over all thresholds -> (B,)."""
    by_image = weights.T
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    for category in fates.classes:
        rows, truths = fates.of_class(category)
        positives = by_image[truths].sum(axis=0)
        hits = np.bincount(fates.image[rows], fates.hit[rows].sum(axis=1), minlength=len(by_image))
        found = weights @ hits / fates.hit.shape[1]
        total += np.divide(found, positives, out=np.zeros_like(found), where=positives > 0)
        count += positives > 0
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _flat(column: Sequence[Sequence[float]], kind: type[np.number[Any]]) -> Any:
    return np.fromiter(chain.from_iterable(column), kind)


def _blocks(fates: Fates, weights: Doubles) -> Iterator[Doubles]:
    """The weights (B, images), transposed, a few sets at a time."""
    largest = int(np.bincount(fates.category).max()) if len(fates.category) else 1
    size = max(1, CELLS // max(largest, 1))
    for start in range(0, len(weights), size):
        yield np.ascontiguousarray(weights[start : start + size].T)
