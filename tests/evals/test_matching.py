"""Pycocotools as the oracle on random worlds: crowds, ties, empty images, vanishing classes, masks, drawn images."""

from __future__ import annotations

import contextlib
import io
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evals.detection import evaluate, measure
from evals.measures import MEASURES

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
Coco = dict[str, Any]
Records = list[dict[str, Any]]


def a_world(rng: np.random.Generator, images: int = 8, classes: int = 3, *, ties: bool = True) -> tuple[Coco, Records]:
    """Truth with crowds and images without any, and predictions near and far, several of equal score.

    Without `ties` no two scores within an image are equal, only some of different images.
    """
    truth: Coco = {
        "images": [{"id": 10 + 3 * i, "width": 200, "height": 200} for i in range(images)],
        "categories": [{"id": 5 + k, "name": f"class {k}"} for k in range(classes)],
        "annotations": [],
    }
    found: Records = []
    for image in truth["images"]:
        count = int(rng.integers(0, 7))
        boxes = np.concatenate([rng.integers(0, 120, (count, 2)), rng.integers(2, 110, (count, 2))], axis=1)
        kinds = rng.integers(0, classes, count)
        for box, kind in zip(boxes.tolist(), kinds.tolist(), strict=True):
            x, y, w, h = box
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": 5 + kind,
                    "bbox": box,
                    "area": w * h * float(rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        near = boxes[rng.integers(0, count, int(rng.integers(0, 12)))] if count else np.zeros((0, 4), np.int64)
        moved = near + rng.integers(-6, 7, near.shape) * (rng.random((len(near), 1)) < 0.8)
        stray = np.concatenate([rng.integers(0, 120, (2, 2)), rng.integers(2, 80, (2, 2))], axis=1)
        placed = np.concatenate([moved, stray])
        placed[:, 2:] = np.maximum(placed[:, 2:], 1)
        scores = rng.integers(1, 8, len(placed)) / 8 if ties else rng.permutation(40)[: len(placed)] / 40
        for box, score in zip(placed.tolist(), scores.tolist(), strict=True):
            kind = int(rng.integers(0, classes))
            found.append({"image_id": image["id"], "category_id": 5 + kind, "bbox": box, "score": score})
    # The oracle cannot do without any prediction at all.
    found.append({"image_id": 10, "category_id": 5, "bbox": [0, 0, 9, 9], "score": 0.01})
    return truth, found


def indexed(truth: Coco) -> Any:
    """The oracle's own view of a truth."""
    known: Any = COCO()
    known.dataset = deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
    return known


def oracle(truth: Coco, found: Records, kind: str = "bbox") -> list[float]:
    known = indexed(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        asked: Any = COCOeval(known, known.loadRes(deepcopy(found)), kind)  # pyright: ignore[reportArgumentType]
        asked.evaluate()
        asked.accumulate()
        asked.summarize()
    return [float("nan") if value < 0 else value for value in asked.stats.tolist()]


def ours(figures: dict[str, Any]) -> list[float]:
    return [float("nan") if figures[name] is None else figures[name] for name in NAMES]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_all_twelve_numbers_are_those_of_pycocotools(seed: int, classes: int) -> None:
    truth, found = a_world(np.random.default_rng(seed), classes=classes)
    figures = evaluate(truth, found)
    assert ours(dict(figures)) == pytest.approx(oracle(truth, found), abs=1e-9, nan_ok=True)


def test_only_a_hundred_of_a_class_count() -> None:
    rng = np.random.default_rng(3)
    truth, _ = a_world(rng, images=2, classes=1)
    found: Records = [
        {"image_id": a["image_id"], "category_id": 5, "bbox": a["bbox"], "score": float(rng.integers(1, 9)) / 9}
        for a in truth["annotations"]
        for _ in range(60)
    ]
    assert ours(dict(evaluate(truth, found))) == pytest.approx(oracle(truth, found), abs=1e-9, nan_ok=True)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_masks_are_compared_as_pycocotools_compares_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, boxed = a_world(rng, images=4)
    found: Records = []
    for record in boxed:
        x, y, w, h = record["bbox"]
        outline = [x, y, x + w, y, x + w, y + h, x + w / 2, y + h / 2, x, y + h]
        found.append({key: record[key] for key in ("image_id", "category_id", "score")} | {"segmentation": [outline]})
    known = indexed(truth)
    for record in found:
        record["segmentation"] = known.annToRLE(record)
    figures = measure(truth, found, masks=True).figures
    assert ours(figures) == pytest.approx(oracle(truth, found, "segm"), abs=1e-9, nan_ok=True)


def drawn(truth: Coco, found: Records, times: np.ndarray[Any, Any]) -> tuple[Coco, Records]:
    """The world with each image as often as it was drawn, copies standing beside each other."""
    copies = {
        im["id"]: range(100 * im["id"], 100 * im["id"] + int(n)) for im, n in zip(truth["images"], times, strict=True)
    }
    result: Coco = {
        **truth,
        "images": [{**im, "id": copy} for im in truth["images"] for copy in copies[im["id"]]],
        "annotations": [{**a, "image_id": copy} for a in truth["annotations"] for copy in copies[a["image_id"]]],
    }
    for number, annotation in enumerate(result["annotations"], start=1):
        annotation["id"] = number
    return result, [{**record, "image_id": copy} for record in found for copy in copies[record["image_id"]]]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_an_image_of_weight_two_counts_as_if_it_were_there_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = a_world(rng, classes=4, ties=False)
    measured = measure(truth, found)
    weights = rng.multinomial(len(truth["images"]), np.full(len(truth["images"]), 1 / len(truth["images"])), size=3)
    weights[0] = 1
    weights[:, 0] = np.maximum(weights[:, 0], 1)  # the image of the prediction that the oracle needs
    names = ("AP", "AP50", "AP75", "AR100")
    got = np.stack([MEASURES["detection"][name].of(measured.items, weights.astype(float)) for name in names], axis=1)
    for row, times in zip(got, weights, strict=True):
        known = oracle(*drawn(truth, found, times))
        assert row.tolist() == pytest.approx([known[NAMES.index(name)] for name in names], abs=1e-9, nan_ok=True)
    figures = [measured.figures[name] for name in names]
    assert got[0].tolist() == pytest.approx([np.nan if f is None else f for f in figures], abs=1e-9, nan_ok=True)


def test_weights_that_leave_no_truth_leave_nothing_to_measure() -> None:
    truth, found = a_world(np.random.default_rng(1), images=40)
    items = measure(truth, found).items
    empty = np.array([[0.0 if truths else 1.0 for truths in items["truths"]]])
    assert empty.any()
    for one in MEASURES["detection"].values():
        assert np.isnan(one.of(items, empty)).all()
        assert np.isnan(one.of(items, np.zeros_like(empty))).all()


def test_gains_are_those_of_tides_own_code() -> None:
    # tidecv 1.0.1 on this world, without crowds and equal scores, and with recalls of k / 100 as it has them.
    rng = np.random.default_rng(0)
    truth, found = a_world(rng, images=30, ties=False)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    found.pop()
    for record, place in zip(found, rng.permutation(len(found)).tolist(), strict=True):
        record["score"] = place / len(found)
    figures = measure(truth, found).figures
    expected = {
        "class": 0.1272491,
        "localisation": 0.0606955,
        "both": 0.0092019,
        "duplicate": 0.0057215,
        "background": 0.0260996,
        "missed": 0.0789462,
    }
    assert figures["errors"] == pytest.approx(expected, abs=1e-6)


def test_undoing_the_only_kind_of_mistake_leaves_none() -> None:
    box, other = [0, 0, 40, 40], [100, 100, 40, 40]
    truth: Coco = {
        "images": [{"id": 1, "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "crate"}, {"id": 2, "name": "drum"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": other, "area": 1600, "iscrowd": 0},
        ],
    }
    right = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": 0.5},
        {"image_id": 1, "category_id": 2, "bbox": other, "score": 0.5},
    ]
    cases: dict[str, Records] = {
        "class": [right[0], {**right[1], "category_id": 1, "score": 0.9}],
        "localisation": [right[0], {**right[1], "bbox": [120, 100, 40, 40]}],
        "both": [*right, {**right[0], "category_id": 2, "bbox": [20, 0, 40, 40], "score": 0.9}],
        "duplicate": [{**right[0], "score": 0.9}, {**right[0], "score": 0.8}, right[1]],
        "background": [*right, {**right[0], "bbox": [150, 0, 40, 40], "score": 0.9}],
        "missed": [right[0]],
    }
    for kind, found in cases.items():
        figures = measure(truth, found).figures
        gains = figures["errors"]
        if kind == "duplicate":  # it ranks below its hit, and takes no recall from it
            assert gains[kind] == 0
            continue
        assert figures["AP50"] + gains.pop(kind) == pytest.approx(1), kind
        assert not any(gains.values()), kind
