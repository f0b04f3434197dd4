"""Detection quality: COCO average precision, greedy matching, precision and recall.

Shape letters: N predictions, M truths, both of one image unless said otherwise. Boxes are xyxy pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np

from evals.average_precision import interpolated
from evals.coco_boxes import Doubles
from evals.coco_pairs import Pairs, PredictionLike, TruthLike, pair_up
from evals.intervals import wilson
from evals.matching import Matches, match_pairs
from evals.mistakes import gains
from evals.results import Measured, slices_of
from foveal.dataset import Sample
from foveal.detections import BoolArray, Detections, FloatArray, IntArray, pairwise_iou
from foveal.errors import BadInput

LIMITS = (1, 10, 100)  # predictions an image and class, for COCO's recalls


class DetectionScores(TypedDict):
    """COCO's names; None where COCO prints -1 (no truth of that size or class, so nothing to measure)."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    ARs: float | None
    ARm: float | None
    ARl: float | None
    per_class: dict[str, float | None]  # AP50
    per_class_ap: dict[str, float | None]
    images: int
    truth_boxes: int
    predicted_boxes: int


def evaluate(truth: TruthLike, predictions: PredictionLike, *, masks: bool = False) -> DetectionScores:
    """COCO average precision and recall of boxes, or of masks, equal to pycocotools' numbers.

    Args:
        truth: a COCO file or parsed dict, a dataset folder, a `Dataset`, or one `Detections` an image.
        predictions: a COCO results file or list, an instances-style COCO file with scores, or one `Detections` an
            image in the order of the truth.
        masks: compare masks, which both sides must have, in place of boxes.

    Raises:
        BadInput: predictions for unknown images or classes (listed), without score, NaN, or in another box format.
    """
    pairs = pair_up(truth, predictions, masks=masks)
    return _scores(pairs, match_pairs(pairs))


def measure(
    truth: TruthLike, predictions: PredictionLike, *, masks: bool = False, samples: Iterable[Sample] = ()
) -> Measured:
    """`evaluate`'s figures, the `errors` (AP50 that undoing each kind of mistake would give), and each image's part.

    Items, one an image: `classes`, `scores` and `boxes` (xyxy) of its predictions, surest first, at most 100 a class;
    `hits` and `ignored`, of each prediction the sum of 2**t over the IoU thresholds 0.5 + 0.05 t at which it is a hit,
    or counts neither way; `truths`, the classes of what was to be found. Classes are numbers, in the order of
    `per_class`.

    Args:
        samples: the images, whose metadata says how the items can be divided.

    Raises:
        BadInput: as `evaluate`.
    """
    pairs = pair_up(truth, predictions, masks=masks)
    matches = match_pairs(pairs)
    figures = {**_scores(pairs, matches), "errors": gains(matches, len(pairs.classes))}
    known = {sample.id: sample for sample in samples}
    slices = slices_of([known[id] for id in pairs.ids]) if known.keys() >= set(pairs.ids) else {}
    return Measured(figures, _items(pairs, matches), slices)


def _scores(pairs: Pairs, matches: Matches) -> DetectionScores:
    precision, recall = _tables(matches, len(pairs.classes))
    names = pairs.classes
    return DetectionScores(
        AP=_mean(precision[:, 0]),
        AP50=_mean(precision[:, 0, 0]),
        AP75=_mean(precision[:, 0, 5]),
        APs=_mean(precision[:, 1]),
        APm=_mean(precision[:, 2]),
        APl=_mean(precision[:, 3]),
        AR1=_mean(recall[:, 0, 0]),
        AR10=_mean(recall[:, 1, 0]),
        AR100=_mean(recall[:, 2, 0]),
        ARs=_mean(recall[:, 2, 1]),
        ARm=_mean(recall[:, 2, 2]),
        ARl=_mean(recall[:, 2, 3]),
        per_class={name: _mean(precision[k, 0, 0]) for k, name in enumerate(names)},
        per_class_ap={name: _mean(precision[k, 0]) for k, name in enumerate(names)},
        images=len(pairs.ids),
        truth_boxes=len(pairs.truth),
        predicted_boxes=len(pairs.predictions),
    )


