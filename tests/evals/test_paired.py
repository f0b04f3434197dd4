"""Paired statistics: what the bootstrap must give exactly, and how often its interval covers the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from evals.measures import Measure, mean_by, mean_of, median_of, share_within
from evals.paired import difference, draws, intervals, mcnemar, outcomes, single

Column = list[Any]
RIGHT = Measure(mean_of("right"))
MEASURES = {
    "mean": RIGHT,
    "class mean": Measure(mean_by("right", "class")),
    "recall": Measure(share_within("rank", 5)),
    "median": Measure(median_of("rank"), higher_is_better=False),
}


def items(rng: np.random.Generator, count: int) -> dict[str, Column]:
    return {
        "id": list(range(count)),
        "right": rng.integers(0, 2, count).tolist(),
        "rank": rng.integers(1, 20, count).tolist(),
        "class": rng.choice(["a", "b", "c"], count).tolist(),
    }


@pytest.mark.parametrize("name", MEASURES)
@given(seed=st.integers(0, 999), count=st.integers(2, 30))
def test_equal_results_differ_by_exactly_nothing(name: str, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    same = items(rng, count)
    found = difference(MEASURES[name], same, {**same}, rng.integers(0, count, count).tolist(), 50)
    if found.pictures > 1:
        assert (found.value, found.low, found.high, found.p, found.error) == (0, 0, 0, 1, 0)
        assert found.detectable == found.unseen > 0  # and it is said how much could have gone unseen


@given(seed=st.integers(0, 999), count=st.integers(3, 30))
def test_turned_round_a_difference_only_changes_its_sign(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = items(rng, count), items(rng, count)
    there = difference(RIGHT, before, after, before["id"], 100)
    back = difference(RIGHT, after, before, before["id"], 100)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.p == pytest.approx(back.p)


@given(seed=st.integers(0, 999), count=st.integers(2, 40))
def test_items_of_a_picture_are_drawn_together_and_every_draw_is_whole(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, count, count)
    for weights in draws(pictures.tolist(), 20, seed):
        for picture in np.unique(pictures):
            assert (np.ptp(weights[:, pictures == picture], axis=1) == 0).all()
        first = [int(np.flatnonzero(pictures == picture)[0]) for picture in np.unique(pictures)]
        assert (weights[:, first].sum(axis=1) == len(first)).all()


def test_in_blocks_or_at_once_the_draws_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [i // 2 for i in range(12)]
    whole = np.concatenate(list(draws(pictures, 10)))
    monkeypatch.setattr("evals.paired.BLOCK", 36)
    blocks = list(draws(pictures, 10))
    assert len(blocks) == 4
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_copies_of_a_picture_add_no_confidence() -> None:
    rng = np.random.default_rng(0)
    before, after = items(rng, 60), items(rng, 60)
    once = difference(RIGHT, before, after, before["id"])
    copied = [
        {name: [value for value in column for _ in range(5)] for name, column in side.items()}
        for side in (before, after)
    ]
    kept = difference(RIGHT, *copied, copied[0]["id"])
    assert (kept.low, kept.high) == pytest.approx((once.low, once.high))
    alone = difference(RIGHT, *copied, list(range(300)))  # as if they were independent
    assert alone.high - alone.low < 0.6 * (kept.high - kept.low)


def test_one_picture_says_nothing_of_others() -> None:
    one = {"id": [0, 1], "right": [1, 1]}
    found = single(RIGHT, one, ["a", "a"])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.detectable >= 0.95


def test_nothing_known_is_not_a_number() -> None:
    found = single(RIGHT, {"id": [0, 1], "right": [None, None]}, [0, 1])
    assert math.isnan(found.value)
    assert math.isnan(found.p)
    assert found.needed(0.1) is None


@pytest.mark.parametrize("count", [10, 59, 300])
def test_what_nobody_saw_may_be_as_common_as_the_rule_of_three_says(count: int) -> None:
    flawless = {"id": list(range(count)), "right": [1] * count}
    found = single(RIGHT, flawless, flawless["id"])
    exact = 0.05 ** (1 / count)  # Clopper and Pearson's bound of `count` of `count`
    assert found.widest[0] == pytest.approx(exact)
    many = {"id": list(range(count)), "right": [i % 2 for i in range(count)]}
    assert single(RIGHT, many, many["id"]).unseen == 0  # the bootstrap knows


def test_a_needed_number_of_items_is_enough() -> None:
    rng = np.random.default_rng(1)
    before = {"id": list(range(100)), "right": (rng.random(100) < 0.8).astype(int).tolist()}
    after = {"id": list(range(100)), "right": (rng.random(100) < 0.7).astype(int).tolist()}
    small = difference(RIGHT, before, after, before["id"])
    needed = small.needed(0.05)
    assert needed is not None
    more = math.ceil(needed / 100)
    larger = [{"right": side["right"] * more, "id": list(range(100 * more))} for side in (before, after)]
    assert difference(RIGHT, *larger, larger[0]["id"]).detectable == pytest.approx(0.05, rel=0.1)
    assert small.needed(0) is None


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_mcnemar_is_the_sign_test_on_what_only_one_got_right(pairs: list[tuple[int, int]]) -> None:
    found = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    lost, gained = pairs.count((1, 0)), pairs.count((0, 1))
    assert (found.lost, found.gained) == (lost, gained)
    n = lost + gained
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n
    assert found.p == pytest.approx(min(1.0, 2 * tail))


def test_right_and_wrong_are_known_where_a_figure_is_their_share() -> None:
    rng = np.random.default_rng(0)
    some = items(rng, 150)
    np.testing.assert_array_equal(outcomes(RIGHT, some), np.array(some["right"]) > 0)
    np.testing.assert_array_equal(outcomes(MEASURES["recall"], some), np.array(some["rank"]) <= 5)
    assert outcomes(MEASURES["median"], some) is None
    assert outcomes(MEASURES["class mean"], some) is None  # a class of few weighs each of them more


Generator = Callable[[np.random.Generator], tuple[dict[str, Column], dict[str, Column], Column]]


def correlated(pictures: int, most: int, before: float, after: float, shared: float) -> Generator:
    """Two models right with given probabilities, alike in what they find hard; 1 to `most` items a picture."""

    def generate(rng: np.random.Generator) -> tuple[dict[str, Column], dict[str, Column], Column]:
        sizes = rng.integers(1, most + 1, pictures)
        place = np.repeat(np.arange(pictures), sizes)
        count = len(place)
        hard = shared * rng.normal(size=pictures)[place] + math.sqrt(1 - shared**2) * rng.normal(size=count)
        kinds = rng.choice(["a", "b", "c", "d", "e"], count).tolist()
        sides: list[dict[str, Column]] = []
        for share in (before, after):
            felt = math.sqrt(0.6) * hard + math.sqrt(0.4) * rng.normal(size=count)
            right = (felt < special.ndtri(share)).astype(int).tolist()
            sides.append({"id": list(range(count)), "right": right, "class": kinds})
        return sides[0], sides[1], place.tolist()

    return generate


def ranked(count: int) -> Generator:
    def generate(rng: np.random.Generator) -> tuple[dict[str, Column], dict[str, Column], Column]:
        hard = rng.normal(size=count)
        sides = [
            {"id": list(range(count)), "rank": np.exp(m + hard + rng.normal(size=count) / 2).tolist()} for m in (2, 2.2)
        ]
        return sides[0], sides[1], list(range(count))

    return generate


COVERAGE = {
    "independent items": (RIGHT, correlated(150, 1, 0.8, 0.75, 0), -0.05),
    "several items a picture": (RIGHT, correlated(150, 8, 0.8, 0.75, 0.8), -0.05),
    "mean over classes": (MEASURES["class mean"], correlated(150, 8, 0.8, 0.75, 0.8), -0.05),
    "nearly all right": (RIGHT, correlated(300, 1, 0.97, 0.95, 0), -0.02),
    "median": (MEASURES["median"], ranked(300), math.exp(2.2) - math.exp(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERAGE)
def test_the_interval_covers_the_truth_as_often_as_it_says(name: str) -> None:
    measure, generate, truth = COVERAGE[name]
    times, covered, rejected = 1500, 0, 0
    for number in range(times):
        before, after, pictures = generate(np.random.default_rng([7, number]))
        found = intervals({"": measure}, before, after, pictures, 600, seed=number)[""]
        covered += found.low - 1e-12 <= truth <= found.high + 1e-12
        rejected += found.p < 0.05
    print(f"{name}: {covered / times:.3f} covered, power {rejected / times:.2f}")
    if name == "median":  # its draws fall on few values, so the interval is wider than it need be, never narrower
        assert 0.93 <= covered / times <= 0.99
    else:
        assert covered / times == pytest.approx(0.95, abs=0.02)


def test_items_of_a_picture_that_err_together_need_the_cluster_bootstrap() -> None:
    """The coverage simulation in short, and that it can fail: as independent items they are covered too seldom."""
    generate = correlated(60, 8, 0.8, 0.8, 0.95)
    together = apart = 0
    for number in range(150):
        before, after, pictures = generate(np.random.default_rng([3, number]))
        for one in (before, after):
            place = np.array(pictures)
            one["right"] = np.array(one["right"])[np.unique(place, return_index=True)[1]][place].tolist()
        together += difference(RIGHT, before, after, pictures, 200).p >= 0.05
        apart += difference(RIGHT, before, after, before["id"], 200).p >= 0.05
    low, high = stats.binom.interval(0.999, 150, 0.95)
    assert low <= together <= high
    assert apart < low


def test_of_a_mean_the_interval_is_as_wide_as_students() -> None:
    values = np.linspace(0, 1, 10)
    found = single(Measure(mean_of("value")), {"id": list(range(10)), "value": values.tolist()}, list(range(10)), 6000)
    low, high = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)  # plain percentiles: a sixth less
    assert found.error == pytest.approx(stats.sem(values), rel=0.03)
