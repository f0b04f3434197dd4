"""From scores to probabilities one can stand on: calibration error, monotone calibrators, thresholds with bounds.

Shape letters: N predictions. `probabilities` (N,) in [0, 1]; `correct` (N,) bool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression  # pyright: ignore[reportMissingTypeStubs]

from evals.intervals import lower_bounds, smallest_sample, wilson
from foveal.errors import BadInput

__all__ = [
    "Calibrator",
    "ReliabilityBin",
    "ThresholdChoice",
    "adaptive_ece",
    "brier",
    "ece",
    "reliability",
    "smallest_sample",
    "threshold_for_precision",
    "wilson",
]

Array = npt.NDArray[np.float64]
ISOTONIC_MINIMUM = 200  # of each outcome; below it isotonic steps follow noise, and two parameters fit better
EDGE = 1e-4


def _checked(probabilities: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Array, Array]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape:
        raise BadInput("probabilities and outcomes differ in shape", expected=str(p.shape), received=str(y.shape))
    if len(p) and not (np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1):
        raise BadInput("probabilities out of range", expected="finite numbers in [0, 1]")
    return p, y


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    count: int
    confidence: float  # mean probability in the bin
    accuracy: float  # share that was correct


def reliability(probabilities: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> list[ReliabilityBin]:
    """The non-empty bins (low, high] of equal width, lowest first; the first bin also holds 0."""
    p, y = _checked(probabilities, correct)
    edges = np.linspace(0, 1, bins + 1)
    return _binned(p, y, edges, np.clip(np.searchsorted(edges, p, side="left") - 1, 0, bins - 1))


def _binned(p: Array, y: Array, edges: Array, place: npt.NDArray[np.intp]) -> list[ReliabilityBin]:
    result: list[ReliabilityBin] = []
    for b in np.unique(place).tolist():
        inside = place == b
        result.append(
            ReliabilityBin(
                float(edges[b]),
                float(edges[b + 1]),
                int(inside.sum()),
                float(p[inside].mean()),
                float(y[inside].mean()),
            )
        )
    return result


def ece(probabilities: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> float:
    """Expected calibration error over bins of equal width (arXiv 1706.04599); 0 without predictions."""
    return _gap(reliability(probabilities, correct, bins))


def adaptive_ece(probabilities: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> float:
    """Calibration error over bins of equal count (arXiv 1904.01685): robust where scores crowd at the ends."""
    p, y = _checked(probabilities, correct)
    if not len(p):
        return 0.0
    order = np.argsort(p, kind="stable")
    place = np.empty(len(p), dtype=np.intp)
    place[order] = np.arange(len(p)) * min(bins, len(p)) // len(p)
    return _gap(_binned(p, y, np.linspace(0, 1, bins + 1), place))


def _gap(bars: Sequence[ReliabilityBin]) -> float:
    total = sum(bar.count for bar in bars)
    return sum(bar.count * abs(bar.accuracy - bar.confidence) for bar in bars) / total if total else 0.0


def brier(probabilities: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean squared error of the probabilities; 0 without predictions."""
    p, y = _checked(probabilities, correct)
    return float(np.mean((p - y) ** 2)) if len(p) else 0.0


def logit(p: npt.ArrayLike) -> Array:
    """Log-odds, with probabilities held away from 0 and 1."""
    q = np.clip(np.asarray(p, dtype=np.float64), EDGE, 1 - EDGE)
    return np.log(q / (1 - q))


