"""What a reviewer says of a crop is what the memory says of it from then on, in this process and after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.errors import Unavailable
from retrieval import reviewing
from retrieval.corrections import Correction, corrections
from retrieval.memory import ExemplarMemory
from retrieval.reviewing import correct
from tests.retrieval.pixels import PixelEncoder
from tests.retrieval.test_memory import CLASSES, scenes

NONE = np.zeros((0, 4), np.float32)


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scenes(tmp_path_factory.mktemp("gold") / "images", 8)


@pytest.fixture(scope="module")
def memory(gold: Dataset) -> ExemplarMemory:
    return ExemplarMemory.build(PixelEncoder(), gold)


def approving(sample: Sample, boxes: Sequence[Sequence[float]], labels: Sequence[str]) -> Correction:
    return Correction(sample.id, sample.image(), Detections.build(boxes, 1.0, labels, sorted(set(labels))), NONE)


edges = st.tuples(st.integers(0, 80), st.integers(0, 60), st.integers(6, 39), st.integers(6, 39))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edges, st.integers(0, 7), st.sampled_from(["red", "blue", "unseen", "new", None]))
@example((7, 12, 6, 6), 1, "blue")  # an even piece of the picture, the same when it is moved or flipped
def test_a_verdict_stands_at_once_for_the_very_same_crop(
    memory: ExemplarMemory, gold: Dataset, place: tuple[int, int, int, int], number: int, label: str | None
) -> None:
    x, y, width, height = place
    box = np.array([[x, y, x + width, y + height]], dtype=np.float32)
    sample = gold[number]
    said = (
        Correction(sample.id, sample.image(), Detections.empty(()), box)
        if label is None
        else approving(sample, box.tolist(), [label])
    )
    before = memory.fingerprint
    after = memory.learnt([said])
    votes = after.classify(sample.image(), box)[0]
    column = len(after.classes) if label is None else after.classes.index(label)
    assert votes[column] == pytest.approx(1)
    assert after.classes[:3] == CLASSES
    assert after.untuned == 1
    assert after.fingerprint != before == memory.fingerprint
    assert (after.voting, after.fit) == (memory.voting, memory.fit)
    other = gold[(number + 1) % 8]
    assert other.truth is not None
    if label in ("red", "blue", None):  # what it says of other crops stays sound
        assert after.classify(other.image(), other.truth.boxes, exclude_image=sample.id).argmax(1).tolist() == [0, 1]


def test_a_corrected_label_takes_the_place_of_the_wrong_one(gold: Dataset) -> None:
    truth = gold[0].truth
    assert truth is not None
    swapped = replace(truth, labels=truth.labels[::-1].copy())
    memory = ExemplarMemory.build(PixelEncoder(), gold.with_truth([swapped, *(gold[i].truth for i in range(1, 8))]))
    after = memory.learnt([approving(gold[0], truth.boxes.tolist(), truth.label_names)])
    assert after.counts == memory.counts
    mine = [e for e in after.remembered() if e.image == "s0" and e.label]
    assert {(e.label, e.reviewed) for e in mine} == {("red", True), ("blue", True)}
    again = after.learnt([approving(gold[0], truth.boxes.tolist(), truth.label_names)])
    assert (again.counts, len(again)) == (after.counts, len(after))


def test_an_approved_box_wins_over_a_rejected_one_and_over_background(memory: ExemplarMemory, gold: Dataset) -> None:
    where = next(e for e in memory.remembered() if e.label is None and e.image == "s0")
    box = np.array([where.box], dtype=np.float32)
    found = Detections.build(box, 1.0, ["unseen"], ["unseen"])
    after = memory.learnt([Correction("s0", gold[0].image(), found, box + 1)])
    assert after.counts["unseen"] == 1
    assert where.id not in {e.id for e in after.remembered()}
    assert after.classify(gold[0].image(), box)[0].argmax() == CLASSES.index("unseen")


def test_two_labelled_sets_become_corrections_by_image(gold: Dataset) -> None:
    truth = gold[1].truth
    assert truth is not None
    approved = gold.subset([0, 1])
    rejected = gold.subset([1, 2]).with_truth([Detections.build([[90, 2, 118, 28]], 1.0, ["red"], CLASSES)] * 2)
    said = list(corrections(approved, rejected))
    assert [(one.image, len(one.approved), len(one.rejected)) for one in said] == [
        ("s0", 2, 0), ("s1", 2, 1), ("s2", 0, 1),
    ]  # fmt: skip
    assert list(corrections(None, None)) == []


def test_corrections_are_kept_and_stale_voting_is_chosen_anew(
    memory: ExemplarMemory, gold: Dataset, tmp_path: Path
) -> None:
    memory.save(tmp_path / "memory")
    box = np.array([[90, 2, 118, 28]], dtype=np.float32)
    one = correct(tmp_path / "memory", PixelEncoder(), [Correction("s0", gold[0].image(), Detections.empty(()), box)])
    assert (one.boxes, one.retuned) == (1, False)
    loaded = ExemplarMemory.load(tmp_path / "memory", PixelEncoder())
    assert loaded.fingerprint == one.memory.fingerprint
    assert loaded.untuned == 1
    assert loaded.classify(gold[0].image(), box)[0, -1] == pytest.approx(1)
    many = correct(tmp_path / "memory", PixelEncoder(), corrections(gold, None))
    assert (many.boxes, many.replaced, many.retuned) == (16, 16, True)
    assert ExemplarMemory.load(tmp_path / "memory", PixelEncoder()).untuned == 0


def test_a_second_writer_waits_and_then_says_so(
    memory: ExemplarMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.save(tmp_path / "memory")
    monkeypatch.setattr(reviewing, "LOCK_SECONDS", 0.01)
    with FileLock(tmp_path / ".memory.lock"), pytest.raises(Unavailable, match="another process"):
        correct(tmp_path / "memory", PixelEncoder(), [])


def test_a_box_too_thin_to_see_is_no_example(memory: ExemplarMemory) -> None:
    said = Correction("s0", Image.new("RGB", (120, 100)), Detections.empty(()), np.array([[5, 5, 6, 40]], np.float32))
    assert len(memory.learnt([said])) == len(memory)


def test_another_picture_of_the_same_id_leaves_what_is_known_alone(memory: ExemplarMemory, gold: Dataset) -> None:
    truth = gold[0].truth
    assert truth is not None
    stranger = Image.new("RGB", (120, 100), "green")
    said = Correction("s0", stranger, truth, NONE)
    after = memory.learnt([said])
    assert after.counts["red"] == memory.counts["red"] + 1
    assert after.learnt([said]).counts == after.counts
    assert {e.id for e in memory.remembered()} < {e.id for e in after.remembered()}
