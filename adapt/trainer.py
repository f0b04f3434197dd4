"""What adaptation adds to transformers' `Trainer`: a time budget, checkpoints by the clock, early stop, progress."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from adapt.job import LossFunction, Validation
from adapt.settings import Tracker
from foveal.errors import FovealError
from foveal.progress import Progress

STATE, WEIGHTS = "trainer_state.json", "adapter.safetensors"
WARM_STEPS = 10  # at least, before the full learning rate
LOG_EVERY = 10  # steps


class Objective(nn.Module):
    """The loss as a module: data parallelism, sharding and `torch.compile` all hook into a module's call."""

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        """Batch -> scalar loss."""
        return self._loss(self.model, batch)


class Budget(TrainerCallback, ExportableState):
    """How far a run is, by steps or by seconds of training, whichever is further; both survive an interruption.

    It keeps every step's loss too: `Trainer` logs means over windows that a resumption cuts short.
    """

    def __init__(self, max_seconds: float | None, total_steps: int, checkpoint_seconds: float) -> None:
        self.max_seconds, self.total_steps, self.checkpoint_seconds = max_seconds, total_steps, checkpoint_seconds
        self.spent = 0.0
        self.losses: list[float] = []
        self.pieces: list[float] = []  # losses of the micro-batches of the step under way
        self.steps = 0
        self._mark, self._saved = time.monotonic(), 0.0

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
        self._mark, self._saved = time.monotonic(), self.spent

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count time and steps; ask for a checkpoint when one is due and stop when the budget is used up."""
        now = time.monotonic()
        self.spent, self._mark, self.steps = _agreed(self.spent + now - self._mark), now, state.global_step
        self.losses.append(sum(self.pieces) / len(self.pieces))
        self.pieces.clear()
        if self.spent - self._saved >= self.checkpoint_seconds:
            control.should_save, self._saved = True, self.spent
        if self.steps % LOG_EVERY == 0:
            control.should_log = True
        if self.share >= 1:
            control.should_training_stop = True

    def pause(self) -> None:
        """Do not count the time since the last step; for what is no training, such as validation."""
        self._mark = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the two newest checkpoints: a kill while one is written leaves the other."""
        for path in checkpoints(Path(args.output_dir))[2:]:
            shutil.rmtree(path, ignore_errors=True)


class EarlyStop(TrainerCallback, ExportableState):
    """Looks at the validation set every few steps, remembers the best adapter, and stops when nothing gets better."""

    def __init__(
        self,
        validate: Callable[[], Validation],
        metric: str,
        every: int,
        patience: int | None,
        budget: Budget,
        trainable: dict[str, nn.Parameter],
        work: Path,
        progress: Progress | None,
    ) -> None:
        self.validate, self.metric, self.every, self.patience = validate, metric, every, patience
        self.budget, self.trainable, self.progress = budget, trainable, progress
        self.best_file = work / "best.safetensors"
        self.history: list[tuple[int, float]] = []  # step, figure

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"history": self.history}}

    def restore(self, checkpoint: Path) -> None:
        """Go on from what `state` left in a checkpoint."""
        kept = json.loads((checkpoint / STATE).read_text())["stateful_callbacks"]["EarlyStop"]["attributes"]
        self.history = [(int(step), float(value)) for step, value in kept["history"]]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look, if it is time to."""
        if state.global_step % self.every:
            return
        value = self.validate().figures[self.metric]
        if model is not None:
            model.train()
        self.budget.pause()
        if self.progress is not None:
            self.progress.note(f"step {state.global_step}: validation {self.metric} {value:.4f}")
        state.log_history.append({f"validation_{self.metric}": value, "step": state.global_step})
        if args.should_save and value > max((v for _, v in self.history), default=-math.inf):
            save_tensors(self.trainable, self.best_file)
        self.history.append((state.global_step, value))
        best = max(range(len(self.history)), key=lambda i: self.history[i][1])
        if self.patience is not None and len(self.history) - 1 - best >= self.patience:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go back to the best adapter seen, unless the last one is it."""
        if not self.history or not self.best_file.is_file():
            return
        step, value = max(self.history, key=lambda entry: entry[1])
        last, final = self.history[-1]
        if state.global_step != last:
            final = self.validate().figures[self.metric]
        if final >= value:
            return
        load_tensors(self.trainable, self.best_file)
        if self.progress is not None:
            self.progress.note(f"kept the adapter of step {step}: validation {self.metric} {value:.4f}")


