"""Two-sample tests: right about nothing as often as they say, and powerful where something differs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from evals.two_samples import classifier_test, kernel_test
from foveal.errors import BadInput

Draw = Callable[[np.random.Generator, int], NDArray[np.float32]]


def gauss(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    return rng.standard_normal((n, 8), dtype=np.float32)


def heavy(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    return rng.standard_t(1.5, (n, 8)).astype(np.float32)


def crowded(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Few different vectors, so that many are equal, in one set and across both."""
    return np.eye(8, dtype=np.float32)[rng.integers(0, 8, n)]


@pytest.mark.parametrize(
    ("draw", "sizes", "runs"),
    [
        (gauss, (24, 24), 100),
        *(pytest.param(draw, (15, 45), 300, marks=pytest.mark.slow) for draw in (gauss, heavy, crowded)),
        *(pytest.param(draw, (40, 40), 300, marks=pytest.mark.slow) for draw in (gauss, heavy, crowded)),
    ],
)
def test_without_a_difference_one_in_twenty_is_rejected(draw: Draw, sizes: tuple[int, int], runs: int) -> None:
    rng = np.random.default_rng(5)
    p: list[tuple[float, float]] = []
    for run in range(runs):
        first, second = (draw(rng, n) for n in sizes)
        looks = kernel_test(first, second, 39, run)
        p.append((looks.p, classifier_test(first, second, None, 39, run).p))
    rejected = (np.array(p) <= 0.05).sum(axis=0)
    low, high = binom.ppf([0.001, 0.999], runs, 0.05)
    assert (rejected <= high).all(), rejected
    if draw is not crowded:  # ties make a test keep more than it has to
        assert (rejected >= low).all(), rejected


def test_a_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    found: list[tuple[bool, bool]] = []
    for run in range(20):
        first, second = gauss(rng, 60), gauss(rng, 60) + np.float32(0.45)
        found.append(
            (kernel_test(first, second, 99, run).p <= 0.05, classifier_test(first, second, None, 99, run).p <= 0.05)
        )
    assert np.mean(found, axis=0).min() >= 0.8
    wider = kernel_test(gauss(rng, 100), 1.6 * gauss(rng, 100), 99)  # the means agree: a linear classifier sees nothing
    assert wider.p <= 0.05


def test_a_clean_separation_is_told_as_such() -> None:
    rng = np.random.default_rng(2)
    told = classifier_test(gauss(rng, 40), gauss(rng, 60) + np.float32(4), None, 99)
    assert told.auc > 0.99
    assert told.accuracy > 0.95
    assert told.p == 0.01
    assert told.log_ratio[:40].max() < told.log_ratio[40:].min() + 3
    assert told.log_ratio[:40].mean() < -1 < 1 < told.log_ratio[40:].mean()


def test_the_ratio_is_that_of_the_densities() -> None:
    """Of two Gaussians half a unit apart it is linear: x / 2 - 1 / 8 along that axis, whatever the sets' sizes."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((4000, 1)).astype(np.float32)
    second = (rng.standard_normal((1000, 1)) + 0.5).astype(np.float32)
    told = classifier_test(first, second, None, 1)
    expected = np.concatenate([first, second])[:, 0] / 2 - 1 / 8
    assert np.abs(told.log_ratio - expected).mean() < 0.1


def test_the_estimate_is_unbiased_and_near_the_truth() -> None:
    """Against the double sum over all pairs, and around 0 without a difference."""
    rng = np.random.default_rng(4)
    first, second = gauss(rng, 12), gauss(rng, 17) + np.float32(1)
    told = kernel_test(first, second, 9)
    pooled = np.concatenate([first, second])
    distance = ((pooled[:, None] - pooled[None]) ** 2).sum(axis=2)
    kernel = np.exp(-distance / told.bandwidth**2)
    a, b, both = kernel[:12, :12], kernel[12:, 12:], kernel[:12, 12:]
    expected = (a.sum() - 12) / (12 * 11) + (b.sum() - 17) / (17 * 16) - 2 * both.mean()
    assert told.squared == pytest.approx(expected, abs=1e-5)
    assert told.bandwidth**2 == pytest.approx(np.median(distance[np.triu_indices(29, 1)]), rel=1e-4)
    nothing = [kernel_test(gauss(rng, 20), gauss(rng, 20), 1).squared for _ in range(100)]
    assert abs(np.mean(nothing)) < 4 * np.std(nothing) / 10


def test_the_same_pictures_in_both_sets_are_no_difference() -> None:
    vectors = gauss(np.random.default_rng(6), 40)
    names = [*range(40), *range(40)]
    assert kernel_test(vectors, vectors, 99).p > 0.5
    told = classifier_test(vectors, vectors, names, 99)
    assert told.auc == pytest.approx(0.5)
    assert told.p > 0.2
    assert classifier_test(vectors, vectors, None, 99).auc < 0.4  # what comes of it when twins lie in different folds
    equal = np.ones((12, 4), np.float32)
    assert kernel_test(equal, equal, 19).p == classifier_test(equal, equal, None, 19).p == 1


def test_too_little_or_unlike_vectors_are_refused() -> None:
    rng = np.random.default_rng(7)
    for test in (kernel_test, classifier_test):
        with pytest.raises(BadInput, match="10 images in each set"):
            test(gauss(rng, 9), gauss(rng, 50))
        with pytest.raises(BadInput, match="differ in length"):
            test(gauss(rng, 20), gauss(rng, 20)[:, :4])
