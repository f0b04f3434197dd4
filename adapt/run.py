"""One adaptation from start to sealed folder: resume, train, check what was saved, compare before and after, report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapt.job import ENDLESS, Job, Order, Validation
from adapt.settings import Settings
from foveal import adapters, artifacts
from foveal.errors import BadInput, FovealError
from foveal.progress import Progress
from foveal.runtime import fast_bfloat16

REPORT, PAGE, SKIPPED = "report.json", "report.html", "skipped.jsonl"


class AdaptReport(BaseModel):
    """What a run did, written as report.json into the adapter folder."""

    kind: str  # clip, detector, vlm
    out: str
    base: str
    base_fingerprint: str
    fingerprint: str  # of base and adapter together, as an archive stores it
    trainable_params: int
    total_params: int  # of the base
    data: dict[str, Any]  # counts of what it learnt from
    skipped: list[tuple[str, str]]  # path, reason
    notes: list[str]
    steps: int
    seconds: float  # of training, over all resumptions
    examples_per_second: float
    losses: list[float]  # mean over each ten steps
    watched: list[tuple[int, float]]  # step and validation figure, where the run was told to look
    metric: str  # the validation figure that counts
    before: dict[str, float] | None = None  # validation figures of the base
    after: dict[str, float] | None = None
    baselines: dict[str, dict[str, float]] | None = None  # what the base reaches without training, by method
    merge_difference: float  # largest, between base + adapter and merged
    already_done: bool = False  # the folder held this very run, and nothing was trained


def identity(
    settings: Settings, base_fingerprint: str, data_fingerprint: str, validation: str | None
) -> dict[str, Any]:
    """What makes two runs the same one: a changed tracker or checkpoint interval does not."""
    return {
        "settings": settings.model_dump(mode="json", exclude={"trackers", "checkpoint_seconds"}),
        "base_fingerprint": base_fingerprint,
        "data_fingerprint": data_fingerprint,
        "validation_fingerprint": validation,
    }


def finished(out: Path, run: dict[str, Any], fresh: bool) -> AdaptReport | None:
    """The report of a folder that holds this very run, None when there is something to do.

    Raises:
        BadInput: `out` holds another run, and `fresh` was not asked for.
    """
    if fresh:
        if is_main():
            shutil.rmtree(_work(out), ignore_errors=True)
        _wait()
        return None
    if not (out / artifacts.MANIFEST).is_file():
        return None
    manifest = artifacts.read(out)
    differing = [name for name, value in run.items() if manifest.config.get(name) != value]
    if differing:
        raise BadInput(
            f"{out} holds another run; it differs in {', '.join(differing)}",
            remedy="Choose another --out, or start over with --fresh.",
        )
    return AdaptReport.model_validate_json((out / REPORT).read_text()).model_copy(update={"already_done": True})


def execute(job: Job, out: Path, run: dict[str, Any], settings: Settings, progress: Progress | None) -> AdaptReport:
    """Train `job`, going on from the last checkpoint of the same `run`, and write the adapter folder `out`.

    Raises:
        FovealError: the loss is not finite, memory ran out, or merging the adapter would change what it says.
    """
    from adapt.page import write_page

    work = _work(out)
    checkpoint = resume_point(work, run)
    before = _before(job, work) if job.validate else None
    if job.skipped and is_main():
        lines = (json.dumps({"path": str(path), "reason": reason}) for path, reason in job.skipped)
        artifacts.write_text(work / SKIPPED, "\n".join(lines) + "\n")
    history = train(job, settings, work, checkpoint, progress)
    after = job.validate() if job.validate else None
    if not is_main():
        _wait()  # for the first process to write
        return AdaptReport.model_validate_json((out / REPORT).read_text())
    with artifacts.staged(out) as folder:
        adapters.save(job.model, folder)
        difference, fingerprint = job.check(folder)
        report = AdaptReport(
            kind=job.kind,
            out=str(out),
            base=job.base,
            base_fingerprint=job.base_fingerprint,
            fingerprint=fingerprint,
            trainable_params=sum(p.numel() for p in job.model.parameters() if p.requires_grad),
            total_params=job.total_params,
            data=dict(job.data),
            skipped=[(str(path), reason) for path, reason in job.skipped],
            notes=job.notes,
            steps=history.steps,
            seconds=history.seconds,
            examples_per_second=history.steps * min(settings.batch, job.count) / max(history.seconds, 1e-9),
            losses=history.means(),
            watched=history.watched,
            metric=job.metric,
            before=before.figures if before else None,
            after=after.figures if after else None,
            baselines=job.baselines() if job.baselines else None,
            merge_difference=difference,
        )
        (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n")
        if (work / SKIPPED).is_file():
            shutil.copy(work / SKIPPED, folder / SKIPPED)
        write_page(folder / PAGE, report, before, after)
        artifacts.seal(
            folder,
            name=out.name,
            kind="adapter",
            parents=[job.base],
            data={"fingerprint": job.data_fingerprint, "licence": settings.data_licence, **job.data},
            config={**run, "base": job.base, "kind": job.kind},
            metrics={"before": report.before, "after": report.after, "merge_difference": difference},
            licence=job.base_licence,
        )
    logs = sorted((work / "tensorboard").glob("*"))
    if logs:
        shutil.copytree(work / "tensorboard", out / ".tensorboard", dirs_exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    _wait()
    return report


class History(BaseModel):
    """What training left behind."""

    losses: list[float]  # every step's
    seconds: float
    steps: int
    watched: list[tuple[int, float]]

    def means(self, every: int = 10) -> list[float]:
        """Mean losses of each `every` steps."""
        return [float(np.mean(self.losses[i : i + every])) for i in range(0, len(self.losses), every)]


def train(job: Job, settings: Settings, work: Path, checkpoint: Path | None, progress: Progress | None) -> History:
    """Train the adapter of `job` in place, keeping checkpoints in `work`.

    Raises:
        FovealError: the loss is not finite, or memory ran out.
    """
    from adapt.trainer import AdapterTrainer, Budget, EarlyStop, Objective, ProgressReport, arguments, trainable

    order = Order(job.count, settings.batch, _epochs(settings), settings.seed, job.arrange)
    settings = settings.model_copy(update={"batch": order.batch})
    budget = Budget(settings.max_seconds, len(order) // order.batch, settings.checkpoint_seconds)
    callbacks: list[Any] = []
    if settings.validate_every and job.validate:
        parameters = trainable(job.model)
        stop = EarlyStop(
            job.validate, job.metric, settings.validate_every, settings.patience, budget, parameters, work, progress
        )
        callbacks.append(stop)
    if checkpoint is not None:
        for callback in (budget, *callbacks):
            callback.restore(checkpoint)
    if settings.checkpointing and job.prepare:
        job.prepare(job.model)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if order.batch % processes:
        raise BadInput(
            f"a batch of {order.batch} cannot be shared by {processes} processes",
            remedy="Set batch to a multiple of it.",
        )
    share = order.batch // processes
    piece = min(settings.micro_batch or share, share) if job.accumulates else share
    if share % piece:
        raise BadInput(
            f"a batch of {share} cannot be worked through {piece} at a time",
            remedy="Set micro_batch to a divisor of batch.",
        )
    bf16 = fast_bfloat16(job.device) if settings.precision == "auto" else settings.precision == "bfloat16"
    with _tensorboard(work / "tensorboard"):
        trainer = AdapterTrainer(
            budget,
            settings.warmup,
            describe=lambda positions: _listed([job.names(order[p][1]) for p in positions]),
            rate_of=job.rate_of,
            model=Objective(job.model, job.loss),
            args=arguments(
                work,
                batch=piece,
                accumulate=share // piece,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                seed=settings.seed,
                device=job.device,
                bf16=bf16,
                compile=settings.compile,
                trackers=settings.trackers,
            ),
            train_dataset=order,
            data_collator=lambda items: {**job.collate(items), "positions": torch.tensor([p for p, _ in items])},
        )
        for callback in callbacks:
            trainer.add_callback(callback)
        if progress is not None and is_main():
            total = None if _epochs(settings) == ENDLESS else budget.total_steps
            trainer.add_callback(ProgressReport(progress, total, budget, order.batch))
        # On CPUs the fused kernel's backward pass is slower than plain matrix products at these lengths
        # (docs/decisions/0002-eager-attention-on-cpu.md).
        kernel = sdpa_kernel(SDPBackend.MATH) if job.device == "cpu" else nullcontext()
        with kernel, _memory_explained(job, settings):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    job.model.eval()
    watched = callbacks[0].history if callbacks else []
    return History(losses=budget.losses, seconds=budget.spent, steps=trainer.state.global_step, watched=watched)


def is_main() -> bool:
    """Whether this is the process that writes, of those that `accelerate launch` started."""
    return int(os.environ.get("RANK", "0")) == 0


def check_share(skipped: list[tuple[Path, str]], total: int, largest: float) -> None:
    """Refuse data of which more than the share `largest` cannot be read.

    Raises:
        BadInput: too much was skipped.
    """
    if len(skipped) > largest * total:
        path, reason = skipped[0]
        raise BadInput(
            f"{len(skipped)} of {total} images cannot be read, the first {path}: {reason}",
            expected=f"at most {largest:.0%}",
            remedy="Mend or remove them, or raise max_skipped.",
        )


def _work(out: Path) -> Path:
    return out.parent / f".{out.name}.run"


def _epochs(settings: Settings) -> int:
    return settings.epochs or (ENDLESS if settings.max_seconds else 20)


def _wait() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def resume_point(work: Path, run: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from; a run that was begun with other settings or data is discarded."""
    from adapt.trainer import last_checkpoint

    record = work / "run.json"
    if is_main() and not (record.is_file() and json.loads(record.read_text()) == run):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        artifacts.write_text(record, json.dumps(run))
    _wait()
    return last_checkpoint(work)


