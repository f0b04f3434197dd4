"""The sections of a detection result: curves, classes, sizes, what each kind of mistake costs, the worst ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evals import plots
from evals.average_precision import RECALLS, Fates, curve_of
from evals.detection import sweep
from evals.mistakes import KINDS, Mistake, mistakes
from evals.report import Cell, Link, Report
from evals.results import Result
from foveal.dataset import Sample
from foveal.detections import Detections, pairwise_iou

if TYPE_CHECKING:
    from PIL.Image import Image

IOUS = {0: "IoU 0.50", 5: "IoU 0.75", 8: "IoU 0.90"}  # by their place among COCO's thresholds
CASES = 5  # pictures a kind of mistake
NEAR = 0.1  # overlap from which two boxes have to do with each other
MEANING = {
    "class": "Well placed, but called something else.",
    "localisation": "Of the right class, but overlapping its object by less than a half.",
    "both": "Near an object of another class.",
    "duplicate": "An object found more than once.",
    "background": "Nothing is there, or nothing that was labelled.",
    "missed": "Objects that nothing found.",
}

Samples = Mapping[str, Sample]


def section(report: Report, result: Result, samples: Samples) -> None:
    """All of it; pictures only of images that are among `samples`."""
    if not len(result):
        return
    fates = Fates.of_items(result.items)
    _curves(report, result, fates)
    _parts(report, result)
    threshold, f1 = _operating_point(fates, result)
    found = _mistakes(result, samples, threshold) if samples else None
    report.section(
        "Mistakes",
        "What AP50 would gain if one kind of mistake alone were undone (TIDE, arXiv 2008.08115). "
        f"Counts are of boxes with a score of {threshold:.2f} or more, where F1 is best ({f1:.2f}).",
    )
    _kinds(report, result, found)
    if found is not None:
        _worst(report, result, samples, found, threshold)


def _curves(report: Report, result: Result, fates: Fates) -> None:
    report.section("Precision and recall", "Mean over the classes, at each recall the best precision that reaches it.")
    lines = {name: (curve_of(fates, t), RECALLS) for t, name in IOUS.items()}
    report.plot(
        plots.precision_recall(
            {f"{name}, AP {precision.mean():.3f}": (precision, r) for name, (precision, r) in lines.items()}
        ),
        "The area under a line is the average precision at that overlap",
    )
    figures = result.figures
    sizes = {"small": "s", "medium": "m", "large": "l"}
    rows = {
        name: {"AP": figures[f"AP{key}"], "AR": figures[f"AR{key}"]}
        for name, key in sizes.items()
        if figures.get(f"AP{key}") is not None
    }
    if rows:
        report.plot(plots.bars(rows), "By size of object: small is under 32 x 32 pixels, large over 96 x 96")


def _parts(report: Report, result: Result) -> None:
    ap50: dict[str, float | None] = result.figures["per_class"]
    ap: dict[str, float | None] = result.figures["per_class_ap"]
    truths = Counter(k for image in result.items["truths"] for k in image)
    found = Counter(k for image in result.items["classes"] for k in image)
    rows: list[tuple[Cell, ...]] = [(name, ap[name], ap50[name], truths[k], found[k]) for k, name in enumerate(ap)]
    rows.sort(key=lambda row: (row[1] is None, row[1] or 0.0))
    empty = sum(1 for row in rows if row[1] is None)
    note = f"; {empty} without any object, which count nowhere" if empty else ""
    report.section("Classes", f"Worst first{note}.")
    report.table(("class", "AP", "AP50", "objects", "predictions"), rows)


def _operating_point(fates: Fates, result: Result) -> tuple[float, float]:
    """The score from which precision and recall at IoU 0.5 balance best, all classes together, and their F1."""
    scores = np.concatenate([np.zeros(0), *(np.asarray(s, np.float64) for s in result.items["scores"])])
    hits = np.concatenate([np.zeros(0, np.int64), *(np.asarray(h, np.int64) for h in result.items["hits"])])
    ignored = np.concatenate([np.zeros(0, np.int64), *(np.asarray(h, np.int64) for h in result.items["ignored"])])
    counts = ignored & 1 == 0
    curve = sweep(scores[counts].astype(np.float32), (hits[counts] & 1).astype(bool), len(fates.truth_image))
    if not len(curve.thresholds):
        return 0.5, 0.0
    f1 = 2 * curve.precision * curve.recall / np.maximum(curve.precision + curve.recall, 1e-9)
    best = int(f1.argmax())
    return float(curve.thresholds[best]), float(f1[best])


def _predicted(result: Result, threshold: float) -> dict[str, Detections]:
    """The predictions of each image that are sure enough and count."""
    names = tuple(result.figures["per_class"])
    items = result.items
    columns = (items[name] for name in ("id", "boxes", "scores", "classes", "ignored"))
    found: dict[str, Detections] = {}
    for id, boxes, scores, classes, ignored in zip(*columns, strict=True):
        keep = [i for i, score in enumerate(scores) if np.float32(score) >= threshold and not ignored[i] & 1]
        found[id] = Detections.build(
            [boxes[i] for i in keep], [scores[i] for i in keep], [classes[i] for i in keep], names
        )
    return found


def _truth(sample: Sample) -> Detections:
    return sample.truth if sample.truth is not None else Detections.empty(())


def _mistakes(result: Result, samples: Samples, threshold: float) -> list[tuple[str, Mistake]]:
    """Image and mistake, worst first."""
    predicted = {id: boxes for id, boxes in _predicted(result, threshold).items() if id in samples}
    ids = list(predicted)
    return [(ids[m.image], m) for m in mistakes(list(predicted.values()), [_truth(samples[id]) for id in ids])]


def _kinds(report: Report, result: Result, found: list[tuple[str, Mistake]] | None) -> None:
    gains: dict[str, float | None] = result.figures["errors"]
    known = {kind: {"AP50": gain} for kind, gain in gains.items() if gain is not None}
    if known:
        report.plot(plots.bars(known), "AP50 that undoing this kind alone would give", alt=_spoken(known))
    counts = None if found is None else Counter(mistake.kind for _, mistake in found)
    rows: list[tuple[Cell, ...]] = []
    for kind in KINDS:
        count: Cell = None
        if counts is not None:
            count = Link(counts[kind], f"mistakes-{kind}") if counts[kind] else 0
        rows.append((kind, MEANING[kind], gains[kind], count))
    report.table(("kind", "what it is", "AP50 gained", "how many"), rows, stack=True)


def _spoken(known: Mapping[str, Mapping[str, Any]]) -> str:
    return "AP50 gained by undoing: " + ", ".join(f"{kind} {row['AP50']:.3f}" for kind, row in known.items())


def _worst(
    report: Report, result: Result, samples: Samples, found: list[tuple[str, Mistake]], threshold: float
) -> None:
    report.section(
        "Worst mistakes",
        "The surest false alarms, with what is there, and the largest misses, with what was said of them.",
    )
    predicted = _predicted(result, threshold)
    for kind in KINDS:
        cases: dict[str, Mistake] = {}  # one an image: the worst of it
        for id, mistake in found:
            if mistake.kind == kind and len(cases) < CASES:
                cases.setdefault(id, mistake)
        if not cases:
            continue
        total = sum(mistake.kind == kind for _, mistake in found)
        shown = f"{total} in all" if total <= CASES else f"{len(cases)} of {total}"
        report.heading(f"{kind.capitalize()}: {shown}", MEANING[kind], anchor=f"mistakes-{kind}")
        report.tiles(
            (
                *_around(samples[id].image(), _involved(mistake, _truth(samples[id]), predicted[id])),
                f"{mistake.words} · {id}",
            )
            for id, mistake in cases.items()
        )


def _involved(mistake: Mistake, known: Detections, said: Detections) -> Detections:
    """The box that a mistake is about, and what overlaps it: what is there or, of a miss, what was said."""
    box = np.asarray([mistake.box], np.float32)
    missed = mistake.kind == "missed"
    others = said if missed else known
    near = np.flatnonzero(pairwise_iou(others.boxes, box)[:, 0] > NEAR) if len(others) else np.zeros(0, np.int64)
    names = [mistake.label, *(others.label_names[i] if missed else f"is: {others.label_names[i]}" for i in near)]
    scores = [1.0 if missed else mistake.score, *(float(others.scores[i]) if missed else 1.0 for i in near)]
    return Detections.build(np.concatenate([box, others.boxes[near]]), scores, names, list(dict.fromkeys(names)))


def _around(image: Image, boxes: Detections) -> tuple[Image, Detections]:
    """The part of a picture that shows the boxes and as much around them, with the boxes in its pixels."""
    x1, y1 = boxes.boxes[:, :2].min(axis=0).tolist()
    x2, y2 = boxes.boxes[:, 2:].max(axis=0).tolist()
    side = min(max(image.size), max(2 * max(x2 - x1, y2 - y1), max(image.size) / 3))
    left = min(max(0, (x1 + x2 - side) / 2), max(0, image.width - side))
    top = min(max(0, (y1 + y2 - side) / 2), max(0, image.height - side))
    part = image.crop(
        (round(left), round(top), round(min(image.width, left + side)), round(min(image.height, top + side)))
    )
    moved = boxes.boxes - np.array([round(left), round(top)] * 2, dtype=np.float32)
    return part, replace(boxes, boxes=moved)
