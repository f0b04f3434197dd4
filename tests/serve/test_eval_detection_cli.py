"""`foveal eval detection`: a file, a model or a running server; the result it keeps, and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from evals.measures import MEASURES
from evals.results import read
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.masks import of_polygon
from serve.server import running
from tests.command import foveal
from tests.serve.conftest import COLOURS, ColourOpenDetector, draw

Box = tuple[int, int, int, int]
RED, BLUE, GREEN = (4, 6, 20, 30), (30, 10, 60, 40), (2, 40, 24, 60)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, in one of which what is drawn blue is said to be yellow, and one that misses its green box."""
    folder = tmp_path_factory.mktemp("scenes")
    samples: list[Sample] = []
    for number, (boxes, names) in enumerate(
        [([RED, BLUE], ["red", "blue"]), ([BLUE], ["yellow"]), ([RED, GREEN], ["red"])]
    ):
        shown = {RED: "red", BLUE: "blue", GREEN: "green"}
        picture = draw(*((shown[box], box) for box in boxes))
        path = folder / f"{number}.png"
        picture.save(path)
        truth = Detections.build(
            boxes[: len(names)],
            1.0,
            names,
            tuple(COLOURS),
            masks=tuple(of_polygon(outline(box)) for box in boxes[: len(names)]),
        )
        kind = "night" if number else "day"
        samples.append(Sample(str(number), path, *picture.size, truth, metadata={"light": kind}))
    Dataset.build(samples, tuple(COLOURS)).write(folder / "set", "coco")
    return folder / "set"


def outline(box: Box) -> Any:
    x1, y1, x2, y2 = box
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)


def test_a_running_server_is_measured_like_a_model(url: str, scenes: Path, tmp_path: Path) -> None:
    kept = tmp_path / "server.json"
    shown = foveal("eval", "detection", "--truth", str(scenes), "--detector", url, "--out", str(kept), "--json")
    assert shown.code == 0, shown.err
    assert shown.json["per_class"] == {
        "red": pytest.approx(1),
        "blue": pytest.approx(1, abs=0.51),  # one of its two boxes is a yellow one
        "green": None,
        "yellow": 0,
    }
    assert shown.json["errors"]["class"] > 0.3
    result = read(kept)
    assert (result.subject.reference, result.task) == (url, "detection")
    assert result.subject.fingerprint is not None
    assert sorted(result.items["id"]) == ["0", "1", "2"]
    assert result.slices["light"] == ["day", "night", "night"]
    ones = np.ones((1, 3))
    for name, measure in MEASURES["detection"].items():
        assert measure.of(result.items, ones)[0] == pytest.approx(shown.json[name], abs=1e-9)
    given = ("eval", "detection", "--truth", str(scenes), "--detector", url, "--json")
    assert foveal(*given, "--prompts", "a red,a green,a blue,a yellow").json["AP"] == shown.json["AP"]
    assert foveal(*given, "--prompts", "a blue,a green,a red,a yellow").json["AP"] == 0


def test_the_page_leads_from_numbers_to_pictures(url: str, scenes: Path, tmp_path: Path) -> None:
    foveal("eval", "detection", "--truth", str(scenes), "--detector", url, "--out", str(tmp_path / "a.json"))
    page = (tmp_path / "a.html").read_text()
    asked = set(re.findall(r'href="#(mistakes-[a-z]+)"', page))
    assert asked == {"mistakes-class", "mistakes-background", "mistakes-missed"}
    assert asked == set(re.findall(r'id="(mistakes-[a-z]+)"', page))
    assert "wrong kind: blue at" in page
    for section in ("Precision and recall", "Classes", "Mistakes", "Worst mistakes"):
        assert f"<h2>{section}</h2>" in page
    assert "missed: yellow" in page


def test_a_file_needs_no_pictures(scenes: Path, tmp_path: Path) -> None:
    truth = json.loads((scenes / "instances.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    records = [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5}
        for a in truth["annotations"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(records))
    given = ("--truth", str(tmp_path / "truth.json"), "--predictions", str(tmp_path / "found.json"))
    for options in ([], ["--masks"]):
        kept = tmp_path / "kept.json"
        shown = foveal("eval", "detection", *given, *options, "--out", str(kept), "--name", "mine", "--json")
        assert shown.json["AP"] == pytest.approx(1)
        assert "the page shows no pictures" in shown.err
        result = read(kept)
        assert (result.name, result.task) == ("mine", "segmentation" if options else "detection")
        assert "Worst mistakes" not in kept.with_suffix(".html").read_text()
    moved = [{**r, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]} for r in records]
    (tmp_path / "found.json").write_text(json.dumps(moved))
    assert foveal("eval", "detection", *given, "--json").json["AP"] == pytest.approx(1)
    assert foveal("eval", "detection", *given, "--masks", "--json").json["AP"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--prompts", "a red,a blue"],
            "--prompts needs a text a class, each another; expected 4, in this order: red, green",
        ),
        (["--segmenter", "hf:x/y"], "--detector REF --masks"),
        (["--masks"], "a box has no mask"),
    ],
)
def test_what_cannot_be_measured_is_said(url: str, scenes: Path, options: list[str], said: str) -> None:
    shown = foveal("eval", "detection", "--truth", str(scenes), "--detector", url, *options)
    assert shown.code == 1
    assert said in shown.error


def test_a_server_that_is_not_there_is_named(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.client_calls.TRIES", 1)
    shown = foveal("eval", "detection", "--truth", str(scenes), "--detector", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not answer" in shown.error


def test_an_open_detector_is_asked_for_the_classes(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.models.load_open_detector", lambda _: ColourOpenDetector())
    given = ("eval", "detection", "--truth", str(scenes), "--detector", "bundled:owl", "--json")
    by_name, in_words, in_another_order = (
        foveal(*given, *options).json["AP"]
        for options in ([], ["--prompts", "a red,a green,a blue,a yellow"], ["--prompts", "blue,red,green,yellow"])
    )
    assert by_name == in_words > in_another_order == 0
