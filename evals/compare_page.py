"""What a comparison looks like: a table for a terminal, and a page with slices and the pictures that flipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evals.compare import Change, Comparison
from evals.report import Cell, Mark, Report, State
from evals.zero_shot import each_crop
from foveal.dataset import Dataset

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

FLIPPED = 12  # pictures in a gallery
CROPPED = ("zero-shot", "few-shot")  # tasks whose items are labelled boxes, or whole pictures that have a label
CONTEXT = 0.3  # of a box's size, shown around it
COLOURS: dict[str, State | None] = {"better": "good", "worse": "bad", "unclear": None, "equal": None}
STYLES = {"better": "green", "worse": "bold red", "unclear": "", "equal": "dim"}
MOST_ROWS = 12  # slices in a table


def table(baseline: str, comparisons: Mapping[str, Comparison]) -> Table:
    """Every figure of the baseline, and what each of the others makes of it."""
    from rich.table import Table
    from rich.text import Text

    one = len(comparisons) == 1
    title = f"Against {baseline}" + (f": {next(iter(comparisons))}" if one else "")
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    shown.add_column("figure", overflow="fold")
    shown.add_column("before", justify="right")
    for name in comparisons:
        shown.add_column("after" if one else name, justify="right", overflow="fold")
        shown.add_column("difference [95%]", no_wrap=one)
    for extra in ("p", "detectable", "") if one else ():
        shown.add_column(extra, justify="right" if extra else "left")
    for figure in dict.fromkeys(name for c in comparisons.values() for name in c.changes):
        changes = [comparison.changes.get(figure) for comparison in comparisons.values()]
        first = next(change for change in changes if change is not None)
        if "." in figure:  # figures of a class and the like have room on the page
            continue
        cells = [Text(figure.replace("_", " ")), Text(_number(first.before))]
        for change in changes:
            style = STYLES[change.verdict] if change else ""
            cells += [Text(_number(change.after) if change else "-"), Text(_between(change), style=style)]
        if one:
            found = first.interval
            numbers = (f"{found.p:.2g}", f"{found.detectable:.2g}") if found else ("-", "-")
            cells += [*map(Text, numbers), Text(first.verdict if found else "", style=STYLES[first.verdict])]
        shown.add_row(*cells)
    return shown


def page(baseline: str, comparisons: Mapping[str, Comparison], dataset: Dataset | None = None) -> Report:
    """The page of results against a baseline; with their dataset, what flipped as pictures."""
    first = next(iter(comparisons.values())).before
    facts = [("task", first.task), ("data", f"{first.data.source}, {first.data.images:,} images")]
    facts += [("baseline", baseline), ("items", f"{len(first):,} in {len(set(map(str, first.images))):,} pictures")]
    said = "; ".join(_sentence(name, comparison) for name, comparison in comparisons.items())
    report = Report(f"{', '.join(comparisons)} against {baseline}", said[:1].upper() + said[1:] + ".", facts=facts)
    _overview(report, baseline, comparisons)
    for name, comparison in comparisons.items():
        _figures(report, name, comparison)
        _slices(report, comparison)
        _flips(report, comparison, dataset)
    return report


def _sentence(name: str, comparison: Comparison) -> str:
    if comparison.headline is None:
        return f"{name} kept no items, so its figures have no intervals"
    change = comparison.changes[comparison.headline]
    label = comparison.headline.replace("_", " ")
    return {
        "better": f"{name} is better by {label}",
        "worse": f"{name} is worse by {label}",
        "equal": f"{name} answers as the baseline does",
        "unclear": f"{name} cannot be told from the baseline by {label}",
    }[change.verdict]


def _overview(report: Report, baseline: str, comparisons: Mapping[str, Comparison]) -> None:
    if len(comparisons) < 2:
        return
    report.section("Side by side", f"Each cell: the figure, and how far it lies from {baseline}'s at 95% confidence.")
    names = dict.fromkeys(name for c in comparisons.values() for name in c.changes if "." not in name)
    rows: list[list[Cell]] = []
    for figure in names:
        changes = [comparison.changes.get(figure) for comparison in comparisons.values()]
        first = next(change for change in changes if change is not None)
        row: list[Cell] = [figure.replace("_", " "), first.before]
        for change in changes:
            row.append(None if change is None else _mark(change, f"{change.after:.4g}  {_between(change)}"))
        rows.append(row)
    report.table(("figure", baseline, *comparisons), rows, stack=True)


def _figures(report: Report, name: str, comparison: Comparison) -> None:
    report.section(
        name,
        "Changes stand with their 95% intervals. Detectable is the smallest true change that these items would show "
        "four times out of five; a smaller one may be there and not be seen.",
    )
    rows: list[list[Cell]] = []
    for figure, change in comparison.changes.items():
        if "." in figure:
            continue
        found, test = change.interval, change.mcnemar
        rows.append(
            [
                figure.replace("_", " "),
                change.before,
                change.after,
                _mark(change, _between(change)) if found else _between(change),
                float(f"{found.p:.2g}") if found else None,
                float(f"{found.detectable:.2g}") if found else None,
                f"{test.lost} lost, {test.gained} gained, p {test.p:.2g}" if test else None,
            ]
        )
    columns = ["figure", "before", "after", "change", "p", "detectable", "McNemar"]
    if all(row[-1] is None for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    report.table(columns, rows, stack=True)
    shares = {
        figure.replace("_", " "): (found.value, found.low, found.high)
        for figure, change in comparison.changes.items()
        if (found := change.interval) is not None and 0 <= change.before <= 1 and 0 <= change.after <= 1
    }
    if shares:
        from evals import plots

        report.plot(plots.differences(shares), f"{name} less the baseline, with 95% intervals")

    nested = [(figure, change) for figure, change in comparison.changes.items() if "." in figure]
    changed = sorted((row for row in nested if row[1].before != row[1].after), key=_size)
    if changed:
        more = (
            f"{len(changed) - MOST_ROWS} more, that changed less, are in the JSON." if len(changed) > MOST_ROWS else ""
        )
        parts: list[list[Cell]] = [
            [figure.replace(".", ", ").replace("_", " "), change.after - change.before, change.before, change.after]
            for figure, change in changed[:MOST_ROWS]
        ]
        report.table(("part", "change", "before", "after"), parts, more)


def _size(row: tuple[str, Change]) -> float:
    """Most changed first."""
    return -abs(row[1].after - row[1].before)


def _slices(report: Report, comparison: Comparison) -> None:
    if not comparison.slices or comparison.headline is None:
        return
    label = comparison.headline.replace("_", " ")
    report.section(
        "Slices",
        f"The change of {label} on parts of the data, worst first. Of {len(comparison.slices)} parts some stand out by "
        "chance; those marked sure do so even among this many (Holm).",
    )
    rows = [
        [
            f"{s.column}: {s.word}",
            _mark(s.change, _between(s.change)),
            "sure" if s.sure else "",
            s.change.before,
            s.change.after,
            s.change.interval.items if s.change.interval else None,
        ]
        for s in comparison.slices
    ]
    dropped = f"{len(rows) - MOST_ROWS} more, that fared better, are in the JSON." if len(rows) > MOST_ROWS else ""
    report.table(("slice", "change", "", "before", "after", "items"), rows[:MOST_ROWS], dropped)


def _flips(report: Report, comparison: Comparison, dataset: Dataset | None) -> None:
    if comparison.headline is None or not (comparison.lost or comparison.gained):
        return
    lost, gained = len(comparison.lost), len(comparison.gained)
    label = comparison.headline.replace("_", " ")
    told = (
        f"{lost:,} items that were right are wrong now, {gained:,} the other way round."
        if comparison.flipped
        else f"{label} got worse on {lost:,} items and better on {gained:,}; those that moved most come first."
    )
    report.section("What flipped" if comparison.flipped else "What moved", told)
    words = (
        ("Right before, wrong now", "Wrong before, right now") if comparison.flipped else ("Worse now", "Better now")
    )
    ids = comparison.before.items["id"]
    for title, rows in zip(words, (comparison.lost, comparison.gained), strict=True):
        if rows and dataset is not None:
            report.prose(f"{title}:")
            pictures = _pictures(comparison, rows[:FLIPPED], dataset)
            report.gallery((pictures[i], _caption(comparison, i)) for i in rows[:FLIPPED] if i in pictures)
        elif rows:
            more = ", ..." if len(rows) > FLIPPED else ""
            report.prose(f"{title}: {', '.join(str(ids[i]) for i in rows[:FLIPPED])}{more}")


def _pictures(comparison: Comparison, rows: Sequence[int], dataset: Dataset) -> dict[int, Image]:
    """The picture of each of these items; of a labelled box, that piece of it."""
    ids, images = comparison.before.items["id"], comparison.before.images
    samples = {sample.id: sample for sample in dataset if sample.id in {images[i] for i in rows}}
    wanted = [samples[image] for image in dict.fromkeys(images[i] for i in rows) if image in samples]
    pieces = {crop.id: crop.image for crop in each_crop(wanted, dataset.classes, CONTEXT)}
    boxes = comparison.before.task in CROPPED
    return {
        i: pieces[ids[i]] if boxes and ids[i] in pieces else samples[images[i]].image()
        for i in rows
        if images[i] in samples
    }


def _caption(comparison: Comparison, row: int) -> str:
    """What an item is, and what both made of it."""
    before, after = comparison.before.items, comparison.after.items
    truth = before.get("class", before.get("text", before["id"]))[row]
    if "said" in before and "said" in after:
        return f"{truth}: {before['said'][row]} before, {after['said'][row]} now"
    return str(truth)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _between(change: Change | None) -> str:
    """`+0.031 [+0.010, +0.052]`."""
    if change is None:
        return "-"
    if change.interval is None:
        return f"{change.after - change.before:+.3g}"
    found = change.interval
    if not np.isfinite((found.low, found.high)).all():
        return f"{found.value:+.3g}"
    return f"{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"


def _mark(change: Change, text: str) -> Mark:
    return Mark(text, COLOURS[change.verdict])


def labels(paths: Sequence[str]) -> list[str]:
    """The shortest trailing parts of result files' paths that tell them apart."""
    parts = [path.removesuffix(".json").split("/") for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {'/'.join(p)}" for number, p in enumerate(parts, start=1)]
