"""The set-prediction loss that transformers lacks for OWL-ViT and OWLv2 (arXiv 2205.06230, 2306.09683).

Shape letters: B images, Q candidate boxes of an image, P prompts, N true boxes of an image. Boxes are centre-size in
[0, 1] of the square (OWLv2) or picture (OWL-ViT) that the model sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou  # pyright: ignore[reportMissingTypeStubs]

# Weights of the three terms, in the matching and in the loss: those of Deformable DETR (arXiv 2010.04159), which
# Grounding DINO shares.
CLASS, L1, GIOU = 2.0, 5.0, 2.0
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (arXiv 1708.02002)


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    truth: Sequence[tuple[Tensor, Tensor]],
    asked: Tensor | None = None,
    count: float | Tensor | None = None,
) -> Tensor:
    """Focal loss of every asked prompt at every candidate, L1 and GIoU of matched boxes, by the number of true boxes.

    Args:
        logits: (B, Q, P).
        boxes: (B, Q, 4).
        truth: for each image the prompt index (N,) and box (N, 4) of every object.
        asked: (B, P) prompts that count for an image: its own and the negatives drawn for it; all when absent.
        count: divide by this instead of the number of true boxes here, for a part of a larger batch.
    """
    wanted = torch.zeros_like(logits)
    found: list[Tensor] = []
    true: list[Tensor] = []
    for i, (labels, known) in enumerate(truth):
        candidates, objects = match(logits[i], boxes[i], labels, known)
        wanted[i, candidates, labels[objects]] = 1
        found.append(boxes[i, candidates])
        true.append(known[objects])
    chosen, target = torch.cat(found), torch.cat(true).to(boxes)
    by_prompt = focal(logits, wanted)
    if asked is not None:
        by_prompt = by_prompt * asked[:, None, :]
    overlap = giou(chosen, target).diagonal()
    total = CLASS * by_prompt.sum() + L1 * (chosen - target).abs().sum() + GIOU * (1 - overlap).sum()
    return total / (max(len(target), 1) if count is None else count)


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sigmoid focal loss, not reduced; `wanted` holds 0 or 1 in the shape of `logits`."""
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    probability = logits.sigmoid()
    missing = probability + wanted - 2 * probability * wanted  # 1 - probability of the right answer
    return (ALPHA * wanted + (1 - ALPHA) * (1 - wanted)) * missing**GAMMA * entropy


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, labels: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The assignment of candidates to objects that costs least: two index tensors (min(Q, N),).

    Args:
        logits: (Q, P).
        boxes: (Q, 4).
        labels: (N,) prompt index of each object.
        known: (N, 4) its box.
    """
    of_class = logits[:, labels]  # (Q, N)
    gain = focal(of_class, torch.ones_like(of_class)) - focal(of_class, torch.zeros_like(of_class))
    known = known.to(boxes)
    cost = CLASS * gain + L1 * torch.cdist(boxes, known, p=1) - GIOU * giou(boxes, known)
    finite = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)  # a NaN is the trainer's to report
    rows, columns = linear_sum_assignment(finite.cpu().double().numpy())
    return torch.as_tensor(rows, device=logits.device), torch.as_tensor(columns, device=logits.device)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of each box of `a` (N, 4) with each of `b` (M, 4) -> (N, M) in [-1, 1]."""
    return generalized_box_iou(corners(a), corners(b))


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) centre-size -> xyxy."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)
