"""PASCAL VOC's average precision, for numbers that are quoted in it; `evals.detection.evaluate` gives COCO's.

VOC differs from COCO: a box is a hit only with the truth that it overlaps most, even if another is free; corners are
pixels that belong to the box, so one from 3 to 5 is three wide; and precision is averaged over every recall reached, or
(until 2009) over eleven of them (doi 10.1007/s11263-009-0275-4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from evals.detection import same_length
from foveal.detections import BoolArray, Detections, pairwise_iou


def average_precision(
    predictions: Sequence[Detections],
    truth: Sequence[Detections],
    iou: float = 0.5,
    points: Literal["every", "eleven"] = "every",
) -> dict[str, float]:
    """Average precision of each class that has truths, images in the same order.

    Raises:
        BadInput: the two sequences differ in length.
    """
    same_length(predictions, truth)
    classes = dict.fromkeys(name for known in truth for name in known.label_names)
    return {name: _of_class(predictions, truth, name, iou, points) for name in classes}


def _of_class(
    predictions: Sequence[Detections], truth: Sequence[Detections], name: str, iou: float, points: str
) -> float:
    pairs = [(_only(p, name), _only(t, name)) for p, t in zip(predictions, truth, strict=True)]
    scores = np.concatenate([p.scores for p, _ in pairs])
    hits = np.concatenate([_hits(p, t, iou) for p, t in pairs])[np.argsort(-scores, kind="stable")]
    recall = np.cumsum(hits) / sum(len(t) for _, t in pairs)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    if points == "every":
        return float(np.sum(np.diff(recall, prepend=0.0) * best))
    # As the devkit compares: 0.6000000000000001 is not reached by 9 of 15, and published numbers have it so.
    asked = np.searchsorted(recall, np.linspace(0, 1, 11))
    return float(np.append(best, 0.0)[asked].mean())


def _only(detections: Detections, name: str) -> Detections:
    return detections[np.array(detections.label_names, dtype=object) == name]


def _hits(found: Detections, known: Detections, iou: float) -> BoolArray:
    hits = np.zeros(len(found), bool)
    if not len(known):
        return hits
    last = np.array([0, 0, 1, 1], np.float32)
    overlap = pairwise_iou(found.boxes + last, known.boxes + last)
    taken: set[int] = set()
    for i in np.argsort(-found.scores, kind="stable").tolist():
        best = int(overlap[i].argmax())
        if overlap[i, best] >= iou and best not in taken:
            hits[i] = True
            taken.add(best)
    return hits
