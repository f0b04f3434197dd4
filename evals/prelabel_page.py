"""The sections of a pre-label result: the promise and what was found, class by class, and what was accepted wrongly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evals import plots
from evals.report import Cell, Report
from evals.results import Result
from foveal.dataset import Sample
from foveal.detections import Detections

WORST = 8  # images shown
Samples = Mapping[str, Sample]


def section(report: Report, result: Result, samples: Samples) -> None:
    """Tiles, the probabilities against what came true, classes, and the images that need most corrections."""
    figures = result.figures
    precision = figures["accepted_precision"]
    saved = figures["corrections_saved_per_1000_images"]
    report.section(
        "What they are worth", "Accepted boxes nobody looks at, so they have to be right; the rest costs time."
    )
    report.figures(
        [
            (
                "accepted boxes that are right",
                _percent(precision),
                f"95%: {figures['accepted_low']:.1%} to {figures['accepted_high']:.1%}",
                None,
            ),
            ("gold boxes accepted", _percent(figures["accepted_recall"]), "rightly, without a look", None),
            ("boxes to review", _percent(figures["review_rate"]), "of those shown", None),
            ("corrections saved", f"{saved:,.0f}", "per 1,000 images", "good" if saved > 0 else "bad"),
        ]
    )
    stated = np.array([p for image in result.items["probabilities"] for p in image])
    right = np.array([r for image in result.items["right"] for r in image])
    if len(stated):
        report.plot(plots.reliability(stated, right), f"Probability against what came true: ECE {figures['ece']:.3f}")
        groups = {"right": stated[right == 1], "wrong": stated[right == 0]}
        filled = {name: values for name, values in groups.items() if len(values)}
        report.plot(plots.histogram(filled, x="probability"), "All boxes by their probability")
    report.section("Classes", "Least precise first.")
    rows: list[tuple[Cell, ...]] = []
    for name, counts in figures["per_class"].items():
        share = counts["right"] / counts["accepted"] if counts["accepted"] else None
        rows.append((name, share, counts["gold"], counts["accepted"], counts["review"], counts["rejected"]))
    rows.sort(key=lambda row: (row[1] is None, row[1] or 0.0))
    report.table(("class", "precision", "gold", "accepted", "review", "rejected"), rows)
    _worst(report, result, samples)


def _worst(report: Report, result: Result, samples: Samples) -> None:
    items = result.items
    wrong = np.array([len(boxes) for boxes in items["wrong_boxes"]])
    order = np.argsort(-wrong, kind="stable")
    chosen = [i for i in order.tolist() if wrong[i] and items["id"][i] in samples][:WORST]
    if not chosen:
        return
    report.section("Accepted wrongly", "The images with most boxes that nobody would have looked at, and should have.")
    for i in chosen:
        sample = samples[items["id"][i]]
        names = tuple(result.figures["per_class"])
        said = Detections.build(items["wrong_boxes"][i], 1.0, items["wrong_classes"][i], names)
        panels = {"gold": Detections.empty(names) if sample.truth is None else sample.truth, "accepted wrongly": said}
        report.boxes(sample.image(), panels, f"{sample.id}: {wrong[i]} of {items['accepted'][i]} accepted boxes")


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"
