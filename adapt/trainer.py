"""What adaptation adds to transformers' `Trainer`: a time budget, checkpoints by the clock, and progress."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from foveal.errors import FovealError
from foveal.progress import Progress

STATE = "trainer_state.json"
LossFunction = Callable[[Any, dict[str, Any]], Tensor]  # (model, batch) -> scalar


class Budget(TrainerCallback, ExportableState):
    """How far a run is, by steps or by seconds of training, whichever is further; both survive an interruption.

    It keeps every step's loss too: `Trainer` logs means over windows that a resumption cuts short.
    """

    def __init__(self, max_seconds: float | None, total_steps: int, checkpoint_seconds: float) -> None:
        self.max_seconds, self.total_steps, self.checkpoint_seconds = max_seconds, total_steps, checkpoint_seconds
        self.spent = 0.0
        self.losses: list[float] = []
        self.steps = 0
        self._mark = self._saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"spent": self.spent, "losses": self.losses}}

    def restore(self, checkpoint: Path) -> None:
        """Go on from what `state` left in a checkpoint."""
        kept = json.loads((checkpoint / STATE).read_text())["stateful_callbacks"]["Budget"]["attributes"]
        self.spent, self.losses = float(kept["spent"]), list(kept["losses"])

    @property
    def share(self) -> float:
        """Part of the run that is over, in [0, 1]."""
        by_time = self.spent / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(self.steps / self.total_steps, by_time))

    def rate_factor(self, warmup: float) -> float:
        """Linear warm-up over the first part, then a cosine to zero, of the run as a whole."""
        if self.share < warmup:
            return max(self.share / warmup, 0.05)
        return 0.5 * (1 + math.cos(math.pi * (self.share - warmup) / (1 - warmup)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.steps = state.global_step
        self._mark = self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count time and steps; ask for a checkpoint when one is due and stop when the budget is used up."""
        now = time.monotonic()
        self.spent, self._mark, self.steps = self.spent + now - self._mark, now, state.global_step
        if now - self._saved >= self.checkpoint_seconds:
            control.should_save, self._saved = True, now
        if self.share >= 1:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the two newest checkpoints: a kill while one is written leaves the other."""
        for path in checkpoints(Path(args.output_dir))[2:]:
            shutil.rmtree(path, ignore_errors=True)


class ProgressReport(TrainerCallback):
    """Steps to a `Progress`, with the loss now and then."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        self.progress, self.total = progress, total

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the task, at the step a resumed run stands at."""
        self.progress.start("train", self.total)
        if state.global_step:
            self.progress.note(f"resumed at step {state.global_step}")
            self.progress.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step."""
        self.progress.advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the task."""
        self.progress.finish()


class AdapterTrainer(Trainer):
    """`Trainer` for a peft model with its own loss, reading positions in order (`adapt.pairs.Order` shuffles)."""

    def __init__(self, loss: LossFunction, budget: Budget, warmup: float, **options: Any) -> None:
        self._loss, self._budget, self._warmup = loss, budget, warmup
        super().__init__(**options, callbacks=[budget])
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch.

        Raises:
            FovealError: it is not finite; the last checkpoint is kept.
        """
        loss = self._loss(model, inputs)
        if not torch.isfinite(loss):
            raise FovealError(
                f"the loss became {float(loss.detach())} at step {self.state.global_step + 1}",
                expected="a finite number",
                remedy="Lower the learning rate, or train in float32; the last checkpoint is kept.",
            )
        self._budget.losses.append(float(loss.detach()))
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)  # pyright: ignore

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A rate that follows the budget, so that a run cut by the clock still ends annealed."""
        chosen: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            chosen, lambda _step: self._budget.rate_factor(self._warmup)
        )
        return self.lr_scheduler


def arguments(work: Path, *, batch: int, learning_rate: float, weight_decay: float, seed: int, device: str, bf16: bool):
    """`TrainingArguments` for one quiet adapter run whose checkpoints lie in `work`."""
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=batch,
        num_train_epochs=1,  # `Order` holds all epochs in a row
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        max_grad_norm=1.0,
        seed=seed,
        bf16=bf16,
        use_cpu=device == "cpu",
        save_strategy="no",  # `Budget` asks for checkpoints by the clock
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=[],
    )


def checkpoints(work: Path) -> list[Path]:
    """The checkpoint folders in `work`, newest first."""
    return sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written whole; its state file is written last."""
    for path in checkpoints(work):
        try:
            json.loads((path / STATE).read_text())
            return path
        except (OSError, ValueError):
            continue
    return None
