"""The sections of a search result: what the index misses, which searches fail, and where "nothing matches" is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np

from evals import plots
from evals.measures import Items
from evals.report import Report, State
from evals.results import Result
from foveal.dataset import Sample

CASES = 8  # searches of each kind shown
HITS = 4  # pictures of each
MISSED = 2  # pictures that should have been found
LISTED = 50  # texts in a table
Samples = Mapping[str, Sample]


def section(report: Report, result: Result, samples: Samples) -> None:
    """All of it; pictures only of images that are among `samples`."""
    if not len(result):
        return
    figures, items = result.figures, result.items
    k = figures["k"]
    report.section(
        "What a search gives", "Ranking and refusals are measured apart: a refused search is ranked all the same."
    )
    tiles: list[tuple[str, str, str, State | None]] = [
        ("of the true nearest", f"{figures['index_recall']:.1%}", f"found by the index, among the first {k}", None)
    ]
    if "precision" in figures:
        count = f"of {figures['judged']:,} judged searches"
        tiles += [
            (f"precision at {k}", f"{figures['precision']:.1%}", "of the hits answer the text", None),
            ("first hit right", f"{figures['first_right']:.1%}", count, None),
        ]
        if "ndcg" in figures:
            tiles.append((f"nDCG at {k}", f"{figures['ndcg']:.3f}", "1 when all relevant ones come first", None))
    report.figures(tiles)
    _ranks(report, items, samples)
    _refusals(report, figures, items, samples)


def shown(items: Items) -> list[str]:
    """Ids of the images that a page of these items shows."""
    rows = [*_failed(items), *_of(items, "false_refusal", 1), *_of(items, "right_refusal", 0)]
    ids = chain.from_iterable([*(items["hits"][i] or ())[:HITS], *(items["missed"][i] or ())[:MISSED]] for i in rows)
    return list(dict.fromkeys(ids))


def _failed(items: Items) -> list[int]:
    """The judged searches with the worst hits, worst first."""
    merit = [value if value is not None else items["precision"][i] for i, value in enumerate(items["ndcg"])]
    rows = [i for i, value in enumerate(merit) if value is not None and value < 1]
    return sorted(rows, key=lambda i: merit[i])[:CASES]


def _of(items: Items, column: str, value: int) -> list[int]:
    return [i for i, said in enumerate(items[column]) if said == value][:CASES]


def _ranks(report: Report, items: Items, samples: Samples) -> None:
    ndcg = np.array([value for value in items["ndcg"] if value is not None])
    if len(ndcg) > 1:
        report.plot(plots.histogram({"searches": ndcg}, x="nDCG"), "All judged searches by how well they rank")
    failed = _failed(items)
    if failed:
        report.section(
            "Failed searches", "Worst first: what was found, and after it what should have been and was not."
        )
        for i in failed:
            spoken = f"{_share(items['precision'][i])} of the hits are right"
            if items["recall"][i] is not None:
                spoken += f", {_share(items['recall'][i])} of what could be found"
            _strip(report, items, i, samples, spoken)


def _refusals(report: Report, figures: Mapping[str, Any], items: Items, samples: Samples) -> None:
    known = [i for i, expected in enumerate(items["expected"]) if expected is not None]
    if not known:
        return
    report.section("Nothing matches", "Texts that nothing in the archive answers should be refused, and no others.")
    tiles: list[tuple[str, str, str, State | None]] = []
    for name, label, of in (
        ("right_refusals", "refused rightly", "nothing answers"),
        ("false_refusals", "refused wrongly", "something answers"),
    ):
        if name in figures:
            count = sum(value is not None for value in items[name.removesuffix("s")])
            low, high = figures["intervals"][name]
            note = f"of {count:,} texts that {of}; 95%: {low:.1%} to {high:.1%}"
            tiles.append((label, f"{figures[name]:.1%}", note, None))
    if "refusal_precision" in figures:
        tiles.append(("refusals that are right", f"{figures['refusal_precision']:.1%}", "of all of these texts", None))
    report.figures(tiles)
    wrong = [i for i in known if (items["expected"][i] == "something") == bool(items["refused"][i])]
    if not wrong:
        return
    rows = [
        (items["text"][i], items["expected"][i], "nothing" if items["refused"][i] else "something")
        for i in wrong[:LISTED]
    ]
    report.table(("text", "is there", "was said to be there"), rows)
    for column, value, title in (
        ("false_refusal", 1, "Refused, though something is there"),
        ("right_refusal", 0, "Answered, though nothing is there"),
    ):
        rows_ = [i for i in _of(items, column, value) if any(id in samples for id in items["hits"][i] or ())]
        if rows_:
            report.heading(title, "The hits that were kept back." if value else "What was shown instead.")
        for i in rows_:
            _strip(report, items, i, samples, "")


def _strip(report: Report, items: Items, i: int, samples: Samples, note: str) -> None:
    hits: list[str] = (items["hits"][i] or [])[:HITS]
    right: list[int] | None = items["right"][i]
    cells: list[tuple[Any, str, str, State | None]] = []
    for place, id in enumerate(hits):
        if id in samples:
            state: State | None = None if right is None else "good" if right[place] else "bad"
            word = "" if right is None else " right" if right[place] else " wrong"
            cells.append((samples[id].image(), f"{items['similarity'][i][place]:.3f}{word}", _name(samples[id]), state))
    missed: Iterable[str] = (items["missed"][i] or ())[:MISSED]
    for id in missed:
        if id in samples:
            cells.append((samples[id].image(), "not found", _name(samples[id]), "warn"))
    if cells:
        report.strip(items["text"][i], cells, note)


def _name(sample: Sample) -> str:
    return str(sample.metadata.get("name", sample.id))


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"
