"""The set-prediction loss against a case worked by hand, brute force and numerical gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from adapt import detection_losses
from adapt.detection_losses import CLASS, GIOU, L1, focal, giou, match, set_loss


def test_a_case_worked_by_hand() -> None:
    """Two candidates, two prompts, one object of the second prompt; every probability is one half."""
    truth = [(torch.tensor([1]), torch.tensor([[0.25, 0.5, 0.5, 1.0]]))]
    boxes = torch.tensor([[[0.75, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]])
    # The second candidate covers the object with IoU 1/2 (and the enclosing box is itself): GIoU 1/2, L1 0.25 + 0.5.
    # The first touches it: IoU 0, nothing empty between: GIoU 0, L1 0.5. Costs 2.5 - 0 and 3.75 - 1.
    logits = torch.zeros(1, 2, 2)
    assert match(logits[0], boxes[0], *truth[0])[0].tolist() == [0]
    # One wanted cell of (1/2)^2 * 0.25 * ln 2, three unwanted ones of (1/2)^2 * 0.75 * ln 2.
    classes = (0.25 + 3 * 0.75) / 4 * math.log(2)
    expected = CLASS * classes + L1 * 0.5 + GIOU * (1 - 0.0)
    assert float(set_loss(logits, boxes, truth)) == pytest.approx(expected, rel=1e-6)
    # A prompt that an image is not asked about does not count: two of the unwanted cells go.
    asked = torch.tensor([[False, True]])
    fewer = expected - CLASS * 2 * 0.75 / 4 * math.log(2)
    assert float(set_loss(logits, boxes, truth, asked)) == pytest.approx(fewer, rel=1e-6)


def test_generalised_iou() -> None:
    a = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    b = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], [0.5, 0.25, 0.5, 0.5]])
    # The same; corner to corner (union 1/2 of the enclosing 1); half over (IoU 1/3, nothing empty).
    assert giou(a, b)[0].tolist() == pytest.approx([1.0, -0.5, 1 / 3], abs=1e-6)


def test_the_matching_is_the_cheapest_of_all() -> None:
    torch.manual_seed(0)
    logits, boxes = torch.randn(5, 3), torch.rand(5, 4) * 0.4 + 0.1
    labels, known = torch.tensor([0, 2, 2]), torch.rand(3, 4) * 0.4 + 0.1

    def cost(candidates: tuple[int, ...]) -> float:
        total = 0.0
        for q, label, box in zip(candidates, labels, known, strict=True):
            own = logits[q, label]
            total += CLASS * float(focal(own, torch.ones(())) - focal(own, torch.zeros(())))
            total += L1 * float((boxes[q] - box).abs().sum()) - GIOU * float(giou(boxes[q : q + 1], box[None]))
        return total

    candidates, objects = match(logits, boxes, labels, known)
    found = tuple(candidates[objects.argsort()].tolist())
    assert found == min(itertools.permutations(range(5), 3), key=cost)


def test_gradients_are_those_of_differences() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    known = torch.tensor([[0.3, 0.3, 0.2, 0.3], [0.6, 0.7, 0.3, 0.2]], dtype=torch.float64)
    truth = [(torch.tensor([1, 0]), known), (torch.tensor([], dtype=torch.long), torch.zeros(0, 4))]
    asked = torch.tensor([[True, True], [True, False]])

    def loss(logits: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        return set_loss(logits, raw.sigmoid(), truth, asked)

    assert torch.autograd.gradcheck(loss, (logits, raw))  # pyright: ignore[reportPrivateImportUsage]


def test_images_without_objects_teach_that_there_is_nothing() -> None:
    empty = (torch.tensor([], dtype=torch.long), torch.zeros(0, 4))
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    loss = set_loss(logits, torch.full((1, 2, 4), 0.5), [empty])
    assert loss.item() == pytest.approx(CLASS * 4 * 0.75 / 4 * math.log(2), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_more_objects_than_candidates() -> None:
    truth = [(torch.tensor([0, 1, 0]), torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 3))]
    loss = detection_losses.set_loss(torch.zeros(1, 2, 2), torch.full((1, 2, 4), 0.5), truth)
    assert bool(torch.isfinite(loss))
