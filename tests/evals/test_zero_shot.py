"""Zero-shot accuracy against cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals import zero_shot
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CLASSES = tuple(COLOURS)


class ColourEncoder:
    """Embeds images by their mean colour and texts by the colours they name."""

    name, fingerprint, dimension, logit_scale = "colour", "0", 3, 1.0

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        return self._unit([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return self._unit([[name in text for name in CLASSES] for text in texts])

    def _unit(self, rows: Sequence[object]) -> FloatArray:
        values = np.asarray(rows, dtype=np.float32)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


def flat(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), COLOURS[colour])


def test_accuracies_worked_out_by_hand() -> None:
    images = [flat("red"), flat("red"), flat("red"), flat("blue")]
    scores = zero_shot.evaluate(ColourEncoder(), images, [0, 0, 0, 1], CLASSES)
    assert scores == {"top1": 0.75, "top5": 1.0, "mean_class_accuracy": 0.5, "count": 4.0}


def test_a_tie_is_no_hit() -> None:
    grey = Image.new("RGB", (8, 8), (9, 9, 9))
    assert zero_shot.evaluate(ColourEncoder(), [grey], [0], CLASSES)["top1"] == 0.0


def test_templates_are_averaged_on_the_sphere() -> None:
    vectors = zero_shot.class_embeddings(ColourEncoder(), ["red", "blue"], ["a {}", "a {} and green"])
    expected = np.array([1 + np.sqrt(0.5), np.sqrt(0.5), 0])
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(vectors[1], vectors[0][[2, 1, 0]], atol=1e-6)
    for templates in (["no place"], ["{} and {}"], []):
        with pytest.raises(BadInput, match="exactly one"):
            zero_shot.class_embeddings(ColourEncoder(), ["red"], templates)


def test_crops_come_from_boxes_or_labels(tmp_path: Path) -> None:
    scene = Image.new("RGB", (60, 30))
    scene.paste(COLOURS["green"], (10, 5, 30, 25))
    scene.paste(COLOURS["blue"], (40, 5, 52, 25))
    scene.save(tmp_path / "scene.png")
    flat("red").save(tmp_path / "red.png")
    truth = Detections.build([[10, 5, 30, 25], [40, 5, 52, 25], [0, 0, 4, 4]], 1.0, [1, 2, 0], CLASSES)
    samples = [
        Sample(id="scene", path=tmp_path / "scene.png", width=60, height=30, truth=truth),
        Sample(id="red", path=tmp_path / "red.png", width=8, height=8, truth=None, label="red"),
        Sample(id="bare", path=tmp_path / "red.png", width=8, height=8, truth=None),
    ]
    dataset = Dataset.build(samples, CLASSES)
    images, labels = zero_shot.crops(dataset, context=0.1)
    assert [image.size for image in images] == [(24, 24), (14, 24), (8, 8)]
    assert labels == [1, 2, 0]
    assert zero_shot.evaluate_dataset(ColourEncoder(), dataset)["top1"] == 1.0
    with pytest.raises(BadInput, match="a labelled dataset"):
        zero_shot.crops(Dataset.build(samples[-1:], CLASSES))


def test_lengths_must_agree() -> None:
    with pytest.raises(BadInput, match="one label per image"):
        zero_shot.evaluate(ColourEncoder(), [flat("red")], [], CLASSES)
    with pytest.raises(BadInput, match="one label per image"):
        zero_shot.evaluate(ColourEncoder(), [], [], CLASSES)
