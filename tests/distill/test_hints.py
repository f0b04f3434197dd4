"""What a teacher sees is learnt at the right places, beside the boxes, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.augment import Augment, ImageCache
from distill.fcos import Targets
from distill.hints import Hints, Pupil, _teacher
from distill.students import build, load_student
from distill.train import TrainSettings, train
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.errors import BadInput
from tests.distill.tiny_student import CLASSES, SETTINGS, painted, trained
from tests.tiny import tiny_clip, tiny_detr, tiny_owl

SIDE = 128


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    """Images whose red says how far right a pixel is, whose green how far down, and whose blue which image it is."""
    folder = tmp_path_factory.mktemp("places")
    samples: list[Sample] = []
    for number in range(5):
        line = np.linspace(0, 255, SIDE)
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = line[None, :], line[:, None], 50 * number + 20
        Image.fromarray(pixels).save(folder / f"{number}.png")
        truth = Detections.build([[10, 10, 60, 60]], 1.0, [0], ("a",))
        samples.append(Sample(str(number), folder / f"{number}.png", SIDE, SIDE, truth))
    return ImageCache(Dataset.build(samples, ("a",)), SIDE)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_each_cell_gets_what_the_teacher_saw_at_its_place(places: ImageCache, mosaic: float) -> None:
    """The teacher's map holds each place's own coordinates; the view's pixels tell which place a cell really shows."""
    grid = 64
    line = (np.arange(grid) + 0.5) / grid
    u, v = np.meshgrid(line, line)
    maps = np.stack([np.stack([u, v, np.full_like(u, n)], axis=-1) for n in range(5)]).astype(np.float16)
    hints = Hints(maps, np.eye(1, 3, dtype=np.float32))
    augment = Augment(mosaic=mosaic, brightness=0, contrast=0, saturation=0, tint=0)
    rng = np.random.default_rng(0)
    checked = 0
    for row in range(5):
        image, _, panes = augment.view(places, row, SIDE, rng)
        found = hints.of([panes], SIDE)
        features, seen = found["features"][0].astype(np.float32), found["seen"][0]
        cells = image[8::16, 8::16].astype(np.float32)
        for i, j in np.argwhere(seen):
            if not 0 < i < 7 or not 0 < j < 7:
                continue
            red, green, blue = cells[i, j]
            if abs(blue - 20 - 50 * features[i, j, 2]) > 2:
                continue  # on the seam between two panes
            assert abs(red / 255 - features[i, j, 0]) < 0.04
            assert abs(green / 255 - features[i, j, 1]) < 0.04
            checked += 1
        grey = (cells == 114).all(axis=-1)
        assert not (seen & grey).any()
    assert checked > 60


@torch.no_grad()
def test_the_pupil_is_at_ease_only_where_it_agrees() -> None:
    net = build("fcos-resnet", CLASSES, 64)
    hints = Hints(np.zeros((1, 4, 4, 8), np.float16), np.eye(2, 8, dtype=np.float32))
    pupil = Pupil(net, hints, 1.0, 1.0, 0)
    images = torch.rand(2, 3, 64, 64)
    net.predict(images)
    assert pupil._map is not None
    assert pupil._map.shape[-1] == 4
    mine = torch.nn.functional.normalize(pupil.project(pupil._map).float(), dim=1).permute(0, 2, 3, 1).detach()
    seen = torch.ones(2, 4, 4, dtype=torch.bool)
    nothing = Targets(
        torch.zeros(2, 1, 4), torch.full((2, 1), -1), torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    )
    assert float(pupil.loss(mine.half(), seen, nothing)) == pytest.approx(0, abs=2e-3)
    assert float(pupil.loss(-mine.half(), seen, nothing)) == pytest.approx(2, abs=2e-3)
    assert float(pupil.loss(-mine.half(), torch.zeros_like(seen), nothing)) == 0
    boxes = torch.tensor([[[0.1, 0.1, 0.9, 0.9]], [[0.1, 0.1, 0.9, 0.9]]])
    label = torch.zeros(2, 1, dtype=torch.long)
    one = Targets(boxes, label, torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool))
    ignored = one._replace(ignore=torch.ones(2, 1, dtype=torch.bool))
    assert float(pupil.loss(mine.half(), seen, one)) > float(pupil.loss(mine.half(), seen, ignored)) + 1e-3
    with torch.enable_grad():
        net.train().loss(images, one)
        pupil.loss(mine.half(), seen, one).backward()
    assert pupil.project.weight.grad is not None
    assert next(net.backbone().parameters()).grad is not None


