"""Known values, the properties a calibrator must have, and bounds that hold as often as they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evals.calibration import Calibrator
from evals.intervals import lower_bounds, smallest_sample, wilson
from evals.reliability import adaptive_ece, brier, ece, reliability
from evals.thresholds import threshold_for_precision
from foveal.errors import BadInput


def test_wilson_gives_the_textbook_interval() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(45, 50, one_sided=True)
    assert wilson(45, 50)[0] < low < 0.9 < high < wilson(45, 50)[1]
    with pytest.raises(BadInput, match="impossible counts"):
        wilson(3, 2)


def test_the_smallest_sample_is_the_smallest() -> None:
    n = smallest_sample(0.9, 0.95)
    assert lower_bounds([True] * n)[-1] >= 0.9 > lower_bounds([True] * (n - 1))[-1]


def test_lower_bounds_are_clopper_and_pearsons_and_grouped_ones_wider() -> None:
    # Clopper and Pearson's two-sided 90% interval of 15 in 20, so its lower end is a one-sided 95% bound.
    y = [True] * 15 + [False] * 5
    assert lower_bounds(y)[-1] == pytest.approx(0.5444, abs=1e-4)
    assert lower_bounds([False, False]).tolist() == [0, 0]
    assert lower_bounds([]).tolist() == []
    apart, together = np.arange(20), np.repeat(np.arange(4), 5)
    assert lower_bounds(y, apart)[-1] == pytest.approx(lower_bounds(y)[-1], abs=0.02)
    # Five that are right or wrong together are worth one, less the one that their mean costs: 3 of 4, as 2.25 of 3.
    three, four = ([True] * n + [False] for n in (2, 3))
    assert lower_bounds(three)[-1] < lower_bounds(y, together)[-1] < lower_bounds(four)[-1]


def test_the_promise_holds_where_boxes_of_an_image_err_together() -> None:
    rng = np.random.default_rng(0)
    plain = grouped = 0
    for _ in range(300):
        images = np.repeat(np.arange(30), 8)
        shift = rng.normal(0, 1.5, 30)[images]
        right = rng.random(240) < 1 / (1 + np.exp(-(3.0 + shift)))
        truth = 0.9035  # mean of the logistic of 3 with a spread of 1.5
        plain += lower_bounds(right)[-1] > truth
        grouped += lower_bounds(right, images)[-1] > truth
    assert grouped / 300 < 0.08 < plain / 300


def test_calibration_errors_of_known_cases() -> None:
    p, y = np.array([0.0, 0.2, 0.2, 0.9, 1.0]), np.array([False, False, True, True, True])
    assert ece(p, y, bins=10) == pytest.approx((1 * 0 + 2 * 0.3 + 1 * 0.1 + 1 * 0) / 5)
    assert brier(p, y) == pytest.approx((0 + 0.04 + 0.64 + 0.01 + 0) / 5)
    assert sum(bar.count for bar in reliability(p, y)) == 5
    assert ece([], []) == adaptive_ece([], []) == brier([], []) == 0
    sure = np.repeat([0.25, 0.75], 400)
    right = np.tile([True, False, False, False], 100).tolist() + np.tile([True, True, True, False], 100).tolist()
    assert ece(sure, right) == pytest.approx(0, abs=1e-9)
    assert adaptive_ece(sure, right, bins=2) == pytest.approx(0, abs=1e-9)
    with pytest.raises(BadInput, match="out of range"):
        ece([1.2], [True])


def squashed(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose true probability is their square root."""
    p = rng.random(n)
    return p**2, rng.random(n) < p


@pytest.mark.parametrize(("n", "method"), [(150, "platt"), (4000, "isotonic")])
def test_a_calibrator_calibrates_and_keeps_the_order(n: int, method: str) -> None:
    rng = np.random.default_rng(0)
    calibrator = Calibrator.fit(*squashed(rng, n))
    assert calibrator.method == method
    scores, correct = squashed(rng, 5000)
    assert ece(calibrator(scores), correct) < 0.5 * ece(scores, correct)
    steps = calibrator(np.linspace(0, 1, 200))
    assert (np.diff(steps) >= 0).all()
    assert steps.min() > 0
    assert steps.max() < 1
    again = Calibrator.from_json(json.loads(json.dumps(calibrator.to_json())))
    np.testing.assert_array_equal(again(scores), calibrator(scores))


def test_classes_move_as_far_as_their_evidence_goes() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(600)
    labels = np.array(["easy"] * 290 + ["hard"] * 290 + ["rare"] * 2 + ["easy"] * 18)
    correct = rng.random(600) < np.where(labels == "hard", scores * 0.4, np.sqrt(scores))
    correct[labels == "rare"] = False
    calibrator = Calibrator.fit(scores, correct, labels.tolist())
    assert calibrator.offsets["easy"] > 0 > calibrator.offsets["rare"] > calibrator.offsets["hard"]
    assert calibrator([0.5], ["never seen"]) == calibrator([0.5])
    stiff = Calibrator.fit(scores, correct, labels.tolist(), shrinkage=1e6)
    assert max(abs(v) for v in stiff.offsets.values()) < 1e-3


def test_one_sided_outcomes_give_a_cautious_prior() -> None:
    always = Calibrator.fit([0.2, 0.6, 0.9], [True, True, True])
    assert always([0.1, 0.9]).tolist() == pytest.approx([0.8, 0.8])
    misleading = Calibrator.fit(np.linspace(0, 1, 50), np.linspace(0, 1, 50) < 0.5)
    assert np.ptp(misleading(np.linspace(0, 1, 9))) < 1e-6


def test_the_lowest_threshold_that_proves_the_target_is_chosen() -> None:
    p = np.linspace(1, 0, 200)
    y = np.arange(200) < 120
    choice = threshold_for_precision(p, y, 0.9, 0.95)
    assert choice.proven
    assert choice.lower_bound is not None
    assert choice.lower_bound >= 0.9
    assert choice.threshold is not None
    one_lower = threshold_for_precision(p, y, 0.9, 0.95, floor=choice.threshold + 1e-6)
    assert one_lower.accepted == choice.accepted - 1
    loose = threshold_for_precision(p, y, 0.9, None)
    assert not loose.proven
    assert loose.accepted > choice.accepted
    assert loose.precision == pytest.approx(0.9, abs=0.01)


def test_small_samples_promise_nothing_and_say_so() -> None:
    choice = threshold_for_precision([0.9, 0.8, 0.7], [True, True, True], 0.9)
    assert not choice.proven
    assert choice.accepted == 3
    assert "too small" in choice.reason
    hopeless = threshold_for_precision([0.9, 0.8], [False, False], 0.9)
    assert hopeless.threshold is None
    assert "no threshold" in hopeless.reason
    assert threshold_for_precision([], [], 0.9).threshold is None


def test_the_promise_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    broken = made = 0
    for _ in range(400):
        p = rng.beta(2, 1, 150)
        choice = threshold_for_precision(p, rng.random(150) < p, 0.85, 0.95)
        if choice.proven and choice.threshold is not None:
            made += 1
            grid = rng.beta(2, 1, 4000)
            broken += grid[grid >= choice.threshold].mean() < 0.85
    assert made > 100
    # 5% for one fixed threshold; choosing the lowest of many that pass costs some of it back.
    assert broken / made < 0.15
