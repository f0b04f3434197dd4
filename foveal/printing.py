"""What a command prints: one JSON line for programs, aligned columns for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def plain(value: Any) -> Any:
    """The value in JSON's own types; a number that JSON cannot hold (NaN, infinity) becomes null."""
    dump = getattr(value, "model_dump", None)  # pydantic's, which a short command line need not import
    if dump is not None:
        return plain(dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def emit(result: Any, as_json: bool) -> None:
    """Print a result: one JSON line for programs, aligned names and values for people."""
    values = plain(result)
    if as_json:
        print(json.dumps(values), flush=True)
    else:
        _print([(name.replace("_", " "), value) for name, value in values.items()], None)


def emit_rows(rows: list[dict[str, Any]]) -> None:
    """Print records of the same fields under one header, or that there are none."""
    if rows:
        _print([tuple(row.values()) for row in rows], [name.replace("_", " ") for name in rows[0]])
    else:
        print("nothing found")


def _print(rows: list[tuple[Any, ...]], header: list[str] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=header is not None, pad_edge=False)
    for name in header or ["", ""]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(markup=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (dict, list)):
        return json.dumps(value) if value else "-"
    return "-" if value is None else str(value)
