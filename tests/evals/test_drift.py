import numpy as np
import pytest

from evals.drift import SHIFT, drift, psi
from foveal.profile import Profile

BINS = np.array([40, 30, 15, 10, 5])


def test_equal_histograms_have_not_drifted() -> None:
    assert psi(BINS, BINS) == 0
    assert psi(BINS, BINS * 7) == 0


def test_the_index_is_the_textbooks_for_large_counts() -> None:
    p, q = np.array([0.25, 0.25, 0.25, 0.25]), np.array([0.4, 0.3, 0.2, 0.1])
    expected = float(((p - q) * np.log(p / q)).sum())
    assert psi((p * 1e7).astype(int), (q * 1e7).astype(int)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("n", "m"), [(60, 100), (200, 200), (1000, 1000)])
def test_chance_alone_is_not_a_shift_and_a_shift_is_found(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    usual, other = BINS / BINS.sum(), BINS[::-1] / BINS.sum()
    chance = [psi(rng.multinomial(n, usual), rng.multinomial(m, usual)) for _ in range(200)]
    shifted = [psi(rng.multinomial(n, usual), rng.multinomial(m, other)) for _ in range(200)]
    assert np.mean(np.array(chance) > SHIFT) <= 0.02
    assert np.mean(np.array(shifted) > SHIFT) >= 0.98


def test_bins_that_the_reference_hardly_has_do_not_cry_wolf() -> None:
    reference = [500, 3, 1, 0, 0, 496]
    assert psi(reference, [498, 2, 0, 3, 1, 496]) < 0.02


def test_without_anything_to_compare_there_is_no_drift() -> None:
    assert psi([0, 0], [1, 2]) == 0
    assert psi([1, 2], [0, 0]) == 0
    nothing = Profile.of([])
    assert drift(nothing, Profile.of([np.array([0.5])])) == {"score": 0, "boxes": 0}


def test_a_profile_counts_scores_and_crowds() -> None:
    told = Profile.of([np.array([0.3, 0.45, 0.999, 1.0, 0.29]), np.zeros(0), np.full(40, 0.62)])
    assert told.images == 3
    assert (told.scores[0], told.scores[1], told.scores[3], told.scores[-1]) == (1, 1, 40, 2)
    assert sum(told.scores) == 44
    assert (told.boxes[0], told.boxes[4], told.boxes[-1], sum(told.boxes)) == (1, 1, 1, 3)
    assert Profile.model_validate_json(told.model_dump_json()) == told


@pytest.mark.parametrize("score", np.arange(0.3, 1.0, 0.1).astype(np.float32).tolist())
def test_a_score_on_an_edge_belongs_above_it(score: float) -> None:
    (place,) = np.nonzero(Profile.of([np.array([score], dtype=np.float32)]).scores)
    assert 0.3 + 0.1 * place[0] == pytest.approx(score, abs=1e-6)
