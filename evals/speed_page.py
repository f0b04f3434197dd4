"""The section of a speed result: how calls are spread, throughput by batch size, memory, energy and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.report import Cell, Report
from evals.results import Result
from foveal.dataset import Sample


def section(report: Report, result: Result, samples: Mapping[str, Sample]) -> None:
    """What a call takes, and what a thousand pictures do."""
    from evals import plots

    figures = result.figures
    served = not figures["memory_by_batch"]
    report.section("Speed", _intro(result, served))
    report.figures(
        [
            ("one picture", f"{figures['p50_ms']:.3g} ms", f"95% within {figures['p95_ms']:.3g} ms", None),
            (
                "throughput",
                f"{figures['images_per_second']:.3g} / s",
                f"{'callers at once' if served else 'batch size'}: {figures['best_batch']}",
                None,
            ),
            ("memory", _megabytes(figures["peak_memory_mb"]), _memory_note(result, served), None),
            ("a thousand pictures", _price(figures), _energy(figures), None),
        ]
    )
    marks = {name: figures[f"{name}_ms"] for name in ("p50", "p95")}
    report.plot(plots.histogram({"calls": result.items["ms"]}, x="milliseconds", lines=marks), "Single calls, warm")
    what = "callers at once" if served else "batch size"
    rates = {f"{what} {batch}": {"pictures a second": rate} for batch, rate in figures["throughput"].items()}
    report.plot(plots.bars(rates, unit="/s"), f"Throughput by {what}")
    rows: list[list[Cell]] = [
        [int(batch), rate, figures["memory_by_batch"].get(batch)] for batch, rate in figures["throughput"].items()
    ]
    report.table((what, "pictures a second", "peak memory so far, MB"), rows)
    if note := (figures.get("cost") or {}).get("note"):
        report.prose(f"Cost: {note}.")


def _intro(result: Result, served: bool) -> str:
    busy = result.settings.get("load_per_core")
    crowd = f"{busy:.0%} of the cores" if busy and busy < 1 else f"{busy or 0:.1f} times the cores there are"
    told = f" Other work took {crowd} when it began: an idle machine is faster." if busy and busy > 0.2 else ""
    where = (
        "A running server, asked over HTTP" if served else "The model in a process of its own, pictures decoded before"
    )
    return f"{where}; {result.settings['warmup']} calls before the first that counts.{told}"


def _megabytes(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.0f} MB"


def _memory_note(result: Result, served: bool) -> str:
    if served:
        return "it is the server's own"
    figures, size = result.figures, result.subject.megabytes
    parts = [] if size is None else [f"the model's files {size:,.3g} MB"]
    if figures["gpu_memory_mb"] is not None:
        parts.append(f"{figures['gpu_memory_mb']:,.0f} MB more on the card")
    if figures["before_mb"] is not None:
        parts.append(f"{figures['before_mb']:,.0f} MB before it was loaded")
    return ", ".join(parts)


def _price(figures: Mapping[str, Any]) -> str:
    if "cost_per_1000" not in figures:
        return "no price given"
    return f"{figures['cost_per_1000']:.3g} {figures['currency'] or ''}".strip()


def _energy(figures: Mapping[str, Any]) -> str:
    if figures["joules_per_image"] is None:
        return f"energy {figures['energy']}"
    return f"{figures['joules_per_image'] / 3.6:.3g} Wh by {figures['energy']}"  # a thousand times J / 3600
