"""Training a student on pseudo-labels: transformers' `Trainer` over images held in memory, with a time budget.

    foveal distill prelabels/ --student fcos-resnet --out runs/student max_seconds=150

The learning rate follows the share of the budget that is used up, so a run cut by the clock still ends annealed, and
what is kept is the exponential moving average of the weights. Interrupted at any moment, the same call goes on from the
last checkpoint.

Shape letters: B images, M gold images, N boxes, S input side.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from adapt.job import Order
from adapt.run import resume_point
from adapt.trainer import Budget, BudgetTrainer, ProgressReport, arguments
from distill.augment import ImageCache
from distill.hints import Hints, Pupil
from distill.prelabels import PREDICTIONS
from distill.reviewed import CORRECTED
from distill.students import SAMPLES, DenseStudent, Student, identity, recipe, save_student, start
from distill.trainee import Averaging, GoldWatch, Trainee, Views, sides
from foveal import artifacts
from foveal.dataset import Dataset
from foveal.errors import BadInput
from foveal.progress import Progress
from foveal.runtime import fast_bfloat16, pick_device

REPORT = "report.json"
ENDLESS = 100_000  # epochs of a run that only the clock ends
CACHE_SCALE = 1.25  # images are kept somewhat larger than the student sees them, for views that zoom in


class TrainSettings(BaseModel):
    """What a run is made of; every field can be set as `key=value` on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int | None = Field(default=None, ge=64)  # px; None: the student's own
    epochs: int | None = Field(default=None, ge=1)  # None: 60, or as many as `max_seconds` allows
    max_seconds: float | None = Field(default=None, gt=0)  # of training; the rate anneals to zero by then
    batch: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)  # share of the run
    ema: float = Field(default=0.998, ge=0, lt=1)
    augment: bool = True
    mosaic: float = Field(default=0.5, ge=0, le=1)  # share of views made of four images
    multi_scale: float = Field(default=0.0, ge=0, le=0.5)  # batches of other sides, up to this share away from `size`
    calm: float = Field(default=0.15, ge=0, le=1)  # last share of the run, without mosaics and at `size` alone
    soft: bool = True  # weigh each box by its calibrated probability
    review: Literal["ignore", "drop", "learn"] = "learn"  # what boxes under review become, see `ImageCache`
    hints: str | None = None  # model whose view of the images the student's backbone also learns, e.g. bundled:owl
    feature_weight: float = Field(default=1.0, ge=0)  # of the likeness of its features to the model's
    class_weight: float = Field(default=0.0, ge=0)  # of their likeness, in each box, to the class's text embedding
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluations: int = Field(default=4, ge=0)  # looks at the gold set
    patience: int | None = Field(default=None, ge=1)  # looks without improvement before the best so far is kept
    checkpoint_seconds: float = Field(default=20.0, gt=0)
    samples: int = Field(
        default=11, ge=0
    )  # training images kept beside the student, for `foveal export` to check itself on
    seed: int = Field(default=0, ge=0)


class TrainReport(BaseModel):
    """What a run did, written as report.json into the student's folder."""

    out: str
    student: str
    init: str
    classes: list[str]
    size: int
    parameters: int
    images: int
    boxes: int  # positives
    ignored: int  # boxes inside which nothing is learned
    skipped: list[tuple[str, str]]  # image id, why it could not be read
    steps: int
    seconds: float  # of training, over all resumptions
    images_per_second: float
    losses: list[float]  # mean over each ten steps
    gold: list[dict[str, float]]  # share of the run, AP50 and AP on the gold set
    stopped_early: bool
    precision: str
    already_done: bool = False  # the folder held this very run, and nothing was trained


def training_set(source: str | Path) -> Dataset:
    """Images to learn from: the folder of a labelling job with every box and its route, people's boxes in the place of
    those that came back corrected; or any dataset with truth."""
    path = Path(source)
    if (path / CORRECTED).is_file():
        return Dataset.open(path / CORRECTED)
    return Dataset.open(path / PREDICTIONS) if (path / PREDICTIONS).is_file() else Dataset.open(path)


