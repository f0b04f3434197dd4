"""Few-shot classification over draws: what is held out, what is kept, and what the page says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evals import shots
from evals.measures import measures_of
from evals.results import read
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput
from tests.command import foveal

CLASSES = ("red", "green", "blue")


class Misnamed:
    """Embeds images by their mean colour, and takes each colour's name for the next one's."""

    name, fingerprint, dimension, logit_scale = "misnamed", "0", 3, 10.0

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        return self._unit([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return self._unit([[CLASSES[i - 1] in text for i in range(3)] for text in texts])

    def _unit(self, rows: Any) -> FloatArray:
        values = np.asarray(rows, dtype=np.float32)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


def colours(folder: Path, counts: Sequence[int], seed: int = 0) -> Dataset:
    """Labelled images, as many of each colour, none the same."""
    folder.mkdir()
    rng, samples = np.random.default_rng(seed), list[Sample]()
    for label, count in enumerate(counts):
        for i in range(count):
            pixels = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
            pixels[..., label] += 130
            path = folder / f"{CLASSES[label]}-{i}.png"
            Image.fromarray(pixels).save(path)
            light = "day" if i % 2 else "night"
            samples.append(Sample(path.stem, path, 8, 8, label=CLASSES[label], metadata={"light": light}))
    return Dataset.build(samples, CLASSES)


def test_halves_hold_each_class_in_equal_parts(tmp_path: Path) -> None:
    dataset = colours(tmp_path / "set", (6, 4, 1))
    drawn, asked = shots.halves(dataset)
    assert not set(drawn.ids) & set(asked.ids)
    assert set(drawn.ids) | set(asked.ids) == set(dataset.ids)
    assert Counter(s.label for s in asked) == {"red": 3, "green": 2}  # the only blue one is learnt from
    assert shots.halves(dataset)[1].ids == asked.ids
    with pytest.raises(BadInput, match="two labelled images"):
        shots.halves(colours(tmp_path / "few", (1, 1, 1)))


def test_an_image_of_several_classes_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(path)
    pairs = [("red", "green")] * 4 + [("red", "red")] * 4
    boxes = [[0, 0, 20, 20], [20, 20, 40, 40]]
    samples = [
        Sample(str(i), path, 40, 40, Detections.build(boxes, 1.0, pair, CLASSES)) for i, pair in enumerate(pairs)
    ]
    drawn, asked = shots.halves(Dataset.build(samples, CLASSES))
    for part in (drawn, asked):  # the rarest class is shared out first
        assert Counter(name for s in part if s.truth for name in s.truth.label_names) == {"red": 6, "green": 2}


def test_figures_follow_from_items(tmp_path: Path) -> None:
    dataset = colours(tmp_path / "set", (8, 8, 8))
    measured = shots.measure(Misnamed(), dataset, shots=(4, 1), seeds=2)
    assert list(measured.figures["shots"]) == ["1", "4"]
    assert measured.figures["shots"]["1"]["examples"] == 3
    assert measured.figures["count"] == 12
    assert measured.figures["zero_shot_top1"] == 0
    assert measured.figures["tip_adapter_top1"] == measured.figures["linear_probe_top1"] == 1
    assert measured.figures["shots"]["4"]["tip_adapter"] == {"top1": 1, "spread": 0, "mean_class_accuracy": 1}
    items = measured.items
    following = dict(zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True))
    assert items["linear_probe_said"] == items["class"]
    assert items["zero_shot_said"] == [
        next(said for said in CLASSES if following[said] == truth) for truth in items["class"]
    ]
    assert set(measured.slices) == {"class", "light"}
    one = shots.measure(Misnamed(), dataset, shots=(1,), seeds=1)
    assert one.figures["shots"]["1"]["linear_probe"]["spread"] is None


def test_a_tie_is_no_hit() -> None:
    answers = shots._answers(np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), np.array([0, 1]))  # pyright: ignore
    assert answers.tolist() == [1, 1]


def test_a_test_set_of_its_own(tmp_path: Path) -> None:
    known, asked = colours(tmp_path / "a", (3, 3, 3)), colours(tmp_path / "b", (0, 2, 2), seed=1)
    turned = Dataset.build(asked, ("blue", "green"))  # in an order of its own
    measured = shots.measure(Misnamed(), known, turned, shots=(3,), seeds=1)
    assert measured.items["class"] == ["green", "green", "blue", "blue"]
    assert measured.figures["linear_probe_top1"] == 1
    with pytest.raises(BadInput, match=r"no examples.*received blue, green"):
        shots.measure(Misnamed(), Dataset.build(known.subset([0, 1, 2]), ("red",)), turned)
    with pytest.raises(BadInput, match="2 images are both to learn from and to be asked, the first red-0"):
        shots.measure(Misnamed(), known, known.subset([0, 5]))
    with pytest.raises(BadInput, match="at least one shot"):
        shots.measure(Misnamed(), known, shots=(0,))


def test_what_is_kept_gives_the_figures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.models.load_encoder", lambda _: Misnamed())
    colours(tmp_path / "set", (6, 6, 6)).write(tmp_path / "coco", "image_folder")
    kept = tmp_path / "few.json"
    line = ("eval", "few-shot", "--data", str(tmp_path / "coco"), "--shots", "1,2", "--seeds", "2", "--json")
    shown = foveal(*line, "--out", str(kept))
    assert shown.code == 0, shown.err
    result = read(kept)
    assert result.settings == {"shots": [1, 2], "seeds": 2}
    measures = measures_of(result)
    assert set(measures) == {"zero_shot_top1", "tip_adapter_top1", "linear_probe_top1"}
    for name, measure in measures.items():
        assert measure.of(result.items, np.ones((1, len(result))))[0] == pytest.approx(shown.json[name])
    page = kept.with_suffix(".html").read_text()
    for section in ("Accuracy by number of examples", "Which is better", "Mistakes of Tip-Adapter"):
        assert f"<h2>{section}</h2>" in page
    assert "Tip-Adapter over zero-shot: +1.000" in page
    colours(tmp_path / "more", (2, 2, 2), seed=5).write(tmp_path / "asked", "image_folder")
    foveal(*line, "--test", str(tmp_path / "asked"), "--out", str(kept))
    assert read(kept).data.fingerprint not in (result.data.fingerprint, Dataset.open(tmp_path / "asked").fingerprint)
    assert (read(kept).data.images, len(read(kept))) == (6, 6)
    assert "whole numbers above 0" in foveal("eval", "few-shot", "--data", "x", "--shots", "1 4").error
