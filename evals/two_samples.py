"""Whether two sets of vectors come from one distribution: a kernel test and a classifier test.

Both are permutation tests: their p-values hold at any size, for any vectors, as long as the vectors are exchangeable
when nothing differs (images of one burst are not: thin them out first).

Shape letters: N and M vectors of the two sets, D dimensions, P labellings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from foveal.detections import FloatArray
from foveal.errors import BadInput

Doubles = NDArray[np.float64]

PERMUTATIONS = 499
FEWEST = 10  # vectors in each set
KERNEL_MOST = 2000  # vectors of each set in the kernel test, whose cost grows with their square
COMPONENTS = 64  # principal components that the classifier sees, and not more than an eighth of the vectors
FOLDS = 5
RIDGE = (
    0.01  # strength of the classifier's penalty: mean log-loss + RIDGE / 2 * |weights|^2, components at unit variance
)
STEPS, CLOSE = 100, 1e-4


@dataclass(frozen=True, slots=True)
class Kernel:
    """Maximum mean discrepancy (Gretton et al. 2012, JMLR 13, 723-773)."""

    squared: float  # unbiased estimate, so a little under 0 as often as over it when nothing differs
    p: float
    bandwidth: float  # of the Gaussian kernel: the median distance


@dataclass(frozen=True, slots=True)
class Classifier:
    """Classifier two-sample test (arXiv 1610.06545)."""

    auc: float  # of a vector of the second set over one of the first, out of fold
    accuracy: float  # balanced, out of fold
    p: float  # of the AUC
    log_ratio: Doubles  # (N + M,) out of fold: how much likelier a vector is in the second set than in the first


def kernel_test(first: FloatArray, second: FloatArray, permutations: int = PERMUTATIONS, seed: int = 0) -> Kernel:
    """MMD of `first` (N, D) and `second` (M, D) under a Gaussian kernel at the median distance.

    At most `KERNEL_MOST` of each, drawn by `seed`, are compared.

    Raises:
        BadInput: fewer than `FEWEST` vectors in a set, or different dimensions.
    """
    _check(first, second)
    rng = np.random.default_rng(seed)
    a, b = (rng.permutation(vectors)[:KERNEL_MOST].astype(np.float32) for vectors in (first, second))
    pooled = np.concatenate([a, b])
    pooled -= pooled.mean(axis=0)
    norms = (pooled**2).sum(axis=1)
    distance = np.maximum(norms[:, None] + norms[None] - 2 * pooled @ pooled.T, 0)
    apart = distance[np.triu_indices(len(pooled), 1)]
    scale = float(np.median(apart)) or float(apart.mean()) or 1.0
    kernel = np.exp(-distance / scale).astype(np.float32)
    np.fill_diagonal(kernel, 0)
    n, m = len(a), len(b)
    labels = _labellings(rng, n, m, permutations)
    inside = ((kernel @ labels) * labels).sum(axis=0, dtype=np.float64)  # among the second set, by labelling
    total, rows = float(kernel.sum(dtype=np.float64)), kernel.sum(axis=1, dtype=np.float64)
    between = rows @ labels - inside
    outside = total - inside - 2 * between
    squared = inside / (m * (m - 1)) + outside / (n * (n - 1)) - 2 * between / (n * m)
    return Kernel(float(squared[0]), _p(squared), scale**0.5)


def classifier_test(
    first: FloatArray,
    second: FloatArray,
    groups: Sequence[object] | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Classifier:
    """Logistic regression that tells `first` (N, D) from `second` (M, D), cross-validated, as a test.

    It sees principal components of both together. The same folds and fits serve each labelling, so that what
    cross-validation does to an AUC by itself is in the permutations too.

    Args:
        groups: one an image, those of the first set before those of the second; vectors of one group are in one fold.
            Copies belong together: else the classifier would learn that a picture is of one set and meet it in the
            other.

    Raises:
        BadInput: fewer than `FEWEST` vectors in a set, or different dimensions.
    """
    _check(first, second)
    n, m = len(first), len(second)
    rng = np.random.default_rng(seed)
    x = _components(np.concatenate([first, second]).astype(np.float64))
    _, group = np.unique(
        np.array([str(g) for g in groups]) if groups is not None else range(n + m), return_inverse=True
    )
    folds = min(FOLDS, int(group.max()) + 1)
    fold = (rng.permutation(int(group.max()) + 1) % folds)[group]
    labels = _labellings(rng, n, m, permutations).astype(np.float64)
    logits = np.zeros_like(labels)
    for held in range(folds):
        inside = fold != held
        weights = _fit(x[inside], labels[inside])
        share = np.clip(labels[inside].mean(axis=0), 1e-3, 1 - 1e-3)
        logits[~inside] = x[~inside] @ weights[:-1] + weights[-1] - np.log(share / (1 - share))
    logits = np.round(logits, 4)  # as far as the fit is certain: what is equal is to be tied
    ranks = rankdata(logits, axis=0)
    auc = ((ranks * labels).sum(axis=0) - m * (m + 1) / 2) / (n * m)
    own = logits[:, 0]
    hits = (np.sign(own) + 1) / 2  # a tie is half right
    accuracy = (np.mean(hits[n:]) + 1 - np.mean(hits[:n])) / 2
    return Classifier(float(auc[0]), float(accuracy), _p(auc), own)


def _check(first: FloatArray, second: FloatArray) -> None:
    if min(len(first), len(second)) < FEWEST:
        raise BadInput(
            "too little to compare", expected=f"{FEWEST} images in each set", received=f"{len(first)} and {len(second)}"
        )
    if first.shape[1:] != second.shape[1:]:
        raise BadInput("the vectors differ in length", expected=str(first.shape[1:]), received=str(second.shape[1:]))


def _labellings(rng: np.random.Generator, n: int, m: int, permutations: int) -> FloatArray:
    """(N + M, 1 + P): the true labelling, 1 for the second set, and permutations of it."""
    true = np.concatenate([np.zeros(n, np.float32), np.ones(m, np.float32)])
    return np.stack([true, *(rng.permutation(true) for _ in range(permutations))], axis=1)


def _p(statistics: Doubles) -> float:
    """How often a labelling, the true one among them, reaches the true one's statistic."""
    return float((statistics >= statistics[0] - 1e-9).mean())


