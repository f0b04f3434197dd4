"""Plots for reports: matplotlib figures that become theme-aware inline SVG.

Each function returns a `Figure` drawn in the light colours of `evals.look`. `to_svg` replaces those colours by the
report's CSS variables, so that one drawing serves light, dark and print; `figure.savefig` still writes any other form.
"""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from evals.look import COLOURS, SERIES

Numbers = Sequence[float] | npt.NDArray[Any]
INK, SOFT, LINE = (COLOURS[name][0] for name in ("ink", "soft", "line"))
COLOUR = [COLOURS[name][0] for name in SERIES]
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (8, 3)))


def precision_recall(curves: Mapping[str, tuple[Numbers, Numbers]]) -> Figure:
    """One line a model; `curves` maps its name to (precision, recall), each (T,) in [0, 1]."""
    figure, axes = _axes()
    for (name, (precision, recall)), colour, dash in zip(curves.items(), COLOUR, DASHES, strict=False):
        axes.plot(
            np.asarray(recall), np.asarray(precision), label=_plain(name), color=colour, linestyle=dash, linewidth=2
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes, len(curves), loc="best")
    return figure


def reliability(probability: Numbers, correct: Numbers, *, bins: int = 10) -> Figure:
    """How often a stated probability comes true: `probability` (N,) in [0, 1] against `correct` (N,) 0 or 1.

    Points are bins of equal width, their area the share of boxes in them; the diagonal is perfect calibration.
    """
    stated, truth = np.asarray(probability, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    place = np.clip((stated * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    mean = np.bincount(place, stated, bins)[filled] / count[filled]
    share = np.bincount(place, truth, bins)[filled] / count[filled]
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=DASHES[1], label="perfect calibration")
    axes.vlines(mean, np.minimum(mean, share), np.maximum(mean, share), color=COLOUR[1], linewidth=1.5, label="gap")
    axes.scatter(
        mean, share, s=20 + 260 * count[filled] / max(count.sum(), 1), color=COLOUR[0], zorder=3, clip_on=False
    )
    axes.set(xlabel="stated probability", ylabel="share that was right", xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes, 2, loc="upper left")
    return figure


def reliability_lines(groups: Mapping[str, tuple[Numbers, Numbers]], *, bins: int = 10) -> Figure:
    """As `reliability`, a line each for several of (probability, correct): before and after calibration."""
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=DASHES[1], label="perfect calibration")
    for (name, (probability, correct)), colour, dash in zip(groups.items(), COLOUR, DASHES, strict=False):
        stated, truth = np.asarray(probability, dtype=np.float64), np.asarray(correct, dtype=np.float64)
        place = np.clip((stated * bins).astype(int), 0, bins - 1)
        count = np.bincount(place, minlength=bins)
        filled = count > 0
        mean = np.bincount(place, stated, bins)[filled] / count[filled]
        share = np.bincount(place, truth, bins)[filled] / count[filled]
        size = 4 + 30 * np.sqrt(count[filled] / max(count.sum(), 1))
        axes.plot(mean, share, color=colour, linestyle=dash, linewidth=1.6, label=_plain(name))
        axes.scatter(mean, share, s=size * 2, color=colour, zorder=3, clip_on=False)
    axes.set(xlabel="stated probability", ylabel="share that was right", xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes, 1 + len(groups), loc="best")
    return figure


def bars(groups: Mapping[str, Mapping[str, float]], *, unit: str = "", percent: bool = False) -> Figure:
    """Grouped horizontal bars: `groups` maps a row (metric) to {series (model): value}; each bar says its value."""
    series = list(dict.fromkeys(name for row in groups.values() for name in row))
    thickness = 0.8 / max(len(series), 1)
    figure, axes = _axes(height=0.9 + max(0.26 * len(series), 0.4) * len(groups) + 0.3 * (len(series) > 1))
    largest = max((value for row in groups.values() for value in row.values()), default=1.0) or 1.0
    for index, name in enumerate(series):
        rows = [number for number, row in enumerate(groups.values()) if name in row]
        values = [row[name] for row in groups.values() if name in row]
        at = [row - 0.4 + thickness * (index + 0.5) for row in rows]
        axes.barh(at, values, height=thickness * 0.86, color=COLOUR[index % len(COLOUR)], label=name)
        for y, value in zip(at, values, strict=True):
            text = f"{value:.1%}" if percent else f"{value:.3g}{' ' + unit if unit else ''}"
            axes.text(value + largest * 0.012, y, text, va="center", color=INK, fontsize=9.5)
    axes.set(yticks=range(len(groups)), yticklabels=[_plain(name) for name in groups], xlim=(0, largest * 1.16))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["bottom"].set_visible(False)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if len(series) > 1:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), frameon=False, labelcolor=INK, fontsize=9.5
        )
    return figure


