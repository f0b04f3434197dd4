"""How much of a figure a model keeps when pictures get worse: corruptions, resolution, compression.

A task is measured again on the same pictures under each condition, a corruption at a severity (arXiv 1903.12261) or a
level of a sweep. Finished ones are kept in a file, so that work that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evals import retrieval, zero_shot
from evals.corruptions import CORRUPTIONS, SEVERITIES, SWEEPS, corrupt, sweep
from evals.detection import evaluate, precision_recall_curve
from evals.results import Measured, slices_of
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput, UnknownName
from foveal.models import Encoder
from foveal.printing import plain
from foveal.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from PIL.Image import Image

Detect = Callable[[Sequence["Image"]], list[Detections]]
BATCH = 8  # pictures a detector sees at once
Scores = list[float | None]


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured under each condition."""

    figure: str  # its name: top1, recall_at_1, AP50
    measure: Callable[[Dataset], Measured]
    part: Callable[[Mapping[str, list[Any]]], Scores]  # each item's part in the figure, from the items
    averaged: bool = True  # whether the figure is the mean of those parts


@dataclass(frozen=True, slots=True)
class Condition:
    """One way in which all pictures are worse."""

    name: str  # one of CORRUPTIONS or SWEEPS
    level: int  # its severity, or where the sweep stands

    def __call__(self, image: Image, key: str) -> Image:
        """The picture in this condition."""
        return (
            sweep(image, self.name, self.level) if self.name in SWEEPS else corrupt(image, self.name, self.level, key)
        )


def conditions(
    corruptions: Sequence[str] | None = None, severities: Sequence[int] = SEVERITIES, sweeps: bool = True
) -> list[Condition]:
    """Each corruption (all by default) at each severity, then the sweeps.

    Raises:
        UnknownName: no such corruption.
        BadInput: nothing to do, or a severity outside 1 to 5.
    """
    chosen = list(dict.fromkeys(CORRUPTIONS if corruptions is None else corruptions))
    for name in chosen:
        if name not in CORRUPTIONS:
            raise UnknownName("corruption", name, CORRUPTIONS)
    levels = sorted(set(severities))
    if not chosen or not levels or not set(levels) <= set(SEVERITIES):
        raise BadInput("no such severities", expected="one or more of 1 to 5", received=str(levels))
    swept = [Condition(name, level) for name, steps in SWEEPS.items() for level in steps] if sweeps else []
    return [*(Condition(name, level) for name in chosen for level in levels), *swept]


def naming(encoder: Encoder) -> Task:
    """Zero-shot naming of images or crops: top1."""
    model = _Remembering(encoder)
    return Task(
        "top1", lambda dataset: zero_shot.measure(model, dataset), lambda items: list(map(float, items["right"]))
    )


def searching(encoder: Encoder) -> Task:
    """Search by caption among images: recall_at_1."""
    model = _Remembering(encoder)
    return Task(
        "recall_at_1",
        lambda dataset: retrieval.measure(model, dataset),
        lambda items: [float(rank <= 1) for rank in items["rank"]],
    )


def detecting(detect: Detect) -> Task:
    """Detection: AP50 of all images together; an image's part is the AP50 of its own boxes, None without truth.

    Raises (when measured):
        BadInput: no image has boxes.
    """

    def run(dataset: Dataset) -> Measured:
        samples = list(dataset)
        found: list[Detections] = []
        for start in range(0, len(samples), BATCH):
            found += detect([sample.image() for sample in samples[start : start + BATCH]])
        ap50 = evaluate(dataset, found)["AP50"]
        if ap50 is None:
            raise BadInput("no image has boxes", expected="a dataset with boxes")
        own: Scores = [
            precision_recall_curve([boxes], [sample.truth]).average_precision
            if sample.truth is not None and len(sample.truth)
            else None
            for boxes, sample in zip(found, samples, strict=True)
        ]
        return Measured({"AP50": ap50}, {"id": [sample.id for sample in samples], "AP50": own}, slices_of(samples))

    return Task("AP50", run, lambda items: items["AP50"], averaged=False)


