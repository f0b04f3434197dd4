"""The page of a result: one HTML file that says what was measured, on what, and where it went wrong.

Each task has a section of its own in `SECTIONS`; a result of any other task shows its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evals import (
    blind_spots_page,
    calibration_page,
    detection_page,
    few_shot_page,
    prelabel_page,
    robustness_page,
    scenario_page,
    search_page,
    shift_page,
    speed_page,
    vqa_page,
)
from evals.measures import measures_of
from evals.report import Cell, Report
from evals.results import Result
from foveal.dataset import Dataset, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

AROUND = 0.3  # of a box's sides, shown around it
CLASSES = 25  # in a matrix of confusions
WORST = 12  # pictures in a gallery of mistakes
FEWEST = 5  # items in a slice below which its figures are mostly chance

Samples = Mapping[str, Sample]


def page(result: Result, dataset: Dataset | None = None) -> Report:
    """The whole page of a result; with the dataset that it was measured on, its pictures too."""
    facts = [
        ("model", result.subject.reference),
        ("data", f"{result.data.source}, {result.data.images:,} images"),
        ("date", f"{result.created:%Y-%m-%d %H:%M} UTC"),
        ("machine", f"{result.machine['cpu']}, {result.machine['cores']} cores"),
        ("time", f"{result.seconds:.1f} s"),
    ]
    if result.subject.licence:
        facts.insert(1, ("licence", result.subject.licence))
    title = "VQA" if result.name == "vqa" else result.name.replace("-", " ").capitalize()
    report = Report(title, f"Task: {result.task}.", facts=facts)
    add(report, result, dataset)
    return report


def add(report: Report, result: Result, dataset: Dataset | None = None) -> None:
    """The sections of a result, for a page that may hold several."""
    samples: Samples = {sample.id: sample for sample in dataset} if dataset is not None else {}
    report.section("Figures")
    own = result.task in SECTIONS  # which shows in its own way what is nested
    flat = {name: value for name, value in result.figures.items() if not (own and isinstance(value, Mapping))}
    report.table(("figure", "value"), _flat(flat))
    if own:
        SECTIONS[result.task](report, result, samples)
    slices(report, result)


def slices(report: Report, result: Result) -> None:
    """A table for each way to divide the items, worst slice of the first figure first."""
    measures = list(measures_of(result).items())[:4]
    if not measures or not result.slices:
        return
    told = False
    for name, column in result.slices.items():
        values = np.array([value or "" for value in column])
        words = [word for word in np.unique(values).tolist() if word and (values == word).sum() >= FEWEST]
        if len(words) < 2:
            continue
        weights = np.stack([(values == word).astype(np.float64) for word in words])
        figures = np.stack([measure.of(result.items, weights) for _, measure in measures], axis=1)
        known = [j for j in range(len(measures)) if np.isfinite(figures[:, j]).any()]  # answers in words have no boxes
        if not known:
            continue
        if not told:
            report.section("Slices", f"The same figures on parts; parts of fewer than {FEWEST} items are left out.")
            told = True
        order = np.argsort(figures[:, known[0]] * (1 if measures[known[0]][1].higher_is_better else -1), kind="stable")
        rows: list[list[Cell]] = [
            [words[i], int(weights[i].sum()), *(None if np.isnan(f) else float(f) for f in figures[i, known])]
            for i in order
        ]
        report.table((name, "items", *(measures[j][0].replace("_", " ") for j in known)), rows)


def _named(report: Report, result: Result, samples: Samples) -> None:
    """Classification: what is taken for what, and the surest mistakes."""
    items = result.items
    wrong = [i for i, right in enumerate(items["right"]) if not right]
    confused: dict[tuple[str, str], int] = {}
    for i in wrong:
        pair = (items["class"][i], items["said"][i])
        confused[pair] = confused.get(pair, 0) + 1
    report.section("Mistakes", "What is taken for what, and where the model was surest and wrong.")
    common = sorted(confused.items(), key=lambda entry: -entry[1])[:WORST]
    _confusion(report, items["class"], items["said"])
    report.table(("is", "was called", "times"), [(truth, said, count) for (truth, said), count in common])
    worst = sorted(wrong, key=lambda i: -float(items["confidence"][i]))
    shown = [i for i in worst if items["image"][i] in samples][:WORST]
    report.gallery(
        (
            _piece(samples[items["image"][i]], items["id"][i]),
            f"{items['class'][i]}, called {items['said'][i]} at {items['confidence'][i]:.2f}",
        )
        for i in shown
    )


def _piece(sample: Sample, id: str) -> Image:
    """What was named: a box of the picture with some of what is around it, or all of it."""
    whole, (_, _, number) = sample.image(), id.rpartition("#")
    if sample.truth is None or not id.startswith(f"{sample.id}#") or int(number) >= len(sample.truth):
        return whole
    x1, y1, x2, y2 = sample.truth.boxes[int(number)].tolist()
    dx, dy = AROUND * (x2 - x1), AROUND * (y2 - y1)
    right, low = min(whole.width, x2 + dx), min(whole.height, y2 + dy)
    return whole.crop((int(max(0, x1 - dx)), int(max(0, y1 - dy)), int(right), int(low)))


def _confusion(report: Report, truth: Sequence[str], said: Sequence[str]) -> None:
    """The matrix of the classes that are most often confused, or of all where they are few."""
    from evals import plots

    names, place = np.unique(np.array([*truth, *said]), return_inverse=True)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (place[: len(truth)], place[len(truth) :]), 1)
    off = counts - np.diag(np.diag(counts))
    shown = np.sort(np.argsort(-(off.sum(axis=0) + off.sum(axis=1)), kind="stable")[:CLASSES])
    least = "" if len(names) <= CLASSES else f", the {CLASSES} classes that are confused most"
    figure = plots.confusion(counts[np.ix_(shown, shown)], names[shown].tolist())
    report.plot(figure, f"What is called what{least}; squares are shares of a row")


def _searched(report: Report, result: Result, samples: Samples) -> None:
    """Retrieval: how far down the right image is, and the searches that miss it most."""
    from evals import plots

    items = result.items
    ranks = np.array(items["rank"], dtype=np.float64)
    report.section("Searches", "How far down the list the right picture is, and what stood first instead.")
    ks = np.arange(1, max(2, min(100, int(ranks.max()))) + 1)
    share = np.array([(ranks <= k).mean() for k in ks])
    report.plot(plots.curves({"recall@k": (ks, share)}), "Share of captions whose picture is among the first k")
    for i in np.argsort(-ranks, kind="stable")[: WORST // 2].tolist():
        if items["image"][i] in samples and ranks[i] > 1:
            shown = [
                (samples[items["said"][i]].image(), "found first", items["said"][i], "bad"),
                (
                    samples[items["image"][i]].image(),
                    f"the right one, rank {items['rank'][i]}",
                    items["image"][i],
                    "good",
                ),
            ]
            report.strip(items["text"][i], cast("Any", shown))


SECTIONS: dict[str, Callable[[Report, Result, Samples], None]] = {
    "zero-shot": _named,
    "few-shot": few_shot_page.section,
    "retrieval": _searched,
    "robustness": robustness_page.section,
    "shift": shift_page.section,
    "slices": blind_spots_page.section,
    "scenarios": scenario_page.section,
    "calibration": calibration_page.section,
    "speed": speed_page.section,
    "detection": detection_page.section,
    "segmentation": detection_page.section,
    "prelabel": prelabel_page.section,
    "search": search_page.section,
    "vqa": vqa_page.section,
}


def _flat(figures: Mapping[str, Any], before: str = "") -> list[tuple[str, Cell]]:
    rows: list[tuple[str, Cell]] = []
    for name, value in figures.items():
        label = f"{before}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(cast("Mapping[str, Any]", value), f"{label}, ")
        elif not isinstance(value, list):
            rows.append((label, cast("Cell", value)))
    return rows


def write(result: Result, path: Path, dataset: Dataset | None = None) -> Path:
    """The result as JSON in `path`, and its page beside it -> the path of the page."""
    result.write(path)
    beside = path.with_suffix(".html")
    page(result, dataset).write(beside)
    return beside
