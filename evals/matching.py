"""COCO's matching of predictions to truths, for all images, IoU thresholds and sizes at once.

It gives what pycocotools' `COCOeval.evaluateImg` gives, prediction by prediction; `faster-coco-eval` keeps that to
itself, and it is what resampling, error analysis and galleries need. docs/decisions/0015-matching-of-our-own.md.

Shape letters: N predictions, M truths, A sizes (all, small, medium, large), T IoU thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.coco_boxes import Boxes
from evals.coco_pairs import Pairs
from evals.overlaps import Overlaps, overlaps
from foveal.detections import BoolArray, IntArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)
SIZES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # square pixels: all, small, medium, large
MOST = 100  # predictions of a class that count in an image


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """What became of each prediction: a hit, ignored (it lies in a crowd or is of another size), or a false alarm."""

    predictions: Boxes  # those that count, by image, class and falling score
    rows: IntArray  # (N,) where each stood among all predictions
    rank: IntArray  # (N,) its place among those of its image and class, from 0
    hit: BoolArray  # (N, A, T)
    ignored: BoolArray  # (N, A, T)
    truth: Boxes
    counted: BoolArray  # (M, A) truths that can be missed
    taken: IntArray  # (N,) the truth it is matched with at IoU 0.5 among all sizes, -1 for none


def match_pairs(pairs: Pairs) -> Matches:
    """Every prediction's fate under COCO's rules; with masks on both sides these are what overlaps.

    Predictions take truths of their class greedily, best score first. Crowd regions and truths of another size may be
    taken only by what no other truth wants, and then neither count; a crowd region may be taken many times.
    """
    truth, found = pairs.truth, pairs.predictions
    rows, rank = _ranked(found, len(pairs.classes))
    found = _take(found, rows)
    counted = ~_outside(truth) & ~truth.crowd[:, None]
    near = overlaps(found, truth, THRESHOLDS[0], same_class=True)
    match = _match(near, rank, counted, truth.crowd)
    matched = match >= 0
    aside = np.concatenate([~counted, np.zeros((1, len(SIZES)), bool)])  # the last row stands for no truth, -1
    ignored = aside[match, np.arange(len(SIZES))[:, None]] | (~matched & _outside(found)[:, :, None])
    return Matches(found, rows, rank, matched & ~ignored, ignored, truth, counted, match[:, 0, 0])


def _ranked(found: Boxes, classes: int) -> tuple[IntArray, IntArray]:
    """The rows that count, by image, class and falling score, and each one's place among its image's and class's."""
    key = found.image * classes + found.category
    order = np.lexsort((-found.score, key))
    key = key[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    place = np.arange(len(key)) - np.repeat(starts, np.diff(starts, append=len(key)))
    return order[place < MOST], place[place < MOST]


def _take(side: Boxes, rows: IntArray) -> Boxes:
    return Boxes(
        side.image[rows],
        side.category[rows],
        side.boxes[rows],
        side.area[rows],
        side.crowd[rows],
        side.score[rows],
        None if side.masks is None else tuple(side.masks[row] for row in rows.tolist()),
    )


def _outside(side: Boxes) -> BoolArray:
    """Whether each area (N,) lies outside each size -> (N, A)."""
    return (side.area[:, None] < SIZES[:, 0]) | (side.area[:, None] > SIZES[:, 1])


def _match(near: Overlaps, rank: IntArray, counted: BoolArray, crowd: BoolArray) -> IntArray:
    """The truth each prediction takes for each size and threshold, -1 for none -> (N, A, T).

    All images go in step: in round r every image and class decides for its r-th prediction that overlaps anything.
    """
    match = np.full((len(rank), len(SIZES), len(THRESHOLDS)), -1, np.int64)
    if not len(near.iou):
        return match
    # COCO takes the truth of largest IoU, the last of equals: within a prediction, pairs stand in that order.
    order = np.lexsort((np.arange(len(near.iou)), near.iou, near.prediction))
    owner, known, iou = near.prediction[order], near.truth[order], near.iou[order]
    reaches = iou[:, None] >= np.minimum(THRESHOLDS, 1 - 1e-10)  # (P, T)
    free = np.ones((len(counted), len(SIZES), len(THRESHOLDS)), bool)  # (M, A, T)
    for part in _rounds(owner, rank):
        truths = known[part]
        starts = np.flatnonzero(np.diff(owner[part], prepend=-1))
        open_ = reaches[part][:, None, :] & free[truths]  # (p, A, T)
        # A truth that counts goes before one that does not, whatever the overlaps.
        place = np.arange(1, len(part) + 1, dtype=np.int32)[:, None] + len(part) * counted[truths].astype(np.int32)
        best = np.maximum.reduceat(np.where(open_, place[:, :, None], 0), starts, axis=0)  # (n, A, T)
        n, a, t = np.nonzero(best)
        chosen = truths[(best[n, a, t] - 1) % len(part)]
        match[owner[part][starts][n], a, t] = chosen
        free[chosen, a, t] = crowd[chosen]
    return match


def _rounds(owner: IntArray, rank: IntArray) -> list[IntArray]:
    """The pairs' rows, split so that no two predictions of one image and class decide in the same round.

    `owner` (P,) rises, and predictions of one image and class follow each other by `rank`, which is 0 where they begin.
    """
    active, place = np.unique(owner, return_inverse=True)
    group = np.cumsum(rank == 0)[active]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    turn = np.arange(len(active)) - np.repeat(starts, np.diff(starts, append=len(active)))
    order = np.argsort(turn[place], kind="stable")
    return np.split(order, np.flatnonzero(np.diff(turn[place][order])) + 1)