@pytest.mark.parametrize("make", [tiny_owl, tiny_clip])
def test_a_student_learns_from_either_kind_of_teacher(tmp_path: Path, make: Any) -> None:
    scheme = "hf" if make is tiny_owl else "open_clip"
    reference = f"{scheme}:{make(tmp_path / 'teacher')}"
    settings = SETTINGS.model_copy(update={"epochs": 2, "hints": reference, "class_weight": 0.5})
    report = train(painted(), "fcos-resnet", tmp_path / "student", settings)
    plain = train(painted(), "fcos-resnet", tmp_path / "plain", SETTINGS.model_copy(update={"epochs": 2}))
    assert report.losses[0] > plain.losses[0]
    assert report.parameters == plain.parameters
    assert load_student(tmp_path / "student").classes == CLASSES
    assert not (tmp_path / ".student.run").exists()
    see, texts, _ = _teacher(reference, CLASSES)
    maps = see([sample.image() for sample in list(painted())[:2]])
    assert maps.ndim == 4
    assert maps.shape[-1] == texts.shape[-1]


@pytest.mark.parametrize("family", ["deimv2-atto", "rf_detr", "lw_detr"])
def test_a_detr_student_learns_hints_too_at_any_side(tmp_path: Path, family: str) -> None:
    reference = f"hf:{tiny_owl(tmp_path / 'teacher')}"
    student = family if "-" in family else f"hf:{tiny_detr(tmp_path / family, family)}"
    settings = TrainSettings(
        size=64, epochs=1, batch=8, evaluations=0, hints=reference, class_weight=0.5, multi_scale=0.5
    )
    report = train(painted(), student, tmp_path / "student", settings)
    assert np.isfinite(report.losses).all()


def test_a_map_of_another_stride_is_brought_to_the_teachers() -> None:
    net = build("fcos-resnet", CLASSES, 64)
    pupil = Pupil(net, Hints(np.zeros((1, 4, 4, 8), np.float16), np.eye(2, 8, dtype=np.float32)), 1.0, 0.0, 0)
    kept = torch.randn(2, 64, 5, 5)
    pupil._keep(net, (torch.zeros(2, 3, 64, 64),), [kept, torch.zeros(2, 5, 5)])
    assert pupil._map is not None
    assert pupil._map.shape == (2, 64, 4, 4)


def test_hints_change_nothing_when_their_weights_are_nought(tmp_path: Path) -> None:
    reference = f"hf:{tiny_owl(tmp_path / 'teacher')}"
    off = SETTINGS.model_copy(update={"epochs": 3, "hints": reference, "feature_weight": 0.0})
    one = train(painted(), "fcos-resnet", tmp_path / "off", off)
    other = train(painted(), "fcos-resnet", tmp_path / "none", SETTINGS.model_copy(update={"epochs": 3}))
    assert one.losses == pytest.approx(other.losses, rel=1e-4)
    assert trained()[1].parameters == one.parameters


def test_a_teacher_without_a_map_is_refused(tmp_path: Path) -> None:
    from tests.foveal.test_open_detectors import tiny_grounding

    settings = SETTINGS.model_copy(update={"epochs": 1, "hints": f"hf:{tiny_grounding(tmp_path, False)}"})
    with pytest.raises(BadInput, match="gives no map"):
        train(painted(), "fcos-resnet", tmp_path / "student", settings)
