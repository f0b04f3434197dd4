"""Labels flipped at a known rate are found by what the other images say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.errors import BadInput
from retrieval.label_errors import confidence, find_label_errors, page
from retrieval.memory import ExemplarMemory
from tests.retrieval.pixels import PixelEncoder
from tests.retrieval.test_memory import CLASSES, scenes

FLIPPED = 6


def flipped(dataset: Dataset, count: int, seed: int = 0) -> tuple[Dataset, set[str]]:
    """The dataset with one label of each of `count` images exchanged for another, and the ids of those boxes."""
    rng = np.random.default_rng(seed)
    chosen = dict.fromkeys(rng.choice(len(dataset), count, replace=False).tolist())
    truths: list[Detections | None] = []
    wrong: set[str] = set()
    for number, sample in enumerate(dataset):
        truth = sample.truth
        assert truth is not None
        if number in chosen:
            box = int(rng.integers(len(truth)))
            labels = truth.labels.copy()
            labels[box] = 1 - labels[box]
            truth = replace(truth, labels=labels)
            wrong.add(f"{sample.id}#{box}")
        truths.append(truth)
    return dataset.with_truth(truths), wrong


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scenes(tmp_path_factory.mktemp("labels") / "images", 30)


def test_flipped_labels_come_first_with_what_they_should_be(world: Dataset) -> None:
    data, wrong = flipped(world, FLIPPED)
    memory = ExemplarMemory.build(PixelEncoder(), data)
    found = find_label_errors(memory)
    assert {one.id for one in found.suspects[:FLIPPED]} == wrong
    assert found.labels == 60
    assert FLIPPED / 2 <= found.estimated <= FLIPPED * 2
    for one in found.suspects[:FLIPPED]:
        assert {one.given, one.suggested} == {"red", "blue"}
        assert one.probability < 0.5 < one.suggested_probability
        assert one.vote < 0.5
        assert one.neighbours
        assert not any(near.id.startswith(f"{one.image}#") for near in one.neighbours)
    assert [one.probability for one in found.suspects] == sorted(one.probability for one in found.suspects)
    assert set(found.rows()[0]) >= {"id", "image", "given", "suggested", "probability", "neighbours"}


def test_the_page_shows_each_suspect_beside_its_like_and_survives_lost_files(world: Dataset, tmp_path: Path) -> None:
    data, wrong = flipped(world, FLIPPED)
    memory = ExemplarMemory.build(PixelEncoder(), data)
    found = find_label_errors(memory)
    html = page(found, memory, data).html()
    assert all(one.image in html for one in found.suspects)
    assert "red, or blue?" in html
    assert wrong
    lost = Dataset.build([replace(sample, path=tmp_path / "gone.png") for sample in data], CLASSES)
    assert "red, or blue?" in page(found, memory, lost).html()


def test_right_labels_are_left_alone(world: Dataset) -> None:
    found = find_label_errors(ExemplarMemory.build(PixelEncoder(), world))
    assert found.suspects == ()
    assert found.accuracy == 1.0


def test_labels_of_whole_images_are_judged_too(tmp_path: Path) -> None:
    from tests.retrieval.pixels import write_images

    samples: list[Sample] = []
    for colour in ("red", "blue"):
        for number, path in enumerate(write_images(tmp_path / colour, 12, seed=len(samples), colour=colour)):
            label = "blue" if (colour, number) == ("red", 5) else colour
            samples.append(Sample(f"{colour}{number}", path, 40, 24, label=label))
    memory = ExemplarMemory.build(PixelEncoder(), Dataset.build(samples, ("red", "blue")))
    found = find_label_errors(memory)
    assert [(one.image, one.given, one.suggested) for one in found.suspects[:1]] == [("red5", "blue", "red")]
    assert found.suspects[0].box == (0, 0, 40, 24)


def test_a_class_of_one_image_is_not_judged(world: Dataset) -> None:
    first = world[0].truth
    assert first is not None
    rare = replace(first, labels=np.array([2, 1]))
    truths = [rare if n == 0 else sample.truth for n, sample in enumerate(world)]
    found = find_label_errors(ExemplarMemory.build(PixelEncoder(), world.with_truth(truths)))
    assert found.labels == 59
    assert "unseen" not in {one.given for one in found.suspects}


def test_a_set_of_one_image_is_refused(world: Dataset) -> None:
    with pytest.raises(BadInput, match="two images"):
        find_label_errors(ExemplarMemory.build(PixelEncoder(), world.subset([0])))


@given(st.integers(2, 60), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_confidence_counts_no_more_than_there_are_and_none_where_all_are_sure(n: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = rng.integers(width, size=n)
    found = confidence(rng.dirichlet(np.ones(width), n), own)
    assert (found.rival != own).all()
    assert (found.wrong >= 0).all()
    assert (found.wrong <= np.bincount(own, minlength=width) + 1e-9).all()
    assert confidence(np.eye(width)[own], own).wrong.sum() == 0