class ProgressReport(TrainerCallback):
    """Steps to a `Progress`, with the loss and images a second now and then."""

    NOTE_SECONDS = 15.0

    def __init__(self, progress: Progress, total: int | None, budget: Budget, batch: int) -> None:
        self.progress, self.total, self.budget, self.batch = progress, total, budget, batch
        self._noted = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the task, at the step a resumed run stands at."""
        self.progress.start("train", self.total)
        if state.global_step:
            self.progress.note(f"resumed at step {state.global_step}")
            self.progress.advance(state.global_step)
        self._noted = self.budget.spent

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step."""
        self.progress.advance()
        budget = self.budget
        if budget.spent - self._noted >= self.NOTE_SECONDS and budget.share < 1:
            self._noted = budget.spent
            rate = budget.steps * self.batch / budget.spent
            left = budget.spent * (1 - budget.share) / max(budget.share, 1e-9)
            loss = sum(budget.losses[-LOG_EVERY:]) / len(budget.losses[-LOG_EVERY:])
            self.progress.note(f"step {budget.steps}: loss {loss:.4f}, {rate:.3g} examples/s, {left:.0f} s left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the task."""
        self.progress.finish()


class BudgetTrainer(Trainer):
    """`Trainer` with its own loss and a budget, reading positions in order (`adapt.job.Order` shuffles).

    Args:
        loss: (model, batch) -> scalar.
        describe: positions of a batch in words, for the message about a loss that is not finite.
    """

    def __init__(
        self,
        loss: LossFunction,
        budget: Budget,
        warmup: float,
        describe: Callable[[Sequence[int]], str] | None = None,
        **options: Any,
    ) -> None:
        self._loss, self._budget, self._warmup, self._describe = loss, budget, warmup, describe
        super().__init__(**options, callbacks=[budget])
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one (micro-)batch.

        Raises:
            FovealError: it is not finite; the last checkpoint is kept.
        """
        positions = inputs.pop("positions", None)
        loss = self._loss(model, inputs)
        reduced: Any = self.accelerator.reduce(loss.detach(), "mean")
        mean = float(reduced)
        if not math.isfinite(mean):
            where = f", in the batch of {self._describe(positions.tolist())}" if self._describe else ""
            raise FovealError(
                f"the loss became {mean} at step {self.state.global_step + 1}{where}",
                expected="a finite number",
                remedy="Lower the learning rate, train in float32, or look at those examples; the last good "
                f"checkpoint is kept in {self.args.output_dir}.",
            )
        self._budget.pieces.append(mean)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """What trackers get: mean losses of the last steps, the rate, gradients' length."""
        if "loss" in logs and self._budget.losses:
            logs["loss"] = sum(self._budget.losses[-LOG_EVERY:]) / len(self._budget.losses[-LOG_EVERY:])
        super().log(logs, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A rate that follows the budget, so that a run cut by the clock still ends annealed."""
        chosen: Any = optimizer or self.optimizer
        # A share of the time can be a single step on a busy machine, which at the full rate breaks a model.
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            chosen, lambda step: min(self._budget.rate_factor(self._warmup), (step + 1) / WARM_STEPS)
        )
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)  # pyright: ignore


class AdapterTrainer(BudgetTrainer):
    """`BudgetTrainer` for an `Objective` whose base is frozen: checkpoints hold the adapter alone.

    Args:
        rate_of: parameter name -> multiple of the learning rate; all alike when absent.
    """

    def __init__(
        self,
        budget: Budget,
        warmup: float,
        describe: Callable[[Sequence[int]], str],
        rate_of: Callable[[str], float] | None = None,
        **options: Any,
    ) -> None:
        self._rate_of = rate_of
        super().__init__(lambda model, batch: model(batch), budget, warmup, describe, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the adapter's tensors, grouped by their share of the learning rate."""
        chosen: Any = model or self.model
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in trainable(chosen).items():
            groups.setdefault(self._rate_of(name) if self._rate_of else 1.0, []).append(parameter)
        rate, decay = self.args.learning_rate, self.args.weight_decay
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate * factor, "weight_decay": decay} for factor, group in groups.items()]
        )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The adapter alone: the base is where it came from."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(trainable(self.accelerator.unwrap_model(self.model)), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        chosen: Any = model or self.model
        load_tensors(trainable(chosen), Path(resume_from_checkpoint) / WEIGHTS)


def arguments(
    work: Path,
    *,
    batch: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    device: str,
    bf16: bool,
    accumulate: int = 1,
    compile: bool = False,
    trackers: Sequence[Tracker] = (),
):
    """`TrainingArguments` for one quiet run whose checkpoints lie in `work`.

    Args:
        batch: examples a process sees at a time; a step takes `accumulate` times as many.
    """
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=1,  # `Order` holds all epochs in a row
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        max_grad_norm=1.0,
        seed=seed,
        bf16=bf16,
        use_cpu=device == "cpu",
        save_strategy="no",  # `Budget` asks for checkpoints by the clock, and for logs
        logging_strategy="no",
        report_to=list(trackers) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        torch_compile=compile,
        label_names=[],
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_tensors(tensors: dict[str, nn.Parameter], path: Path) -> None:
    """Write parameters by name, whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside)
    aside.replace(path)


@torch.no_grad()
def load_tensors(tensors: dict[str, nn.Parameter], path: Path) -> None:
    """Set parameters to what `save_tensors` wrote.

    Raises:
        FovealError: the file holds other names or shapes.
    """
    given = load_file(path)
    if {n: t.shape for n, t in given.items()} != {n: p.shape for n, p in tensors.items()}:
        raise FovealError(f"{path} is of another adapter", remedy="Start over with --fresh.")
    for name, parameter in tensors.items():
        parameter.copy_(given[name])


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


def _agreed(seconds: float) -> float:
    """The first process's count of seconds: processes that stop or save at different steps would wait for ever."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return seconds
    from accelerate.utils import broadcast_object_list

    return float(broadcast_object_list([seconds])[0])
