"""Reports people want to read: one self-contained HTML file, dark and light, for desktop, phone and print.

    report = Report("Quickstart", "One pass through the loop on the sample world.")
    report.section("Distillation", "The student sees what the teacher saw, at a fraction of the cost.")
    report.figures([("student mAP50", "0.78", "teacher 0.80", "good")])
    report.plot(plots.bars({"mAP50": {"teacher": 0.80, "student": 0.78}}), "mAP50 on the hidden test set")
    report.write(Path("report.html"))

Nothing in the file asks the network for anything; all text that is handed in is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evals import look
from evals.verdicts import GateReport, Word
from foveal import __version__
from foveal.detections import Detections
from foveal.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

State = Literal["good", "warn", "bad"]
STATES: dict[Word, State] = {"pass": "good", "fail": "bad", "cannot tell": "warn"}
SIGNS = {">=": "\u2265", "<=": "\u2264", "==": "="}
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Mark:
    """A table cell shown as a small label, e.g. `Mark("pass", "good")`."""

    text: str
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Heat:
    """A number in a table cell that is the redder the less `share` (0 to 1) is left."""

    value: float
    share: float


@dataclass(frozen=True, slots=True)
class Link:
    """A number or word in a table cell that leads to the `heading` with this anchor."""

    value: str | int | float
    anchor: str


Cell = str | int | float | None | Mark | Link | Heat


@dataclass(slots=True)
class _Section:
    title: str
    intro: str
    blocks: list[tuple[str, str]] = field(
        default_factory=list[tuple[str, str]]
    )  # (kind, HTML); equal kinds in a row share a wrapper


class Report:
    """A report under construction; each call adds below what is there, and returns the report.

    Args:
        facts: short name-value pairs under the subtitle: backbone, machine, date.
    """

    def __init__(self, title: str, subtitle: str = "", *, facts: Iterable[tuple[str, str]] = ()) -> None:
        self.title, self.subtitle, self.facts = title, subtitle, list(facts)
        self._sections: list[_Section] = []
        self._pictures = 0

    def section(self, title: str, intro: str = "") -> Report:
        """Starts a section; everything that follows belongs to it."""
        self._sections.append(_Section(title, intro))
        return self

    def heading(self, title: str, note: str = "", *, anchor: str = "") -> Report:
        """A heading within a section; a `Link` with the same anchor leads here."""
        name = f' id="{escape(anchor)}"' if anchor else ""
        under = f"<p>{escape(note)}</p>" if note else ""
        return self._add("", f'<div class="heading"{name}><h3>{escape(title)}</h3>{under}</div>')

    def prose(self, text: str) -> Report:
        """Paragraphs, parted by blank lines."""
        paragraphs = (part.strip() for part in text.split("\n\n"))
        return self._add("", "".join(f'<p class="prose">{escape(part)}</p>' for part in paragraphs if part))

    def code(self, text: str) -> Report:
        """A command or listing, set as typed."""
        return self._add("", f"<pre>{escape(text)}</pre>")

    def figures(self, figures: Iterable[tuple[str, str, str, State | None]]) -> Report:
        """Tiles of (label, value, note, state); the state colours the value, None leaves it plain."""
        tiles = [
            f'<div class="figure {state or ""}"><span class="label">{escape(label)}</span>'
            f'<span class="value">{escape(value)}</span><span class="note">{escape(note)}</span></div>'
            for label, value, note, state in figures
        ]
        columns = min((4, 3, 5), key=lambda width: (-len(tiles) % width, -width)) if len(tiles) > 4 else len(tiles)
        return self._add("", f'<div class="figures" style="--columns:{columns}">{"".join(tiles)}</div>')

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "", *, stack: bool = False
    ) -> Report:
        """A table; columns of numbers align right, floats print with four significant digits, None as a dash.

        Args:
            stack: on a phone, show each row as a block of named lines; for rows that hold sentences.

        Raises:
            BadInput: a row has another number of cells than there are columns.
        """
        grid = [list(row) for row in rows]
        for row in grid:
            if len(row) != len(columns):
                raise BadInput(
                    f"a row of the table {caption or columns!r} does not fit",
                    expected=f"{len(columns)} cells",
                    received=f"{len(row)}: {row!r}",
                )
        numeric = [
            bool(grid) and all(isinstance(_inside(row[i]), int | float | Heat | None) for row in grid)
            for i in range(len(columns))
        ]
        align = [' class="n"' if flag else "" for flag in numeric]
        head = "".join(f'<th scope="col"{a}>{escape(name)}</th>' for name, a in zip(columns, align, strict=True))
        body = "".join(
            "<tr>"
            + "".join(
                f'<td{a} data-label="{escape(name)}">{_cell(cell)}</td>'
                for name, cell, a in zip(columns, row, align, strict=True)
            )
            + "</tr>"
            for row in grid
        )
        under = f"<caption>{escape(caption)}</caption>" if caption else ""
        table = f"<table>{under}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return self._add("", f'<div class="scroll{" stack" if stack else ""}" tabindex="0">{table}</div>')

    def checks(self, gate: GateReport) -> Report:
        """The verdict of a gate, a row a check."""
        rows: list[Sequence[Cell]] = []
        for check in gate.checks:
            shown = "not measured" if check.value is None and check.op != "is" else check.value_shown
            bar = check.bar_shown if check.bar is None else f"{SIGNS.get(check.op, check.op)}\u00a0{check.bar:.4g}"
            why = check.why if check.passed else f"{check.reason.rstrip('.')}. It stands because: {check.why}"
            why = f"{why.rstrip('.')}. {check.power}" if check.power else why
            rows.append((Mark(check.word, STATES[check.word]), check.name, shown, bar, why))
        return self.table(("verdict", "gate", "measured", "bar", "why"), rows, stack=True)

    def plot(self, figure: Figure | bytes, caption: str, alt: str = "") -> Report:
        """A matplotlib figure (drawn as theme-aware SVG) or the bytes of a PNG; plots in a row stand side by side.

        Args:
            alt: what the plot shows, for those who cannot see it; the caption stands in when empty.
        """
        self._pictures += 1
        if isinstance(figure, bytes):
            if not figure.startswith(PNG):
                raise BadInput(f"the plot {caption!r} is not a PNG", expected="PNG bytes or a matplotlib figure")
            source = base64.b64encode(figure).decode()
            drawing = f'<img src="data:image/png;base64,{source}" alt="{escape(alt or caption)}">'
        else:
            from evals.plots import to_svg

            svg = to_svg(figure, key=f"plot-{self._pictures}")
            drawing = f'<div role="img" aria-label="{escape(alt or caption)}">{svg}</div>'
        return self._add("plots", f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>")

    def gallery(self, items: Iterable[tuple[Image, str]]) -> Report:
        """Thumbnails with captions."""
        cells = (
            f'<figure><img src="{look.data_uri(image)}" alt="{escape(caption)}">'
            f'<figcaption title="{escape(caption)}">{escape(caption)}</figcaption></figure>'
            for image, caption in items
        )
        return self._add("gallery", "".join(cells))

    def tiles(self, items: Iterable[tuple[Image, Detections, str]]) -> Report:
        """Thumbnails with boxes drawn on them, and captions."""
        cells = (
            f"<figure>{look.boxes_svg(image.size, found, href=look.data_uri(image), alt=caption, weight=1.3)}"
            f'<figcaption title="{escape(caption)}">{escape(caption)}</figcaption></figure>'
            for image, found, caption in items
        )
        return self._add("gallery", "".join(cells))

    def hits(
        self,
        query: str,
        hits: Iterable[tuple[Image, float, str]],
        *,
        image: Image | None = None,
        note: str = "",
        right: Sequence[bool] | None = None,
    ) -> Report:
        """A search and what it found, best first: hits are (image, similarity, caption).

        Args:
            image: the picture that was searched with, if any.
            note: what else shaped the search, e.g. the filter.
            right: whether each hit truly answers the query, where that is known.
        """
        found = list(hits)
        top = max((similarity for _, similarity, _ in found), default=1.0)
        cells: list[str] = []
        for number, (picture, similarity, caption) in enumerate(found):
            verdict = "" if right is None else "right" if right[number] else "wrong"
            word = {"": "", "right": " right", "wrong": " wrong"}[verdict]
            share = max(0.0, min(1.0, similarity / top if top > 0 else 0.0))
            cells.append(
                f'<figure class="{verdict}"><img src="{look.data_uri(picture, 256)}" alt="{escape(caption)}">'
                f'<div class="bar" style="--share:{share:.0%}"></div><figcaption title="{escape(caption)}">'
                f"<b>{similarity:.3f}{word}</b>{escape(caption)}</figcaption></figure>"
            )
        asked = f'<img src="{look.data_uri(image, 128)}" alt="the query picture">' if image is not None else ""
        words = f"<q>{escape(query)}</q>" if query else "<span>like this picture</span>"
        small = f"<small>{escape(note)}</small>" if note else ""
        return self._add(
            "",
            f'<div class="case"><div class="query">{asked}<div>{words}{small}</div></div>'
            f'<div class="hits" tabindex="0">{"".join(cells) or "<p>nothing matches</p>"}</div></div>',
        )

    def strip(
        self,
        title: str,
        items: Iterable[tuple[Image, str, str, State | None]],
        note: str = "",
        *,
        mark: Mark | None = None,
    ) -> Report:
        """A titled row of pictures to compare: (image, heading, caption, state); the state colours the heading."""
        colour = {"good": "right", "bad": "wrong", "warn": "doubt", None: ""}
        cells = (
            f'<figure class="{colour[state]}"><img src="{look.data_uri(image, 256)}" alt="{escape(caption)}">'
            f'<figcaption title="{escape(caption)}"><b>{escape(heading)}</b>{escape(caption)}</figcaption></figure>'
            for image, heading, caption, state in items
        )
        small = f"<small>{escape(note)}</small>" if note else ""
        return self._add(
            "",
            f'<div class="case"><div class="query"><div>{_title(title, mark)}{small}</div></div>'
            f'<div class="hits strip" tabindex="0">{"".join(cells)}</div></div>',
        )

    def boxes(
        self,
        image: Image,
        panels: Mapping[str, Detections],
        caption: str = "",
        *,
        title: str = "",
        mark: Mark | None = None,
        max_side: int = 448,
    ) -> Report:
        """One picture, stored once, with several sets of boxes side by side: truth, teacher, student.

        Args:
            title: stands above, behind `mark`.
        """
        self._pictures += 1
        shared = f"picture-{self._pictures}"
        width, height = image.size
        base = f'<image id="{shared}" href="{look.data_uri(image, max_side)}" width="{width}" height="{height}"/>'
        cells: list[str] = []
        for number, (name, detections) in enumerate(panels.items()):
            svg = look.boxes_svg(image.size, detections, reuse=shared, alt=name)
            if number == 0:
                svg = svg.replace(f'<use href="#{shared}"/>', base, 1)
            count = len(detections)
            cells.append(
                f"<figure><figcaption><b>{escape(name)}</b> {count} {'box' if count == 1 else 'boxes'}</figcaption>"
                f"{svg}</figure>"
            )
        under = f"<p>{escape(caption)}</p>" if caption else ""
        above = f'<div class="query"><div>{_title(title, mark)}</div></div>' if title else ""
        return self._add(
            "", f'<div class="case">{above}<div class="panels" tabindex="0">{"".join(cells)}</div>{under}</div>'
        )

    def html(self) -> str:
        """The whole document."""
        css = (files("evals") / "templates" / "report.css").read_text(encoding="utf-8")
        style = (
            f":root{{{look.variables(0)};--font:{look.FONT};--mono:{look.MONO}}}"
            f"@media screen and (prefers-color-scheme:dark){{:root{{{look.variables(1)}}}}}{css}"
        )
        facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in self.facts)
        links = "".join(
            f'<li><a href="#s{number}">{escape(section.title)}</a></li>'
            for number, section in enumerate(self._sections)
            if section.title
        )
        sections = "".join(_section(number, section) for number, section in enumerate(self._sections))
        lead = f'<p class="lead">{escape(self.subtitle)}</p>' if self.subtitle else ""
        facts_list = f'<dl class="facts">{facts}</dl>' if facts else ""
        nav = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if links.count("<li>") > 1 else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{escape(self.title)} · Foveal</title><style>{style}</style></head>"
            f'<body><div class="page"><header><div class="brand">{look.mark()}Foveal</div><h1>{escape(self.title)}</h1>'
            f"{lead}{facts_list}</header>{nav}<main>{sections}</main>"
            f"<footer>Made by Foveal {__version__}. This page is one file and asks the network for nothing.</footer>"
            "</div></body></html>\n"
        )

    def write(self, path: Path) -> None:
        """The document to a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text(self.html(), encoding="utf-8")
        draft.replace(path)

    def _add(self, kind: str, html: str) -> Report:
        if not self._sections:
            self._sections.append(_Section("", ""))
        self._sections[-1].blocks.append((kind, html))
        return self


