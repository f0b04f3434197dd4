"""Whether an exported detector says what its source says, on the same images, before anyone may use it.

Shape letters: M images, B images of one call, Q candidate boxes, C classes, S input side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel

from evals import detection
from foveal.detections import Detections, FloatArray, pairwise_iou
from foveal.detectors import decode
from foveal.errors import FovealError

BATCHES = (1, 3, 7)  # a graph whose batch was frozen at export fails at one of them (transformers#44265)
BEST = 20  # detections an image that are compared
FLOOR = 0.001
SAME_BOX = 0.9  # IoU
SURE = 0.3  # where nobody labelled the images, what the source finds above this score stands for the truth
Run = Callable[[FloatArray], tuple[FloatArray, FloatArray]]  # (B, 3, S, S) -> boxes (B, Q, 4), scores (B, Q, C)


class ParityFailed(FovealError):
    """An exported form differs from its source by more than was agreed; nothing was written."""


class Tolerance(BaseModel):
    """What an exported form may differ by."""

    matched: float = 0.98  # share of the fp32 form's detections with the same class, box and score
    score: float = 0.01  # "the same score"
    map50_drop: float = 0.01  # of the INT8 form, on labelled images
    self_map50: float = 0.9  # of the INT8 form against the source's own detections, where there are no labels


class Parity(BaseModel):
    """What was compared, and how close it came."""

    images: int
    batches: tuple[int, ...]
    detections: int
    matched: float
    largest_score_difference: float  # among matched boxes
    map50_source: float | None = None
    map50_exported: float | None = None
    against: str | None = None  # what the mAP50 was measured on
    passed: bool
    reason: str = ""


def in_batches(run: Run, pixels: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Outputs for images (M, 3, S, S), taken 1, 3, 7, 1, 3, 7... at a time."""
    parts: list[tuple[FloatArray, FloatArray]] = []
    start = turn = 0
    while start < len(pixels):
        count = BATCHES[turn % len(BATCHES)]
        parts.append(run(pixels[start : start + count]))
        start, turn = start + count, turn + 1
    return np.concatenate([b for b, _ in parts]), np.concatenate([s for _, s in parts])


def compare(
    source: Run,
    exported: Run,
    pixels: FloatArray,
    classes: Sequence[str],
    nms_iou: float | None,
    *,
    int8: bool,
    truth: Sequence[Detections] | None = None,
    tolerance: Tolerance | None = None,
) -> Parity:
    """Run both on images (M, 3, S, S) and compare what they detect.

    Args:
        int8: judge by mAP50, as rounding moves every score a little; otherwise box by box.
        truth: boxes of each image in pixels of the S x S square, from people or from a teacher.
    """
    tolerance = tolerance or Tolerance()
    side = (pixels.shape[3], pixels.shape[2])
    try:
        answers = [in_batches(run, pixels) for run in (source, exported)]
    except Exception as error:  # each runtime raises types of its own
        reason = f"it does not run in batches of {', '.join(map(str, BATCHES))}: {str(error).splitlines()[0]}"
        failed = {"detections": 0, "matched": 0.0, "largest_score_difference": 1.0, "passed": False}
        return Parity.model_validate({"images": len(pixels), "batches": BATCHES, "reason": reason, **failed})
    shown = [decode(*answer, [side] * len(pixels), classes, FLOOR, nms_iou) for answer in answers]
    total, same, gap = 0, 0, 0.0
    for mine, theirs in zip(*shown, strict=True):
        pairs, difference = _same(mine[:BEST], theirs[:BEST], np.inf if int8 else tolerance.score)
        total += max(len(mine[:BEST]), len(theirs[:BEST]))
        same, gap = same + pairs, max(gap, difference)
    result = Parity(
        images=len(pixels),
        batches=BATCHES,
        detections=total,
        matched=same / total if total else 1.0,
        largest_score_difference=gap,
        passed=True,
    )
    if int8:
        return _by_map(result, shown[0], shown[1], truth, tolerance)
    if total == 0:
        return result.model_copy(update={"passed": False, "reason": "the source detects nothing, so nothing is proved"})
    if result.matched < tolerance.matched:
        reason = f"{result.matched:.1%} of {total} detections agree, {tolerance.matched:.0%} are needed"
        return result.model_copy(update={"passed": False, "reason": reason})
    return result


def _same(mine: Detections, theirs: Detections, score: float) -> tuple[int, float]:
    """How many detections have a partner of the same class, box and score, and the largest score difference."""
    overlap = pairwise_iou(mine.boxes, theirs.boxes)
    difference = np.abs(mine.scores[:, None] - theirs.scores[None, :])
    fits = (overlap >= SAME_BOX) & (mine.labels[:, None] == theirs.labels[None, :]) & (difference <= score)
    pairs, gap = 0, 0.0
    for row in range(len(mine)):
        column = int(np.where(fits[row], -difference[row], -np.inf).argmax()) if len(theirs) else 0
        if len(theirs) and fits[row, column]:
            pairs, gap = pairs + 1, max(gap, float(difference[row, column]))
            fits[:, column] = False
    return pairs, gap


def _by_map(
    result: Parity,
    source: list[Detections],
    exported: list[Detections],
    truth: Sequence[Detections] | None,
    tolerance: Tolerance,
) -> Parity:
    labelled = truth is not None and any(len(t) for t in truth)
    goal = list(truth) if truth is not None and labelled else [found[found.scores >= SURE] for found in source]
    if not any(len(t) for t in goal):
        return result.model_copy(
            update={"passed": False, "reason": f"there are no labels, and the source detects nothing above {SURE}"}
        )
    before, after = (detection.evaluate(goal, found)["AP50"] or 0.0 for found in (source, exported))
    needed = before - tolerance.map50_drop if labelled else tolerance.self_map50
    reason = "" if after >= needed else f"mAP50 fell from {before:.3f} to {after:.3f}, {needed:.3f} is needed"
    return result.model_copy(
        update={
            "map50_source": before,
            "map50_exported": after,
            "against": "labels" if labelled else "the source's own detections",
            "passed": not reason,
            "reason": reason,
        }
    )