def curves(
    lines: Mapping[str, tuple[Numbers, Numbers]],
    *,
    x: str = "step",
    y: str = "loss",
    log: bool = False,
    top: float | None = None,
) -> Figure:
    """Values over steps, e.g. a training loss; `lines` maps a name to (x, y), each (T,).

    Args:
        top: the values are shares of something: the axis begins at 0 and ends a little above this.
    """
    figure, axes = _axes()
    for (name, (steps, values)), colour, dash in zip(lines.items(), COLOUR, DASHES, strict=False):
        axes.plot(
            np.asarray(steps), np.asarray(values), label=_plain(name), color=colour, linestyle=dash, linewidth=1.8
        )
    axes.set(xlabel=x, ylabel=y)
    if log:
        axes.set_yscale("log")
    if top is not None:
        axes.set_ylim(0, 1.08 * top or 1)
    axes.margins(x=0.01)
    _legend(axes, len(lines), loc="best")
    return figure


def spreads(lines: Mapping[str, tuple[Numbers, Numbers, Numbers]], *, x: str, y: str) -> Figure:
    """Means with a band around each; `lines` maps a name to (x, mean, half the band's height), each (T,), x > 0.

    The axis is logarithmic, with a tick for each x.
    """
    figure, axes = _axes()
    for (name, (at, mean, spread)), colour, dash in zip(lines.items(), COLOUR, DASHES, strict=False):
        middle, half = np.asarray(mean, np.float64), np.asarray(spread, np.float64)
        axes.fill_between(np.asarray(at), middle - half, middle + half, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            np.asarray(at), middle, label=_plain(name), color=colour, linestyle=dash, linewidth=1.8, marker="o",
            markersize=4,
        )  # fmt: skip
    ticks = sorted({float(value) for at, _, _ in lines.values() for value in at})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=x, ylabel=y)
    _legend(axes, len(lines), loc="best")
    return figure


def path(
    points: Sequence[tuple[float, float]], names: Sequence[str], *, x: str, y: str, marked: int | None = None
) -> Figure:
    """Named points (x, y) joined in order, e.g. mixtures of two models on two domains; `marked` stands out."""
    figure, axes = _axes()
    across, up = zip(*points, strict=True)
    axes.plot(across, up, color=COLOUR[0], linewidth=1.8, marker="o", markersize=4)
    for name, point in zip(names, points, strict=True):
        axes.annotate(_plain(name), point, xytext=(5, 4), textcoords="offset points", color=INK, fontsize=8.5)
    if marked is not None:
        axes.scatter([across[marked]], [up[marked]], s=90, color=COLOUR[1], zorder=3)
    axes.set(xlabel=_plain(x), ylabel=_plain(y))
    axes.margins(0.1)
    return figure


def confusion(counts: npt.NDArray[Any], names: Sequence[str]) -> Figure:
    """What is called what: `counts` (K, K) of items of class row that were called class column.

    A square is as large as its share of the row; on the diagonal the class was recognised.
    """
    share = np.asarray(counts, dtype=np.float64) / np.maximum(np.asarray(counts).sum(axis=1, keepdims=True), 1)
    size = len(names)
    side = max(3.3, 0.27 * size + 1.6)
    figure, axes = _axes(width=side + 0.7, height=side)
    cell = (72 * (side - 1.6) / size * 0.86) ** 2  # points squared, of a full square
    for right, colour in ((True, COLOUR[0]), (False, COLOUR[1])):
        row, column = np.nonzero((share > 0) & (np.eye(size, dtype=bool) == right))
        axes.scatter(column, row, s=cell * share[row, column], marker="s", color=colour, linewidths=0)
    labels = [_plain(name) for name in names]
    axes.set(xlabel="was called", ylabel="is", xlim=(-0.6, size - 0.4), ylim=(size - 0.4, -0.6), aspect="equal")
    axes.set_xticks(range(size), labels, rotation=90, fontsize=8.5)
    axes.set_yticks(range(size), labels, fontsize=8.5)
    return figure


def points(groups: Mapping[str, tuple[Numbers, Numbers]]) -> Figure:
    """Groups of points (x, y), each (T,), on axes whose numbers mean nothing: a projection of embeddings."""
    figure, axes = _axes(height=4.0)
    for (name, (x, y)), colour, shape in zip(groups.items(), COLOUR, ("o", "^", "s", "D", "v", "P"), strict=False):
        axes.scatter(np.asarray(x), np.asarray(y), label=_plain(name), color=colour, s=14, marker=shape, alpha=0.6)
    axes.set(xticklabels=[], yticklabels=[])
    axes.set_aspect("equal", adjustable="datalim")
    _legend(axes, len(groups), loc="best")
    return figure


