"""Which predictions and truths of an image overlap, and by how much: boxes by arithmetic, masks by COCO's own code.

Shape letters: N predictions, M truths, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.coco_boxes import Boxes, Doubles
from foveal.detections import IntArray

MOST = 2_000_000  # pairs compared at once, so that memory stays flat


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """Pairs whose overlap reaches a bound, by prediction and then in the order of the truths."""

    prediction: IntArray  # (P,)
    truth: IntArray  # (P,)
    iou: Doubles  # (P,) with a crowd region: the share of the prediction that lies in it


def overlaps(predictions: Boxes, truth: Boxes, least: float, *, same_class: bool) -> Overlaps:
    """All pairs of one image (and of one class) with an overlap of `least` or more; of masks where both have them."""
    empty = np.zeros(0, np.int64)
    parts = [(empty, empty, np.zeros(0))]
    parts += [_above(predictions, truth, i, j, least) for i, j in _pairs(predictions, truth, same_class)]
    prediction, known, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Overlaps(prediction, known, iou)


def _pairs(predictions: Boxes, truth: Boxes, same_class: bool) -> Iterator[tuple[IntArray, IntArray]]:
    """Rows (P,) of predictions and of truths that share an image (and a class), a block at a time."""
    if not len(predictions) or not len(truth):
        return
    own, other = predictions.image, truth.image
    if same_class:
        classes = 1 + max(int(predictions.category.max()), int(truth.category.max()))
        own, other = own * classes + predictions.category, other * classes + truth.category
    order = np.argsort(other, kind="stable")
    sorted_keys = other[order]
    first = np.searchsorted(sorted_keys, own, side="left")
    count = np.searchsorted(sorted_keys, own, side="right") - first
    rows = np.flatnonzero(count)
    block = np.cumsum(count[rows]) // MOST
    for number in range(int(block[-1]) + 1 if len(block) else 0):
        part = rows[block == number]
        if not len(part):
            continue
        many = count[part]
        within = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
        yield np.repeat(part, many), order[np.repeat(first[part], many) + within]


def _above(
    predictions: Boxes, truth: Boxes, i: IntArray, j: IntArray, least: float
) -> tuple[IntArray, IntArray, Doubles]:
    if predictions.masks is not None and truth.masks is not None:
        iou = _of_masks(predictions.masks, truth.masks, truth.crowd.tolist(), i, j)
    else:
        iou = _of_boxes(predictions.boxes, truth.boxes, truth.crowd, i, j)
    keep = iou >= least
    return i[keep], j[keep], iou[keep]


def _of_boxes(a: Doubles, b: Doubles, crowd: Any, i: IntArray, j: IntArray) -> Doubles:
    """IoU of boxes `a` (N, 4) at rows `i` with `b` (M, 4) at rows `j`, step by step as COCO's `bbIou` has it."""
    # Columns first: gathering single columns is several times faster than gathering rows of four.
    ax, ay, aw, ah = (np.ascontiguousarray(column)[i] for column in a.T)
    bx, by, bw, bh = (np.ascontiguousarray(column)[j] for column in b.T)
    width = np.minimum(aw + ax, bw + bx) - np.maximum(ax, bx)
    height = np.minimum(ah + ay, bh + by) - np.maximum(ay, by)
    inside = np.where((width > 0) & (height > 0), width * height, 0.0)
    union = np.where(crowd[j], aw * ah, aw * ah + bw * bh - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def _of_masks(a: Any, b: Any, crowd: list[bool], i: IntArray, j: IntArray) -> Doubles:
    from faster_coco_eval import mask  # type: ignore[import-untyped]

    tools: Any = mask
    iou = np.zeros(len(i))
    cuts = np.flatnonzero(np.diff(i)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(i)], strict=True):
        known = j[start:end].tolist()
        iou[start:end] = np.asarray(tools.iou([a[i[start]]], [b[n] for n in known], [crowd[n] for n in known]))[0]
    return iou