def _before(job: Job, work: Path) -> Validation:
    """Validation of the base, kept for resumptions: by then the adapter says something."""
    from pydantic import TypeAdapter

    kind, path = TypeAdapter(Validation), work / "before.json"
    if path.is_file():
        return kind.validate_json(path.read_text())
    assert job.validate is not None
    before = job.validate()
    if is_main():
        artifacts.write_text(path, kind.dump_json(before).decode())
    return before


def _listed(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@contextmanager
def _tensorboard(folder: Path) -> Generator[None]:
    """transformers takes the folder from the environment only."""
    name = "TENSORBOARD_LOGGING_DIR"
    kept = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if kept is None:
            del os.environ[name]
        else:
            os.environ[name] = kept


@contextmanager
def _memory_explained(job: Job, settings: Settings) -> Generator[None]:
    """Turn an allocator's message into the settings that would fit."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(
            sign in str(error) for sign in ("out of memory", "can't allocate memory", "not enough memory")
        ):
            raise
        piece = settings.micro_batch or settings.batch
        smaller = [f"micro_batch={max(piece // 4, 1)}"] + ([] if settings.checkpointing else ["checkpointing=true"])
        raise FovealError(
            f"memory ran out at {piece} examples a pass",
            remedy=f"Run again with {' '.join(f'--set {word}' for word in smaller)} (the batch of {settings.batch} and "
            f"the result stay the same), or let `foveal adapt plan {job.kind} --fit` measure what fits.",
        ) from error
