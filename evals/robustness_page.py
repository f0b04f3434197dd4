"""The section of a robustness result: how the figure falls, where it falls most, and what the pictures looked like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.corruptions import CORRUPTIONS, SWEEPS, corrupt, sweep
from evals.report import Cell, Heat, Report
from evals.results import Result
from evals.robustness import Condition, altered
from evals.zero_shot import piece
from foveal.dataset import Sample

FRAGILE = 12  # pictures in a gallery
NEXT_TO_NOTHING = 0.5  # mean of an item from which down it counts as broken
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def section(report: Report, result: Result, samples: Mapping[str, Sample]) -> None:
    """Curves, a heat table, the most fragile items, and examples of each corruption."""
    figures = result.figures
    name, clean = str(figures["figure"]).replace("_", " "), float(figures["clean"])
    report.section("Corruptions", f"{name} on the same pictures, clean (0) and at the severities of arXiv 1903.12261.")
    _curves(report, figures["corruptions"], clean, name)
    _heat(report, figures["corruptions"], clean)
    if figures["sweeps"]:
        _swept(report, figures["sweeps"], clean, name)
    _fragile(report, result, samples)
    first = next(iter(samples.values()), None)
    if first is not None:
        _examples(report, figures, first)


def _curves(report: Report, corruptions: Mapping[str, Mapping[str, float]], clean: float, name: str) -> None:
    from evals import plots

    for family, members in FAMILIES.items():
        lines = {
            member.replace("_", " "): _line(corruptions[member], clean) for member in members if member in corruptions
        }
        if lines:
            report.plot(plots.curves(lines, x="severity", y=name, top=clean), f"{family.capitalize()}")


def _line(values: Mapping[str, float], clean: float) -> tuple[list[float], list[float]]:
    levels = [level for level in values if level != "mean"]
    return [0.0, *map(float, levels)], [clean, *(values[level] for level in levels)]


def _heat(report: Report, corruptions: Mapping[str, Mapping[str, float]], clean: float) -> None:
    levels = list(next(iter(corruptions.values())))
    order = sorted(corruptions, key=lambda corruption: corruptions[corruption]["mean"])
    rows: list[list[Cell]] = [
        [corruption.replace("_", " "), *(_cell(corruptions[corruption][level], clean) for level in levels)]
        for corruption in order
    ]
    heads = [level if level == "mean" else f"severity {level}" for level in levels]
    report.table(("corruption", *heads), rows, f"Worst first; the redder, the less is left of the clean {clean:.3f}.")


def _cell(value: float, clean: float) -> Cell:
    return Heat(value, value / clean) if clean else value


def _swept(report: Report, sweeps: Mapping[str, Mapping[str, float]], clean: float, name: str) -> None:
    from evals import plots

    report.section("Resolution and compression", "Pictures with fewer pixels, enlarged back, and with fewer bytes.")
    told = {
        "resolution": ("percent of the side that is kept", "Resolution"),
        "compression": ("JPEG quality", "Compression"),
    }
    for sweep_name, values in sweeps.items():
        x, caption = told[sweep_name]
        levels = sorted(values, key=int)
        across = [*map(float, levels), 100.0]
        line = (across, [*(values[level] for level in levels), clean])
        report.plot(plots.curves({"": line}, x=x, y=name, top=clean), caption)


def _fragile(report: Report, result: Result, samples: Mapping[str, Sample]) -> None:
    items = result.items
    before = "" if "corrupted" in items else "image_"
    clean, corrupted = items[f"{before}clean"], items[f"{before}corrupted"]
    pictures = items.get("image", items["id"])
    broken = [
        i
        for i in range(len(clean))
        if clean[i] is not None and clean[i] >= NEXT_TO_NOTHING > corrupted[i] and pictures[i] in samples
    ]
    if not broken:
        return
    broken.sort(key=lambda i: corrupted[i] - clean[i])
    names = [name for name in CORRUPTIONS if name in items]
    shown: list[tuple[Any, str]] = []
    for i in broken[:FRAGILE]:
        worst = min(names, key=lambda name: items[name][i])
        what = items["class"][i] if "class" in items else items["text"][i] if "text" in items else pictures[i]
        severity = max(int(level) for level in result.figures["corruptions"][worst] if level != "mean")
        sample = altered(samples[pictures[i]], Condition(worst, severity))
        picture = piece(sample, items["id"][i]) if "class" in items else sample.image()
        shown.append((picture, f"{what}: {clean[i]:.2g} clean, {corrupted[i]:.2g} on average; {worst}"))
    report.section(
        "Most fragile",
        "What the model knows in clean pictures and loses in worse ones, seen as in the corruption that takes most.",
    )
    report.gallery(shown)


def _examples(report: Report, figures: Mapping[str, Any], sample: Sample) -> None:
    report.section("What the pictures look like", f"One picture, {sample.id}, in every way that was measured.")
    image = sample.image()
    for name, values in figures["corruptions"].items():
        levels = [int(level) for level in values if level != "mean"]
        row = [(image, "clean", "", None)]
        row += [
            (corrupt(image, name, level, sample.id), f"{values[str(level)]:.3f}", f"severity {level}", None)
            for level in levels
        ]
        report.strip(name.replace("_", " "), row)
    for name, values in figures["sweeps"].items():
        sign = "%" if name == "resolution" else " of 100"
        row = [(image, "clean", "", None)]
        row += [
            (sweep(image, name, level), f"{values[str(level)]:.3f}", f"{level}{sign}", None)
            for level in SWEEPS[name]
            if str(level) in values
        ]
        report.strip(name, row)