def differences(rows: Mapping[str, tuple[float, float, float]], *, x: str = "difference") -> Figure:
    """Changes with their intervals about a line at 0: `rows` maps a name to (value, low, high), not finite left out."""
    known = {name: row for name, row in rows.items() if np.isfinite(row).all()}
    figure, axes = _axes(height=0.9 + 0.32 * max(len(known), 1))
    for row, (value, low, high) in enumerate(known.values()):
        colour = SOFT if low <= 0 <= high else COLOUR[0]
        axes.hlines(row, low, high, color=colour, linewidth=2.4)
        axes.plot([value], [row], marker="o", markersize=6, color=colour)
    axes.axvline(0, color=INK, linewidth=1, linestyle=DASHES[1])
    axes.set(yticks=range(len(known)), yticklabels=[_plain(name) for name in known], xlabel=x)
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def timeline(stages: Sequence[tuple[str, float]]) -> Figure:
    """Stages one after the other: (name, seconds), in the order they ran."""
    figure, axes = _axes(height=0.8 + 0.32 * len(stages))
    total = sum(seconds for _, seconds in stages) or 1.0
    start = 0.0
    for row, (_, seconds) in enumerate(stages):
        axes.barh(row, seconds, left=start, height=0.62, color=COLOUR[0])
        late = start + seconds > 0.8 * total
        place = start - 0.008 * total if late else start + seconds + 0.008 * total
        axes.text(place, row, _duration(seconds), va="center", ha="right" if late else "left", color=INK, fontsize=9.5)
        start += seconds
    axes.set(
        yticks=range(len(stages)), yticklabels=[_plain(name) for name, _ in stages], xlabel="seconds", xlim=(0, total)
    )
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def histogram(
    groups: Mapping[str, Numbers], *, x: str, bins: int = 24, lines: Mapping[str, float] | None = None
) -> Figure:
    """Distributions over one axis, e.g. scores of right and wrong boxes; `lines` draws named thresholds."""
    figure, axes = _axes()
    everything = np.concatenate([np.asarray(values, dtype=np.float64) for values in groups.values()])
    edges = np.histogram_bin_edges(everything, bins)
    for (name, values), colour in zip(groups.items(), COLOUR, strict=False):
        axes.hist(
            np.asarray(values), bins=edges.tolist(), label=_plain(name), color=colour, alpha=0.55, histtype="stepfilled"
        )
        axes.hist(np.asarray(values), bins=edges.tolist(), color=colour, histtype="step", linewidth=1.6)
    for name, at in (lines or {}).items():
        axes.axvline(at, color=INK, linewidth=1.2, linestyle=DASHES[1])
        axes.text(
            at, 1, _plain(name), transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=INK, fontsize=9.5
        )
    axes.set(xlabel=x, ylabel="count")
    _legend(axes, len(groups), loc="best")
    return figure


def to_svg(figure: Figure, key: str) -> str:
    """The figure as inline SVG coloured by the page's CSS variables.

    Args:
        key: distinguishes this figure's ids from those of other figures in the same document; also makes the bytes
            the same from run to run.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found.group() if found[1] in used else "", text)
    text = re.sub(r'style="[^"]*"', lambda found: _themed(found.group()), text)
    width, height = figure.get_size_inches() * 72
    head = (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" aria-hidden="true" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg [^>]*>", head, text, count=1).strip()


def _themed(style: str) -> str:
    """An inline style with the light colours replaced by variables, in the page's own typeface."""
    for name in ("ink", "soft", "line", *SERIES):
        style = re.sub(COLOURS[name][0], f"var(--{name})", style, flags=re.IGNORECASE)
    style = style.replace("#000000", "var(--ink)")  # matplotlib's own default
    return re.sub(r"font-family: [^;\"]*;? ?", "", style)


def _plain(text: str) -> str:
    """Text that matplotlib takes literally, dollar signs included."""
    return text.replace("$", r"\$")


def _axes(*, width: float = 5.4, height: float = 3.3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.grid(True, color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    axes.tick_params(which="both", colors=SOFT, length=0, labelsize=9.5)
    axes.xaxis.label.set(color=SOFT, fontsize=10)
    axes.yaxis.label.set(color=SOFT, fontsize=10)
    return figure, axes


def _legend(axes: Axes, count: int, *, loc: Literal["best", "lower left", "upper left"]) -> None:
    if count > 1:
        axes.legend(loc=loc, frameon=False, labelcolor=INK, fontsize=9.5)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
