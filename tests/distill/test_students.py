"""Students: one interface, weights and ignored regions honoured, nothing loaded that does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import detr
from distill.fcos import Targets
from distill.students import CARD, STUDENTS, WEIGHTS, build, load_student, restore, start, unique_state
from distill.trainee import Trainee
from foveal import artifacts
from foveal.errors import BadInput, IntegrityError, UnknownName
from tests.distill.tiny_student import CLASSES, SIDE, trained
from tests.tiny import tiny_detr

TINY = ["fcos-resnet", "fcos-mobilenet", "deimv2-atto"]


def batch(boxes: list[list[float]], labels: list[int], weights: list[float], ignore: list[bool]) -> Targets:
    """One image's targets."""
    return Targets(torch.tensor([boxes]), torch.tensor([labels]), torch.tensor([weights]), torch.tensor([ignore]))


ONE = ([[0.2, 0.2, 0.6, 0.6]], [1])


@pytest.mark.parametrize("name", TINY)
def test_every_student_predicts_in_range_and_learns_from_any_batch(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, CLASSES, 64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        boxes, scores = net.eval().predict(images)
    assert boxes.shape == (*scores.shape[:2], 4)
    assert scores.shape[2] == len(CLASSES)
    assert 0 <= boxes.min() <= boxes.max() <= 1
    assert 0 <= scores.min() <= scores.max() <= 1
    empty = Targets(torch.zeros(2, 1, 4), torch.full((2, 1), -1), torch.zeros(2, 1), torch.zeros(2, 1).bool())
    loss = net.train().loss(images, empty)
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", TINY)
def test_a_box_of_weight_zero_moves_no_box(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, CLASSES, 64).eval()
    images = torch.rand(1, 3, 64, 64)
    last = "box_out" if name.startswith("fcos") else "bbox_embed"

    def moved(weight: float) -> float:
        net.zero_grad()
        net.loss(images, batch(*ONE, [weight], [False])).backward()
        return sum(float(p.grad.abs().sum()) for n, p in net.named_parameters() if last in n and p.grad is not None)

    assert moved(1.0) > 0
    assert moved(0.0) == pytest.approx(0, abs=1e-6)


def test_nothing_is_learned_inside_an_ignored_box() -> None:
    torch.manual_seed(0)
    net = build("fcos-resnet", CLASSES, 64).eval()
    images = torch.rand(1, 3, 64, 64)
    logits, boxes, cells = net.net(images)
    logits.retain_grad()
    from distill.fcos import fcos_loss

    fcos_loss(logits, boxes, cells, batch([[0.0, 0.0, 0.5, 0.5]], [0], [0.7], [True])).backward()
    inside = ((cells[:, :2] < 0.5).all(1)).nonzero()[:, 0]
    outside = ((cells[:, :2] > 0.5).any(1)).nonzero()[:, 0]
    assert logits.grad[0, inside].abs().max() == 0
    assert logits.grad[0, outside].abs().min() > 0


def test_a_detr_query_over_an_ignored_box_gets_no_gradient_unless_it_is_matched() -> None:
    outputs = {
        "logits": torch.zeros(1, 3, 2, requires_grad=True),
        "pred_boxes": torch.tensor([[[0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2], [0.26, 0.26, 0.2, 0.2]]]),
    }
    targets = detr.loss_inputs(
        batch(
            [[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9], [0.2, 0.2, 0.4, 0.4]],
            [0, 1, 0],
            [1, 0.5, 1],
            [True, False, False],
        )
    )
    indices = [(torch.tensor([1, 2]), torch.tensor([0, 1]))]
    result = detr.scaled(outputs, targets, indices)
    assert torch.equal(result["logits"], outputs["logits"])
    result["logits"].sum().backward()
    assert outputs["logits"].grad[0, :, 0].tolist() == [0.0, 0.5, 1.0]


def test_weights_change_the_gradient_and_not_the_value_of_a_detr_loss() -> None:
    torch.manual_seed(0)
    net = build("deimv2-atto", CLASSES, 64).eval()
    images = torch.rand(1, 3, 64, 64)
    losses = [net.loss(images, batch(*ONE, [w], [False])).item() for w in (1.0, 0.3)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_names_sizes_and_classes_are_checked() -> None:
    with pytest.raises(UnknownName, match="fcos-resnet"):
        build("yolo-huge", CLASSES)
    with pytest.raises(BadInput, match="multiple of 32"):
        build("fcos-resnet", CLASSES, 100)
    with pytest.raises(BadInput, match="more than once"):
        build("fcos-resnet", ("a", "a"))
    with pytest.raises(BadInput, match="at least one class"):
        build("fcos-resnet", ())
    assert set(STUDENTS) >= {"fcos-resnet", "fcos-mobilenet", "deimv2-pico", "deimv2-atto", "d-fine-n", "rt-detrv2-r18"}


def test_a_saved_student_comes_back_the_same_and_damage_is_named(tmp_path) -> None:
    import shutil

    source, _ = trained()
    net, _ = restore(source)
    assert net.classes == CLASSES
    assert net.size == SIDE
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    weights = load_file(copy / WEIGHTS)
    assert set(weights) == set(unique_state(net))
    first = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != first}, copy / WEIGHTS)
    with pytest.raises(IntegrityError, match="has changed"):
        load_student(copy, "cpu")
    artifacts.seal(copy, name="copy", kind="student")
    with pytest.raises(IntegrityError, match="does not fit"):
        load_student(copy, "cpu")
    (copy / CARD).write_text(json.dumps({"family": "fcos"}))
    artifacts.seal(copy, name="copy", kind="student")
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_student(copy, "cpu")
    with pytest.raises(BadInput, match="holds no student"):
        load_student(tmp_path, "cpu")


