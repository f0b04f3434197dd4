"""Speed against accuracy: one student at several input sizes and precisions, and what is lost with each.

foveal export runs/student --curve gold/instances.json --out runs/curve
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.export import export
from distill.parity import ParityFailed
from distill.students import restore
from evals.detection import evaluate
from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.detectors import ExportedDetector, load_onnx
from foveal.errors import BadImage, BadInput
from foveal.models import ModelRef
from foveal.progress import Progress, track

SHARES = (0.5, 0.6, 0.8, 1.0, 1.2)  # of the student's own input side
ROUNDS = 40  # calls of every form, in turns


@dataclass(frozen=True, slots=True)
class Point:
    """One form of the student."""

    size: int
    precision: str
    ms: float  # an image, batch 1, one thread, preprocessing included
    map50: float
    megabytes: float
    best: bool = False  # no other form is both faster and at least as accurate


def curve(
    student: Path,
    data: Dataset,
    *,
    classes: Sequence[str] | None = None,
    int8: Dataset | None = None,
    sizes: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Point]:
    """Every size in fp32, and in INT8 where `int8` images are given, measured on labelled `data`; by time.

    Sizes are rounded to what the family takes; a form that fails its parity check is left out.

    Raises:
        BadInput: `data` has no labelled image.
    """
    net, _ = restore(student)
    own = net.size
    wanted = sorted({max(64, 32 * round((size or 0) / 32)) for size in sizes or [own * share for share in SHARES]})
    images, truth = _read(data)
    known = tuple(classes or net.classes)
    goal = [_only(found, known) for found in truth]
    models: dict[tuple[int, str], tuple[ExportedDetector, float]] = {}
    with tempfile.TemporaryDirectory() as work:
        for size in track(progress, wanted, "export", len(wanted)):
            for precision in ("fp32", "int8") if int8 is not None else ("fp32",):
                out = Path(work) / f"{size}-{precision}"
                try:
                    report = export(
                        student, out, classes=classes, size=size, int8=int8 if precision == "int8" else None, check=data
                    )
                except ParityFailed:
                    continue
                models[size, precision] = load_onnx(ModelRef("onnx", str(out)), threads=1), report.megabytes
        times: dict[tuple[int, str], list[float]] = {key: [] for key in models}
        for turn in range(ROUNDS):
            for key, (model, _) in models.items():
                began = time.perf_counter()
                model.detect([images[turn % len(images)]])
                times[key].append(time.perf_counter() - began)
        points: list[Point] = []
        for (size, precision), (model, megabytes) in models.items():
            found = [d for image in images for d in model.detect([image], 0.001)]
            scores = evaluate(goal, found)
            ms = 1000 * float(np.median(times[size, precision]))
            points.append(Point(size, precision, ms, scores["AP50"] or 0.0, megabytes))
    ordered = sorted(points, key=lambda p: (p.ms, -p.map50))
    return [_marked(point, ordered) for point in ordered]


def draw(points: Sequence[Point], path: Path) -> None:
    """The curve as a PNG: the forms that none beats are joined, the others stand beside."""
    from evals import plots

    best, beaten = [p for p in points if p.best], [p for p in points if not p.best]
    figure = plots.path(
        [(p.ms, p.map50) for p in best], [_name(p) for p in best], x="ms an image, one thread", y="mAP50"
    )
    axes = figure.axes[0]
    axes.scatter([p.ms for p in beaten], [p.map50 for p in beaten], s=16, color="0.6")
    for point in beaten:
        axes.annotate(_name(point), (point.ms, point.map50), xytext=(5, -10), textcoords="offset points", fontsize=7.5)
    figure.savefig(path, dpi=120)


def _name(point: Point) -> str:
    return f"{point.size} px" + ("" if point.precision == "fp32" else f" {point.precision}")


def to_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Plain values, fastest first."""
    return [asdict(point) for point in points]


def _marked(point: Point, all_points: Sequence[Point]) -> Point:
    beaten = any(p.ms < point.ms and p.map50 >= point.map50 for p in all_points)
    return Point(point.size, point.precision, point.ms, point.map50, point.megabytes, not beaten)


def _read(data: Dataset) -> tuple[list[Any], list[Detections]]:
    images: list[Any] = []
    truth: list[Detections] = []
    for sample in data:
        if sample.truth is None:
            continue
        try:
            images.append(sample.image())
        except BadImage:
            continue
        truth.append(sample.truth)
    if not any(len(found) for found in truth):
        raise BadInput("there is nothing to measure accuracy on", expected="labelled images")
    return images, truth


def _only(found: Detections, names: Sequence[str]) -> Detections:
    keep = np.array([name in names for name in found.label_names], dtype=bool)
    kept = found[keep]
    return Detections.build(kept.boxes, 1.0, kept.label_names, names)
