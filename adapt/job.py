"""What one adaptation trains, in the form that running, resuming and planning need, whatever the model is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data
from torch import Tensor, nn

ENDLESS = 10_000  # epochs of a run that only the clock ends
LossFunction = Callable[[Any, Any], Tensor]  # (model, batch) -> scalar, the mean over the batch


@dataclass(frozen=True, slots=True)
class Example:
    """How well one validation example is answered; `value` is higher for better."""

    path: Path
    asked: str
    answered: str
    value: float


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures of a model on held-out data, and the examples behind them in an order that never changes."""

    figures: dict[str, float]
    examples: list[Example] = field(default_factory=list[Example])


class Order(torch.utils.data.Dataset[tuple[int, int]]):
    """Positions of an endless-looking training run: item k is (k, index of the example shown k-th).

    Every epoch is its own shuffle by seed, cut to whole batches so that no batch shows an example twice. A run that is
    resumed at position k therefore sees exactly what an uninterrupted one would have seen.

    Args:
        arrange: turns an epoch's shuffle into the order it is shown in, e.g. so that look-alikes share a batch.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        epochs: int,
        seed: int,
        arrange: Callable[[list[int]], list[int]] | None = None,
    ) -> None:
        self.count, self.seed, self.arrange = count, seed, arrange
        self.batch = min(batch, count)
        self.per_epoch = count - count % self.batch
        self.epochs = epochs
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.per_epoch * self.epochs

    def __getitem__(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.per_epoch)
        if self._shuffled[0] != epoch:
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.count).tolist()
            self._shuffled = (epoch, self.arrange(shuffled) if self.arrange else shuffled)
        return position, self._shuffled[1][offset]


@dataclass(slots=True)
class Job:
    """A model with fresh adapter layers, its data and its loss.

    `collate` makes a batch of items (position, index) of `Order`, using nothing but those items, so that a batch is the
    same whichever process draws it and however often a run was resumed.
    """

    kind: str  # clip, detector, vlm
    base: str  # reference
    base_fingerprint: str
    base_licence: str
    data_fingerprint: str
    device: str
    model: Any  # peft.PeftModel
    total_params: int  # of the base
    loss: LossFunction
    count: int  # training examples
    collate: Callable[[Sequence[tuple[int, int]]], Any]
    names: Callable[[int], str]  # of an example, for messages
    check: Callable[[Path], tuple[float, str]]
    """Loads a saved adapter as a user will: the largest difference between base + adapter and merged, and the
    fingerprint of the two together; raises when they differ by more than the stated tolerance."""
    data: Mapping[str, Any]  # what it learns from, for the report: counts
    skipped: list[tuple[Path, str]] = field(default_factory=list[tuple[Path, str]])
    notes: list[str] = field(default_factory=list[str])  # what a reader of the report should know, e.g. truncation
    arrange: Callable[[list[int]], list[int]] | None = None  # see `Order`
    validate: Callable[[], Validation] | None = None  # of `model` as it stands
    baselines: Callable[[], dict[str, dict[str, float]]] | None = None
    """What the untrained base reaches on the same held-out data without any training: name -> figures."""
    metric: str = ""  # the figure of `validate` that early stopping watches, higher is better
    rate_of: Callable[[str], float] | None = None  # parameter name -> multiple of the learning rate
    accumulates: bool = True  # False: `loss` itself works through `micro_batch` pieces (gradient caching)
    prepare: Callable[[nn.Module], None] | None = None  # turn on gradient checkpointing in the base model
