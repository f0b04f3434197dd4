"""The sections of a few-shot result: accuracy by number of examples, which method is better, and what it gets wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from evals import plots
from evals.measures import Measure, mean_of
from evals.paired import difference
from evals.report import Cell, Report
from evals.results import Result
from evals.shots import METHODS
from evals.zero_shot import piece
from foveal.dataset import Sample

WORST = 12  # pictures shown, and confusions listed
Samples = Mapping[str, Sample]


def section(report: Report, result: Result, samples: Samples) -> None:
    """All of it; pictures only of images that are among `samples`."""
    _growth(report, result.figures["shots"], result.settings.get("seeds"))
    if not len(result):
        return
    most = max(map(int, result.figures["shots"]))
    _against(report, result, most)
    best = max(METHODS, key=lambda method: result.figures[f"{METHODS[method]}_top1"])
    _mistakes(report, result, samples, best)


def _growth(report: Report, shots: Mapping[str, Any], seeds: int | None) -> None:
    spoken = "" if seeds is None else f" Means over {seeds} draws of the examples, and the deviation between them."
    report.section("Accuracy by number of examples", f"Share of asked images named rightly.{spoken}")
    numbers = list(map(int, shots))
    lines = {
        method: (
            numbers,
            [row[key]["top1"] for row in shots.values()],
            [row[key]["spread"] or 0.0 for row in shots.values()],
        )
        for method, key in METHODS.items()
    }
    report.plot(
        plots.spreads(lines, x="examples a class", y="top-1 accuracy"),
        "The lines are means over the draws, the bands one standard deviation",
        alt="; ".join(f"{method}: {', '.join(f'{value:.3f}' for value in line[1])}" for method, line in lines.items()),
    )
    rows: list[tuple[Cell, ...]] = [
        (int(number), row["examples"], *(_with_spread(row[key]) for key in METHODS.values()))
        for number, row in shots.items()
    ]
    report.table(("examples a class", "in all", *METHODS), rows)


def _against(report: Report, result: Result, most: int) -> None:
    """Each method against each other, on the same items."""
    report.section(
        "Which is better",
        f"Differences in top-1 accuracy with {most} examples a class, with 95% intervals over the asked images; "
        "other examples would add what the table above shows.",
    )
    measure = Measure(mean_of("right"))
    sides = {method: {"id": result.items["id"], "right": result.items[key]} for method, key in METHODS.items()}
    found = {
        f"{after} over {before}": difference(measure, sides[before], sides[after], result.images)
        for before, after in combinations(METHODS, 2)
    }
    report.plot(
        plots.differences({name: (one.value, *one.widest) for name, one in found.items()}, x="top-1 accuracy gained"),
        "Right of the dashed line the first is better; grey where neither is proven to be",
        alt="; ".join(f"{name}: {one.value:+.3f}" for name, one in found.items()),
    )


def _mistakes(report: Report, result: Result, samples: Samples, method: str) -> None:
    column = METHODS[method]
    items = result.items
    wrong = [i for i, right in enumerate(items[column]) if right < 0.5]
    report.section(f"Mistakes of {method}", "What it names wrongly in most draws.")
    pairs = Counter((items["class"][i], items[f"{column}_said"][i]) for i in wrong)
    report.table(("is", "was called", "times"), [(*pair, count) for pair, count in pairs.most_common(WORST)])
    seen: Counter[tuple[str, str]] = Counter()
    turns: list[tuple[int, int, int]] = []  # the gallery goes through the confusions before it repeats one
    for i in sorted(wrong, key=lambda i: items[column][i]):
        pair = items["class"][i], items[f"{column}_said"][i]
        turns.append((seen[pair], -pairs[pair], i))
        seen[pair] += 1
    shown = [i for *_, i in sorted(turns, key=lambda turn: turn[:2]) if items["image"][i] in samples][:WORST]
    report.gallery(
        (
            piece(samples[items["image"][i]], items["id"][i]),
            f"{items['class'][i]}, called {items[f'{column}_said'][i]} \u00b7 {items['id'][i]}",
        )
        for i in shown
    )


def _with_spread(row: Mapping[str, Any]) -> str:
    spread = f"\u00a0\u00b1\u00a0{row['spread']:.3f}" if row["spread"] else ""  # zero-shot needs no examples
    return f"{row['top1']:.3f}{spread}"