def measure(
    task: Task,
    dataset: Dataset,
    chosen: Sequence[Condition] | None = None,
    kept: Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Measured:
    """The task's figure on clean and on worse pictures.

    Figures: `clean`, `mean_corrupted` over all corruptions and severities, `relative` (the share of the clean figure
    that is kept), `worst` (the corruption with the lowest mean, `worst_corruption`), `corruptions` by name and severity
    with the `mean` of each, and `sweeps` by name and level. Items: `clean`, `corrupted` (the mean of the item's part
    over all corruptions and severities) and its mean under each corruption; where the figure is no mean of items, as
    AP50, the columns and their means are called `image_clean` and `image_corrupted`.

    Args:
        kept: a file in which finished conditions are kept and from which they are taken, if it is `about` the same.
        about: what was measured (fingerprints of model and data): conditions of anything else are not taken.

    Raises:
        BadInput: as the task does.
    """
    chosen = list(chosen) if chosen is not None else conditions()
    store = Kept(kept, {"figure": task.figure, **(about or {})})
    progress = progress or SilentProgress()
    todo = [condition for condition in chosen if condition not in store]
    if len(todo) < len(chosen):
        progress.note(f"{len(chosen) - len(todo)} of {len(chosen)} conditions are there from {kept}")
    progress.start("corrupt and measure", (1 + len(todo)) * len(dataset))
    seen = _one_at_a_time(progress.advance)
    try:
        clean = task.measure(_Altered(dataset, None, seen))
        for condition in todo:
            worse = task.measure(_Altered(dataset, condition, seen))
            store.put(condition, worse.figures[task.figure], task.part(worse.items))
    finally:
        progress.finish()
    found = {condition: store[condition] for condition in chosen}
    items = _columns(clean.items, task, found)
    figures = _summary(clean.figures[task.figure], {condition: figure for condition, (figure, _) in found.items()})
    if not task.averaged:
        for name in ("image_clean", "image_corrupted"):
            figures[name] = _mean(items[name])
    return Measured({"figure": task.figure, **figures}, items, clean.slices)


def _one_at_a_time(tell: Callable[[], None]) -> Callable[[], None]:
    """`tell` for the threads that decode."""
    lock = Lock()

    def told() -> None:
        with lock:
            tell()

    return told


def _summary(clean: float, figure: Mapping[Condition, float]) -> dict[str, Any]:
    by_name: dict[str, dict[str, float]] = {}
    for condition, value in figure.items():
        by_name.setdefault(condition.name, {})[str(condition.level)] = value
    sweeps = {name: by_name.pop(name) for name in SWEEPS if name in by_name}
    means = {name: float(np.mean(list(values.values()))) for name, values in by_name.items()}
    overall = float(np.mean([value for condition, value in figure.items() if condition.name in CORRUPTIONS]))
    worst = min(means, key=lambda name: means[name])
    return {
        "clean": clean,
        "mean_corrupted": overall,
        "relative": overall / clean if clean else None,
        "worst": means[worst],
        "worst_corruption": worst,
        "corruptions": {name: {"mean": means[name], **values} for name, values in by_name.items()},
        "sweeps": sweeps,
    }


def _columns(
    clean: Mapping[str, list[Any]], task: Task, found: Mapping[Condition, tuple[float, Scores]]
) -> dict[str, list[Any]]:
    before = "" if task.averaged else "image_"
    names = list(dict.fromkeys(condition.name for condition in found if condition.name in CORRUPTIONS))
    by_name = {name: np.mean([_numbers(p) for c, (_, p) in found.items() if c.name == name], axis=0) for name in names}
    columns = {
        f"{before}clean": _numbers(task.part(clean)),
        f"{before}corrupted": np.mean(list(by_name.values()), axis=0),
        **by_name,
    }
    told = {name: clean[name] for name in ("id", "image", "class", "text") if name in clean}
    return told | {name: [None if np.isnan(v) else float(v) for v in values] for name, values in columns.items()}


def _numbers(parts: Scores) -> NDArray[np.float64]:
    return np.array([np.nan if part is None else part for part in parts])


def _mean(column: list[Any]) -> float | None:
    known = [value for value in column if value is not None]
    return float(np.mean(known)) if known else None


class Kept:
    """Finished conditions in a file of JSON lines, the first of which says what they are of; in memory without a file.

    A line that was cut off when the process died is left out, and a file about anything else is started again.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self.path, self.conditions = path, dict[Condition, tuple[float, Scores]]()
        if path is None:
            return
        told = plain(dict(about))
        lines = _lines(path)
        if lines and lines[0] == told:
            self.conditions = {
                Condition(line["name"], line["level"]): (line["figure"], line["items"]) for line in lines[1:]
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = [told, *(self._line(condition) for condition in self.conditions)]
        path.write_text("".join(json.dumps(line) + "\n" for line in whole), encoding="utf-8")

    def __contains__(self, condition: object) -> bool:
        return condition in self.conditions

    def __getitem__(self, condition: Condition) -> tuple[float, Scores]:
        return self.conditions[condition]

    def put(self, condition: Condition, figure: float, items: Scores) -> None:
        """Keep a finished condition, in the file before anything else is done."""
        self.conditions[condition] = (figure, items)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._line(condition)) + "\n")

    def _line(self, condition: Condition) -> dict[str, Any]:
        figure, items = self.conditions[condition]
        return {"name": condition.name, "level": condition.level, "figure": figure, "items": items}


def _lines(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


@dataclass(frozen=True, slots=True)
class _AlteredSample(Sample):
    condition: Condition | None = None
    seen: Callable[[], None] = field(default=lambda: None)

    def image(self, min_side: int | None = None) -> Image:
        picture = Sample.image(self)
        self.seen()
        return picture if self.condition is None else self.condition(picture, self.id)


def altered(sample: Sample, condition: Condition | None, seen: Callable[[], None] = lambda: None) -> Sample:
    """The sample with its picture in a condition, None for clean; `seen` is told when it was decoded."""
    return _AlteredSample(**{f.name: getattr(sample, f.name) for f in fields(Sample)}, condition=condition, seen=seen)


class _Altered(Dataset):
    """The dataset with each of its pictures in one condition; `seen` is told of each that was decoded."""

    def __init__(self, dataset: Dataset, condition: Condition | None, seen: Callable[[], None]) -> None:
        super().__init__(dataset.arrow, dataset.classes, dataset.category_ids)
        self.condition, self.seen = condition, seen

    def __getitem__(self, index: int) -> Sample:
        return self._altered(super().__getitem__(index))

    def __iter__(self) -> Iterator[Sample]:
        return map(self._altered, super().__iter__())

    def _altered(self, sample: Sample) -> Sample:
        return altered(sample, self.condition, self.seen)


class _Remembering:
    """An encoder that reads the same texts only once, as they do not change with the pictures."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.texts = encoder, dict[tuple[str, ...], FloatArray]()
        self.name, self.fingerprint = encoder.name, encoder.fingerprint
        self.dimension, self.logit_scale = encoder.dimension, encoder.logit_scale

    def encode_images(self, images: Sequence[Image]) -> FloatArray:
        return self.encoder.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        key = tuple(texts)
        if key not in self.texts:
            self.texts[key] = self.encoder.encode_texts(texts)
        return self.texts[key]
