"""Where to cut: thresholds that keep a target precision or recall, with what a sample says about them.

Shape letters: N predictions, M things there are to find.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evals.intervals import lower_bounds, share_bounds, smallest_sample
from evals.reliability import checked


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """Where to cut, what the sample says about precision above the cut, and whether that is a promise."""

    threshold: float | None  # accept at or above; None: nothing can be accepted
    target: float
    confidence: float | None  # of the one-sided bound; None when only the point estimate was asked for
    proven: bool  # the lower bound reaches the target
    accepted: int  # sample predictions at or above the threshold
    correct: int
    precision: float | None
    lower_bound: float | None  # one-sided, at `confidence`
    kept: float  # share of the sample's correct predictions that lie above the threshold
    reason: str


def threshold_for_precision(
    probabilities: npt.ArrayLike,
    correct: npt.ArrayLike,
    target: float,
    confidence: float | None = 0.95,
    *,
    floor: float = 0.0,
    groups: npt.ArrayLike | None = None,
) -> ThresholdChoice:
    """The lowest threshold, not below `floor`, above which the sample's precision meets `target`.

    With `confidence`, the lower bound of `evals.intervals.lower_bounds` must meet it: a promise, if the sample was not
    used to fit the probabilities (pass out-of-fold ones). Where no threshold does, or with `confidence` None, the point
    estimate decides and `proven` is False, the reason saying what is missing.

    Args:
        groups: (N,) the image of each prediction, as predictions of one image err together.
    """
    p, y = checked(probabilities, correct)
    order = np.argsort(-p, kind="stable")
    ranked, hits = p[order], np.cumsum(y[order]).astype(int)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(p) else np.zeros(0, dtype=np.intp)
    ends = ends[ranked[ends] >= floor]
    total = int(y.sum())
    bounds = None
    if confidence is not None:
        bounds = lower_bounds(y[order], None if groups is None else np.asarray(groups)[order], confidence)

    def choice(end: int | None, proven: bool, reason: str) -> ThresholdChoice:
        if end is None:
            return ThresholdChoice(None, target, confidence, False, 0, 0, None, None, 0.0, reason)
        n, k = end + 1, int(hits[end])
        bound = None if bounds is None else float(bounds[end])
        return ThresholdChoice(
            float(ranked[end]), target, confidence, proven, n, k, k / n, bound, k / max(total, 1), reason
        )

    if confidence is not None and bounds is not None:
        passing = ends[bounds[ends] >= target].tolist()
        if passing:
            return choice(passing[-1], True, f"precision is at least {target:g} with {confidence:.0%} confidence")
    met = [e for e in ends.tolist() if hits[e] / (e + 1) >= target]
    if not met:
        seen = f"{total} of {len(p)} sample predictions are correct"
        return choice(None, False, f"no threshold reaches a precision of {target:g}: {seen}")
    if confidence is None:
        return choice(met[-1], False, f"the sample's precision is at least {target:g}; no bound was asked for")
    need, sure = smallest_sample(target, confidence), f"with {confidence:.0%} confidence"
    if len(p) < need:
        return choice(
            met[-1], False, f"{len(p)} predictions are too small a sample to promise {target:g} {sure}: at least {need}"
        )
    return choice(met[-1], False, f"{target:g} is estimated, not proven {sure}: label more gold images")


@dataclass(frozen=True, slots=True)
class RecallChoice:
    """Where to cut so that few real things are lost, and whether the sample proves it."""

    threshold: float | None  # accept at or above; None: so many are never found at all
    target: float
    confidence: float | None
    proven: bool  # the lower bound reaches the target
    found: int  # real things at or above the threshold
    things: int
    recall: float | None
    lower_bound: float | None  # one-sided, at `confidence`
    reason: str


def threshold_for_recall(
    confidences: npt.ArrayLike,
    target: float,
    confidence: float | None = 0.95,
    *,
    groups: npt.ArrayLike | None = None,
) -> RecallChoice:
    """The highest threshold that keeps a share of `target` of what is real.

    With `confidence`, the one-sided lower bound on that share must reach the target; where none does, or with
    `confidence` None, the point estimate decides and `proven` is False.

    Args:
        confidences: (M,) of each real thing, the confidence it was found with; NaN where it was not found.
        groups: (M,) the image of each, as things of one image are missed together.
    """
    found = np.asarray(confidences, dtype=np.float64)
    sure = np.where(np.isfinite(found), found, -np.inf)
    cuts, count = np.unique(sure[np.isfinite(sure)], return_counts=True)
    cuts, recall = cuts[::-1], np.cumsum(count[::-1]) / max(len(sure), 1)  # highest first

    def choice(cut: float | None, proven: bool, reason: str) -> RecallChoice:
        if cut is None:
            return RecallChoice(None, target, confidence, False, 0, len(sure), None, None, reason)
        kept = sure >= cut
        bound = None if confidence is None else _lower(kept, groups, confidence)
        count = int(kept.sum())
        return RecallChoice(cut, target, confidence, proven, count, len(sure), count / len(sure), bound, reason)

    met = cuts[recall >= target].tolist()
    if not met:
        most = f"{int(np.isfinite(sure).sum())} of {len(sure)} are found at all"
        return choice(None, False, f"no threshold reaches a recall of {target:g}: {most}")
    if confidence is None:
        return choice(met[0], False, f"the sample's recall is at least {target:g}; no bound was asked for")
    # The lower the cut the more is kept, and the higher the bound: halve the cuts until the highest proven one is left.
    first = bisect_left(met, True, key=lambda cut: _lower(sure >= cut, groups, confidence) >= target)
    if first < len(met):
        return choice(met[first], True, f"recall is at least {target:g} with {confidence:.0%} confidence")
    return choice(met[0], False, f"{target:g} is estimated, not proven with {confidence:.0%} confidence: label more")


def _lower(kept: npt.NDArray[np.bool_], groups: npt.ArrayLike | None, confidence: float) -> float:
    return share_bounds(kept, groups, confidence, one_sided=True)[0]
