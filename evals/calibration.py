"""From scores to probabilities one can stand on: monotone calibrators, fitted and chosen by cross-validation.

Shape letters: N predictions. `probabilities` (N,) in [0, 1]; `correct` (N,) bool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, minimize_scalar  # pyright: ignore[reportMissingTypeStubs]

from evals.reliability import Array, checked
from foveal.errors import BadInput

Method = Literal["temperature", "platt", "isotonic"]
ISOTONIC_MINIMUM = 200  # of each outcome; below it isotonic steps follow noise, and two parameters fit better
EDGE = 1e-4


def logit(p: npt.ArrayLike) -> Array:
    """Log-odds, with probabilities held away from 0 and 1."""
    q = np.clip(np.asarray(p, dtype=np.float64), EDGE, 1 - EDGE)
    return np.log(q / (1 - q))


def temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The number by which `logits` (N, K) are divided so that their softmax fits `labels` (N,) best (arXiv 1706.04599).

    Raises:
        BadInput: shapes do not fit, or there is nothing to fit.
    """
    z, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if z.ndim != 2 or not len(z) or truth.shape != z.shape[:1] or truth.min() < 0 or truth.max() >= z.shape[1]:
        raise BadInput("logits and labels do not fit", expected="(N, K) and (N,)", received=f"{z.shape}, {truth.shape}")
    z = z - z.max(axis=1, keepdims=True)
    own = z[np.arange(len(z)), truth]
    return _temperature_of(lambda slope: float(np.mean(np.log(np.exp(slope * z).sum(axis=1)) - slope * own)))


def _temperature_of(loss: Callable[[float], float]) -> float:
    """Where a loss that is convex in 1 / T is least, T within e^-7 and e^7."""
    found: Any = minimize_scalar(
        lambda log_slope: loss(float(np.exp(log_slope))), bounds=(-7.0, 7.0), method="bounded", options={"xatol": 1e-9}
    )
    return float(np.exp(-found.x))


def sigmoid(z: npt.ArrayLike) -> Array:
    """1 / (1 + exp(-z)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(z, dtype=np.float64)))


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A monotone map from a score in [0, 1] to P(correct), with one offset a class shrunk to the pooled map.

    The pooled map is isotonic where both outcomes are plentiful and Platt's two parameters where they are not, unless
    a method is asked for: a temperature divides the log-odds by one number (arXiv 1706.04599, section 4.2; there it
    divides the logits of all classes, of which a score is what is left). A class's offset acts on the log-odds, so
    order within a class never changes; a class with few examples stays at the pooled map, an unknown class uses it.
    """

    method: Literal["temperature", "platt", "isotonic", "prior"]
    slope: float = 1.0  # platt: log-odds = slope * logit(score) + intercept; temperature: slope alone, 1 / T
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
        method: Method | None = None,
        shrinkage: float = 1.0,
        isotonic_minimum: int = ISOTONIC_MINIMUM,
    ) -> Calibrator:
        """The map fitted to `scores` (N,) and outcomes (N,), with class offsets where `labels` (N,) are given.

        Args:
            method: of the pooled map; by how plentiful the outcomes are when None. One outcome alone gives a prior.
            shrinkage: weight of the Gaussian prior on each class's offset (1 / variance, in log-odds): larger keeps
                classes nearer to the pooled map.
            isotonic_minimum: how many of each outcome it takes before the isotonic map is used.
        """
        s, y = checked(scores, correct)
        n, positives = len(s), int(y.sum())
        # Platt's smoothed targets: certainty is never claimed from a finite sample.
        high, low = (positives + 1) / (positives + 2), 1 / (n - positives + 2)
        target = np.where(y > 0, high, low)
        if positives in (0, n):
            prior = (positives + 1) / (n + 2)
            return cls("prior", intercept=float(logit(prior)), count=n, positives=positives)
        plenty = min(positives, n - positives) >= isotonic_minimum
        method = method or ("isotonic" if plenty else "platt")
        if method == "temperature":
            base = cls._temperature(s, y)
        else:
            base = cls._isotonic(s, y) if method == "isotonic" else cls._platt(s, target)
        offsets = base._fit_offsets(s, y, labels, shrinkage) if labels is not None else {}
        return cls(base.method, base.slope, base.intercept, base.knots, offsets, n, positives)

    @classmethod
    def _temperature(cls, s: Array, y: Array) -> Calibrator:
        x = np.where(y > 0, -1.0, 1.0) * logit(s)  # log-odds of being wrong
        return cls("temperature", slope=1 / _temperature_of(lambda slope: float(np.logaddexp(0, slope * x).mean())))

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

    @property
    def temperature(self) -> float | None:
        """What the log-odds are divided by; None for other methods."""
        return 1 / self.slope if self.method == "temperature" else None

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
        s, _ = checked(scores, np.zeros(np.shape(scores)))
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
