"""Reference numbers, pycocotools as the oracle, and refusal by name of what does not fit."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evals.detection import evaluate, match, precision_recall, precision_recall_curve, sweep
from evals.mistakes import mistakes
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.errors import BadInput

NAMES = ("crate", "drum", "cone")
COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def boxes_near(rng: np.random.Generator, truth: Detections) -> Detections:
    """Truth moved about, a third relabelled, plus a few boxes at random."""
    moved = truth.boxes + rng.normal(0, 4, truth.boxes.shape)
    stray = rng.uniform(0, 150, (3, 2))
    boxes = np.concatenate([moved, np.concatenate([stray, stray + 30], axis=1)])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.concatenate([truth.labels, rng.integers(0, 3, 3)])
    wrong = rng.random(len(labels)) < 0.3
    labels[wrong] = rng.integers(0, 3, wrong.sum())
    scores = np.round(rng.random(len(labels)), 2)  # ties on purpose
    return Detections.build(boxes, scores, labels, NAMES)


def random_truth(rng: np.random.Generator) -> Detections:
    count = int(rng.integers(0, 8))
    corner = rng.uniform(0, 180, (count, 2))
    sizes = rng.uniform(8, 120, (count, 2))
    return Detections.build(np.concatenate([corner, corner + sizes], axis=1), 1.0, rng.integers(0, 3, count), NAMES)


def as_coco(truth: list[Detections], predictions: list[Detections]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO file whose ids begin elsewhere than at 1, and its results list."""

    def box(b: Any) -> list[float]:
        return [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]

    images = [{"id": 100 + i, "file_name": f"{i}.jpg", "width": 320, "height": 320} for i in range(len(truth))]
    annotations = [
        {
            "image_id": 100 + i,
            "category_id": 7 + 2 * int(k),
            "bbox": box(b),
            "area": float(np.prod(box(b)[2:])),
            "iscrowd": 0,
        }
        for i, t in enumerate(truth)
        for b, k in zip(t.boxes, t.labels, strict=True)
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    results = [
        {"image_id": 100 + i, "category_id": 7 + 2 * int(k), "bbox": box(b), "score": float(s)}
        for i, p in enumerate(predictions)
        for b, k, s in zip(p.boxes, p.labels, p.scores, strict=True)
    ]
    categories = [{"id": 7 + 2 * k, "name": name} for k, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


@pytest.fixture(scope="module")
def pairs() -> tuple[list[Detections], list[Detections]]:
    rng = np.random.default_rng(0)
    truth = [random_truth(rng) for _ in range(25)]
    return truth, [boxes_near(rng, t) for t in truth]


def test_numbers_are_those_of_pycocotools(pairs: tuple[list[Detections], list[Detections]], tmp_path: Path) -> None:
    truth, results = as_coco(*pairs)
    truth["annotations"][3]["iscrowd"] = 1  # in the files alone: neither hit nor false alarm
    truth["images"].reverse()  # equal scores are ranked by image id, not by the order of the file
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    ours = evaluate(tmp_path / "truth.json", tmp_path / "results.json")
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(tmp_path / "truth.json"))
        oracle = COCOeval(known, known.loadRes(str(tmp_path / "results.json")), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    assert [ours[name] for name in COCO_NAMES] == pytest.approx(oracle.stats.tolist(), abs=1e-9)
    per_class = oracle.eval["precision"][0, :, :, 0, 2]
    assert list(ours["per_class"].values()) == pytest.approx([per_class[:, k].mean() for k in range(3)], abs=1e-9)
    assert list(ours["per_class"]) == list(NAMES)


def test_every_form_of_the_same_boxes_gives_the_same_numbers(
    pairs: tuple[list[Detections], list[Detections]], tmp_path: Path
) -> None:
    coco, results = as_coco(*pairs)
    expected = evaluate(coco, results)
    assert evaluate(*pairs)["AP"] == pytest.approx(expected["AP"], abs=1e-4)
    shuffled = [{"id": c["id"] + 50, "name": c["name"]} for c in reversed(coco["categories"])]
    instances = {
        "images": [{"id": im["id"] - 90, "file_name": f"elsewhere/{im['file_name']}"} for im in coco["images"]],
        "categories": shuffled,
        "annotations": [{**r, "image_id": r["image_id"] - 90, "category_id": r["category_id"] + 50} for r in results],
    }
    assert evaluate(coco, instances) == expected
    samples: list[Sample] = []
    for i, known in enumerate(pairs[0]):
        path = tmp_path / f"{i}.jpg"
        Image.new("RGB", (320, 320)).save(path)
        samples.append(Sample(str(100 + i), path, 320, 320, known))
    dataset = Dataset.build(samples, NAMES, category_ids=[7, 9, 11])
    for predictions in (pairs[1], results, dataset.with_truth(pairs[1])):
        assert evaluate(dataset, predictions)["AP"] == pytest.approx(expected["AP"], abs=1e-4)


def test_perfect_predictions_score_one_and_none_score_zero(pairs: tuple[list[Detections], list[Detections]]) -> None:
    truth, _ = pairs
    assert evaluate(truth, truth)["AP"] == pytest.approx(1)
    nothing = evaluate(truth, [Detections.empty(NAMES)] * len(truth))
    assert nothing["AP"] == 0
    assert nothing["predicted_boxes"] == 0
    coco, _ = as_coco(*pairs)
    assert evaluate(coco, [])["AP50"] == 0


def test_empty_truth_measures_nothing(pairs: tuple[list[Detections], list[Detections]]) -> None:
    _, predictions = pairs
    scores = evaluate([Detections.empty(NAMES)] * len(predictions), predictions)
    assert scores["AP"] is None
    assert scores["per_class"] == dict.fromkeys(NAMES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 999}, "999"),
        ({"category_id": 1}, r"classes the truth does not have: 1"),
        ({"score": float("nan")}, "NaN"),
        ({"score": 1.5}, "score"),
        ({"bbox": [0, 0, -4, 5]}, "negative"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_by_name(
    pairs: tuple[list[Detections], list[Detections]], change: dict[str, Any], said: str
) -> None:
    truth, results = as_coco(*pairs)
    with pytest.raises(BadInput, match=said):
        evaluate(truth, [*results, {**results[0], **change}])


def test_other_mismatches_are_refused(pairs: tuple[list[Detections], list[Detections]], tmp_path: Path) -> None:
    truth, results = as_coco(*pairs)
    corners = [
        {**r, "bbox": [r["bbox"][0], r["bbox"][1], r["bbox"][0] + r["bbox"][2], r["bbox"][1] + r["bbox"][3]]}
        for r in results
    ]
    with pytest.raises(BadInput, match="x1, y1, x2, y2"):
        evaluate(truth, [c for c in corners if max(c["bbox"]) <= 320])
    with pytest.raises(BadInput, match="normalised"):
        evaluate(truth, [{**r, "bbox": [v / 320 for v in r["bbox"]]} for r in results])
    with pytest.raises(BadInput, match="lacks score"):
        evaluate(truth, [{k: v for k, v in results[0].items() if k != "score"}])
    with pytest.raises(BadInput, match="different images"):
        evaluate(pairs[0], pairs[1][1:])
    with pytest.raises(BadInput, match="dog"):
        evaluate(pairs[0], [Detections.build([[0, 0, 5, 5]], 0.5, ["dog"], ["dog"])] * len(pairs[0]))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BadInput, match=r"broken\.json is not JSON"):
        evaluate(tmp_path / "broken.json", results)


def test_matching_gives_each_truth_to_the_best_score() -> None:
    truth = Detections.build([[0, 0, 10, 10], [50, 50, 60, 60]], 1.0, ["crate", "drum"], NAMES)
    found = Detections.build(
        [[0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10]],
        [0.6, 0.9, 0.8, 0.95],
        ["crate", "crate", "crate", "cone"],
        NAMES,
    )
    assert match(found, truth).tolist() == [False, True, False, False]
    renamed = Detections.build(truth.boxes, 1.0, truth.label_names, ("drum", "crate"))
    assert match(found, renamed).tolist() == [False, True, False, False]
    counts = precision_recall([found], [truth])
    assert (counts.true_positives, counts.predictions, counts.truths) == (1, 4, 2)
    kinds = {(m.kind, m.label): m for m in mistakes([found], [truth])}
    assert set(kinds) == {("class", "cone"), ("duplicate", "crate"), ("class", "crate"), ("missed", "drum")}
    assert kinds["class", "crate"].truth_label == "drum"


def test_mistakes_come_worst_first() -> None:
    truth = Detections.build([[0, 0, 40, 40], [100, 100, 104, 104]], 1.0, ["crate", "drum"], NAMES)
    found = Detections.build(
        [[30, 30, 70, 70], [0, 20, 40, 60], [200, 200, 210, 210]], [0.2, 0.5, 0.9], ["crate", "crate", "cone"], NAMES
    )
    kinds = [m.kind for m in mistakes([found], [truth])]
    assert kinds == ["background", "localisation", "background", "missed", "missed"]
    assert [m.label for m in mistakes([found], [truth])][-2:] == ["crate", "drum"]


def test_empty_images_match_nothing() -> None:
    empty = Detections.empty(NAMES)
    some = Detections.build([[0, 0, 5, 5]], 0.5, ["crate"], NAMES)
    assert match(empty, some).tolist() == []
    assert match(some, empty).tolist() == [False]
    assert precision_recall([empty], [empty]).precision is None
    assert precision_recall_curve([empty], [some]).average_precision == 0


def test_a_curve_keeps_ties_together() -> None:
    curve = sweep(np.array([0.9, 0.5, 0.5, 0.1], np.float32), np.array([True, False, True, True]), 4)
    assert curve.thresholds.tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert curve.recall.tolist() == pytest.approx([0.25, 0.5, 0.75])
    assert curve.precision_at_recall(0.5) == pytest.approx(0.75)
    assert curve.precision_at_recall(0.9) is None
