"""Which calibrator: each tried on predictions it was not fitted to, the simplest taken that is as good as the best.

Shape letters: N predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evals.calibration import Calibrator, Method
from evals.reliability import TINY, Array, checked
from foveal.errors import BadInput

Criterion = Literal["nll", "brier"]
Name = Literal["none", "temperature", "platt", "isotonic"]
FITTED: tuple[Method, ...] = ("temperature", "platt", "isotonic")  # the simplest first
METHODS: tuple[Name, ...] = ("none", *FITTED)
FEWEST = 20  # predictions below which nothing is fitted


@dataclass(frozen=True, slots=True)
class Choice:
    """What was tried and what was taken."""

    chosen: Name
    losses: dict[Name, float]  # mean over predictions, out of fold
    outside: dict[Name, Array]  # (N,) each prediction's probability by a map fitted without its group
    calibrator: Calibrator | None  # the chosen one, fitted to everything; None where nothing is to be changed
    folds: int
    reason: str


def choose(
    probabilities: npt.ArrayLike,
    correct: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    criterion: Criterion = "nll",
    folds: int = 5,
    seed: int = 0,
) -> Choice:
    """The simplest of `METHODS` whose out-of-fold loss is within one standard error of the best one's.

    The standard error is that of the difference to the best, between groups (Breiman et al. 1984, section 3.4.3, with
    paired differences): a more pliable map must earn its place.

    Args:
        groups: (N,) the image of each prediction; those of one image are never on both sides of a split.

    Raises:
        BadInput: shapes differ, or `folds` is less than 2.
    """
    p, y = checked(probabilities, correct)
    if folds < 2:
        raise BadInput("cross-validation needs two folds or more", received=str(folds))
    names = np.arange(len(p)) if groups is None else np.asarray(groups)
    known, place = np.unique(names, return_inverse=True)
    if len(p) < FEWEST or len(known) < folds or y.sum() in (0, len(y)):
        why = f"{len(p)} predictions of {len(known)} images, {int(y.sum())} right, are too few to fit anything"
        return Choice("none", {"none": _mean(_loss(p, y, criterion))}, {"none": p}, None, folds, why)
    fold = np.random.default_rng(seed).permutation(np.arange(len(known)) % folds)[place]
    outside: dict[Name, Array] = {"none": p}
    for method in FITTED:
        outside[method] = _outside(p, y, fold, method, folds)
    losses: dict[Name, Array] = {name: _loss(outside[name], y, criterion) for name in METHODS}
    means: dict[Name, float] = {name: _mean(losses[name]) for name in METHODS}
    best: Name = min(METHODS, key=lambda name: means[name])
    chosen: Name = next(
        name
        for name in METHODS
        if name == best or means[name] - means[best] <= _standard_error(losses[name] - losses[best], place)
    )
    reason = f"least {criterion} out of fold" if chosen == best else f"as good as {best} within one standard error"
    fitted = None if chosen == "none" else Calibrator.fit(p, y, method=chosen)
    return Choice(chosen, means, outside, fitted, folds, reason)


def _outside(p: Array, y: Array, fold: npt.NDArray[np.int64], method: Method, folds: int) -> Array:
    result = np.empty(len(p))
    for number in range(folds):
        held = fold == number
        result[held] = Calibrator.fit(p[~held], y[~held], method=method)(p[held])
    return result


def _loss(p: Array, y: Array, criterion: Criterion) -> Array:
    """(N,) of each prediction."""
    if criterion == "brier":
        return (p - y) ** 2
    q = np.clip(p, TINY, 1 - TINY)
    return -(y * np.log(q) + (1 - y) * np.log1p(-q))


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0


def _standard_error(difference: Array, place: npt.NDArray[np.intp]) -> float:
    """Of the mean of `difference` (N,), whose groups `place` (N,) vary together."""
    sizes = np.bincount(place)
    sums = np.bincount(place, weights=difference - difference.mean())
    return float(np.sqrt((sums**2).sum() * len(sizes) / max(len(sizes) - 1, 1)) / len(difference))
