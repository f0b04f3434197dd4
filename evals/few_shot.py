"""Classification from a handful of labelled images on frozen embeddings: Tip-Adapter and a linear probe.

What a fine-tuned encoder has to beat. Nothing here looks at the test set: free parameters are chosen on the shots.

Shape letters: N shots, M test images, C classes, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from evals import zero_shot
from foveal.detections import FloatArray, IntArray
from foveal.errors import BadInput

Doubles = npt.NDArray[np.float64]

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the linear probe's penalty, strongest first
ONE_SHOT_STRENGTH = 1e-3  # where there is nothing to choose it on
FOLDS = 5
SMALL = 1e8  # multiplications a step below which threads wait for each other longer than they compute
ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # weight of the cache beside the class names
BETAS = (1.0, 3.0, 5.5, 10.0, 30.0, 100.0)  # how fast it fades with distance
ONE_SHOT_ALPHA, ONE_SHOT_BETA = 1.0, 5.5  # arXiv 2111.03930, section 4.1


def draw(labels: Sequence[int], shots: int, seed: int = 0) -> list[int]:
    """Indices of `shots` examples a class by seed, or all of a class that has fewer; more shots keep the fewer ones.

    Raises:
        BadInput: no shots asked for, or no labels.
    """
    if shots < 1 or not len(labels):
        raise BadInput("nothing to draw", expected="at least one shot and one label", received=f"{shots} shots")
    truth = np.asarray(labels)
    chosen: list[int] = []
    for label in np.unique(truth):
        own = np.flatnonzero(truth == label)
        chosen += np.random.default_rng((seed, int(label))).permutation(own)[:shots].tolist()
    return chosen


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """Logistic regression on frozen embeddings."""

    weights: Doubles  # (C, D)
    bias: Doubles  # (C,)
    strength: float  # of the penalty: mean log-loss + strength / 2 * |weights|^2

    def logits(self, features: FloatArray) -> Doubles:
        """Embeddings (M, D) -> (M, C)."""
        return features @ self.weights.T + self.bias


@dataclass(frozen=True, slots=True)
class TipAdapter:
    """The training-free cache of arXiv 2111.03930: class names plus the labels of nearby shots."""

    names: FloatArray  # (C, D) unit-length class-name embeddings
    scale: float  # of their cosine
    keys: FloatArray  # (N, D) unit-length
    labels: IntArray  # (N,)
    alpha: float
    beta: float

    def logits(self, features: FloatArray) -> Doubles:
        """Unit-length embeddings (M, D) -> (M, C): scale * f.names + alpha * exp(-beta (1 - f.keys)) @ one-hot."""
        near = _nearness(features @ self.keys.T, self.beta)
        return self.scale * (features @ self.names.T) + self.alpha * near @ _one_hot(self.labels, len(self.names))


def linear_probe(
    features: FloatArray, labels: Sequence[int], classes: int, strengths: Sequence[float] = STRENGTHS
) -> LinearProbe:
    """Fit a `LinearProbe` to shots (N, D), its strength chosen by cross-validation among them.

    Folds hold classes in equal parts. With one shot a class nothing can be held out: `ONE_SHOT_STRENGTH` is taken.

    Raises:
        BadInput: fewer than two classes among the shots, or lengths disagree.
    """
    truth = _checked(features, labels)
    place = _place_in_class(truth)
    repeated = np.bincount(truth, minlength=classes)[truth] > 1
    if not repeated.any():
        return _fit_probe(features, truth, classes, [ONE_SHOT_STRENGTH])[0]
    if len(strengths) == 1:
        return _fit_probe(features, truth, classes, strengths)[0]
    fold = place % min(FOLDS, int(place.max()) + 1)
    held: list[Doubles] = [np.zeros((len(truth), classes)) for _ in strengths]
    for f in np.unique(fold):
        outside = (fold != f) | ~repeated  # a class of one shot is always learnt and never asked
        for logits, probe in zip(held, _fit_probe(features[outside], truth[outside], classes, strengths), strict=True):
            logits[~outside] = probe.logits(features[~outside])
    best = max(range(len(strengths)), key=lambda i: _merit(held[i][repeated], truth[repeated]))
    return _fit_probe(features, truth, classes, strengths[: best + 1])[-1]


def tip_adapter(names: FloatArray, scale: float, features: FloatArray, labels: Sequence[int]) -> TipAdapter:
    """A `TipAdapter` over shots (N, D) and class names (C, D), alpha and beta chosen by leaving one shot a class out.

    One of every class is left out at a time, so that the cache stays as balanced as it will be in use. With one shot a
    class nothing can be left out: the paper's own alpha and beta are taken.

    Args:
        scale: the encoder's `logit_scale`.

    Raises:
        BadInput: fewer than two classes among the shots, or lengths disagree.
    """
    truth = _checked(features, labels)
    asked = np.bincount(truth)[truth] > 1
    if not asked.any():
        return TipAdapter(names, scale, features, truth, ONE_SHOT_ALPHA, ONE_SHOT_BETA)
    place = _place_in_class(truth)
    together = place[:, None] == place[None, :]  # left out at the same time
    cosine, by_name, values = features @ features.T, scale * (features @ names.T), _one_hot(truth, len(names))
    best: tuple[tuple[float, float], float, float] | None = None
    for beta in BETAS:
        votes = np.where(together, 0.0, _nearness(cosine, beta)) @ values
        for alpha in ALPHAS:
            merit = _merit((by_name + alpha * votes)[asked], truth[asked])
            if best is None or merit > best[0]:
                best = (merit, alpha, beta)
    assert best is not None
    return TipAdapter(names, scale, features, truth, best[1], best[2])


def compare(
    names: FloatArray,
    scale: float,
    shots: tuple[FloatArray, Sequence[int]],
    test: tuple[FloatArray, Sequence[int]],
) -> dict[str, dict[str, float]]:
    """`zero_shot.scores` of `zero-shot`, `Tip-Adapter` and `linear probe` on the test images.

    Args:
        names: (C, D) unit-length class-name embeddings, see `zero_shot.class_embeddings`.
        scale: the encoder's `logit_scale`.
        shots, test: unit-length embeddings (N, D) and their labels in 0..C-1.

    Raises:
        BadInput: fewer than two classes among the shots, or lengths disagree.
    """
    features, truth = test
    return {name: zero_shot.scores(values, truth) for name, values in logits(names, scale, shots, features).items()}


def logits(
    names: FloatArray, scale: float, shots: tuple[FloatArray, Sequence[int]], features: FloatArray
) -> dict[str, npt.NDArray[Any]]:
    """What each of the three methods makes of `features` (M, D): (M, C), whose scales are their own; see `compare`."""
    return {
        "zero-shot": features @ names.T,
        "Tip-Adapter": tip_adapter(names, scale, *shots).logits(features),
        "linear probe": linear_probe(*shots, len(names)).logits(features),
    }


def _checked(features: FloatArray, labels: Sequence[int]) -> IntArray:
    truth = np.asarray(labels, dtype=np.int64)
    if len(truth) != len(features):
        raise BadInput("one label per shot is needed", expected=str(len(features)), received=str(len(truth)))
    if len(np.unique(truth)) < 2:
        raise BadInput("nothing to tell apart", expected="shots of two classes", received=f"{len(truth)} of one")
    return truth


def _place_in_class(truth: IntArray) -> IntArray:
    """For each example, how many of its class come before it (N,)."""
    place = np.zeros(len(truth), dtype=np.int64)
    for label in np.unique(truth):
        own = np.flatnonzero(truth == label)
        place[own] = np.arange(len(own))
    return place


def _one_hot(truth: IntArray, classes: int) -> Doubles:
    return np.eye(classes)[truth]


def _nearness(cosine: FloatArray, beta: float) -> Doubles:
    return np.exp(-beta * (1.0 - cosine.astype(np.float64)))


def _merit(logits: Doubles, truth: IntArray) -> tuple[float, float]:
    """(accuracy, mean log-likelihood): among the equally accurate the surest wins."""
    likelihood = log_softmax(logits, axis=1)[np.arange(len(truth)), truth]
    return zero_shot.scores(logits.astype(np.float32), truth.tolist())["top1"], float(likelihood.mean())


def _fit_probe(features: FloatArray, truth: IntArray, classes: int, strengths: Sequence[float]) -> list[LinearProbe]:
    """A probe for each strength, each started from the one before it."""
    centre = features.mean(axis=0, dtype=np.float64)  # embeddings lie in a narrow cone: off centre it converges slowly
    centred = features - centre
    target = _one_hot(truth, classes)
    count, dimension = features.shape

    def cost(flat: Doubles, strength: float) -> tuple[float, Doubles]:
        weights, bias = flat[: classes * dimension].reshape(classes, dimension), flat[classes * dimension :]
        log_probability = log_softmax(centred @ weights.T + bias, axis=1)
        error = (np.exp(log_probability) - target) / count
        value = -(target * log_probability).sum() / count + strength / 2 * (weights**2).sum()
        slope = error.T @ centred + strength * weights
        return float(value), np.concatenate([slope.ravel(), error.sum(axis=0)])

    flat: Doubles = np.zeros(classes * (dimension + 1))
    probes: list[LinearProbe] = []
    for strength in strengths:
        with threadpool_limits(1 if features.size * classes < SMALL else None, "blas"):
            found: Any = minimize(
                cost, flat, args=(strength,), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-6}
            )
        flat = found.x
        weights, bias = flat[: classes * dimension].reshape(classes, dimension), flat[classes * dimension :]
        probes.append(LinearProbe(weights, bias - weights @ centre, strength))
    return probes
