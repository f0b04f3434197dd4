"""The calibration of a result: agreement with other libraries, choice by cross-validation, thresholds, any task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from evals.calibrate import Outcomes, measure, outcomes
from evals.calibration import Calibrator, temperature
from evals.calibrator_choice import choose
from evals.intervals import lower_bounds, share_bounds
from evals.measures import measures_of
from evals.pages import page
from evals.reliability import (
    adaptive_ece,
    brier,
    by_class,
    ece,
    multiclass_brier,
    multiclass_ece,
    multiclass_nll,
    nll,
)
from evals.results import Data, Measured, Result, Stopwatch, Subject
from evals.thresholds import threshold_for_recall
from foveal.errors import BadInput
from tests.command import foveal

RNG = np.random.default_rng(0)


def overconfident(n: int, seed: int = 0, sharpness: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Confidences whose log-odds are `sharpness` times what they should be, and outcomes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(1, 1.5, n)
    return 1 / (1 + np.exp(-sharpness * z)), rng.random(n) < 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("bins", [5, 10, 15])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_binary_figures_agree_with_torchmetrics_and_scikit_learn(seed: int, bins: int) -> None:
    p, y = overconfident(3000, seed)
    theirs = binary_calibration_error(torch.tensor(p), torch.tensor(y.astype(int)), n_bins=bins, norm="l1")
    assert ece(p, y, bins) == pytest.approx(float(theirs), abs=1e-6)
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p), abs=1e-9)
    assert nll(p, y) == pytest.approx(log_loss(y, p), abs=1e-9)


def test_certainty_that_is_wrong_costs_as_much_as_scikit_learn_says() -> None:
    p, y = np.array([1.0, 0.0, 0.5]), np.array([False, True, True])
    assert nll(p, y) == pytest.approx(log_loss(y, p), rel=1e-9)
    assert np.isfinite(nll(p, y))


@pytest.mark.parametrize("seed", [0, 1])
def test_multiclass_figures_agree_with_torchmetrics_and_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, labels = softmax(rng.normal(0, 2, (2000, 7)), axis=1), rng.integers(0, 7, 2000)
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), num_classes=7, n_bins=15, norm="l1")
    assert multiclass_ece(p, labels) == pytest.approx(float(theirs), abs=1e-6)
    assert multiclass_brier(p, labels) == pytest.approx(brier_score_loss(labels, p, scale_by_half=False), abs=1e-9)
    assert multiclass_nll(p, labels) == pytest.approx(log_loss(labels, p), abs=1e-9)
    for wrong in (p * 2, p[:, :6]):
        with pytest.raises(BadInput):
            multiclass_brier(wrong, labels)


def test_a_temperature_is_found_again() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(logits, axis=1)])
    assert temperature(3.0 * logits, labels) == pytest.approx(3.0, rel=0.05)
    assert temperature(0.5 * logits, labels) == pytest.approx(0.5, rel=0.05)
    p, y = overconfident(20_000)
    fitted = Calibrator.fit(p, y, method="temperature")
    assert fitted.temperature == pytest.approx(2.5, rel=0.06)
    assert fitted([0.5]) == pytest.approx([0.5])  # log-odds of 0 stay
    assert Calibrator.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted
    assert Calibrator.fit(p, y, method="platt").temperature is None


def test_the_simplest_map_that_is_as_good_is_chosen() -> None:
    p, y = overconfident(4000)
    assert choose(p, y).chosen == "temperature"
    rng = np.random.default_rng(3)
    fair = rng.random(2000)
    assert choose(fair, rng.random(2000) < fair).chosen == "none"
    shifted = 1 / (1 + np.exp(-(np.log(fair / (1 - fair)) + 2)))
    assert choose(shifted, rng.random(2000) < fair).chosen == "platt"
    steps = np.where(fair < 0.3, 0.1, np.where(fair < 0.6, 0.8, np.where(fair < 0.8, 0.81, 0.99)))
    wild = choose(fair, rng.random(2000) < steps, criterion="brier")
    assert wild.chosen == "isotonic"
    assert wild.losses["isotonic"] < wild.losses["platt"]
    few = choose(p[:15], y[:15])
    assert (few.chosen, few.calibrator) == ("none", None)
    assert "too few" in few.reason


def test_no_prediction_is_judged_by_a_map_that_saw_its_image() -> None:
    p, y = overconfident(300)
    images = np.random.default_rng(4).integers(0, 60, 300)
    before = choose(p, y, images)
    for image in (3, 17):
        mine = images == image
        after = choose(p, np.where(mine, ~y, y), images)
        for method in ("temperature", "platt", "isotonic"):
            np.testing.assert_array_equal(after.outside[method][mine], before.outside[method][mine])
            assert (after.outside[method][~mine] != before.outside[method][~mine]).any()


def test_classes_are_judged_by_their_own() -> None:
    p, y = np.array([0.9, 0.9, 0.6, 0.6, 0.6]), np.array([1, 1, 0, 0, 1], dtype=bool)
    told = by_class(p, y, ["a", "a", "b", "b", "b"])
    assert list(told) == ["b", "a"]
    assert (told["a"].count, told["a"].ece) == (2, pytest.approx(0.1))
    assert (told["b"].accuracy, told["b"].ece) == (pytest.approx(1 / 3), pytest.approx(0.6 - 1 / 3))


def test_intervals_agree_with_the_bounds_and_widen_with_groups() -> None:
    y, images = RNG.random(60) < 0.8, np.repeat(np.arange(12), 5)
    low, high = share_bounds(y, None, 0.95, one_sided=True)
    assert low == pytest.approx(lower_bounds(y)[-1])
    assert share_bounds(y, images, 0.95, one_sided=True)[0] == pytest.approx(lower_bounds(y, images)[-1])
    shuffled = RNG.permutation(60)
    bounds = lower_bounds(y[shuffled], images[shuffled])
    for end in range(1, 61):  # of every prefix, as if it were all there is
        alone = share_bounds(y[shuffled][:end], images[shuffled][:end], 0.95, one_sided=True)[0]
        assert bounds[end - 1] == pytest.approx(alone, abs=1e-9)
    together = np.repeat(RNG.random(12) < 0.8, 5)
    apart, wide = share_bounds(together), share_bounds(together, images)
    assert wide[0] < apart[0] < together.mean() < apart[1] < wide[1]
    assert share_bounds(y)[0] < low < high < share_bounds(y)[1]
    assert share_bounds([]) == (0.0, 1.0)
    assert share_bounds([True] * 10) == (pytest.approx(0.6915, abs=1e-4), 1.0)  # 0.025 ** (1 / 10)


def test_the_highest_threshold_that_proves_the_recall_is_chosen() -> None:
    sure = np.linspace(0, 1, 201)[1:]
    choice = threshold_for_recall(sure, 0.9)
    assert choice.proven
    assert choice.threshold is not None
    assert choice.lower_bound is not None
    assert choice.recall is not None
    assert choice.recall > 0.92
    assert choice.lower_bound >= 0.9 > share_bounds(sure > choice.threshold, None, 0.95, one_sided=True)[0]
    loose = threshold_for_recall(sure, 0.9, None)
    assert (loose.proven, loose.found, loose.recall) == (False, 180, 0.9)
    assert loose.threshold is not None
    assert loose.threshold > choice.threshold
    missed = np.where(np.arange(200) < 30, np.nan, sure)
    none = threshold_for_recall(missed, 0.9)
    assert none.threshold is None
    assert "170 of 200 are found at all" in none.reason
    few = threshold_for_recall(sure[:5], 0.9)
    assert not few.proven
    assert "not proven" in few.reason


def test_the_recall_is_kept_as_often_as_promised() -> None:
    rng = np.random.default_rng(5)
    broken = made = 0
    for _ in range(300):
        choice = threshold_for_recall(rng.beta(3, 1, 150), 0.8)
        if choice.proven and choice.threshold is not None:
            made += 1
            broken += 1 - choice.threshold**3 < 0.8  # the true recall: Beta(3, 1) has the distribution function x^3
    assert made > 250
    assert broken / made < 0.1


def result(task: str, items: dict[str, list[Any]], figures: dict[str, Any] | None = None, **slices: Any) -> Result:
    data = Data(source="x", fingerprint="0", images=len(set(items.get("image", items["id"]))))
    return Stopwatch().result(task, Measured(figures or {}, items, slices), Subject(reference="model"), data)


def named(n: int = 400) -> Result:
    p, y = overconfident(n, 6)
    items: dict[str, list[Any]] = {
        "id": [f"{i}" for i in range(n)],
        "image": [f"image-{i // 4}" for i in range(n)],
        "class": ["cat" if i % 3 else "dog" for i in range(n)],
        "said": ["cat" if (i % 3 > 0) == hit else "dog" for i, hit in enumerate(y)],
        "right": y.astype(int).tolist(),
        "confidence": p.tolist(),
    }
    return result("zero-shot", items, camera=["north" if i % 2 else "south" for i in range(n)])


def test_a_classification_is_judged_by_what_it_said() -> None:
    source = named()
    measured = measure(outcomes(source))
    p, y = np.array(source.items["confidence"]), np.array(source.items["right"])
    assert measured.figures["ece"] == ece(p, y)
    assert measured.figures["adaptive_ece"] == adaptive_ece(p, y)
    assert measured.figures["chosen"] == "temperature"
    assert measured.figures["after"]["temperature"]["ece"] < measured.figures["ece"]
    assert measured.figures["after"]["temperature"]["nll"] < measured.figures["nll"]
    assert measured.figures["temperature"] == pytest.approx(2.5, rel=0.3)
    assert measured.slices["camera"] == source.slices["camera"]
    assert measured.slices["class"] == source.items["said"]
    (precise, *_) = measured.figures["thresholds"]
    above = p >= precise["threshold"]
    assert precise["precision"] == pytest.approx(y[above].mean())
    assert precise["interval"][0] < precise["precision"] < precise["interval"][1]
    assert precise["recall"] == pytest.approx((y * above).sum() / len(y))


def test_figures_follow_from_the_items_for_any_part_of_them() -> None:
    kept = result("calibration", (m := measure(outcomes(named()))).items, m.figures, **m.slices)
    measures = measures_of(kept)
    assert set(measures) == {"ece", "brier", "nll", "accuracy", "mean_confidence"}
    weights = np.ones((1, len(kept)))
    for name, one in measures.items():
        assert one.of(kept.items, weights)[0] == pytest.approx(kept.figures[name], abs=1e-12), name
    north = np.array(kept.slices["camera"]) == "north"
    doubled = np.where(north, 2.0, 0.0)[None]
    p, y = np.array(kept.items["confidence"])[north], np.array(kept.items["right"])[north]
    assert measures["ece"].of(kept.items, doubled)[0] == pytest.approx(ece(p, y))
    assert measures["brier"].of(kept.items, doubled)[0] == pytest.approx(brier(p, y))
    assert np.isnan(measures["ece"].of(kept.items, weights * 0)[0])


def detected() -> Result:
    """Two images: three boxes counted (two right), one ignored, one too unsure; one thing missed."""
    items: dict[str, list[Any]] = {
        "id": ["a", "b"],
        "classes": [[0, 1, 0], [1, 1]],
        "scores": [[0.9, 0.6, 0.3], [0.8, 0.01]],
        "hits": [[0b11, 0b01, 0], [0, 0]],
        "ignored": [[0, 0, 0b11], [0, 0]],
        "truths": [[0, 1], [0]],
    }
    return result("detection", items, {"per_class": {"cat": 0.5, "dog": 0.5}})


def test_a_detections_boxes_are_judged_one_by_one() -> None:
    found = outcomes(detected())
    assert found.confidence.tolist() == [0.9, 0.6, 0.8]
    assert found.right.tolist() == [True, True, False]
    assert found.labels == ("cat", "dog", "dog")
    assert found.ids == ("a#0", "a#1", "b#0")
    np.testing.assert_array_equal(found.found_at, [0.9, 0.6, np.nan])
    assert outcomes(detected(), iou=0.55).right.tolist() == [True, False, False]
    assert len(outcomes(detected(), floor=0.0)) == 4
    strict = outcomes(detected(), floor=0.7)
    assert strict.labels == ("cat", "dog")
    np.testing.assert_array_equal(strict.found_at, [0.9, np.nan, np.nan])
    with pytest.raises(BadInput, match=r"one of 0\.5, 0\.55"):
        outcomes(detected(), iou=0.52)


def test_what_does_not_say_how_sure_it_was_is_refused() -> None:
    with pytest.raises(BadInput, match=r"expected items with the columns confidence and right.*received id, rank"):
        outcomes(result("retrieval", {"id": ["a"], "rank": [1]}))
    wrong = named()
    wrong.items["confidence"][0] = 1.5
    with pytest.raises(BadInput, match=r"numbers in \[0, 1\]"):
        outcomes(wrong)
    with pytest.raises(BadInput, match=r"no prediction of 0\.99 or more"):
        outcomes(detected(), floor=0.99)


def test_little_data_is_said_to_be_little() -> None:
    one = Outcomes(np.array([0.7]), np.array([True]), ("a",), ("x",), ("x#0",), np.array([0.7]), ("x",), {})
    figures = measure(one).figures
    assert (figures["chosen"], figures["after"], figures["temperature"]) == ("none", {}, None)
    assert not any(told["proven"] for told in figures["thresholds"])
    kept = result("calibration", (m := measure(one)).items, m.figures)
    assert "too few" in page(kept).html()


def test_the_command_keeps_a_result_and_a_page(tmp_path: Path) -> None:
    source = named()
    source.write(tmp_path / "named.json")
    line = ["eval", "calibration", str(tmp_path / "named.json"), "--precision", "0.9", "--out"]
    shown = foveal(*line, str(tmp_path / "calibration.json"), "--json")
    assert shown.code == 0, shown.err
    kept = Result.model_validate_json((tmp_path / "calibration.json").read_text())
    assert (
        kept.figures["ece"]
        == shown.json["ece"]
        == pytest.approx(ece(source.items["confidence"], source.items["right"]))
    )
    assert (kept.subject, kept.data) == (source.subject, source.data)
    assert [told["at_least"] for told in kept.figures["thresholds"]] == [0.9, 0.8, 0.9, 0.95]
    html = (tmp_path / "calibration.html").read_text()
    assert html.count('<svg class="plot"') == 4  # before and after; cat and dog
    assert "too sure" in html