def _title(text: str, mark: Mark | None) -> str:
    return f"<strong>{escape(text)}</strong>" + ("" if mark is None else f" {_cell(mark)}")


def _section(number: int, section: _Section) -> str:
    parts: list[str] = []
    for kind, run in groupby(section.blocks, key=lambda block: block[0]):
        inner = "".join(html for _, html in run)
        parts.append(f'<div class="{kind}">{inner}</div>' if kind else inner)
    title = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    intro = f"<p>{escape(section.intro)}</p>" if section.intro else ""
    return f'<section id="s{number}">{title}{intro}{"".join(parts)}</section>'


def _inside(value: Cell) -> Cell:
    return value.value if isinstance(value, Link) else value


def _cell(value: Cell) -> str:
    if isinstance(value, Link):
        return f'<a href="#{escape(value.anchor)}">{_cell(value.value)}</a>'
    if isinstance(value, Mark):
        return f'<span class="tag-mark {value.state or "plain"}">{escape(value.text)}</span>'
    if isinstance(value, Heat):
        lost = 1 - max(0.0, min(1.0, value.share))
        return f'<span class="heat" style="--lost:{lost:.0%}">{value.value:.3f}</span>'
    if value is None:
        text = "\u2013"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = f"{value:,}" if isinstance(value, int) else escape(value)
    return f"<span>{text}</span>"
