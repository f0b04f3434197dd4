"""Logistic regression around a prior: what is known already moves only as far as data push it.

Shape letters: N samples, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Logistic:
    """Log-odds that are linear in standardised features."""

    weights: tuple[float, ...]  # (F,)
    intercept: float
    means: tuple[float, ...]  # (F,) of the features, and their spreads, as the prior was fitted
    spreads: tuple[float, ...]

    def __call__(self, features: Array) -> Array:
        """Log-odds (N,) of features (N, F)."""
        return ((features - self.means) / self.spreads) @ np.array(self.weights) + self.intercept

    @classmethod
    def flat(cls, features: Array) -> Logistic:
        """Even odds everywhere, standardised as the features (N, F) are."""
        spreads = np.maximum(features.std(axis=0), 1e-6)
        return cls((0.0,) * features.shape[1], 0.0, tuple(features.mean(axis=0).tolist()), tuple(spreads.tolist()))

    def fitted(self, features: Array, outcomes: Array, weights: Array, pull: float = 1.0) -> Logistic:
        """The maximum a posteriori given features (N, F), outcomes (N,) in [0, 1] and weights (N,) of the samples.

        Args:
            pull: inverse variance of the Gaussian prior around the present weights, in log-odds a deviation.
        """
        x = np.concatenate([(features - self.means) / self.spreads, np.ones((len(features), 1))], axis=1)
        prior = np.array([*self.weights, self.intercept])
        w = prior.copy()
        for _ in range(60):  # Newton with bounded steps: the penalised likelihood is concave
            p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
            gradient = x.T @ (weights * (p - outcomes)) + pull * (w - prior)
            curvature = (x * (weights * p * (1 - p))[:, None]).T @ x + pull * np.eye(len(w))
            step = np.linalg.solve(curvature, gradient)
            w = w - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
            if np.abs(step).max() < 1e-8:
                break
        return Logistic(tuple(w[:-1].tolist()), float(w[-1]), self.means, self.spreads)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `Logistic(**values)`."""
        return {
            "weights": list(self.weights),
            "intercept": self.intercept,
            "means": list(self.means),
            "spreads": list(self.spreads),
        }
