"""Contrastive objectives. Shape letters: B pairs in a batch over all processes, D embedding dimensions."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional


def info_nce(images: Tensor, texts: Tensor, scale: float | Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE (arXiv 2103.00020) of unit-length images (B, D) and texts (B, D) -> scalar.

    Args:
        scale: multiplier of the cosine similarity.
        same: (B, B) bool, true where image i and text j belong together; the diagonal alone when absent. Pairs that
            share a caption word for word, or a class, are no negatives of each other: the target is spread over them
            (arXiv 2204.03610).
    """
    logits = (scale * images @ texts.T).float()
    target = torch.eye(len(logits), device=logits.device) if same is None else same.float()
    rows = functional.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))
    columns = functional.cross_entropy(logits.T, target.T / target.T.sum(dim=1, keepdim=True))
    return (rows + columns) / 2


def classify(images: Tensor, texts: Tensor, scale: float | Tensor, same: Tensor) -> Tensor:
    """Cross-entropy of unit-length images (B, D) over texts of classes (M, D), each image having one -> scalar.

    Args:
        scale: multiplier of the cosine similarity.
        same: (B, M) bool, true at each image's own class.
    """
    return functional.cross_entropy((scale * images @ texts.T).float(), same.float())


def sigmoid(
    images: Tensor, texts: Tensor, scale: float | Tensor, bias: float | Tensor, same: Tensor | None = None
) -> Tensor:
    """The pairwise sigmoid loss (arXiv 2303.15343): every image-text pair is its own yes or no; mean over images.

    Args:
        scale, bias: logit = scale * cosine + bias.
        same: as in `info_nce`.
    """
    logits = (scale * images @ texts.T + bias).float()
    target = torch.eye(len(logits), device=logits.device) if same is None else same.float()
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


def fitted_bias(cosines: Tensor, scale: float, same: Tensor) -> float:
    """The bias at which `sigmoid` expects as many matches among `cosines` (B, B) as there are in `same` (B, B).

    For models that were trained without one: at a bias of zero the loss would first of all push everything apart.
    """
    low, high = -10.0 - scale, 10.0 + scale
    for _ in range(60):
        middle = (low + high) / 2
        expected = torch.sigmoid(scale * cosines.double() + middle).sum()
        low, high = (low, middle) if expected > same.sum() else (middle, high)
    return (low + high) / 2


def gathered(rows: Tensor) -> Tensor:
    """The rows (B / P, ...) of all P processes in order of rank -> (B, ...); gradients reach this process's own."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    parts[torch.distributed.get_rank()] = rows
    return torch.cat(parts)


def for_averaging(loss: Tensor) -> Tensor:
    """A loss over gathered rows with the gradient that data parallelism needs; its value stays.

    Each process holds the gradient with respect to its own rows, and the whole is their sum; data parallelism takes the
    mean.
    """
    return loss + (world_size() - 1) * (loss - loss.detach())


def world_size() -> int:
    """How many processes train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1
