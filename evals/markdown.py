"""Markdown that shows what it is given, whatever that holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast


def inline(text: str) -> str:
    """Text that Markdown shows as typed, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text for between backticks."""
    return " ".join(text.split()).replace("`", "'")


def number(value: Any) -> str:
    """A value, floats to four significant digits, lists in a row."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in cast("Sequence[Any]", value))
    return inline(str(value))


def bullets(items: Iterable[str], *, escape: bool = True) -> str:
    """A list."""
    return "\n".join(f"- {inline(item) if escape else item}" for item in items)


def pairs(values: Mapping[str, Any]) -> str:
    """A list of names and values."""
    return "\n".join(f"- {inline(key)}: {number(value)}" for key, value in values.items())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists and everything else stay as they are."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table of cells that are Markdown already; `align` has `l` or `r` a column."""
    lines = [
        f"| {' | '.join(inline(name) for name in columns)} |",
        f"| {' | '.join('---:' if side == 'r' else '---' for side in align)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines)
