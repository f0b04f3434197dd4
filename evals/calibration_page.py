"""The section of a calibration result: reliability diagrams before and after, by class, and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from evals.report import Cell, Mark, Report
from evals.results import Result
from foveal.dataset import Sample

CLASSES = 6  # most frequent, with a diagram of their own
FEWEST = 20  # predictions of a class below which a diagram shows chance
METHODS = {"temperature": "temperature", "platt": "Platt", "isotonic": "isotonic"}


def section(report: Report, result: Result, samples: Mapping[str, Sample]) -> None:
    """What is stated against what came true, and what to do about it."""
    figures, items = result.figures, result.items
    _summary(report, figures)
    stated, right = np.array(items["confidence"], dtype=np.float64), np.array(items["right"], dtype=np.float64)
    mended = np.array(items["calibrated"], dtype=np.float64)
    chosen = METHODS.get(figures["chosen"])
    _diagrams(report, stated, right, mended, chosen)
    _thresholds(report, cast("list[dict[str, Any]]", figures["thresholds"]))
    _classes(report, result, stated, right, mended, chosen)


def _summary(report: Report, figures: Mapping[str, Any]) -> None:
    more = figures["mean_confidence"] - figures["accuracy"]
    lean = "too sure" if more > 0.01 else "too modest" if more < -0.01 else "neither too sure nor too modest"
    report.section(
        "Trust",
        f"The model states {figures['mean_confidence']:.1%} on average and is right in {figures['accuracy']:.1%}: "
        f"{lean}. After each method the figures are out of fold: no prediction is judged by a map fitted to it.",
    )
    rows: list[list[Cell]] = [["as stated", *(figures[name] for name in ("ece", "adaptive_ece", "brier", "nll")), None]]
    for method, told in figures["after"].items():
        taken = Mark("chosen", "good") if method == figures["chosen"] else None
        rows.append([METHODS[method], *(told[name] for name in ("ece", "adaptive_ece", "brier", "nll")), taken])
    report.table(("", "ECE", "adaptive ECE", "Brier", "log loss", ""), rows, f"{figures['why'].capitalize()}.")


def _diagrams(
    report: Report,
    stated: np.ndarray[Any, Any],
    right: np.ndarray[Any, Any],
    mended: np.ndarray[Any, Any],
    chosen: str | None,
) -> None:
    from evals import plots

    report.plot(plots.reliability(stated, right), "As stated: a point on the line is as often right as it says")
    if chosen is not None:
        report.plot(plots.reliability(mended, right), f"After {chosen}, out of fold")


def _thresholds(report: Report, told: list[dict[str, Any]]) -> None:
    report.section("Thresholds", "Where to cut the stated confidence, with the interval of what lies above it.")
    rows: list[list[Cell]] = []
    for one in told:
        name = one["target"]
        if one["threshold"] is None:
            rows.append([f"{name} {one['at_least']:g}", Mark("none", "bad"), None, None, None, None, one["reason"]])
            continue
        low, high = one["interval"]
        rows.append(
            [
                f"{name} {one['at_least']:g}",
                Mark("proven", "good") if one["proven"] else Mark("estimated", "warn"),
                round(one["threshold"], 4),
                _share(one["precision"], (low, high) if name == "precision" else None),
                _share(one["recall"], (low, high) if name == "recall" else None),
                one["accepted"],
                one["reason"],
            ]
        )
    columns = ("target", "", "threshold", "precision", "recall", "accepted", "why")
    report.table(columns, rows, stack=True)


def _share(value: float | None, interval: tuple[float, float] | None) -> str | None:
    if value is None:
        return None
    return f"{value:.1%}" + ("" if interval is None else f" ({interval[0]:.1%} to {interval[1]:.1%})")


def _classes(
    report: Report,
    result: Result,
    stated: np.ndarray[Any, Any],
    right: np.ndarray[Any, Any],
    mended: np.ndarray[Any, Any],
    chosen: str | None,
) -> None:
    from evals import plots

    per_class = cast("dict[str, dict[str, Any]]", result.figures["per_class"])
    if len(per_class) < 2:
        return
    report.section("By class", "What is said of each class, the worst calibrated first.")
    order = sorted(per_class, key=lambda name: -per_class[name]["ece"] * min(per_class[name]["count"], FEWEST))
    rows: list[list[Cell]] = [
        [
            name,
            per_class[name]["count"],
            per_class[name]["confidence"],
            per_class[name]["accuracy"],
            per_class[name]["ece"],
            per_class[name]["ece_after"] if chosen else None,
            per_class[name]["brier"],
        ]
        for name in order
    ]
    report.table(("class", "predictions", "states", "is right", "ECE", "ECE after", "Brier"), rows)
    said = np.array(result.items["class"], dtype=object)
    plenty = [name for name, told in per_class.items() if told["count"] >= FEWEST][:CLASSES]
    for name in plenty:
        mine = said == name
        curves = {"as stated": (stated[mine], right[mine])}
        if chosen is not None:
            curves[f"after {chosen}"] = (mended[mine], right[mine])
        report.plot(plots.reliability_lines(curves, bins=5), f"{name}, {int(mine.sum()):,} predictions")
