"""Intervals of a proportion."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from foveal.errors import BadInput

Array = npt.NDArray[np.float64]


def wilson(successes: int, n: int, confidence: float = 0.95, *, one_sided: bool = False) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion; (0, 1) when `n` is 0.

    With `one_sided` each end alone is a bound at `confidence` (the quantile of 1 - confidence, not of half of it).

    Raises:
        BadInput: counts or confidence out of range.
    """
    if not 0 <= successes <= n:
        raise BadInput(
            "impossible counts for a proportion", expected="0 <= successes <= n", received=f"{successes} of {n}"
        )
    if not 0 < confidence < 1:
        raise BadInput("confidence out of range", expected="between 0 and 1, as in 0.95", received=str(confidence))
    if n == 0:
        return 0.0, 1.0
    tail = 1 - confidence if one_sided else (1 - confidence) / 2
    z = NormalDist().inv_cdf(1 - tail)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return low if successes else 0.0, high if successes < n else 1.0  # exactly so, but for rounding


def lower_bounds(correct: npt.ArrayLike, groups: npt.ArrayLike | None = None, confidence: float = 0.95) -> Array:
    """For each n, the one-sided lower bound on the proportion that the first n of N outcomes leave -> (N,).

    Clopper and Pearson's exact bound. Outcomes of one group (boxes of one image) err together, so n of them tell less
    than n independent ones: with `groups` (N,) the bound is that of the effective sample, n divided by the design
    effect, the variance between groups over that of independent outcomes, never below 1 (Korn and Graubard 1998,
    Survey Methodology 24, 193-201).
    """
    y = np.asarray(correct, dtype=np.float64)
    n, hits = np.arange(1, len(y) + 1, dtype=np.float64), np.cumsum(y)
    if not len(y):
        return np.zeros(0)
    effect = np.ones(len(y)) if groups is None else _design_effects(y, np.asarray(groups))
    size = n / effect
    k = hits / n * size
    bounds = cast("Array", betaincinv(np.maximum(k, 1e-9), size - k + 1, 1 - confidence))
    return np.where(k > 0, bounds, 0.0)


def share_bounds(
    correct: npt.ArrayLike, groups: npt.ArrayLike | None = None, confidence: float = 0.95, *, one_sided: bool = False
) -> tuple[float, float]:
    """Interval (low, high) of the proportion that N outcomes leave; (0, 1) without any.

    Clopper and Pearson's exact interval of the effective sample, as `lower_bounds`. With `one_sided` each end alone is
    a bound at `confidence`.
    """
    y = np.asarray(correct, dtype=np.float64)
    if not len(y):
        return 0.0, 1.0
    hits, effect = float(y.sum()), 1.0
    if groups is not None:
        _, place = np.unique(np.asarray(groups), return_inverse=True)
        sizes, right = np.bincount(place).astype(np.float64), np.bincount(place, weights=y).astype(np.float64)
        effect = _design_effect(sizes, right, len(y), hits)
    size = len(y) / effect
    k, tail = hits / effect, (1 - confidence) if one_sided else (1 - confidence) / 2
    low = float(betaincinv(k, size - k + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(k + 1, size - k, 1 - tail)) if hits < len(y) else 1.0
    return low, high


def _design_effect(sizes: Array, right: Array, n: float, hits: float) -> float:
    """Variance of a share between groups of `sizes` (G,) over that of independent outcomes, at least 1."""
    share, met = hits / n, len(sizes)
    if not 0 < share < 1 or met < 2:
        return 1.0
    between = float(((right - share * sizes) ** 2).sum()) / n**2 * met / (met - 1)
    return max(1.0, between / (share * (1 - share) / n))


def _design_effects(y: Array, groups: npt.NDArray[Any]) -> Array:
    """`_design_effect` of each prefix of outcomes (N,) -> (N,).

    The sum of squares between groups, sum of (right - share * size)^2, is made of three sums that only grow.
    """
    _, place = np.unique(groups, return_inverse=True)
    size, right = _before(np.ones(len(y)), place), _before(y, place)  # of each outcome's group, before it
    squares, products, sizes = (
        np.cumsum(y * (2 * right + 1)), np.cumsum(size * y + right + y), np.cumsum(2 * size + 1),
    )  # fmt: skip
    n, met = np.arange(1, len(y) + 1, dtype=np.float64), np.cumsum(size == 0)
    share = np.cumsum(y) / n
    told = (share > 0) & (share < 1) & (met > 1)
    between = (squares - 2 * share * products + share**2 * sizes) / n**2 * met / np.maximum(met - 1, 1)
    return np.where(told, np.maximum(between / np.where(told, share * (1 - share) / n, 1.0), 1.0), 1.0)


def _before(values: Array, place: npt.NDArray[np.intp]) -> Array:
    """The sum (N,) of what came before each value in its own group."""
    order = np.argsort(place, kind="stable")
    ranked, total = place[order], np.cumsum(values[order])
    first = np.concatenate([[True], ranked[1:] != ranked[:-1]])
    start = np.maximum.accumulate(np.where(first, np.arange(len(values)), 0))  # of the group of each, in `order`
    result = np.empty(len(values))
    result[order] = total - values[order] - (total[start] - values[order][start])
    return result


def smallest_sample(target: float, confidence: float = 0.95) -> int:
    """How many outcomes, all correct and independent, prove a proportion of `target`: target ** n <= 1 - confidence."""
    if not 0 < target < 1:
        raise BadInput("target out of range", expected="between 0 and 1, as in 0.90", received=str(target))
    return math.ceil(math.log(1 - confidence) / math.log(target))
