"""The section of slices found automatically: each with its figures, what it is, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping

from evals.report import Report
from evals.results import Result
from evals.zero_shot import piece
from foveal.dataset import Sample

SHOWN = 12  # pictures of a slice


def section(report: Report, result: Result, samples: Mapping[str, Sample]) -> None:
    """A table of the slices, then a gallery of each; or that none stands out."""
    figures, items = result.figures, result.items
    found, tried = figures["slices"], figures["tried"]
    if not found:
        report.section("No slice stands out")
        report.prose(
            f"{tried} {'group' if tried == 1 else 'groups'} of similar mistakes stood out on one half of the pictures; "
            f"on the other half none errs more than chance would have it. Over all, the error is "
            f"{figures['error']:.1%} of {figures['count']:,} items."
        )
        return
    report.section(
        "Slices that stand out",
        f"Of {tried} tried; found on one half of the pictures and measured on the other. "
        "Names are suggestions: what is known of most of a slice, or else the nearest text.",
    )
    rows = [
        (name, one["items"], one["error"], one["rest"], f"{one['low']:+.2f} to {one['high']:+.2f}", one["p"])
        for name, one in found.items()
    ]
    report.table(("slice", "items", "error", "elsewhere", "difference, 95%", "p, corrected"), rows)
    for name, one in found.items():
        own = [i for i, label in enumerate(result.slices["slice"]) if label == name and items["image"][i] in samples]
        own.sort(key=lambda i: -items["error"][i])
        report.section(f"“{name}”", "; ".join(one["described"]) or "Nothing that is known sets these items apart.")
        report.gallery(
            (
                piece(samples[items["image"][i]], items["id"][i])
                if "class" in items
                else samples[items["image"][i]].image(),
                _caption(result, i),
            )
            for i in own[:SHOWN]
        )


def _caption(result: Result, i: int) -> str:
    items = result.items
    what = items["class"][i] if "class" in items else items["text"][i] if "text" in items else items["id"][i]
    if items["error"][i] == 0:
        return f"{what}, right"
    said = f", called {items['said'][i]}" if "class" in items and "said" in items else ""
    return f"{what}{said or ', wrong'}"
