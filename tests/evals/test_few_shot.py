"""Few-shot baselines against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals import few_shot
from foveal.detections import FloatArray
from foveal.errors import BadInput


def unit(*rows: tuple[float, ...]) -> FloatArray:
    values = np.asarray(rows, dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def clouds(per_class: int, noise: float, seed: int = 0) -> tuple[FloatArray, list[int]]:
    """Unit vectors around three axes of an 8-d space."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    values = np.eye(8)[labels] + noise * rng.standard_normal((len(labels), 8))
    return unit(*map(tuple, values)), labels.tolist()


def test_shots_are_drawn_by_class_and_seed() -> None:
    labels = [0] * 5 + [2] * 5 + [1]
    one, three = few_shot.draw(labels, 1, seed=7), few_shot.draw(labels, 3, seed=7)
    assert sorted(labels[i] for i in three) == [0, 0, 0, 1, 2, 2, 2]  # all of a class that has fewer
    assert set(one) <= set(three)
    assert three == few_shot.draw(labels, 3, seed=7)
    assert len({tuple(few_shot.draw(labels, 3, seed)) for seed in range(8)}) > 1
    with pytest.raises(BadInput, match="at least one shot"):
        few_shot.draw(labels, 0)


def test_tip_adapter_adds_the_labels_of_nearby_shots() -> None:
    names, keys = unit((1, 0), (0, 1)), unit((1, 0), (0, 1))
    tip = few_shot.TipAdapter(names, 10.0, keys, np.array([1, 0]), alpha=2.0, beta=3.0)
    # cosines to names and keys are (1, 0): scale * cosine + alpha * exp(-beta * (1 - cosine)) of the other class's key
    expected = [10 + 2 * math.exp(-3), 0 + 2 * 1]
    np.testing.assert_allclose(tip.logits(unit((1, 0))), [expected])


def test_tip_adapter_with_one_shot_takes_the_papers_values() -> None:
    tip = few_shot.tip_adapter(unit((1, 0), (0, 1)), 1.0, unit((1, 0), (0, 1)), [0, 1])
    assert (tip.alpha, tip.beta) == (1.0, 5.5)


def test_tip_adapter_trusts_the_cache_only_where_it_is_right() -> None:
    names = np.eye(8, dtype=np.float32)[:3]
    features, labels = clouds(8, 0.02)
    wrong_names = names[[1, 2, 0]]
    helped = few_shot.tip_adapter(wrong_names, 5.0, features, labels)
    assert (helped.logits(features).argmax(axis=1) == labels).all()
    assert helped.alpha > 1
    # Labels drawn by lot: with the shot itself in the cache they look right, without it they help nobody.
    features, labels = clouds(8, 0.2)
    lot = np.random.default_rng(0).permutation(labels).tolist()
    seen = few_shot.TipAdapter(names, 5.0, features, np.array(lot), 30.0, 100.0).logits(features).argmax(axis=1)
    assert (seen == lot).mean() > 0.9
    chosen = few_shot.tip_adapter(names, 5.0, features, lot)
    assert (chosen.alpha, chosen.beta) != (30.0, 100.0)


def test_a_linear_probe_of_two_points_is_symmetric() -> None:
    probe = few_shot.linear_probe(unit((1, 0), (0, 1)), [0, 1], 2)
    logits = probe.logits(unit((1, 1), (1, 0), (0, 1)))
    assert logits[0, 0] == pytest.approx(logits[0, 1], abs=1e-4)  # half way
    assert logits[1, 0] - logits[1, 1] == pytest.approx(logits[2, 1] - logits[2, 0], abs=1e-4)
    # At the optimum strength * w = mean of (target - probability) * centred feature, worked out for these points:
    # centred (1/2, -1/2), (-1/2, 1/2); by symmetry w_0 = (t, -t), w_1 = -w_0, probability p = 1 / (1 + exp(-2 t)).
    t = probe.weights[0, 0]
    assert probe.strength * t == pytest.approx((1 - 1 / (1 + math.exp(-2 * t))) / 2, abs=1e-5)


def test_a_linear_probe_is_the_minimum() -> None:
    features, labels = clouds(4, 0.5)
    probe = few_shot.linear_probe(features, labels, 3, strengths=[0.01])
    logits = probe.logits(features)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (probability - np.eye(3)[labels]) / len(labels)
    centred = features - features.mean(axis=0)
    np.testing.assert_allclose(error.T @ centred + 0.01 * probe.weights, 0, atol=1e-4)
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-4)


def test_noise_asks_for_a_stronger_penalty() -> None:
    rng = np.random.default_rng(0)
    noisy = unit(*map(tuple, np.eye(40)[np.repeat([0, 1], 20)] * 0.6 + 0.5 * rng.standard_normal((40, 40))))
    clear, labels = clouds(6, 0.05)
    strong = few_shot.linear_probe(noisy, np.repeat([0, 1], 20).tolist(), 2).strength
    assert strong > few_shot.linear_probe(clear, labels, 3).strength


def test_the_three_side_by_side() -> None:
    names = np.eye(8, dtype=np.float32)[[1, 2, 0]]  # every class has another's name
    figures = few_shot.compare(names, 10.0, clouds(4, 0.1), clouds(20, 0.1, seed=1))
    assert list(figures) == ["zero-shot", "Tip-Adapter", "linear probe"]
    assert figures["zero-shot"]["top1"] == 0.0
    assert figures["Tip-Adapter"]["top1"] == 1.0
    assert figures["linear probe"]["top1"] == 1.0


def test_shots_that_cannot_be_used() -> None:
    names = unit((1, 0), (0, 1))
    with pytest.raises(BadInput, match="shots of two classes"):
        few_shot.tip_adapter(names, 1.0, names, [0, 0])
    with pytest.raises(BadInput, match="one label per shot"):
        few_shot.linear_probe(names, [0], 2)


def test_a_class_of_one_shot_beside_others() -> None:
    features, labels = clouds(4, 0.05)
    rows = [i for i, label in enumerate(labels) if label != 2 or i == len(labels) - 1]
    few, truth = features[rows], [labels[i] for i in rows]
    assert (few_shot.linear_probe(few, truth, 3).logits(features).argmax(axis=1) == labels).all()
