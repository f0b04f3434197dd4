"""What cannot be compared is refused, and says how it differs: never dropped, never guessed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.coco_boxes import Boxes
from evals.coco_pairs import pair_up
from evals.detection import evaluate
from foveal.detections import Detections
from foveal.errors import BadInput
from tests.evals.test_matching import a_world

TRUTH, FOUND = a_world(np.random.default_rng(5), images=30)
GOOD = [
    {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
    for a in TRUTH["annotations"]
]


def without_sizes(truth: dict[str, Any]) -> dict[str, Any]:
    return {**truth, "images": [{"id": im["id"]} for im in truth["images"]]}


def as_corners(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y + h]


def as_centre(x: float, y: float, w: float, h: float) -> list[float]:
    return [x + w / 2, y + h / 2, w, h]


def normalised(x: float, y: float, w: float, h: float) -> list[float]:
    return [v / 200 for v in (x, y, w, h)]


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (as_corners, r"look like \[x1, y1, x2, y2\]"),
        (as_centre, "look like cxcywh"),
        (normalised, "look normalised to 0..1"),
    ],
)
def test_boxes_of_another_form_are_recognised(change: Any, said: str, sized: bool) -> None:
    truth = TRUTH if sized else without_sizes(TRUTH)
    found = [{**record, "bbox": change(*record["bbox"])} for record in GOOD]
    with pytest.raises(BadInput, match=said):
        evaluate(truth, found)
    assert evaluate(truth, GOOD)["AP"] == pytest.approx(1)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 60), st.floats(0, 1))
def test_a_bad_detector_is_measured_and_not_refused(seed: int, noise: float, strays: float) -> None:
    rng = np.random.default_rng(seed)
    truth, _ = a_world(rng, images=20)
    boxes = np.array([a["bbox"] for a in truth["annotations"]], float).reshape(-1, 4)
    boxes += rng.normal(0, noise, boxes.shape)
    stray = rng.random(len(boxes)) < strays
    boxes[stray] = rng.uniform(0, 100, (stray.sum(), 4))
    boxes = np.concatenate([boxes[:, :2].clip(0, 190), boxes[:, 2:].clip(1, 200)], axis=1)
    boxes[:, 2:] = np.minimum(boxes[:, 2:], 200 - boxes[:, :2])  # as detectors that clip to the image give them
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": box, "score": float(rng.random())}
        for a, box in zip(truth["annotations"], boxes.tolist(), strict=True)
    ]
    evaluate(truth, found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": None}, "annotation 1 is malformed"),
        ({"bbox": [1, 2, 3]}, "annotation 1 is malformed"),
        ({"bbox": [1, 2, float("nan"), 3]}, "the truth holds NaN"),
        ({"bbox": [1, 2, -3, 3]}, "the truth has a box of negative width"),
        ({"category_id": 99}, "annotation 1 names category 99, which the file does not list"),
        ({"image_id": 99}, "annotation 1 names image 99, which the file does not list"),
    ],
)
def test_damaged_truth_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    truth = deepcopy(TRUTH)
    truth["annotations"][0] |= change
    with pytest.raises(BadInput, match=said):
        evaluate(truth, FOUND)


def test_truth_in_shares_of_the_image_is_refused() -> None:
    truth = deepcopy(TRUTH)
    for annotation in truth["annotations"]:
        annotation["bbox"] = normalised(*annotation["bbox"])
    with pytest.raises(BadInput, match="the boxes of the truth look normalised"):
        evaluate(truth, FOUND)


def test_truth_that_leaves_nothing_to_measure_is_refused() -> None:
    with pytest.raises(BadInput, match="no classes"):
        evaluate({**TRUTH, "categories": [], "annotations": []}, [])
    twice = [{"id": 5, "name": "crate"}, {"id": 6, "name": "crate"}, {"id": 7, "name": "drum"}]
    with pytest.raises(BadInput, match="crate more than once"):
        evaluate({**TRUTH, "categories": twice}, [])
    with pytest.raises(BadInput, match="two images one id"):
        evaluate({**TRUTH, "images": [*TRUTH["images"], TRUTH["images"][0]]}, [])


def test_a_class_without_objects_is_kept_and_says_so() -> None:
    truth = {**TRUTH, "categories": [*TRUTH["categories"], {"id": 99, "name": "unseen"}]}
    figures = evaluate(truth, [*GOOD, {**GOOD[0], "category_id": 99}])
    assert figures["per_class"]["unseen"] is None
    assert figures["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{**GOOD[0], "category_id": k} for k in (1, 2, 99)], "the truth does not have: 1, 2, 99; expected class 0"),
        ([{**GOOD[0], "category_id": "5"}], "does not have: '5'; expected class 0 .id 5."),
        ([{**GOOD[0], "image_id": k} for k in range(100, 107)], "7 images .* 100, 101, 102, 103, 104 and 2 more"),
        ([{**GOOD[0], "image_id": [1]}], "incomplete"),
        ([GOOD[0], {k: v for k, v in GOOD[0].items() if k != "bbox"}], "prediction 1 in predictions lacks bbox"),
        ([{**GOOD[0], "score": None}], "NaN"),
        ([{**GOOD[0], "bbox": [1, 2, 3]}], "incomplete"),
        ([{**GOOD[0], "bbox": "1 2 3 4"}], "incomplete"),
        ([[1, 2, 3]], "not a COCO results list"),
    ],
)
def test_predictions_that_do_not_fit_are_listed(records: list[Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        evaluate(TRUTH, records)


def test_a_file_that_names_its_classes_is_joined_by_name() -> None:
    theirs = {
        "images": TRUTH["images"],
        "categories": [{"id": 1, "name": "class 2"}, {"id": 2, "name": "class 1"}, {"id": 3, "name": "class 0"}],
        "annotations": [{**record, "category_id": 8 - record["category_id"]} for record in GOOD],
    }
    assert evaluate(TRUTH, theirs)["AP"] == pytest.approx(1)
    theirs["categories"][2]["name"] = "class nought"
    with pytest.raises(BadInput, match="does not have: class nought"):
        evaluate(TRUTH, theirs)


def test_detections_follow_the_order_in_which_the_truth_was_given() -> None:
    truth = {**TRUTH, "images": list(reversed(TRUTH["images"]))}
    names = [c["name"] for c in TRUTH["categories"]]
    found: list[Detections] = []
    for image in truth["images"]:
        own = [a for a in TRUTH["annotations"] if a["image_id"] == image["id"]]
        found.append(
            Detections.build([as_corners(*a["bbox"]) for a in own], 1.0, [a["category_id"] - 5 for a in own], names)
        )
    assert evaluate(truth, found)["AP"] == pytest.approx(1)
    pairs = pair_up(truth, found)
    assert isinstance(pairs.predictions, Boxes)
    assert pairs.ids == [str(im["id"]) for im in TRUTH["images"]]
