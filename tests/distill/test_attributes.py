"""Attributes and masks of pre-labels: only what the gold set bears out is filled in, and both travel out and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.attributes import AttributeReader, Told
from distill.ontology import Ontology
from distill.prelabel import PrelabelSettings, load_report, prelabel
from distill.prelabels import PREDICTIONS, as_dataset
from distill.reviewed import CORRECTED, read_corrected, take_back
from foveal import masks
from foveal.dataset import Dataset
from foveal.detections import BoolArray, Detections, FloatArray
from foveal.errors import BadInput
from foveal.formats import cvat
from tests.distill.painted import CLASSES, DenseBlobs, Swatches, painted, remember

WARM = ("red", "yellow")
ONTOLOGY = Ontology.model_validate(
    {"classes": list(CLASSES), "attributes": {"tone": ["cold", "warm"], "age": ["new", "old"]}}
)


class Axes:
    """An encoder whose words are the axes of its space."""

    name, fingerprint, dimension, logit_scale = "axes", "axes-1", 3, 50.0
    WORDS = ("new", "old", "worn")

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.array([[float(word in text.split()) for word in self.WORDS] for text in texts], np.float32)


def _told(count: int, clear: float, seed: int = 0) -> list[Told]:
    """Crops near the axis of their age; every third of them says nothing of it."""
    rng = np.random.default_rng(seed)
    found: list[Told] = []
    for i in range(count):
        value = int(rng.integers(3))
        crop = clear * np.eye(3)[value] + rng.normal(0, 1, 3)
        said = {"age": Axes.WORDS[value]} if i % 3 else {}
        found.append(Told(str(i), "bolt", (crop / np.linalg.norm(crop)).astype(np.float32), said))
    return found


def test_a_value_is_filled_in_where_gold_bears_it_out() -> None:
    ontology = Ontology.model_validate(
        {"classes": ["bolt"], "attributes": {"age": Axes.WORDS, "size": ["small", "large"]}}
    )
    reader = AttributeReader.fit(ontology, Axes(), _told(600, 1.8), 0.9, 0.95)
    reading = reader.readings["age"]
    assert reading.boxes == 400
    assert reading.threshold is not None
    assert 0.3 * 400 < reading.filled < 400
    assert reader.readings["size"].threshold is None
    assert any("'size' is left open: no gold box says" in warning for warning in reader.warnings)
    fresh = _told(3000, 1.8, seed=1)
    said = reader(np.stack([one.crop for one in fresh]), ["bolt"] * len(fresh))
    judged = [(a["age"], one.attributes["age"]) for a, one in zip(said, fresh, strict=True) if a and one.attributes]
    assert len(judged) > 600
    assert np.mean([one == other for one, other in judged]) >= 0.9
    again = AttributeReader.from_json(json.loads(json.dumps(reader.to_json())), ontology, Axes())
    assert again(np.stack([one.crop for one in fresh[:50]]), ["bolt"] * 50) == said[:50]
    assert reader(fresh[0].crop[None], ["nut"]) == ({},)


def test_noise_is_left_open() -> None:
    ontology = Ontology.model_validate({"classes": ["bolt"], "attributes": {"age": Axes.WORDS}})
    reader = AttributeReader.fit(ontology, Axes(), _told(200, 0.0), 0.9, 0.95)
    assert reader.readings["age"].threshold is None
    assert reader.readings["age"].filled == 0


class Cutter:
    """Draws what differs from the grey ground inside a box."""

    name, fingerprint = "cutter", "cutter-1"

    def masks(self, image: Image.Image, boxes: FloatArray) -> list[BoolArray]:
        away = np.abs(np.asarray(image, np.float32) - 128).max(axis=2) > 34
        found: list[BoolArray] = []
        for x1, y1, x2, y2 in boxes.round().astype(int).tolist():
            inside = np.zeros(away.shape, dtype=bool)
            inside[y1:y2, x1:x2] = away[y1:y2, x1:x2]
            found.append(inside)
        return found


def _toned(data: Dataset) -> Dataset:
    truths: list[Detections | None] = []
    for sample in data:
        assert sample.truth is not None
        said = tuple({"tone": "warm" if name in WARM else "cold"} for name in sample.truth.label_names)
        truths.append(Detections.build(sample.truth.boxes, 1.0, sample.truth.label_names, CLASSES, attributes=said))
    return data.with_truth(truths)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("attributes")
    gold, hidden = _toned(painted(folder / "gold", 40, 1)), _toned(painted(folder / "hidden", 20, 2))
    source = hidden.with_truth([None] * len(hidden))
    out = folder / "job"
    prelabel(source, ONTOLOGY, DenseBlobs(), gold, remember(gold), out, segmenter=Cutter())  # type: ignore[arg-type]
    return out, hidden


def test_pre_labels_carry_masks_and_attributes(job: tuple[Path, Dataset]) -> None:
    out, _ = job
    report = load_report(out)
    assert report.gold["attributes"]["tone"]["filled"] > 60
    assert any("'age' is left open" in warning for warning in report.warnings)
    listed = json.loads((out / PREDICTIONS).read_text())["categories"]
    assert listed[0]["attributes"] == {"tone": ["cold", "warm"], "age": ["new", "old"]}
    for sample in Dataset.open(out / PREDICTIONS):
        assert sample.truth is not None
        assert sample.truth.masks is not None
        assert sample.truth.attributes is not None
        for row, origin in enumerate(sample.truth.provenance or ()):
            text = sample.truth.masks[row]
            assert bool(text) == (origin.route != "reject")
            if text:
                around = masks.box(text, sample.height, sample.width)
                assert around == pytest.approx(sample.truth.boxes[row].tolist(), abs=3)
            warm = sample.truth.label_names[row] in WARM
            assert sample.truth.attributes[row].get("tone", "warm" if warm else "cold") == ("warm" if warm else "cold")
    text = (out / "label_studio.xml").read_text()
    assert '<Choice value="old" />' in text
    assert "PolygonLabels" in text


def test_corrected_attributes_and_masks_come_back(job: tuple[Path, Dataset], tmp_path: Path) -> None:
    out, _ = job
    cvat.write(as_dataset(out, ["accept", "review"]), tmp_path / "given", attributes=ONTOLOGY.schema_of_attributes)
    path = tmp_path / "given" / "annotations.xml"
    text = path.read_text()
    assert text.count("<polygon ") > 40
    first = text.index('<attribute name="tone">')
    path.write_text(text[:first] + text[first:].replace(">warm<", ">cold<", 1))
    report = take_back(out, read_corrected(tmp_path / "given", out))
    assert report.changes["kept"] == report.boxes
    tone = report.attributes["tone"]
    assert tone["right"] == tone["filled"] - 1
    kept = Dataset.open(out / CORRECTED)[0].truth
    assert kept is not None
    assert kept.masks is not None
    assert kept.attributes is not None
    assert any("tone" in said for said in kept.attributes)


def test_attributes_need_an_encoder(tmp_path: Path) -> None:
    gold = painted(tmp_path / "gold", 6, 1)
    with pytest.raises(BadInput, match="the memory's encoder"):
        prelabel(gold, ONTOLOGY, DenseBlobs(), gold, None, tmp_path / "out", PrelabelSettings())


def test_the_words_are_those_of_the_prompts() -> None:
    asked: list[str] = []

    class Listening(Swatches):
        def encode_texts(self, texts: Sequence[str]) -> FloatArray:
            asked.extend(texts)
            return super().encode_texts(texts)

    ontology = Ontology.model_validate(
        {"classes": [{"name": "b1", "prompts": ["oil drum"], "attributes": {"lid": ["open", "shut"]}}, "cone"]}
    )
    AttributeReader.fit(ontology, Listening(), [], 0.9, 0.95)
    assert asked == ["a open oil drum", "a shut oil drum"]
