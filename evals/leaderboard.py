"""A leaderboard: models against tasks, with intervals, the best marked, and data sets that differ kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.compare import Change, aligned, compare, flat_figures
from evals.filing import Filed
from evals.measures import measures_of
from evals.paired import Interval, intervals
from evals.report import STATES, Cell, Mark, Report
from evals.results import Result
from evals.verdicts import Word
from foveal.errors import BadInput

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 4  # figures a board shows


@dataclass(frozen=True, slots=True)
class Row:
    """One model on one board."""

    label: str
    result: Result
    licence: str | None
    megabytes: float | None
    gate: Word | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Board:
    """Models that were measured by the same task on the same items: they can be compared."""

    rows: tuple[Row, ...]  # the best by the first figure on top
    figures: tuple[str, ...]
    intervals: dict[
        str, dict[str, Interval]
    ]  # figure -> label -> the figure; empty where it does not follow from items
    best: dict[str, frozenset[str]]  # figure -> labels of the best
    tied: dict[str, frozenset[str]]  # figure -> labels that these items cannot tell from the best

    @property
    def first(self) -> Result:
        """A result that says what the board is about."""
        return self.rows[0].result

    @property
    def title(self) -> str:
        """What was measured, on what."""
        name = self.first.name if self.first.name == self.first.task else f"{self.first.name} ({self.first.task})"
        return f"{name} on {self.first.data.source}"


def rows_of(versions: Sequence[Filed], others: Sequence[tuple[str, Result]] = ()) -> list[Row]:
    """A row for each result that is filed with a version, and for results from elsewhere under their labels."""
    rows = [
        Row(version.label, result, version.licence, version.megabytes, version.gate, version.entry.aliases)
        for version in versions
        for result in version.results
    ]
    for label, result in others:
        rows.append(Row(label, result, result.subject.licence, result.subject.megabytes))
    return rows


def boards(rows: Sequence[Row]) -> list[Board]:
    """The rows in groups that can be compared, by task.

    Raises:
        BadInput: there is nothing to show.
    """
    if not rows:
        raise BadInput(
            "no result is there to be ranked",
            remedy="File some: foveal registry file NAME VERSION RESULT.json, or name result files.",
        )
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        result = row.result
        ids = ",".join(sorted(map(str, result.items.get("id", ()))))
        groups.setdefault((result.task, result.name, result.data.fingerprint, ids), []).append(row)
    return [_board(group) for _, group in sorted(groups.items(), key=lambda entry: entry[0][:3])]


def _board(rows: list[Row]) -> Board:
    first = rows[0].result
    measures = measures_of(first)
    shared = [name for name in flat_figures(first.figures) if all(name in flat_figures(r.result.figures) for r in rows)]
    figures = [name for name in measures if name in shared][:SHOWN] or shared[:SHOWN]
    chosen = {name: measures[name] for name in figures if name in measures}
    found: dict[str, dict[str, Interval]] = {name: {} for name in figures}
    for row in rows:
        result = aligned(first, row.result)
        for name, interval in (intervals(chosen, result.items, None, result.images) if chosen else {}).items():
            found[name][row.label] = interval
    best: dict[str, frozenset[str]] = {}
    tied: dict[str, frozenset[str]] = {}
    for name, measure in chosen.items():
        values = {row.label: row.result.figures[name] for row in rows}
        top = (max if measure.higher_is_better else min)(values.values())
        leaders = [row for row in rows if values[row.label] == top]
        best[name] = frozenset(row.label for row in leaders)
        tied[name] = frozenset(
            row.label for row in rows if row.label not in best[name] and not _told_apart(leaders[0], row, name)
        )
    if chosen:
        leading, measure = next(iter(chosen.items()))
        sign = -1 if measure.higher_is_better else 1
        rows = sorted(rows, key=lambda row: sign * row.result.figures[leading])
    return Board(tuple(rows), tuple(figures), found, best, tied)


def _told_apart(best: Row, other: Row, figure: str) -> bool:
    change: Change = compare(best.result, other.result, [figure], slices=False).changes[figure]
    return change.verdict == "worse"


def as_dict(found: Sequence[Board]) -> dict[str, Any]:
    """JSON-ready: `{"boards": [{"task", "name", "data", "rows": [...]}]}`."""
    return {
        "boards": [
            {
                "task": board.first.task,
                "name": board.first.name,
                "data": board.first.data.model_dump(),
                "items": len(board.first),
                "rows": [_row(board, row) for row in board.rows],
            }
            for board in found
        ]
    }


def _row(board: Board, row: Row) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    flat = flat_figures(row.result.figures)
    for name in board.figures:
        interval = board.intervals[name].get(row.label)
        figures[name] = {"value": flat[name]}
        if interval is not None:
            figures[name] |= {"low": interval.low, "high": interval.high}
            figures[name] |= {"best": row.label in board.best[name], "tied": row.label in board.tied[name]}
    return {
        "model": row.label,
        "aliases": list(row.aliases),
        "licence": row.licence,
        "megabytes": row.megabytes,
        "gate": row.gate,
        "seconds": row.result.seconds,
        "figures": figures,
    }


def tables(found: Sequence[Board]) -> list[Table]:
    """A table for a terminal a board, of its leading figure: `*` is the best, `~` what cannot be told from it."""
    from rich.table import Table

    shown: list[Table] = []
    for board in found:
        table = Table(title=board.title, title_justify="left", box=None, pad_edge=False)
        leading = board.figures[0] if board.figures else ""
        for column in ("model", leading, "licence", "MB", "gate"):
            table.add_column(column, overflow="fold")
        for row in board.rows:
            size = "-" if row.megabytes is None else f"{row.megabytes:.3g}"
            table.add_row(_label(row), _starred(board, row, leading), row.licence or "unknown", size, row.gate or "-")
        shown.append(table)
    return shown


def _starred(board: Board, row: Row, name: str) -> str:
    if not name:
        return "-"
    value, *interval = _figure(board, row, name).split(" ", 1)
    mark = "*" if row.label in board.best.get(name, ()) else "~" if row.label in board.tied.get(name, ()) else ""
    return " ".join([value + mark, *interval])


def page(found: Sequence[Board], versions: Sequence[Filed] = ()) -> Report:
    """The page: a table a board, and the versions that nothing is filed of."""
    models = {row.label for board in found for row in board.rows}
    facts = [("models", str(len(models))), ("boards", str(len(found)))]
    report = Report(
        "Leaderboard",
        "Only results of the same task, data and items share a board. Green is best; framed is what these items cannot "
        "tell from the best.",
        facts=facts,
    )
    for board in found:
        first = board.first
        report.section(
            board.title,
            f"{first.data.images:,} images, {len(first):,} items, data {first.data.fingerprint[:8]}. "
            "Figures with their 95% intervals.",
        )
        rows: list[list[Cell]] = [
            [
                _label(row),
                *(_cell(board, row, name) for name in board.figures),
                row.licence or "unknown",
                None if row.megabytes is None else float(f"{row.megabytes:.3g}"),
                Mark(row.gate, STATES[row.gate]) if row.gate else "none",
            ]
            for row in board.rows
        ]
        columns = ("model", *(name.replace("_", " ") for name in board.figures), "licence", "MB", "gate")
        report.table(columns, rows, stack=True)
    bare = [version for version in versions if not version.results]
    if bare:
        report.section("Never measured", "Registered, with no result filed.")
        told: list[list[Cell]] = [
            [v.label, v.entry.kind, v.licence, v.megabytes, Mark(v.gate, STATES[v.gate]) if v.gate else "none"]
            for v in bare
        ]
        report.table(("model", "kind", "licence", "MB", "gate"), told, stack=True)
    return report


def _label(row: Row) -> str:
    return f"{row.label} ({', '.join(row.aliases)})" if row.aliases else row.label


def _cell(board: Board, row: Row, name: str) -> Cell:
    text = _figure(board, row, name)
    if row.label in board.best.get(name, ()):
        return Mark(text, "good")
    return Mark(text) if row.label in board.tied.get(name, ()) else text


def _figure(board: Board, row: Row, name: str) -> str:
    interval = board.intervals[name].get(row.label)
    text = f"{flat_figures(row.result.figures)[name]:.4g}"
    return text if interval is None else f"{text} [{interval.low:.3g}, {interval.high:.3g}]"