def _components(x: Doubles) -> Doubles:
    """Principal components (N + M, C) at unit variance; what does not vary is left out."""
    x = x - x.mean(axis=0)
    values, axes = np.linalg.eigh(x.T @ x / len(x))
    count = min(COMPONENTS, max(1, len(x) // 8))
    kept = np.flatnonzero(values > 1e-9 * max(values[-1], 1e-12))[-count:]
    return x @ (axes[:, kept] / np.sqrt(values[kept]))


def _fit(x: Doubles, labels: Doubles) -> Doubles:
    """Weights (C + 1, P), the last one the intercept, of a penalised logistic regression for each labelling.

    All labellings share one bound on the curvature (Boehning and Lindsay 1988, doi 10.1007/BF00049423), and so one
    inverse: each step is two products of matrices.
    """
    padded = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = np.full((padded.shape[1], 1), RIDGE)
    penalty[-1] = 1e-6
    inverse = np.linalg.inv(padded.T @ padded / (4 * len(x)) + np.diag(penalty[:, 0]))
    weights = np.zeros((padded.shape[1], labels.shape[1]))
    moving = np.arange(labels.shape[1])  # labellings whose weights have not settled
    for _ in range(STEPS):
        error = 1 / (1 + np.exp(-np.clip(padded @ weights[:, moving], -30, 30))) - labels[:, moving]
        step = inverse @ (padded.T @ error / len(x) + penalty * weights[:, moving])
        weights[:, moving] -= step
        moving = moving[np.abs(step).max(axis=0) >= CLOSE]
        if not len(moving):
            break
    return weights
