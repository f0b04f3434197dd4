"""Published numbers, where the shared data is: `FOVEAL_TEST_DATA=FOLDER pytest tests/evals/test_reference_numbers.py`.

The folder holds `eval_fixtures` and `det_voc100`; their READMEs say where the numbers come from.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals import voc
from evals.detection import evaluate, measure
from evals.measures import MEASURES
from foveal.dataset import Dataset
from foveal.detections import Detections
from tests.evals.test_matching import NAMES, indexed, oracle, ours

DATA = Path(os.environ.get("FOVEAL_TEST_DATA", "shared-data-is-not-here"))
OURS = dict(zip(("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge"), NAMES, strict=False)) | dict(
    zip(("AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge"), NAMES[6:], strict=False)
)
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="FOVEAL_TEST_DATA names no folder")


def numbers(path: str) -> Any:
    return json.loads((DATA / path).read_text())


def check(truth: Path, found: Path, expected: dict[str, float]) -> None:
    measured = measure(truth, found)
    figures: dict[str, Any] = dict(evaluate(truth, found))
    assert {name: figures[OURS[name]] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert {name: measured.figures[name] for name in figures} == figures
    ones = np.ones((1, len(measured.items["id"])))
    for name, one in MEASURES["detection"].items():
        assert one.of(measured.items, ones)[0] == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize("form", ["dets_list.json", "dets.json"])
@pytest.mark.parametrize("source", ["expected", "pycocotools"])
def test_coco_numbers_of_the_review_toolkit(form: str, source: str) -> None:
    folder = DATA / "eval_fixtures" / "rodm"
    check(folder / "gts.json", folder / form, numbers("eval_fixtures/expected.json")["rodm"][source])


def test_numbers_of_a_hundred_voc_photos() -> None:
    folder = DATA / "det_voc100"
    expected = numbers("det_voc100/expected_map.json")["pycocotools"]
    check(folder / "instances.json", folder / "reference_detections.json", expected)
    dataset = Dataset.open(folder / "instances.json")
    figures = evaluate(dataset, folder / "reference_detections.json")
    assert [figures["AP"], figures["AP50"]] == pytest.approx([expected["AP"], expected["AP50"]], abs=1e-6)


@pytest.mark.parametrize("points", ["every", "eleven"])
@pytest.mark.parametrize("iou", [0.1, 0.3, 0.5, 0.75])
def test_padillas_case_in_vocs_terms(points: Any, iou: float) -> None:
    folder = DATA / "eval_fixtures" / "voc_ap_case1"
    names = sorted(path.name for path in (folder / "gts").iterdir())
    truth = [of_file(folder / "gts" / name) for name in names]
    found = [of_file(folder / "dets" / name) for name in names]
    expected = numbers("eval_fixtures/expected.json")["voc_ap_case1"][f"{points}_point"]
    ap = voc.average_precision(found, truth, iou, points)
    assert ap == {"object": pytest.approx(expected[str(iou)], abs=1e-6)}


def of_file(path: Path) -> Detections:
    """Lines of class, score where there is one, x, y, width and height."""
    rows = [[float(v) for v in line.split()[1:]] for line in path.read_text().splitlines()]
    boxes = [(*row[-4:-2], row[-4] + row[-2], row[-3] + row[-1]) for row in rows]
    return Detections.build(boxes, [row[0] if len(row) == 5 else 1.0 for row in rows], [0] * len(rows), ["object"])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_fixture_of_shapes_by_box_and_by_mask(kind: str) -> None:
    folder = DATA / "eval_fixtures" / "faster_coco_eval"
    truth, found = (json.loads((folder / f"{side}_dataset.json").read_text()) for side in ("gt", "dt"))
    known = indexed(truth)
    for record in found:
        record["segmentation"] = known.annToRLE(record)
    # The oracle takes a box's area where records have boxes, so it sees masks alone when these are compared.
    told = [{k: v for k, v in r.items() if k != ("bbox" if kind == "segm" else "segmentation")} for r in found]
    figures = dict(evaluate(truth, told, masks=kind == "segm"))
    assert ours(figures) == pytest.approx(oracle(truth, told, kind), abs=1e-9, nan_ok=True)
