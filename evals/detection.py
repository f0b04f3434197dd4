"""Detection quality: COCO average precision, greedy matching, precision and recall, and lists of mistakes.

Shape letters: N predictions, M truths, both of one image unless said otherwise. Boxes are xyxy pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]

from evals.coco_pairs import Pairs, PredictionLike, TruthLike, pair_up
from evals.intervals import wilson
from foveal.detections import BoolArray, Detections, FloatArray, IntArray, pairwise_iou
from foveal.errors import BadInput

MistakeKind = Literal["class", "localisation", "both", "duplicate", "background", "missed"]


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


def evaluate(truth: TruthLike, predictions: PredictionLike) -> DetectionScores:
    """COCO average precision and recall of boxes, equal to pycocotools' numbers.

    Args:
        truth: a COCO file or parsed dict, a dataset folder, a `Dataset`, or one `Detections` an image.
        predictions: a COCO results file or list, an instances-style COCO file with scores, or one `Detections` an
            image in the order of the truth.

    Raises:
        BadInput: predictions for unknown images or classes (listed), without score, NaN, or in another box format.
    """
    pairs = pair_up(truth, predictions)
    evaluation = _run_coco(pairs)
    precision: Any = evaluation.eval["precision"]  # (10 IoU, 101 recall, K classes, 4 areas, 3 limits)
    recall: Any = evaluation.eval["recall"]  # (10 IoU, K, 4 areas, 3 limits)
    names = pairs.classes
    return DetectionScores(
        AP=_mean(precision[:, :, :, 0, 2]),
        AP50=_mean(precision[0, :, :, 0, 2]),
        AP75=_mean(precision[5, :, :, 0, 2]),
        APs=_mean(precision[:, :, :, 1, 2]),
        APm=_mean(precision[:, :, :, 2, 2]),
        APl=_mean(precision[:, :, :, 3, 2]),
        AR1=_mean(recall[:, :, 0, 0]),
        AR10=_mean(recall[:, :, 0, 1]),
        AR100=_mean(recall[:, :, 0, 2]),
        ARs=_mean(recall[:, :, 1, 2]),
        ARm=_mean(recall[:, :, 2, 2]),
        ARl=_mean(recall[:, :, 3, 2]),
        per_class={name: _mean(precision[0, :, k, 0, 2]) for k, name in enumerate(names)},
        per_class_ap={name: _mean(precision[:, :, k, 0, 2]) for k, name in enumerate(names)},
        images=pairs.images,
        truth_boxes=len(pairs.truth),
        predicted_boxes=len(pairs.predictions),
    )


def _mean(values: Any) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _run_coco(pairs: Pairs) -> Any:
    header = {
        "images": [{"id": i + 1} for i in range(pairs.images)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(pairs.classes)],
    }
    evaluation = COCOeval_faster(
        COCO({**header, "annotations": pairs.truth}),
        COCO({**header, "annotations": pairs.predictions}),
        iouType="bbox",
        print_function=_silence,
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _silence(*_: object) -> None:
    """COCO's evaluation reports on its way; nobody asked."""


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
    _same_length(predictions, truth)
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
    _same_length(predictions, truth)
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


def mistakes(
    predictions: Sequence[Detections],
    truth: Sequence[Detections],
    iou: float = 0.5,
    background: float = 0.1,
) -> list[Mistake]:
    """Every mistake, worst first: false positives by falling score, then missed truths from large to small.

    The kinds of false positive are TIDE's (arXiv 2008.08115): against the truth it overlaps most, a prediction with
    IoU >= `iou` has the wrong class or is a duplicate, between `background` and `iou` it is badly placed (or both),
    and below it fired on background.
    """
    _same_length(predictions, truth)
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
    if not len(known) or overlap.max() < background:
        return Mistake(image, "background", label, score, box)
    same = np.array([name == label for name in known.label_names])
    best_same = float(np.where(same, overlap, 0).max())
    best = int(overlap.argmax())
    if best_same >= iou:
        kind: MistakeKind = "duplicate"
        best = int(np.where(same, overlap, -1).argmax())
    elif overlap[best] >= iou:
        kind = "class"
    elif best_same >= background:
        kind = "localisation"
        best = int(np.where(same, overlap, -1).argmax())
    else:
        kind = "both"
    return Mistake(image, kind, label, score, box, known.label_names[best], float(overlap[best]))


def _box(detections: Detections, i: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = detections.boxes[i].tolist()
    return x1, y1, x2, y2


def _same_length(predictions: Sequence[Detections], truth: Sequence[Detections]) -> None:
    if len(predictions) != len(truth):
        raise BadInput(
            "predictions and truth cover different images",
            expected=f"{len(truth)} entries, one an image, in the truth's order",
            received=str(len(predictions)),
        )