def test_detr_students_survive_a_round_trip_with_shared_weights(tmp_path) -> None:
    from distill.students import save_student

    torch.manual_seed(0)
    net = build("deimv2-atto", CLASSES, 64).eval()
    save_student(net, tmp_path)
    artifacts.seal(tmp_path, name="x", kind="student")
    again, _ = restore(tmp_path)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(net.predict(images), again.predict(images), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("family", ["rf_detr", "lw_detr"])
def test_a_checkpoint_of_the_hub_becomes_a_student_for_its_classes(tmp_path, family: str) -> None:
    torch.manual_seed(0)
    net = build(f"hf:{tiny_detr(tmp_path / family, family)}", CLASSES, 64)
    loss = net.train().loss(torch.rand(1, 3, 64, 64), batch(*ONE, [0.5], [False]))
    loss.backward()
    assert torch.isfinite(loss)
    boxes, scores = net.eval().predict(torch.rand(2, 3, 64, 64))
    assert boxes.shape == (2, 12, 4)
    assert scores.shape == (2, 12, 2)


@pytest.mark.parametrize("name", ["d-fine-n", "deimv2-atto"])
def test_the_average_of_a_student_with_tied_weights_moves_each_tensor_once(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, CLASSES, 64)
    trainee = Trainee(net, 0.5, False)
    trainee.updates += 1000  # past its warm-up: from here the share is 1 - decay
    before = {n: p.clone() for n, p in trainee.average.named_parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    trainee.update()
    tied = len(dict(net.named_parameters(remove_duplicate=False))) - len(before)
    assert tied > 0
    for n, mean in trainee.average.named_parameters():
        assert torch.allclose(mean, before[n] + 0.5, atol=1e-5), n


def test_starting_from_a_student_keeps_what_both_know() -> None:
    source, _ = trained()
    earlier, manifest = restore(source)
    same = start(str(source), CLASSES, None)
    assert all(torch.equal(v, unique_state(same)[n]) for n, v in unique_state(earlier).items())
    assert same.init == f"student:{manifest.fingerprint}"
    other = start(str(source), ("square", "cone"), None)
    assert torch.equal(other.net.class_out.weight[0], earlier.net.class_out.weight[1])
    assert torch.equal(other.net.body.stem[0].weight, earlier.net.body.stem[0].weight)
