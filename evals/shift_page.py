"""The section of a shift result: the verdict, the map of both sets, what moved, and what is known of the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evals.drift import SHIFT
from evals.report import Mark, Report, State
from evals.results import Result
from evals.shift import DATA, REFERENCE
from foveal.dataset import Sample

SHOWN = 12  # pictures of each kind
SURE = 0.05  # p-value up to which the sets are said to differ
SHARES_OF = 8  # fields whose shares are shown
ROWS = 12  # values of a field


def section(report: Report, result: Result, samples: Mapping[str, Sample]) -> None:
    """Verdict, map, pictures, fields."""
    figures, items = result.figures, result.items
    _verdict(report, figures)
    _map(report, items)
    _moved(report, items, samples)
    _fields(report, figures["fields"])


def _verdict(report: Report, figures: Mapping[str, Any]) -> None:
    differs = figures["p"] <= SURE
    report.section(
        "Verdict",
        f"The two sets look different: chance alone would show this in {figures['p']:.2g} of such comparisons at most."
        if differs
        else "Nothing shows that the two sets look different; small differences need more images to be seen.",
    )
    state: State = "bad" if differs else "good"
    tiles: list[tuple[str, str, str, State | None]] = [
        ("p", f"{figures['p']:.3g}", "both tests together", state),
        (
            "AUC",
            f"{figures['auc']:.3f}",
            f"of a classifier that tells them apart, p {figures['classifier_p']:.3g}",
            None,
        ),
        ("MMD²", f"{figures['mmd_squared']:.4f}", f"of the embeddings, p {figures['mmd_p']:.3g}", None),
    ]
    for name, what in (("classes", "zero-shot classes"), ("scores", "scores of boxes"), ("boxes", "boxes an image")):
        value = figures.get(f"{name}_psi")
        if value is not None:
            tiles.append((f"PSI of {name}", f"{value:.3f}", f"{what}; shifted from {SHIFT} on", _state(value)))
    report.figures(tiles)


def _state(value: float) -> State:
    return "bad" if value >= SHIFT else "warn" if value >= SHIFT / 2 else "good"


def _map(report: Report, items: Mapping[str, list[Any]]) -> None:
    from evals import plots

    report.section("Map", "Each point is an image. Two directions out of many: sets may differ that lie together here.")
    second = np.array(items["set"]) == DATA
    x, y = np.array(items["x"]), np.array(items["y"])
    report.plot(
        plots.points({REFERENCE: (x[~second], y[~second]), DATA: (x[second], y[second])}),
        "Embeddings of both sets on their first two principal components",
    )
    ratio = np.array(items["log_ratio"])
    report.plot(
        plots.histogram({REFERENCE: ratio[~second], DATA: ratio[second]}, x="log of how much likelier in data"),
        "How much likelier each image is in data than in reference, by a classifier that had not seen it",
    )


def _moved(report: Report, items: Mapping[str, list[Any]], samples: Mapping[str, Sample]) -> None:
    ratio = np.array(items["log_ratio"])
    kinds = (
        (DATA, -1, "What is new", "Images of data that are least like reference: the shift at its clearest."),
        (REFERENCE, 1, "What is gone", "Images of reference that data has least of."),
        (DATA, 1, "What stayed", "Images of data that reference could hold as well."),
    )
    for which, sign, title, intro in kinds:
        own = [i for i in np.argsort(sign * ratio, kind="stable").tolist() if items["set"][i] == which]
        shown = [i for i in own if items["id"][i] in samples][:SHOWN]
        if shown:
            report.section(title, intro)
            report.gallery((samples[items["id"][i]].image(), _caption(items, i)) for i in shown)


def _caption(items: Mapping[str, list[Any]], i: int) -> str:
    times = float(np.exp(np.clip(items["log_ratio"][i], -7, 7)))
    side, value = (DATA, times) if times >= 1 else (REFERENCE, 1 / times)
    name = str(items["id"][i]).partition("/")[2]
    told = f"{value:.1f}" if value < 10 else f"{value:,.0f}" if value < 1000 else "over 1,000"
    return f"{name}: {told} times likelier in {side}"


def _fields(report: Report, fields: Mapping[str, Mapping[str, Any]]) -> None:
    if not fields:
        return
    report.section(
        "What is known of them",
        f"Population stability index of each field, less what chance gives; from {SHIFT} on a population has shifted.",
    )
    order = sorted(fields, key=lambda name: -fields[name]["psi"])
    words: dict[State, str] = {"bad": "shifted", "warn": "moving", "good": "stable"}
    report.table(
        ("field", "index", "verdict"),
        [
            (name, fields[name]["psi"], Mark(words[_state(fields[name]["psi"])], _state(fields[name]["psi"])))
            for name in order
        ],
    )
    for name in order[:SHARES_OF]:
        field = fields[name]
        values = sorted(field[DATA], key=lambda value: -abs(field[DATA][value] - field[REFERENCE][value]))
        rows = [(value, f"{field[REFERENCE][value]:.1%}", f"{field[DATA][value]:.1%}") for value in values[:ROWS]]
        report.table((name, REFERENCE, DATA), rows)
