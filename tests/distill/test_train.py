"""Training: learns, resumes, ends annealed, refuses what it cannot learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.trainer import Budget
from distill.augment import STILL, Augment, ImageCache, Labels, collate
from distill.students import load_student, restore, unique_state
from distill.train import TrainSettings, train
from distill.trainee import Averaging, Views, sides
from evals.detection import evaluate
from foveal.dataset import Dataset
from foveal.detections import Detections, Provenance
from foveal.errors import BadInput, UnknownName
from tests.distill.tiny_student import CLASSES, SETTINGS, SIDE, paint, painted, trained
from tests.tiny import tiny_detr

SHORT = SETTINGS.model_copy(update={"epochs": 2, "checkpoint_seconds": 1e-6})


def test_a_student_learns_what_it_is_shown() -> None:
    out, report = trained()
    held_out = painted(12, 1)
    found = load_student(out, "cpu").detect([s.image() for s in held_out])
    assert evaluate([s.truth for s in held_out], found)["AP50"] > 0.8
    assert report.steps == 3 * 40
    assert report.boxes == sum(len(s.truth) for s in painted())
    assert np.mean(report.losses[-3:]) < np.mean(report.losses[:3])
    assert len(list((out / "samples").glob("*.jpg"))) == 11


def test_a_finished_run_is_not_repeated_and_another_is_not_overwritten() -> None:
    out, _ = trained()
    assert train(painted(), "fcos-resnet", out, SETTINGS).already_done
    with pytest.raises(BadInput, match="settings"):
        train(painted(), "fcos-resnet", out, SHORT)


class Killed(Exception):
    """Stands for Ctrl-C or a kill in the middle of a run."""


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_happened(tmp_path: Path, monkeypatch) -> None:
    whole = train(painted(), "fcos-resnet", tmp_path / "whole", SHORT)
    steps, update = 0, Averaging.on_step_end

    def dying(self, *args, **kwargs) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed
        update(self, *args, **kwargs)

    monkeypatch.setattr(Averaging, "on_step_end", dying)
    with pytest.raises(Killed):
        train(painted(), "fcos-resnet", tmp_path / "cut", SHORT)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(Averaging, "on_step_end", update)
    resumed = train(painted(), "fcos-resnet", tmp_path / "cut", SHORT)
    assert resumed.steps == whole.steps == 6
    one, other = (unique_state(restore(tmp_path / name)[0]) for name in ("whole", "cut"))
    assert all(torch.allclose(one[n].float(), other[n].float(), atol=1e-5) for n in one)
    assert not list(tmp_path.glob(".*.run"))


def test_the_clock_ends_a_run_annealed() -> None:
    budget = Budget(max_seconds=10, total_steps=10**9, checkpoint_seconds=60)
    budget.spent = 9.999
    assert budget.rate_factor(0.05) < 1e-3


def test_a_gold_set_is_watched_and_can_end_the_run(tmp_path: Path) -> None:
    settings = SHORT.model_copy(update={"epochs": 6, "evaluations": 6, "patience": 1, "learning_rate": 1e-9})
    report = train(painted(), "fcos-resnet", tmp_path / "out", settings, gold=painted(12, 1))
    assert report.stopped_early
    assert len(report.gold) == 2
    assert report.steps < 18


@pytest.mark.parametrize("name", ["deimv2-atto"])
def test_transformers_students_train_through_the_same_call(tmp_path: Path, name: str) -> None:
    settings = TrainSettings(size=SIDE, epochs=1, batch=8, evaluations=0)
    report = train(painted(), name, tmp_path / "out", settings)
    assert report.steps == 3
    assert load_student(tmp_path / "out", "cpu").classes == CLASSES


def test_batches_of_other_sides_come_until_the_calm_end(tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple[float, int]] = []
    look = Views.__call__

    def watched(self, items):
        batch = look(self, items)
        seen.append((self.budget.share, batch["images"].shape[-1]))
        assert batch["images"].shape[-1] == batch["images"].shape[-2]
        return batch

    monkeypatch.setattr(Views, "__call__", watched)
    settings = SETTINGS.model_copy(update={"size": 128, "epochs": 8, "multi_scale": 0.3, "calm": 0.25})
    train(painted(), "fcos-resnet", tmp_path / "out", settings)
    assert {side for share, side in seen if share <= 0.75} == {96, 128, 160}
    assert {side for share, side in seen if share > 0.75} == {128}
    assert restore(tmp_path / "out")[0].size == 128


def test_sides_are_whole_cells_around_the_size() -> None:
    assert sides(320, 0.25) == [256, 288, 320, 352, 384]
    assert sides(160, 0.1) == [160]
    assert sides(64, 0.5) == [64, 96]


def test_a_side_that_the_student_cannot_see_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    student = f"hf:{tiny_detr(tmp_path / 'rf', 'rf_detr', windows=4)}"
    settings = TrainSettings(size=128, epochs=1, batch=8, evaluations=0, multi_scale=0.5)
    with pytest.raises(BadInput, match="cannot see images of 96 px"):
        train(painted(), student, tmp_path / "out", settings)


def routed(sample, *routes) -> Detections:
    truth = sample.truth
    return replace(
        truth,
        probabilities=np.full(len(truth), 0.8, np.float32),
        provenance=tuple(Provenance("teacher", route=r) for r in (routes * len(truth))[: len(truth)]),
    )


def test_routes_decide_what_a_box_is() -> None:
    truth = Detections.build([[0, 0, 10, 10], [5, 5, 20, 20], [1, 1, 3, 3], [4, 4, 4, 9]], 0.9, [0, 1, 0, 1], CLASSES)
    marks = [Provenance("t", route=r) for r in ("accept", "review", "reject", "accept")]
    truth = replace(truth, probabilities=np.array([0.9, 0.5, 0.1, 0.9], np.float32), provenance=tuple(marks))
    found = Labels.of(truth, 20, 20)
    assert found.boxes.tolist() == [[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]]
    assert found.ignore.tolist() == [False, True]
    assert found.weights.tolist() == pytest.approx([0.9, 0.5])
    assert len(Labels.of(truth, 20, 20, review="drop").labels) == 1
    assert Labels.of(truth, 20, 20, review="learn", soft=False).weights.tolist() == [1, 1]


def test_what_cannot_be_learned_from_is_refused(tmp_path: Path) -> None:
    rejected = painted().with_truth([routed(s, "reject") for s in painted()])
    with pytest.raises(BadInput, match="nothing to learn from"):
        train(rejected, "fcos-resnet", tmp_path / "out", SHORT)
    with pytest.raises(UnknownName, match="fcos-resnet"):
        train(painted(), "no-such-student", tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


def test_unreadable_and_unlabelled_images_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = paint(tmp_path / "images", 4, 3)
    (tmp_path / "images" / "001.png").write_bytes(b"no image")
    truth = [s.truth if s.id != "002" else None for s in dataset]
    cache = ImageCache(dataset.with_truth(truth), 64)
    assert len(cache) == 2
    assert [name for name, _ in cache.skipped] == ["001"]
    with pytest.raises(BadInput, match="MiB"):
        ImageCache(dataset, 64, max_bytes=1000)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_follow_the_pixels_through_every_view(mosaic: float) -> None:
    cache = ImageCache(painted(), 80)
    augment = Augment(mosaic=mosaic, brightness=0, contrast=0, saturation=0, tint=0)
    rng, checked = np.random.default_rng(0), 0
    for row in range(len(cache)):
        image, labels, _ = augment.view(cache, row, 64, rng)
        assert image.shape == (64, 64, 3)
        assert (labels.boxes >= 0).all()
        assert (labels.boxes <= 1).all()
        for box, label, ignore in zip(labels.boxes * 64, labels.labels, labels.ignore, strict=True):
            x, y = ((box[:2] + box[2:]) / 2).astype(int)
            if not ignore and (box[2:] - box[:2]).min() > 6:
                red, _, blue = image[y, x].astype(int)
                assert (red > blue) == (label == 0)
                checked += 1
    assert checked > 20


def test_the_still_view_is_the_image_itself() -> None:
    cache = ImageCache(painted(), SIDE)
    image, labels, _ = STILL.view(cache, 3, SIDE, np.random.default_rng(0))
    assert np.array_equal(image, cache.pixels[3])
    assert labels.boxes == pytest.approx(cache.labels[3].boxes)


def test_a_batch_is_padded_and_an_empty_one_is_possible() -> None:
    blank = Labels(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool))
    full = Labels(np.ones((2, 4), np.float32), np.array([0, 1]), np.ones(2, np.float32), np.zeros(2, bool))
    image = np.zeros((8, 8, 3), np.uint8)
    batch = collate([(image, blank), (image, full)])
    assert batch["images"].shape == (2, 3, 8, 8)
    assert batch["labels"].tolist() == [[-1, -1], [0, 1]]
    assert collate([(image, blank)])["boxes"].shape == (1, 1, 4)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing to learn from"):
        train(Dataset.build([], CLASSES), "fcos-resnet", tmp_path / "out", SHORT)
