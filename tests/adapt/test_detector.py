"""Adapting tiny random OWLv2 and Grounding DINO: they learn, resume, merge, and validate on boxes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from adapt import detector_targets, scenes
from adapt.detector import DetectorSettings, adapt, adaptable, make_job
from adapt.job import Order
from adapt.run import AdaptReport
from adapt.trainer import trainable
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.errors import BadInput, UnknownName
from foveal.models import load_open_detector
from foveal.open_detectors import OwlDetector
from tests.foveal.test_open_detectors import tiny_grounding, tiny_omdet
from tests.tiny import tiny_owl

CLASSES = ("red crate", "blue barrel")
FAST = DetectorSettings(batch=4, epochs=2)
PLAIN = FAST.model_copy(update={"precision": "float32", "trackers": ()})
SCRIPT = """
import sys, torch
from pathlib import Path
from adapt.detector import DetectorSettings, adapt
from foveal.dataset import Dataset
torch.set_num_threads(1)
base, data, out, settings = sys.argv[1:]
adapt(base, Dataset.open(data), Path(out), DetectorSettings.model_validate_json(settings), device="cpu")
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{tiny_owl(tmp_path_factory.mktemp('owl'))}"


@pytest.fixture(scope="module")
def grounding(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{tiny_grounding(tmp_path_factory.mktemp('mm'), mm=True)}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """8 wide pictures, each with one crate and one barrel as plain rectangles."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    samples: list[Sample] = []
    for i in range(8):
        image, boxes = Image.new("RGB", (64, 48), "grey"), list[tuple[int, int, int, int]]()
        for side, colour in ((2, "red"), (36, "blue")):
            x, y = side + int(rng.integers(8)), 4 + int(rng.integers(20))
            boxes.append((x, y, x + 16, y + 16))
            ImageDraw.Draw(image).rectangle((x, y, x + 15, y + 15), fill=colour)
        image.save(folder / f"{i}.png")
        truth = Detections.build(boxes, 1.0, [0, 1], CLASSES)
        samples.append(Sample(id=str(i), path=folder / f"{i}.png", width=64, height=48, truth=truth))
    return Dataset.build(samples, CLASSES)


def test_owl_learns_boxes_by_heart(owl: str, data: Dataset, tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"epochs": 40, "learning_rate": 2e-2, "augment": False})
    report = adapt(owl, data, tmp_path / "a", settings, validation=data)
    assert report.before is not None
    assert report.after is not None
    assert report.after["AP50"] > max(report.before["AP50"] + 0.4, 0.5)
    assert report.merge_difference <= 1e-4
    assert report.data == {"images": 8, "boxes": 16, "classes": 2}
    adapted = load_open_detector(f"{owl}+{tmp_path / 'a'}")
    assert adapted.fingerprint == report.fingerprint != load_open_detector(owl).fingerprint
    assert adapt(owl, data, tmp_path / "a", settings, validation=data).already_done


@pytest.fixture(scope="module")
def uneven(data: Dataset) -> Dataset:
    """Two boxes on every other picture, one on the rest."""
    truths = [sample.truth for sample in data]
    return data.with_truth([truth[:1] if i % 2 and truth else truth for i, truth in enumerate(truths)])


def test_pieces_of_a_batch_give_the_losses_of_the_whole(owl: str, uneven: Dataset, tmp_path: Path) -> None:
    plain = adapt(owl, uneven, tmp_path / "plain", PLAIN)
    pieces = adapt(owl, uneven, tmp_path / "pieces", PLAIN.model_copy(update={"micro_batch": 1}))
    np.testing.assert_allclose(pieces.losses, plain.losses, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(owl: str, uneven: Dataset, tmp_path: Path) -> None:
    alone = adapt(owl, uneven, tmp_path / "one", PLAIN, device="cpu")
    uneven.write(tmp_path / "coco.json", "coco")
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [owl, str(tmp_path / "coco.json"), str(tmp_path / "two"), PLAIN.model_dump_json()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(tmp_path / "script.py"), *words], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    both = AdaptReport.model_validate_json((tmp_path / "two" / "report.json").read_text())
    assert both.steps == alone.steps
    np.testing.assert_allclose(both.losses, alone.losses, rtol=1e-4)


@pytest.mark.parametrize("family", ["owl", "grounding"])
def test_a_fresh_adapter_changes_nothing_and_a_step_only_the_adapter(
    family: str, data: Dataset, request: pytest.FixtureRequest
) -> None:
    base: str = request.getfixturevalue(family)
    image = [data[0].image()]
    detector = adaptable(base)
    with torch.inference_mode():
        before = detector.propose(image, CLASSES, -1.0)
    job = make_job(base, detector, data, FAST)
    with torch.inference_mode():
        after = detector.propose(image, CLASSES, -1.0)
    for ours, theirs in zip(after[0], before[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kept = {name: value.clone() for name, value in job.model.state_dict().items()}
    job.loss(job.model, job.collate([(0, 0), (1, 1)])).backward()
    learns = trainable(job.model)
    assert all("lora_" in name for name in learns)
    reached = {name for name, p in learns.items() if p.grad is not None and bool(p.grad.any())}
    # Nothing but random units that happen to be dead goes untrained: no target is bypassed by its model.
    untrained = {name for name in learns if "lora_B" in name} - reached
    assert len(untrained) <= (0 if family == "owl" else 3)
    torch.optim.SGD(learns.values(), 0.1).step()
    changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed == reached


@pytest.mark.parametrize(
    "mm", [pytest.param(False, id="grounding-dino"), pytest.param(True, id="mm-grounding-dino", marks=pytest.mark.slow)]
)
def test_grounding_dino_learns_and_merges(data: Dataset, tmp_path: Path, mm: bool) -> None:
    base = f"hf:{tiny_grounding(tmp_path / 'base', mm)}"
    settings = FAST.model_copy(update={"epochs": 12, "learning_rate": 1e-2})
    report = adapt(base, data, tmp_path / "a", settings, validation=data)
    assert report.losses[-1] < report.losses[0]
    assert report.merge_difference <= 1e-4
    assert load_open_detector(f"{base}+{tmp_path / 'a'}").fingerprint == report.fingerprint


def test_the_text_tower_learns_only_when_told_to(owl: str, data: Dataset, tmp_path: Path) -> None:
    base: Any = load_open_detector(owl)
    for towers, same in ((("image",), True), (("image", "text"), False)):
        out = tmp_path / "-".join(towers)
        adapt(owl, data, out, FAST.model_copy(update={"towers": towers, "epochs": 3}))
        adapted: Any = load_open_detector(f"{owl}+{out}")
        assert torch.equal(adapted.embed_prompts(CLASSES), base.embed_prompts(CLASSES)) == same


def test_targets(owl: str, grounding: str) -> None:
    model: Any = adaptable(owl).model
    names = detector_targets.choose(model, ["image"])
    assert len(names) == 2 * 6 + 3 + 3
    assert {name.split(".")[0] for name in names} == {"owlv2", "class_head", "box_head"}
    assert len(detector_targets.choose(model, ["image", "text"])) == len(names) + 2 * 6
    with pytest.raises(UnknownName, match="logit_shift"):
        detector_targets.choose(model, ["image"], ["query"])
    shared = detector_targets.choose(adaptable(grounding).model, ["image"])
    assert shared
    assert not any("bbox_embed" in name or "class_embed" in name for name in shared)


def test_boxes_follow_the_padding_and_the_mirror(owl: str, data: Dataset) -> None:
    detector = adaptable(owl)
    assert isinstance(detector, OwlDetector)
    loaded = scenes.load_scenes(detector, data)
    truth = data[0].truth
    assert truth is not None
    x1, y1, x2, y2 = truth.boxes[0].tolist()
    assert loaded.boxes[0][0].tolist() == pytest.approx([(x1 + x2) / 128, (y1 + y2) / 128, 0.25, 0.25])  # side 64
    pixels = scenes.mirrored(loaded.pixels[0], loaded.extent[0])
    boxes = scenes.mirrored_boxes(loaded.boxes[0], loaded.extent[0] / 64)
    for picture, known in ((loaded.pixels[0], loaded.boxes[0]), (pixels, boxes)):
        for box, channel in zip(known, (0, 2), strict=True):
            x, y = (box[:2] * 64).long().tolist()
            assert int(picture[:, y, x].argmax()) == channel
    assert not scenes.may_mirror(("Left glove", "crate"))


def test_boxes_follow_the_crop(owl: str, data: Dataset) -> None:
    loaded = scenes.load_scenes(adaptable(owl), data)
    batch = scenes.Collator(loaded, Order(8, 8, 1, 3), augment=True, negatives=0)([(k, k) for k in range(8)])
    pixels = batch["pixels"] * loaded.deviation + loaded.mean
    for i in range(8):
        for box, label in zip(batch["boxes"][i], batch["labels"][i].tolist(), strict=True):
            if label >= 0:
                x, y = (box[:2] * 64).long().clamp(max=63).tolist()
                assert int(pixels[i, :, y, x].argmax()) == (0, 2)[label]
    assert batch["asked"].shape == (8, 2)


def test_data_that_cannot_be_used(owl: str, data: Dataset, tmp_path: Path) -> None:
    bare = data.with_truth([None] * len(data))
    with pytest.raises(BadInput, match="images with boxes"):
        adapt(owl, bare, tmp_path / "a", FAST)
    with pytest.raises(BadInput, match="held-out images with boxes"):
        adapt(owl, data, tmp_path / "a", FAST, validation=bare)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    empty = Detections.empty(CLASSES)
    mixed = Dataset.build([*data, Sample(id="b", path=broken, width=1, height=1, truth=empty)], CLASSES)
    with pytest.raises(BadInput, match=r"1 of 9 images cannot be read.*broken\.png"):
        adapt(owl, mixed, tmp_path / "a", FAST.model_copy(update={"max_skipped": 0.01}))
    report = adapt(owl, mixed, tmp_path / "a", FAST.model_copy(update={"max_skipped": 0.2}))
    assert [path for path, _ in report.skipped] == [str(broken)]
    with pytest.raises(BadInput, match="already carries an adapter"):
        adapt(f"{owl}+{tmp_path / 'a'}", data, tmp_path / "b")
    with pytest.raises(BadInput, match="OWL-ViT, OWLv2, Grounding DINO"):
        adaptable(f"hf:{tiny_omdet(tmp_path / 'omdet')}")