def sigmoid(z: npt.ArrayLike) -> Array:
    """1 / (1 + exp(-z)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(z, dtype=np.float64)))


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A monotone map from a score in [0, 1] to P(correct), with one offset a class shrunk to the pooled map.

    The pooled map is isotonic where both outcomes are plentiful and Platt's two parameters where they are not. A
    class's offset acts on the log-odds, so order within a class never changes; a class with few examples stays at
    the pooled map, an unknown class uses it.
    """

    method: Literal["platt", "isotonic", "prior"]
    slope: float = 1.0  # platt: log-odds = slope * logit(score) + intercept
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()  # isotonic: (score, log-odds), both rising
    offsets: Mapping[str, float] = field(default_factory=dict[str, float])  # class -> log-odds
    count: int = 0
    positives: int = 0

    @classmethod
    def fit(
        cls,
        scores: npt.ArrayLike,
        correct: npt.ArrayLike,
        labels: Sequence[str] | None = None,
        *,
        shrinkage: float = 1.0,
        isotonic_minimum: int = ISOTONIC_MINIMUM,
    ) -> Calibrator:
        """The map fitted to `scores` (N,) and outcomes (N,), with class offsets where `labels` (N,) are given.

        Args:
            shrinkage: weight of the Gaussian prior on each class's offset (1 / variance, in log-odds): larger keeps
                classes nearer to the pooled map.
            isotonic_minimum: how many of each outcome it takes before the isotonic map is used.
        """
        s, y = _checked(scores, correct)
        n, positives = len(s), int(y.sum())
        # Platt's smoothed targets: certainty is never claimed from a finite sample.
        high, low = (positives + 1) / (positives + 2), 1 / (n - positives + 2)
        target = np.where(y > 0, high, low)
        if positives in (0, n):
            prior = (positives + 1) / (n + 2)
            return cls("prior", intercept=float(logit(prior)), count=n, positives=positives)
        plenty = min(positives, n - positives) >= isotonic_minimum
        base = cls._isotonic(s, y) if plenty else cls._platt(s, target)
        offsets = base._fit_offsets(s, y, labels, shrinkage) if labels is not None else {}
        return cls(base.method, base.slope, base.intercept, base.knots, offsets, n, positives)

    @classmethod
    def _platt(cls, s: Array, target: Array) -> Calibrator:
        x = logit(s)
        pull = np.array([0.01, 0.0])  # a faint prior that scores mean what they say
        w = np.array([1.0, 0.0])
        for _ in range(50):  # Newton with halved steps: the penalised likelihood is concave in both
            p = sigmoid(w[0] * x + w[1])
            error, weight = p - target, p * (1 - p)
            gradient = np.array([error @ x, error.sum()]) + pull * (w - [1.0, 0.0])
            cross = weight @ x
            curvature = np.array([[weight @ (x * x), cross], [cross, weight.sum()]]) + np.diag(pull + 1e-9)
            step = np.linalg.solve(curvature, gradient)
            w = w - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
            if np.abs(step).max() < 1e-8:
                break
        if w[0] < 0:  # scores that mislead tell nothing: the prior alone
            return cls("platt", slope=0.0, intercept=float(logit(target.mean())))
        return cls("platt", slope=float(w[0]), intercept=float(w[1]))

    @classmethod
    def _isotonic(cls, s: Array, y: Array) -> Calibrator:
        values, where = np.unique(s, return_inverse=True)
        weights = np.bincount(where).astype(np.float64)
        means = np.bincount(where, weights=y) / weights
        solution: Any = isotonic_regression(means, weights=weights)
        fitted: Array = solution.x
        # One knot a block, at its mean score and with Laplace's smoothing of its share, so 0 and 1 are never claimed.
        block = np.concatenate([[0], np.cumsum(np.diff(fitted) > 1e-12)])
        size = np.bincount(block, weights=weights)
        hits = np.bincount(block, weights=weights * means)
        centre = np.bincount(block, weights=weights * values) / size
        heights = np.maximum.accumulate(logit((hits + 0.5) / (size + 1)))
        return cls("isotonic", knots=tuple((float(c), float(h)) for c, h in zip(centre, heights, strict=True)))

    def _pooled(self, scores: Array) -> Array:
        if self.method == "isotonic":
            x, z = np.array(self.knots).T
            return np.asarray(np.interp(scores, x, z), dtype=np.float64)
        slope = 0.0 if self.method == "prior" else self.slope
        return slope * logit(scores) + self.intercept

    def _fit_offsets(self, s: Array, y: Array, labels: Sequence[str], shrinkage: float) -> dict[str, float]:
        if len(labels) != len(s):
            raise BadInput("labels and scores differ in length", expected=str(len(s)), received=str(len(labels)))
        z, names = self._pooled(s), np.asarray(labels)
        offsets: dict[str, float] = {}
        for name in sorted(set(labels)):
            mine = names == name
            b = 0.0
            for _ in range(25):  # Newton: the penalised likelihood is concave in the one offset
                p = sigmoid(z[mine] + b)
                b -= float((np.sum(p - y[mine]) + shrinkage * b) / (np.sum(p * (1 - p)) + shrinkage))
            offsets[str(name)] = b
        return offsets

    def __call__(self, scores: npt.ArrayLike, labels: Sequence[str] | None = None) -> Array:
        """P(correct) of `scores` (N,), of the classes `labels` (N,) where given -> (N,)."""
        s, _ = _checked(scores, np.zeros(np.shape(scores)))
        offset = np.array([self.offsets.get(name, 0.0) for name in labels]) if labels is not None else 0.0
        return np.clip(sigmoid(self._pooled(s) + offset), 0, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        return {
            "method": self.method,
            "slope": self.slope,
            "intercept": self.intercept,
            "knots": [list(k) for k in self.knots],
            "offsets": dict(self.offsets),
            "count": self.count,
            "positives": self.positives,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibrator:
        """The calibrator `to_json` described."""
        return cls(
            method=data["method"],
            slope=data["slope"],
            intercept=data["intercept"],
            knots=tuple((float(a), float(b)) for a, b in data["knots"]),
            offsets=data["offsets"],
            count=data["count"],
            positives=data["positives"],
        )


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
    p, y = _checked(probabilities, correct)
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