def train(
    dataset: Dataset,
    student: str,
    out: str | Path,
    settings: TrainSettings | None = None,
    progress: Progress | None = None,
    *,
    gold: Dataset | None = None,
    device: str | None = None,
    fresh: bool = False,
) -> TrainReport:
    """Train `student` on the boxes of `dataset` and write it to `out`.

    Args:
        student: a name of `STUDENTS`, `hf:org/model`, or the folder of an earlier student to start from.
        gold: labelled images to watch the run on, never learned from.
        fresh: start over where `out` or a checkpoint exists.

    Raises:
        BadInput: nothing to learn from, or `out` holds another run.
        UnknownName, Unavailable: no such student.
        FovealError: the loss is not finite.
    """
    settings, out = settings or TrainSettings(), Path(out)
    run: dict[str, Any] = {
        "student": identity(student),
        "settings": settings.model_dump(mode="json"),
        "data_fingerprint": dataset.fingerprint,
        "gold_fingerprint": gold.fingerprint if gold is not None else None,
    }
    work = out.parent / f".{out.name}.run"
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    elif (done := _finished(out, run)) is not None:
        return done
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = start(student, dataset.classes, settings.size)
    found = recipe(net.name)
    _check_sides(net, sides(net.size, settings.multi_scale))
    cache = ImageCache(
        dataset, round(net.size * CACHE_SCALE), soft=settings.soft, review=settings.review, progress=progress
    )
    checkpoint = resume_point(work, run)
    hints = pupil = None
    if settings.hints is not None:
        hints = Hints.of_cache(settings.hints, cache, dataset.classes, work, progress)
        pupil = Pupil(net, hints, settings.feature_weight, settings.class_weight, settings.seed)
    trainee = Trainee(net, settings.ema, _autocast(settings.precision, net, device := pick_device(device)), pupil)
    batch = min(settings.batch or found.batch, len(cache))
    epochs = settings.epochs or (ENDLESS if settings.max_seconds else 60)
    order = Order(len(cache), batch, epochs, settings.seed)
    budget = Budget(settings.max_seconds, len(order) // batch, settings.checkpoint_seconds)
    if checkpoint is not None:
        budget.restore(checkpoint)
    rate = settings.learning_rate or found.learning_rate
    watch = None
    if gold is not None and settings.evaluations:
        watch = GoldWatch(trainee.average, gold, settings.evaluations, settings.patience, budget, work, progress)
    trainer = BudgetTrainer(
        lambda model, inputs: model(**inputs)["loss"],
        budget,
        settings.warmup,
        model=trainee,
        args=arguments(
            work,
            batch=batch,
            learning_rate=rate,
            weight_decay=settings.weight_decay,
            seed=settings.seed,
            device=device,
            bf16=False,  # `Trainee` chooses
        ),
        train_dataset=order,
        data_collator=Views(
            cache,
            net.size,
            budget,
            settings.seed,
            settings.mosaic,
            settings.calm,
            settings.augment,
            settings.multi_scale,
            hints,
        ),
        optimizers=(_optimizer(net, pupil, rate, settings.weight_decay), None),
    )
    trainer.add_callback(Averaging(trainee))
    if watch is not None:
        trainer.add_callback(watch)
    if progress is not None:
        trainer.add_callback(ProgressReport(progress, None if epochs == ENDLESS else budget.total_steps, budget, batch))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if watch is not None:
        watch.finish()
    report = TrainReport(
        out=str(out),
        student=net.name,
        init=net.init,
        classes=list(net.classes),
        size=net.size,
        parameters=sum(p.numel() for p in net.parameters()),
        images=len(cache),
        boxes=cache.positives,
        ignored=cache.ignored,
        skipped=cache.skipped,
        steps=trainer.state.global_step,
        seconds=budget.spent,
        images_per_second=trainer.state.global_step * batch / max(budget.spent, 1e-9),
        losses=[round(float(np.mean(budget.losses[i : i + 10])), 4) for i in range(0, len(budget.losses), 10)],
        gold=watch.history if watch is not None else [],
        stopped_early=watch is not None and watch.stopped,
        precision="bfloat16" if trainee.bf16 else "float32",
    )
    _write(out, trainee.average.cpu().eval(), report, run, cache.pixels[: settings.samples])
    shutil.rmtree(work, ignore_errors=True)
    return report


def _check_sides(student: Student, sides: Sequence[int]) -> None:
    """Raise `BadInput` where the student cannot take images of one of these sides."""
    for side in sides if len(sides) > 1 else ():
        try:
            with torch.no_grad():
                student.eval().predict(torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"{student.name} cannot see images of {side} px: {str(error).splitlines()[0]}",
                expected=f"sides that it takes around {student.size} px",
                remedy="Train with multi_scale=0, or another size.",
            ) from error
    student.train()


def _write(
    out: Path, student: Student, report: TrainReport, run: dict[str, Any], samples: npt.NDArray[np.uint8]
) -> None:
    with artifacts.staged(out) as folder:
        save_student(student, folder)
        if len(samples):
            (folder / SAMPLES).mkdir()
        for row, pixels in enumerate(samples):
            small = Image.fromarray(pixels).resize((student.size, student.size), Image.Resampling.BILINEAR)
            small.save(folder / SAMPLES / f"{row:02d}.jpg", quality=95)
        (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        artifacts.seal(
            folder,
            name=out.name,
            kind="student",
            parents=[student.init] if student.init != "scratch" else [],
            data={"fingerprint": run["data_fingerprint"], "images": report.images, "boxes": report.boxes},
            config=run,
            metrics={"gold": report.gold[-1]} if report.gold else {},
        )


def _optimizer(student: Student, pupil: Pupil | None, rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, norms) do not decay, and a pretrained backbone moves ten times slower."""
    pretrained = student.init.startswith("hf:")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            slow = pretrained and ("backbone" in name or "conv_encoder" in name)
            groups.setdefault((parameter.ndim > 1, slow), []).append(parameter)
    for parameter in pupil.parameters() if pupil is not None else ():
        groups.setdefault((parameter.ndim > 1, False), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay if matrix else 0.0, "lr": rate * (0.1 if slow else 1.0)}
            for (matrix, slow), members in groups.items()
        ],
        lr=rate,
    )


def _autocast(precision: str, student: Student, device: str) -> bool:
    """Whether to compute in bfloat16: where that is faster, and for a DETR only when asked."""
    if precision != "auto":
        return precision == "bfloat16"
    if not isinstance(student, DenseStudent):
        return False
    return fast_bfloat16(device)


def _finished(out: Path, run: dict[str, Any]) -> TrainReport | None:
    """The report of a folder that holds this very run, None when there is nothing yet."""
    if not (out / artifacts.MANIFEST).is_file():
        return None
    manifest = artifacts.read(out)
    differing = [name for name, value in run.items() if manifest.config.get(name) != value]
    if differing:
        raise BadInput(
            f"{out} holds another run; it differs in {', '.join(differing)}",
            remedy="Choose another --out, or start over with --fresh.",
        )
    return TrainReport.model_validate_json((out / REPORT).read_text()).model_copy(update={"already_done": True})
