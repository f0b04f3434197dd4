from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, Provenance
from foveal.errors import BadInput, FingerprintMismatch, IntegrityError
from retrieval.crops import backgrounds, covered, crop, jittered
from retrieval.memory import ExemplarMemory
from tests.retrieval.pixels import PixelEncoder

ENCODER = PixelEncoder()
CLASSES = ("red", "blue", "unseen")


def scenes(folder: Path, count: int) -> Dataset:
    """Grey noise with one red and one blue rectangle an image."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for i in range(count):
        image = Image.fromarray(rng.integers(90, 140, (100, 120, 3), dtype=np.uint8))
        x, y = rng.integers(2, 20, 2).tolist()
        boxes = [[x, y, x + 30, y + 26], [x + 55, y + 40, x + 85, y + 66]]
        for box, colour in zip(boxes, ("red", "blue"), strict=True):
            ImageDraw.Draw(image).rectangle(box, fill=colour)
        path = folder / f"{i}.png"
        image.save(path)
        truth = Detections.build(boxes, 1.0, ["red", "blue"], CLASSES)
        samples.append(Sample(f"s{i}", path, 120, 100, truth))
    return Dataset.build(samples, CLASSES)


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scenes(tmp_path_factory.mktemp("gold") / "images", 8)


@pytest.fixture(scope="module")
def memory(gold: Dataset) -> ExemplarMemory:
    return ExemplarMemory.build(ENCODER, gold)


def test_counts_and_fit_are_those_of_the_gold_set(memory: ExemplarMemory) -> None:
    assert memory.counts == {"red": 8, "blue": 8, "unseen": 0, "background": 64}
    assert memory.fit is not None
    assert memory.fit.accuracy > 0.95
    assert memory.fit.crops == 80


def test_support_is_high_for_right_labels_and_low_for_wrong_ones(memory: ExemplarMemory, gold: Dataset) -> None:
    sample = gold[0]
    assert sample.truth is not None
    boxes = np.concatenate([sample.truth.boxes, sample.truth.boxes, [[90, 2, 118, 28]]]).astype(np.float32)
    labels = ["red", "blue", "blue", "unseen", "red"]
    proposed = Detections.build(boxes, 0.5, labels, CLASSES, provenance=(Provenance(model="teacher"),) * 5)
    verified, support = memory.verify(sample.image(), proposed, exclude_image="s0")
    assert (support[:2] > 0.9).all()
    assert (support[2:] < 0.1).all()
    assert verified.provenance is not None
    for name, provenance in zip(labels, verified.provenance, strict=True):
        assert provenance.model == "teacher"
        assert provenance.neighbours
        assert len({n.id for n in provenance.neighbours}) == len(provenance.neighbours)
        assert not any(n.id.startswith("s0#") for n in provenance.neighbours)
        assert all(n.supports == (n.label == name) for n in provenance.neighbours)
    assert len(memory.verify(sample.image(), proposed, k=2)[0].provenance[0].neighbours) == 2  # pyright: ignore


def test_without_exclusion_a_gold_box_is_its_own_nearest(memory: ExemplarMemory, gold: Dataset) -> None:
    sample = gold[3]
    assert sample.truth is not None
    verified, _ = memory.verify(sample.image(), sample.truth)
    assert verified.provenance is not None
    assert [p.neighbours[0].id for p in verified.provenance] == ["s3#0", "s3#1"]
    assert verified.provenance[0].neighbours[0].similarity == pytest.approx(1, abs=1e-5)


def test_classify_gives_distributions_over_the_classes_asked_for(memory: ExemplarMemory, gold: Dataset) -> None:
    sample = gold[1]
    assert sample.truth is not None
    everything = memory.classify(sample.image(), sample.truth.boxes, exclude_image="s1")
    assert everything.shape == (2, 4)
    np.testing.assert_allclose(everything.sum(axis=1), 1, atol=1e-5)
    assert everything.argmax(axis=1).tolist() == [0, 1]
    only = memory.classify(sample.image(), sample.truth.boxes, ["blue", "green"], exclude_image="s1")
    assert only.shape == (2, 3)
    assert only.argmax(axis=1).tolist() == [2, 0]
    assert memory.classify(sample.image(), np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_wrong_proposals_are_remembered_and_right_ones_are_not(gold: Dataset) -> None:
    truth = gold[0].truth
    assert truth is not None
    proposals = Detections.build([[90, 2, 118, 28], truth.boxes[0]], 0.4, ["red", "blue"], CLASSES)
    memory = ExemplarMemory.build(ENCODER, gold, rejected={"s0": proposals}, backgrounds=0)
    assert memory.counts["background"] == 1
    _, labels, images, ids = memory.exemplars()
    row = ids.index("s0#rejected0")
    assert (labels[row], images[row]) == (None, "s0")


def test_saved_and_loaded_votes_alike_and_binds_the_encoder(
    memory: ExemplarMemory, gold: Dataset, tmp_path: Path
) -> None:
    memory.save(tmp_path / "memory")
    loaded = ExemplarMemory.load(tmp_path / "memory", PixelEncoder())
    assert loaded.fingerprint == memory.fingerprint
    assert (loaded.voting, loaded.fit) == (memory.voting, memory.fit)
    sample = gold[2]
    assert sample.truth is not None
    np.testing.assert_array_equal(
        memory.verify(sample.image(), sample.truth)[1], loaded.verify(sample.image(), sample.truth)[1]
    )
    with pytest.raises(FingerprintMismatch, match="build the memory anew"):
        ExemplarMemory.load(tmp_path / "memory", PixelEncoder(seed=1))
    (tmp_path / "memory" / "memory.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"memory\.json"):
        ExemplarMemory.load(tmp_path / "memory", ENCODER)


def test_a_gold_set_without_boxes_or_files_is_refused(gold: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no boxes"):
        ExemplarMemory.build(ENCODER, gold.with_truth([Detections.empty(CLASSES)] * 8))
    gone = [Sample("a", tmp_path / "gone.png", 120, 100, gold[0].truth)]
    with pytest.raises(BadInput, match=r"gone\.png"):
        ExemplarMemory.build(ENCODER, Dataset.build(gone, CLASSES))


def test_one_lost_image_is_skipped_and_named(gold: Dataset, tmp_path: Path) -> None:
    samples = [*gold, Sample("lost", tmp_path / "gone.png", 120, 100, gold[0].truth)]
    memory = ExemplarMemory.build(ENCODER, Dataset.build(samples, CLASSES))
    assert list(memory.skipped) == ["lost"]
    assert memory.counts["red"] == 8


def test_crops_stay_inside_and_backgrounds_stay_clear() -> None:
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (50, 40))
    for _ in range(50):
        corner = rng.uniform(0, 35, 2)
        box = np.concatenate([corner, corner + rng.uniform(0, 15, 2)]).astype(np.float32)
        assert min(crop(image, box, 0.3).size) >= 2
        moved = jittered(box, rng)
        assert (moved[2:] >= moved[:2]).all()
    objects = np.array([[0, 0, 25, 40]], dtype=np.float32)
    found = backgrounds(objects, 50, 40, 10, np.array([[8, 8]], dtype=np.float32), rng)
    assert len(found) == 10
    assert all(covered(box, objects) <= 0.2 for box in found)
    assert crop(image, np.array([20, 10, 30, 14], np.float32), 0.1).size == (12, 12)
    full = backgrounds(np.array([[0, 0, 50, 40]], np.float32), 50, 40, 3, np.array([[8, 8]], np.float32), rng)
    assert full.shape == (0, 4)
