"""Slices found among mistakes: one that is there is found and named, none is invented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evals import detection, pages
from evals.blind_spots import described, errors_of, find, holm, measure, vocabulary
from evals.results import Data, Measured, Result, Stopwatch, Subject
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput

Vectors = NDArray[np.float32]
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "grey": (120, 120, 120)}


def unit(rows: Any) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def scattered(rng: np.random.Generator, pictures: int, each: int) -> tuple[Vectors, NDArray[Any], NDArray[Any]]:
    """Vectors around four centres, (vectors, which centre, which picture); those of a picture resemble each other."""
    picture = np.repeat(np.arange(pictures), each)
    kind = rng.integers(0, 4, len(picture))
    alike = rng.standard_normal((pictures, 8))[picture] * 0.5
    rows = 2 * rng.standard_normal((4, 8))[kind] + alike + rng.standard_normal((len(picture), 8)) * 0.4
    return unit(rows), kind, picture


def test_a_slice_that_errs_is_found_and_measured_where_it_was_not_looked_for() -> None:
    rng = np.random.default_rng(1)
    vectors, kind, picture = scattered(rng, 200, 2)
    errors = (rng.random(400) < np.where(kind == 2, 0.7, 0.1)).astype(float)
    found = find(vectors, errors, picture)
    assert found.slices
    first = found.slices[0]
    assert (kind[first.members] == 2).mean() > 0.8
    assert first.p < 0.01
    assert first.low < 0.6 < first.high + 0.1
    assert 0 < first.low < first.error - first.rest < first.high
    assert find(vectors, errors, picture).slices[0].p == first.p


@pytest.mark.slow
def test_errors_that_have_nothing_to_do_with_looks_give_no_slice() -> None:
    """In five of a hundred cases at most one is found, though whole pictures err together."""
    found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        vectors, _, picture = scattered(rng, 100, 4)
        hard = rng.choice([0.05, 0.6], 100)[picture]
        found += bool(find(vectors, (rng.random(400) < hard).astype(float), picture, seed).slices)
    assert found <= 7  # 99.5% of binomial draws


def test_mistakes_everywhere_are_no_slice() -> None:
    rng = np.random.default_rng(3)
    vectors, _, picture = scattered(rng, 150, 2)
    found = find(vectors, (rng.random(300) < 0.3).astype(float), picture)
    assert found.slices == ()
    with pytest.raises(BadInput, match="40 pictures or more"):
        find(vectors[:60], np.ones(60), picture[:60])
    with pytest.raises(BadInput, match="0 mistakes"):
        find(vectors, np.zeros(300), picture)


def test_p_values_are_corrected_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_is_known_describes_a_slice() -> None:
    columns: dict[str, list[str | None]] = {
        "camera": ["a"] * 5 + ["b"] * 5,
        "light": ["dim", "even"] * 5,
        "note": [None] * 10,
    }
    told = described(columns, np.arange(10) < 4)
    assert told == ["camera a: 100% against 17%"]


class ColourEncoder:
    """Embeds images by their mean colour and texts by the colours they name."""

    name, fingerprint, dimension, logit_scale = "colour", "0", 3, 1.0

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        return unit(np.array([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images]))

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        known = [next((value for name, value in COLOURS.items() if name in text), (1, 1, 1)) for text in texts]
        return unit(np.array(known, dtype=np.float64))


def dataset_of(folder: Path) -> tuple[Dataset, list[str]]:
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    kinds: list[str] = []
    for i in range(160):
        kind = list(COLOURS)[i % 4]
        noisy = np.clip(np.array(COLOURS[kind]) + rng.integers(-25, 26, 3), 0, 255).astype(np.uint8)
        path = folder / f"{i}.png"
        Image.fromarray(np.broadcast_to(noisy, (8, 8, 3)).copy()).save(path)
        samples.append(Sample(f"i{i}", path, 8, 8, label="thing", captions=(f"a {kind} thing",)))
        kinds.append(kind)
    return Dataset.build(samples, ("thing",)), kinds


def result_of(dataset: Dataset, wrong: Sequence[bool], column: str = "right") -> Result:
    items: dict[str, list[Any]] = {"id": list(dataset.ids), column: [int(not w) for w in wrong]}
    measured = Measured({"top1": 0.0}, items, {"shelf": ["low"] * 80 + ["high"] * 80})
    data = Data(source="here", fingerprint="0", images=len(dataset))
    return Stopwatch().result("zero-shot", measured, Subject(reference="colour"), data)


def test_a_slice_is_named_by_the_nearest_text_and_shown(tmp_path: Path) -> None:
    dataset, kinds = dataset_of(tmp_path)
    rng = np.random.default_rng(1)
    wrong = [bool(rng.random() < (0.8 if kind == "green" else 0.05)) for kind in kinds]
    measured = measure(result_of(dataset, wrong), dataset, ColourEncoder())
    assert list(measured.figures["slices"]) == ["green"]
    told = measured.figures["slices"]["green"]
    assert told["error"] > 0.5 > 0.25 > told["rest"]
    inside = [kind for kind, name in zip(kinds, measured.slices["slice"], strict=True) if name]
    assert inside.count("green") == 40  # all of them, and few others
    assert len(inside) < 55
    data = Data(source="here", fingerprint="0", images=len(dataset))
    result = Stopwatch().result("slices", measured, Subject(reference="colour"), data)
    html = pages.page(result, dataset).html()
    assert "“green”" in html
    assert html.count("<img") == 12


def test_without_a_slice_the_page_says_so(tmp_path: Path) -> None:
    dataset, _ = dataset_of(tmp_path)
    rng = np.random.default_rng(5)
    measured = measure(result_of(dataset, (rng.random(160) < 0.3).tolist()), dataset, ColourEncoder())
    assert (measured.figures["found"], measured.figures["slices"]) == (0, {})
    data = Data(source="here", fingerprint="0", images=len(dataset))
    result = Stopwatch().result("slices", measured, Subject(reference="colour"), data)
    assert "No slice stands out" in pages.page(result, dataset).html()


def test_other_data_or_a_result_without_rights_and_wrongs_are_refused(tmp_path: Path) -> None:
    dataset, _ = dataset_of(tmp_path)
    result = result_of(dataset, [True] * 160)
    with pytest.raises(BadInput, match="100 pictures of the result 'zero-shot' are not in the data"):
        measure(result, dataset.subset(range(60)), ColourEncoder())
    with pytest.raises(BadInput, match="does not say which"):
        errors_of(result_of(dataset, [True] * 160, column="confidence"))
    ranked = result.model_copy(update={"items": {"id": ["a", "b"], "rank": [1, 4]}})
    assert errors_of(ranked).tolist() == [0, 1]


def test_names_come_from_classes_and_captions(tmp_path: Path) -> None:
    dataset, _ = dataset_of(tmp_path)
    texts = vocabulary(dataset)
    assert texts[0] == "thing"
    assert {"green", "green thing", "blue"} <= set(texts)


def test_a_detections_error_is_what_its_image_lacks_to_an_ap50_of_one() -> None:
    names = ("cone",)
    truth = [Detections.build([[0, 0, 10, 10], [20, 20, 40, 40]], 1.0, [0, 0], names) for _ in range(3)]
    found = [truth[0], truth[0][:1], Detections.empty(names)]
    measured = detection.measure(truth, found)
    data = Data(source="here", fingerprint="0", images=3)
    result = Stopwatch().result("detection", measured, Subject(reference="x"), data)
    assert errors_of(result) == pytest.approx([0, 0.5, 1], abs=0.01)
