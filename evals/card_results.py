"""What results say in a model card: entries of the hub's `model-index`, tables, slices, and limits that they show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from evals.markdown import code, inline, number, table
from evals.measures import Measure, measures_of
from evals.results import Result

# Task of a result -> the hub's task; the model's own pipeline for the others (speed, calibration, scenarios, ...).
HUB_TASKS = {
    "zero-shot": "zero-shot-image-classification",
    "few-shot": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "retrieval": "image-feature-extraction",
    "vqa": "visual-question-answering",
}
HUB_METRICS = {"top1": "accuracy", "accuracy": "accuracy", "exact_match": "exact_match"}
FEWEST = 5  # items in a slice below which its figures are mostly chance
MOST_SLICES = 12  # rows a table; the worst
WORSE = 0.8  # share of the whole's figure below which a slice is named among the limits
LARGE_ECE = 0.05


def model_index(name: str, results: Sequence[Result], task: str | None) -> list[dict[str, Any]]:
    """The hub's `model-index`, an entry a result: its task, its data by fingerprint, its figures, what measured it."""
    entries: list[dict[str, Any]] = []
    for result in results:
        kind = HUB_TASKS.get(result.task, task)
        figures = headline(result)
        if kind is None or not figures:
            continue
        entries.append(
            {
                "task": {"type": kind, "name": result.name.replace("-", " ").capitalize()},
                "dataset": {
                    "name": result.data.source,
                    "type": "private",
                    "revision": result.data.fingerprint[:12],
                    "args": {"images": result.data.images, "fingerprint": result.data.fingerprint},
                },
                "metrics": [
                    {"type": HUB_METRICS.get(figure, figure), "value": value, "name": figure.replace("_", " ")}
                    for figure, value in figures.items()
                ],
            }
        )
    return [{"name": name, "results": entries}] if entries else []


def headline(result: Result) -> dict[str, float]:
    """The figures of a result that stand for it: those that follow from its items, else its plain numbers."""
    names = list(measures_of(result)) or list(result.figures)
    values = {name: result.figures[name] for name in names}
    return {name: float(value) for name, value in values.items() if _is_number(value)}


def sections(results: Sequence[Result]) -> str:
    """A part a result: what it was measured on, its figures, and its slices, the worst first."""
    parts: list[str] = []
    for result in results:
        where = f"`{code(result.data.source)}`, {result.data.images:,} images (data `{result.data.fingerprint[:12]}`)"
        machine = result.machine.get("cpu")
        rows = [[name.replace("_", " "), number(value)] for name, value in headline(result).items()]
        parts += [
            f"### {inline(result.name.replace('-', ' ').capitalize())}",
            f"Task {inline(result.task)}, measured on {where} on {result.created:%Y-%m-%d}"
            + (f" with Foveal {result.foveal_version}" if result.foveal_version else "")
            + (f", on {inline(str(machine))}" if machine else "")
            + ".",
            table(("figure", "value"), rows, "lr"),
            *_slices(result),
        ]
    return "\n\n".join(parts)


def _slices(result: Result) -> Iterable[str]:
    measures = list(measures_of(result).items())[:3]
    for column in result.slices if measures else ():
        found = _parts(result, column, measures)
        if len(found) < 2:
            continue
        rows = [[inline(word), f"{count:,}", *map(number, values)] for word, count, values in found[:MOST_SLICES]]
        left = f"\n\n{len(found) - MOST_SLICES} more are better than these." if len(found) > MOST_SLICES else ""
        names = [name.replace("_", " ") for name, _ in measures]
        yield f"By {inline(column)}:\n\n" + table((column, "items", *names), rows, "lr" + "r" * len(names)) + left


def _parts(result: Result, column: str, measures: Sequence[tuple[str, Measure]]) -> list[tuple[str, int, list[float]]]:
    """(word, items, figures) of each part that is large enough, the worst of the first figure first."""
    values = np.array([value or "" for value in result.slices[column]])
    words = [word for word in np.unique(values).tolist() if word and (values == word).sum() >= FEWEST]
    if not words:
        return []
    weights = np.stack([(values == word).astype(np.float64) for word in words])
    figures = np.stack([measure.of(result.items, weights) for _, measure in measures], axis=1)
    sign = 1 if measures[0][1].higher_is_better else -1
    order = np.argsort(sign * figures[:, 0], kind="stable")
    return [(words[i], int(weights[i].sum()), figures[i].tolist()) for i in order]


def limits_seen(results: Sequence[Result]) -> list[str]:
    """What the results themselves show to be weak; nothing is said that they do not."""
    found: list[str] = []
    for result in results:
        if result.task == "scenarios":
            items = result.items
            failed = [name for name, passed in zip(items["id"], items["passed"], strict=True) if not passed]
            if failed:
                found.append(f"Fails {len(failed)} of {len(items['id'])} scenarios: {', '.join(failed[:5])}.")
        elif result.task == "calibration":
            ece, more = result.figures["ece"], result.figures["mean_confidence"] - result.figures["accuracy"]
            if ece > LARGE_ECE:
                lean = "too sure" if more > 0 else "too modest"
                found.append(f"Its confidences are {lean}: they miss the share that is right by {ece:.1%} on average.")
        else:
            found += _weak_slices(result)
        if result.data.images < 100:
            found.append(f"{result.name} was measured on {result.data.images} images only.")
    return found


def _weak_slices(result: Result) -> Iterable[str]:
    measures = [(name, one) for name, one in measures_of(result).items() if one.higher_is_better][:1]
    for column in result.slices if measures else ():
        found = _parts(result, column, measures)
        whole = headline(result).get(measures[0][0])
        if len(found) < 2 or not whole or not math.isfinite(found[0][2][0]):
            continue
        word, count, (value, *_) = found[0]
        if value < WORSE * whole:
            figure = measures[0][0].replace("_", " ")
            yield f"Weakest where {column} is {word}: {figure} {value:.3g} on {count:,}, {whole:.3g} on all."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
