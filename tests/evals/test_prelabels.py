"""Pre-labels against gold: counted by hand, refused where they do not fit, and as a command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evals.measures import measures_of
from evals.prelabels import judge, measure
from evals.results import read
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, Provenance
from foveal.errors import BadInput
from tests.command import foveal

NAMES = ("crate", "drum")
A, B, C, D = [0, 0, 40, 40], [60, 0, 100, 40], [0, 60, 40, 100], [60, 60, 100, 100]


def boxes(*rows: tuple[list[int], str, float, str]) -> Detections:
    """Pre-labels of (box, class, probability, route)."""
    return Detections.build(
        [box for box, *_ in rows],
        0.5,
        [name for _, name, *_ in rows],
        NAMES,
        probabilities=np.array([p for *_, p, _ in rows], np.float32),
        provenance=tuple(Provenance("a model", route=route) for *_, route in rows),  # pyright: ignore
    )


def truth(*rows: tuple[list[int], str]) -> Detections:
    return Detections.build([box for box, _ in rows], 1.0, [name for _, name in rows], NAMES)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Three images: all right; one accepted wrongly, one doubtful mistaken, one missed; one with nothing in it."""
    folder = tmp_path_factory.mktemp("prelabels")
    told = [
        (boxes((A, "crate", 0.9, "accept"), (B, "drum", 0.8, "accept")), truth((A, "crate"), (B, "drum"))),
        (
            boxes(
                (A, "crate", 0.95, "accept"),  # nothing is there: to remove
                (B, "drum", 0.5, "review"),  # a crate: to relabel
                (D, "drum", 0.1, "reject"),  # right, and nobody sees it
            ),
            truth((B, "crate"), (C, "drum"), (D, "drum")),  # C and D are to draw
        ),
        (Detections.empty(NAMES), truth()),
    ]
    samples: list[Sample] = []
    for number, (_, gold) in enumerate(told):
        path = folder / f"{number}.png"
        Image.new("RGB", (100, 100)).save(path)
        samples.append(
            Sample(f"image {number}", path, 100, 100, gold, metadata={"light": f"{'day' if number else 'dusk'}"})
        )
    gold = Dataset.build(samples, NAMES)
    return gold.with_truth([found for found, _ in told]), gold


def test_every_figure_is_the_one_counted_by_hand(sets: tuple[Dataset, Dataset]) -> None:
    figures = measure(*sets).figures
    expected: dict[str, Any] = {
        "accepted_precision": 2 / 3,
        "accepted_recall": 2 / 5,
        "review_rate": 1 / 4,
        "images_to_review": 1 / 3,
        "precision": 2 / 4,
        "recall": 2 / 5,
        "corrections_saved_per_1000_images": 1000 * (5 - 4) / 3,
        "brier": np.mean([0.1**2, 0.2**2, 0.95**2, 0.5**2, 0.9**2]),
        "images": 3,
        "gold_boxes": 5,
        "accepted_boxes": 3,
        "review_boxes": 1,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["accepted_low"] < 2 / 3 < figures["accepted_high"]
    assert figures["per_class"]["drum"] == {"gold": 3, "accepted": 1, "right": 1, "review": 1, "rejected": 1}
    assert [one.corrections for one in judge(*sets)] == [0, 4, 0]


def test_figures_follow_from_items(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    prelabels, gold = sets
    prelabels.write(tmp_path / "predictions.coco.json", "coco")
    gold.write(tmp_path / "gold", "coco")
    kept = tmp_path / "kept.json"
    shown = foveal("eval", "prelabel", str(tmp_path), "--gold", str(tmp_path / "gold"), "--out", str(kept), "--json")
    assert shown.code == 0, shown.err
    result = read(kept)
    assert (result.task, result.subject.reference) == ("prelabel", str(tmp_path))
    measures = measures_of(result)
    assert set(measures) > {"accepted_precision", "corrections_saved_per_1000_images"}
    for name, one in measures.items():
        assert one.of(result.items, np.ones((1, 3)))[0] == pytest.approx(shown.json[name])
    page = kept.with_suffix(".html").read_text()
    for words in ("66.7%", "333", "per 1,000 images", "Accepted wrongly", "image 1: 1 of 1 accepted boxes"):
        assert words in page


def test_a_part_of_the_images_may_be_gold(sets: tuple[Dataset, Dataset]) -> None:
    prelabels, gold = sets
    assert measure(prelabels, gold.subset([0])).figures["accepted_precision"] == 1
    assert measure(prelabels, gold.subset([2])).figures["accepted_precision"] is None


def test_a_stricter_overlap_asks_for_more_corrections(sets: tuple[Dataset, Dataset]) -> None:
    prelabels, gold = sets
    first = prelabels[0].truth
    assert first is not None
    moved = prelabels.subset([0]).with_truth([replace(first, boxes=first.boxes + np.float32(5))])
    loose, strict = (measure(moved, gold.subset([0]), iou).figures for iou in (0.5, 0.9))
    assert loose["corrections_saved_per_1000_images"] == 2000
    assert strict["corrections_saved_per_1000_images"] == -2000  # two to remove, and still two to draw


def test_sets_that_do_not_fit_are_refused(sets: tuple[Dataset, Dataset]) -> None:
    prelabels, gold = sets
    with pytest.raises(BadInput, match="2 of 3 gold images were not pre-labelled: image 1, image 2"):
        measure(prelabels.subset([0]), gold)
    with pytest.raises(BadInput, match="1 gold images have no labels: image 0"):
        measure(prelabels, gold.subset([0]).with_truth([None]))
    with pytest.raises(BadInput, match="have no route"):
        measure(gold, gold)
    other = gold.subset([2]).with_truth([Detections.empty(("crate",))], ("crate",))
    assert measure(prelabels, other).figures["images"] == 1
    fewer = gold.subset([1]).with_truth([Detections.empty(("crate",))], ("crate",))
    with pytest.raises(BadInput, match="classes the gold set does not have: drum; expected classes among crate"):
        measure(prelabels, fewer)