def _mean(values: Doubles) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _tables(matches: Matches, classes: int) -> tuple[Doubles, Doubles]:
    """Precision (classes, sizes, thresholds) and recall (classes, limits, sizes, thresholds); NaN without truth."""
    sizes, thresholds = matches.hit.shape[1:]
    positives = np.zeros((classes, sizes))
    np.add.at(positives, matches.truth.category, matches.counted)
    precision = np.full((classes, sizes, thresholds), np.nan)
    recall = np.full((classes, len(LIMITS), sizes, thresholds), np.nan)
    order = np.lexsort((-matches.predictions.score, matches.predictions.category))
    bounds = np.searchsorted(matches.predictions.category[order], np.arange(classes + 1))
    for k in np.flatnonzero(positives[:, 0]).tolist():
        rows = order[bounds[k] : bounds[k + 1]]
        hit = matches.hit[rows].reshape(len(rows), sizes * thresholds)
        above = np.cumsum(~matches.ignored[rows].reshape(hit.shape), axis=0, dtype=np.int32)
        some = hit.any(axis=1)  # the others only lower the precision of those below them
        known = np.repeat(positives[k], thresholds)
        found = np.cumsum(hit[some], axis=0, dtype=np.int32)
        # Where another column has the hit, its precision is at most that of the column's own last hit.
        precision[k] = interpolated(found.astype(np.float64), above[some].astype(np.float64), known).reshape(sizes, -1)
        rank = matches.rank[rows]
        for i, limit in enumerate(LIMITS):
            hits = hit[rank < limit].sum(axis=0).reshape(sizes, -1)
            recall[k, i] = np.where(positives[k][:, None] > 0, hits / np.maximum(positives[k], 1)[:, None], np.nan)
    return precision, recall


def _items(pairs: Pairs, matches: Matches) -> dict[str, list[Any]]:
    found = matches.predictions
    order = np.lexsort((-found.score, found.image))
    bounds = np.searchsorted(found.image[order], np.arange(len(pairs.ids) + 1)).tolist()
    bits = 1 << np.arange(matches.hit.shape[2])
    corners = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1).round(2)
    columns = {
        "classes": found.category[order].tolist(),
        "scores": found.score[order].tolist(),
        "boxes": corners[order].tolist(),
        "hits": (matches.hit[order, 0] @ bits).tolist(),
        "ignored": (matches.ignored[order, 0] @ bits).tolist(),
    }
    real = np.flatnonzero(matches.counted[:, 0])
    real = real[np.argsort(matches.truth.image[real], kind="stable")]
    ends = np.searchsorted(matches.truth.image[real], np.arange(len(pairs.ids) + 1)).tolist()
    truths = matches.truth.category[real].tolist()
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    return {
        "id": list(pairs.ids),
        **{name: [column[part] for part in parts] for name, column in columns.items()},
        "truths": [truths[a:b] for a, b in pairwise(ends)],
    }


def assign(
    predictions: Detections,
    truth: Detections,
    iou: float = 0.5,
    *,
    order: FloatArray | None = None,
    class_agnostic: bool = False,
) -> IntArray:
    """Index of the truth each prediction takes, -1 for none -> (N,).

    Greedy, best first by `order` (N,) (default: scores): each prediction takes the free truth of its own label (by
    name) it overlaps most, if by at least `iou`.
    """
    taken = np.zeros(len(truth), dtype=bool)
    result = np.full(len(predictions), -1, dtype=np.int64)
    if not len(truth) or not len(predictions):
        return result
    overlap = pairwise_iou(predictions.boxes, truth.boxes)
    if not class_agnostic:
        same = np.array(predictions.label_names)[:, None] == np.array(truth.label_names)[None, :]
        overlap = np.where(same, overlap, -1.0)
    keys = predictions.scores if order is None else order
    for i in np.argsort(-keys, kind="stable").tolist():
        free = np.where(taken, -1.0, overlap[i])
        best = int(free.argmax())
        if free[best] >= iou:
            result[i], taken[best] = best, True
    return result


