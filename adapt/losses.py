"""Contrastive objectives. Shape letters: B pairs in a batch, D embedding dimensions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def info_nce(images: Tensor, texts: Tensor, scale: float | Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE (arXiv 2103.00020) of unit-length images (B, D) and texts (B, D) -> scalar.

    Args:
        scale: multiplier of the cosine similarity.
        same: (B, B) bool, true where image i and text j belong together; the diagonal alone when absent. Pairs that
            share an image or a caption word for word are no negatives of each other: the target is spread over them.
    """
    logits = (scale * images @ texts.T).float()
    target = torch.eye(len(logits), device=logits.device) if same is None else same.float()
    rows = functional.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))
    columns = functional.cross_entropy(logits.T, target.T / target.T.sum(dim=1, keepdim=True))
    return (rows + columns) / 2
