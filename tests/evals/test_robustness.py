"""Robustness: the figures against a model whose weakness is known, and work that goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evals import pages
from evals.measures import measures_of
from evals.results import Data, Result, Stopwatch, Subject
from evals.results import read as read_result
from evals.robustness import Condition, conditions, detecting, measure, naming, searching
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput, UnknownName
from tests.command import foveal
from tests.tiny import tiny_clip

COLOURS = {"dark": 40, "light": 210}


class LightMeter:
    """Embeds an image by how light it is on the whole, and texts by the light they name."""

    name, fingerprint, dimension, logit_scale = "meter", "0", 2, 10.0

    def __init__(self) -> None:
        self.texts = 0

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        light = np.array([np.asarray(image).mean() / 255 for image in images])
        return self._unit(np.stack([1 - light, light], axis=1))

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        self.texts += len(texts)
        return self._unit(np.array([[name in text for name in COLOURS] for text in texts], dtype=np.float64))

    def _unit(self, rows: Any) -> FloatArray:
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@pytest.fixture
def pictures(tmp_path: Path) -> Dataset:
    """Four dark and four light pictures, each with a brighter square, its box and its caption."""
    samples: list[Sample] = []
    for i in range(8):
        name = list(COLOURS)[i % 2]
        canvas = np.full((48, 48, 3), COLOURS[name], dtype=np.uint8)
        canvas[10:30, 12 : 30 + i] = COLOURS[name] + 30
        path = tmp_path / f"{i}.png"
        Image.fromarray(canvas).save(path)
        truth = Detections.build([[12, 10, 30 + i, 30]], 1.0, [i % 2], tuple(COLOURS))
        camera: dict[str, str | int | float] = {"camera": f"cam-{i // 4}"}
        captions = (f"a {name} picture",)
        samples.append(Sample(str(i), path, 48, 48, truth=truth, captions=captions, metadata=camera))
    return Dataset.build(samples, tuple(COLOURS))


SOME = [Condition("brightness", s) for s in (1, 5)] + [Condition("contrast", s) for s in (1, 5)]


def result_of(measured: Any) -> Result:
    data = Data(source="here", fingerprint="0", images=8)
    return Stopwatch().result("robustness", measured, Subject(reference="meter"), data)


def test_figures_say_what_is_left_and_where_it_is_lost(pictures: Dataset) -> None:
    found = measure(naming(LightMeter()), pictures, SOME).figures
    assert found["figure"] == "top1"
    assert found["clean"] == 1.0
    assert found["corruptions"]["brightness"] == {"1": 1.0, "5": 0.5, "mean": 0.75}  # the dark ones are light now
    assert found["corruptions"]["contrast"] == {"1": 1.0, "5": 1.0, "mean": 1.0}
    assert (found["mean_corrupted"], found["relative"]) == (0.875, 0.875)
    assert (found["worst"], found["worst_corruption"]) == (0.75, "brightness")
    assert found["sweeps"] == {}


def test_figures_follow_from_the_items_for_a_bootstrap(pictures: Dataset) -> None:
    result = result_of(measure(naming(LightMeter()), pictures, SOME))
    known = measures_of(result)
    assert set(known) == {"clean", "mean_corrupted", "relative"}
    for name, of in known.items():
        assert of.of(result.items, np.ones((1, 8)))[0] == pytest.approx(result.figures[name])
    dark = np.array([[kind == "dark" for kind in result.items["class"]]], dtype=np.float64)
    assert known["mean_corrupted"].of(result.items, dark)[0] == 0.75
    assert result.items["brightness"] == [0.5, 1.0] * 4
    assert set(result.slices) == {"class", "camera", "object size"}


def test_search_and_detection_are_measured_too(pictures: Dataset) -> None:
    found = measure(searching(LightMeter()), pictures, SOME)
    assert found.figures["figure"] == "recall_at_1"
    assert found.items["text"][0] == "a dark picture"
    assert found.figures["relative"] == 1  # the darkest picture is still the darkest

    def squares(images: Sequence[Image.Image]) -> list[Detections]:
        """What is lighter than the corner, as long as the corner is dark or clearly light."""
        boxes: list[Detections] = []
        for image in images:
            grey = np.asarray(image.convert("L")).astype(int)
            rows, columns = np.nonzero(grey > grey[0, 0] + 10)
            kind = int(grey[0, 0] > 120)
            box = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if len(rows) else np.zeros((0, 4))
            boxes.append(Detections.build(box, 0.9, [kind] * len(rows[:1]), tuple(COLOURS)))
        return boxes

    measured = measure(detecting(squares), pictures, SOME)
    assert measured.figures["clean"] == pytest.approx(1)
    assert measured.figures["image_clean"] == pytest.approx(1)
    assert measured.figures["corruptions"]["contrast"]["5"] == pytest.approx(0)  # nothing stands out any more
    assert set(measures_of(result_of(measured))) == {"image_clean", "image_corrupted"}
    with pytest.raises(BadInput, match="no image has boxes"):
        measure(detecting(squares), pictures.with_truth([Detections.empty(tuple(COLOURS))] * 8), SOME)


def test_interrupted_work_goes_on_where_it_stopped(pictures: Dataset, tmp_path: Path) -> None:
    kept, about = tmp_path / "r.cells.jsonl", {"model": "0", "data": "1"}
    whole = measure(naming(LightMeter()), pictures, SOME).figures

    class Interrupting(LightMeter):
        calls = 0

        def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().encode_images(images)

    with pytest.raises(KeyboardInterrupt):
        measure(naming(Interrupting()), pictures, SOME, kept, about)
    lines = kept.read_text().splitlines()
    assert [json.loads(line)["level"] for line in lines[1:]] == [1, 5]
    kept.write_text("\n".join(lines) + '\n{"name": "contrast", "lev')  # the last line was being written
    again = Interrupting()
    assert measure(naming(again), pictures, SOME, kept, about).figures == whole
    assert again.calls == 3  # clean and the two that were missing

    other = Interrupting()
    with pytest.raises(KeyboardInterrupt):  # cells of another model are not taken
        measure(naming(other), pictures, SOME, kept, {**about, "model": "2"})


def test_texts_are_read_once_whatever_happens_to_the_pictures(pictures: Dataset) -> None:
    meter = LightMeter()
    measure(naming(meter), pictures, SOME)
    assert meter.texts == 2 * 4  # classes by templates


def test_what_is_asked_for_is_checked() -> None:
    assert len(conditions()) == 75 + 12
    assert conditions(["fog"], [3], sweeps=False) == [Condition("fog", 3)]
    with pytest.raises(UnknownName, match="motion_blur"):
        conditions(["rain"])
    with pytest.raises(BadInput, match="1 to 5"):
        conditions(["fog"], [0])
    with pytest.raises(BadInput, match="1 to 5"):
        conditions([], [1])


def test_the_command_writes_a_result_and_a_page(tmp_path: Path) -> None:
    site, out = str(tmp_path / "site"), tmp_path / "eval" / "robust.json"
    assert foveal("world", site, "--count", "4", "--size", "96", "--workers", "1").code == 0
    (tmp_path / "clip").mkdir()
    encoder = f"open_clip:{tiny_clip(tmp_path / 'clip')}"
    line = ["eval", "robustness", "--data", site, "--encoder", encoder, "--corruption", "fog", "--corruption", "snow"]
    done = foveal(*line, "--severity", "2", "--severity", "5", "--out", str(out), "--json")
    assert done.code == 0, done.err
    assert list(done.json["corruptions"]) == ["fog", "snow"]
    assert set(done.json["sweeps"]) == {"resolution", "compression"}
    result = read_result(out)
    assert result.task == "robustness"
    assert result.subject.reference == encoder
    assert len(result) == len(result.items["fog"]) > 4
    assert [path.name for path in out.parent.iterdir()].count("robust.cells.jsonl") == 0
    html = out.with_suffix(".html").read_text()
    for words in ("severity 5", "What the pictures look like", "JPEG quality", 'class="heat"'):
        assert words in html
    spoken = foveal(*line, "--severity", "5", "--no-sweeps")
    assert "worst corruption" in spoken.out
    assert "severity" not in spoken.err
    wrong = foveal("eval", "robustness", "--data", site, "--corruption", "rain")
    assert "no corruption 'rain'" in wrong.error
    both = foveal("eval", "robustness", "--data", site, "--detector", "onnx:.", "--open-detector", "bundled:owl")
    assert "not both" in both.error


def test_a_page_without_its_pictures_still_has_its_curves(pictures: Dataset) -> None:
    html = pages.page(result_of(measure(naming(LightMeter()), pictures, SOME))).html()
    assert "Worst first" in html
    assert "What the pictures look like" not in html