def match(predictions: Detections, truth: Detections, iou: float = 0.5) -> BoolArray:
    """Whether each prediction is a true positive -> (N,): greedy by score, same label, one truth each."""
    return assign(predictions, truth, iou) >= 0


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """Counts over a set of images, and what follows from them; None where the denominator is zero."""

    true_positives: int
    predictions: int
    truths: int

    @property
    def precision(self) -> float | None:
        return self.true_positives / self.predictions if self.predictions else None

    @property
    def recall(self) -> float | None:
        return self.true_positives / self.truths if self.truths else None

    def precision_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Two-sided Wilson interval of the precision."""
        return wilson(self.true_positives, self.predictions, confidence)


def precision_recall(
    predictions: Sequence[Detections], truth: Sequence[Detections], iou: float = 0.5
) -> PrecisionRecall:
    """Precision and recall of all boxes as given (no threshold), images in the same order.

    Raises:
        BadInput: the two sequences differ in length.
    """
    same_length(predictions, truth)
    hits = sum(int(match(p, t, iou).sum()) for p, t in zip(predictions, truth, strict=True))
    return PrecisionRecall(hits, sum(map(len, predictions)), sum(map(len, truth)))


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall at each distinct threshold, highest threshold first."""

    thresholds: FloatArray  # (T,) keep predictions with a key >= this
    precision: FloatArray  # (T,)
    recall: FloatArray  # (T,)

    def precision_at_recall(self, recall: float) -> float | None:
        """Best precision at any threshold that reaches `recall`; None when none does."""
        reached = self.recall >= recall - 1e-9
        return float(self.precision[reached].max()) if reached.any() else None

    @property
    def average_precision(self) -> float:
        """Area under the interpolated curve, every point (PASCAL VOC 2010)."""
        if not len(self.recall):
            return 0.0
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        return float(np.sum(np.diff(np.concatenate([[0.0], self.recall])) * envelope))


def precision_recall_curve(
    predictions: Sequence[Detections],
    truth: Sequence[Detections],
    iou: float = 0.5,
    *,
    keys: Sequence[FloatArray] | None = None,
) -> Curve:
    """The curve over all classes together, swept by `keys` (one (N,) array an image; default: scores)."""
    same_length(predictions, truth)
    order = [p.scores for p in predictions] if keys is None else list(keys)
    hits = [assign(p, t, iou, order=k) >= 0 for p, t, k in zip(predictions, truth, order, strict=True)]
    empty = np.zeros(0, dtype=np.float32)
    return sweep(np.concatenate([empty, *order]), np.concatenate([empty.astype(bool), *hits]), sum(map(len, truth)))


def sweep(keys: FloatArray, correct: BoolArray, truths: int) -> Curve:
    """The curve of pooled predictions: `keys` (N,), `correct` (N,), and how many truths there are to find."""
    ranking = np.argsort(-keys, kind="stable")
    sorted_keys, hits = keys[ranking], np.cumsum(correct[ranking])
    last = np.append(sorted_keys[1:] != sorted_keys[:-1], True) if len(keys) else np.zeros(0, dtype=bool)
    counts = np.arange(1, len(keys) + 1)
    return Curve(
        thresholds=sorted_keys[last].astype(np.float32),
        precision=(hits / counts)[last].astype(np.float32),
        recall=(hits / max(truths, 1))[last].astype(np.float32),
    )


def same_length(predictions: Sequence[Detections], truth: Sequence[Detections]) -> None:
    if len(predictions) != len(truth):
        raise BadInput(
            "predictions and truth cover different images",
            expected=f"{len(truth)} entries, one an image, in the truth's order",
            received=str(len(predictions)),
        )
