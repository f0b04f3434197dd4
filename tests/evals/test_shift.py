"""Shift between two sets of images: found where there is one, not found where there is none, and what goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evals.results import read as read_result
from evals.shift import Detect as Detector
from evals.shift import Pair, measure, pair
from foveal.dataset import Dataset
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput
from foveal.world import write
from tests.command import foveal
from tests.tiny import tiny_clip


class Eye:
    """Sees what an image is like on the whole: its light and colour in 16 places, and how sharp it is."""

    name, fingerprint, dimension, logit_scale = "eye", "0", 49, 1.0

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        rows: list[Any] = []
        for image in images:
            grey = np.asarray(image.convert("L"), dtype=np.float32)
            sharp = np.abs(np.diff(grey, axis=1)).mean() / 8
            rows.append([*(np.asarray(image.resize((4, 4)), dtype=np.float32) / 255).ravel(), sharp])
        values = np.array(rows, dtype=np.float32)
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        values = np.random.default_rng(0).standard_normal((len(texts), 49)).astype(np.float32)
        return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(write(tmp_path_factory.mktemp("shift") / "site", "site", 80, seed=2, size=64))


def halves(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    return dataset.subset(order[: len(order) // 2]), dataset.subset(order[len(order) // 2 :])


def blurred(dataset: Dataset, folder: Path, radius: float) -> Dataset:
    samples = []
    for sample in dataset:
        path = folder / f"{sample.id}.png"
        sample.image().filter(ImageFilter.GaussianBlur(radius)).save(path)
        samples.append(replace(sample, path=path))
    return Dataset.build(samples, dataset.classes)


def test_blurred_pictures_are_found_and_told_apart(world: Dataset, tmp_path: Path) -> None:
    first, second = halves(world, 0)
    found = measure(Eye(), pair(first, blurred(second, tmp_path, 1.5)), permutations=99)
    assert found.figures["p"] <= 0.05
    assert found.figures["auc"] > 0.8
    ratio, which = np.array(found.items["log_ratio"]), np.array(found.items["set"])
    assert ratio[which == "data"].mean() > 0.5 > -0.5 > ratio[which == "reference"].mean()
    assert found.figures["fields"]["camera"]["psi"] < 0.5  # the same cameras took both
    assert found.figures["reference_images"] == found.figures["data_images"] == 40


def test_halves_of_one_set_do_not_differ(world: Dataset) -> None:
    p = [measure(Eye(), pair(*halves(world, seed)), permutations=99).figures["p"] for seed in range(4)]
    assert sum(value <= 0.05 for value in p) <= 1
    assert max(p) > 0.1


def test_what_is_known_of_the_images_is_compared(world: Dataset) -> None:
    cameras = sorted({str(sample.metadata["camera"]) for sample in world})
    parts = [[i for i, s in enumerate(world) if (s.metadata["camera"] == cameras[0]) == one] for one in (True, False)]
    found = measure(Eye(), pair(*(world.subset(part) for part in parts)), permutations=19)
    camera = found.figures["fields"]["camera"]
    assert camera["psi"] > 1
    assert camera["reference"][cameras[0]] == 1
    assert camera["data"][cameras[0]] == 0
    assert sum(camera["data"].values()) == pytest.approx(1)
    assert "class said" in found.figures["fields"]
    assert found.slices["camera"][0] == cameras[0]


def test_copies_count_once_and_shared_files_are_no_shift(world: Dataset) -> None:
    samples = list(world)[:40]
    burst = [replace(samples[0], id=f"again-{i}") for i in range(60)]  # one picture, stored sixty times
    images = pair(Dataset.build([*samples, *burst], world.classes), Dataset.build(samples, world.classes))
    assert (images.copies, images.shared) == (60, 40)
    found = measure(Eye(), images, permutations=99)
    assert found.figures["p"] > 0.2
    assert found.figures["auc"] == pytest.approx(0.5, abs=0.02)
    assert found.figures["shared_files"] == 40


def test_a_detectors_answers_are_compared(world: Dataset) -> None:
    def certain(images: Sequence[Image.Image], threshold: float) -> list[Detections]:
        """As sure as the picture is light."""
        scores = [float(np.clip(np.asarray(image).mean() / 128, threshold, 1)) for image in images]
        return [Detections.build([[0, 0, 9, 9]], score, [0], ("thing",)) for score in scores]

    def of(images: Pair, detect: Detector) -> dict[str, Any]:
        return measure(Eye(), images, detect, permutations=1).figures

    light = sorted(range(len(world)), key=lambda i: float(np.asarray(world[i].image()).mean()))
    shifted = of(pair(world.subset(light[:40]), world.subset(light[40:])), certain)
    same = of(pair(*halves(world, 1)), certain)
    assert shifted["scores_psi"] > 0.25 > same["scores_psi"]
    assert shifted["boxes_psi"] == 0


def test_the_command_writes_a_result_and_a_page(tmp_path: Path) -> None:
    folder = str(write(tmp_path / "few", "site", 12, seed=3, size=64))
    (tmp_path / "clip").mkdir()
    encoder = f"open_clip:{tiny_clip(tmp_path / 'clip')}"
    out = tmp_path / "shift.json"
    done = foveal("eval", "shift", folder, folder, "--encoder", encoder, "--out", str(out), "--json")
    assert done.code == 0, done.err
    assert done.json["p"] > 0.2
    assert done.json["shared_files"] == 12
    result = read_result(out)
    assert result.task == "shift"
    assert len(result) == 24
    html = out.with_suffix(".html").read_text()
    for words in (
        "Nothing shows that the two sets look different",
        "Population stability index",
        "What stayed",
        "camera",
    ):
        assert words in html
    nowhere = foveal("eval", "shift", folder, str(tmp_path / "nowhere"))
    assert "does not exist" in nowhere.error


def test_too_few_images_are_refused(world: Dataset) -> None:
    with pytest.raises(BadInput, match="10 images in each set"):
        measure(Eye(), pair(world, world.subset(range(5))))
