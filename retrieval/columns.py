"""Metadata as columns that a filter may name: what they are called, of which kind they are, and what fits into them.

Every engine that stores an archive keeps to this, so that one filter means the same on all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval.filter_engines import Value

RESERVED = (
    "id", "seq", "uri", "content_hash", "stamp", "width", "height", "bytes", "phash", "thumbnail", "metadata", "vector",
    "fingerprint", "foveal_added",
)  # fmt: skip
TIMES = "_at"  # columns named so hold times, as `taken_at` does: see retrieval/facts.py
MAX_PROMOTED = 256  # metadata keys that become filterable columns; further ones stay in the JSON


@dataclass(frozen=True, slots=True)
class Promotion:
    """Which columns some records need."""

    names: dict[str, str]  # metadata key -> column
    new: dict[str, str]  # column -> "number", "text" or "time", of those that are missing
    notes: list[str]  # on keys that get none


def promote(records: Sequence[Mapping[str, Value]], existing: Sequence[str]) -> Promotion:
    """The columns for `records` beside the promoted ones that exist; the first value of a key decides on its kind."""
    taken = {name.casefold(): name for name in existing}
    found = Promotion({}, {}, [])
    left_out: set[str] = set()
    for record in records:
        for key, value in record.items():
            if key in found.names or key in left_out:
                continue
            column = column_name(key)
            known = taken.get(column.casefold())
            if known is None and len(taken) >= MAX_PROMOTED:
                left_out.add(key)
                continue
            if known is None:
                known = taken[column.casefold()] = column
                found.new[column] = kind(column, isinstance(value, str))
            found.names[key] = known
    found.notes.extend(
        f"{k}: kept, but not filterable ({MAX_PROMOTED} columns are the limit)" for k in sorted(left_out)
    )
    return found


def column_name(key: str) -> str:
    """The column that metadata key `key` is promoted to: word characters only, never a reserved name."""
    name = re.sub(r"\W", "_", key.strip()) or "_"
    if name.casefold() in RESERVED or name.casefold().startswith("_row"):
        return f"meta_{name.lstrip('_')}"
    return f"_{name}" if name[0].isdigit() else name


def kind(column: str, text: bool) -> str:
    """The kind of a column that holds texts, or else numbers."""
    if not text:
        return "number"
    return "time" if column.endswith(TIMES) else "text"


def fit(value: Value, text: bool) -> str | float | None:
    """A value as a column of texts, or of numbers, holds it; None where it does not fit."""
    if text:
        return str(value)
    if isinstance(value, str):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def misfit_notes(misfits: Mapping[str, int]) -> list[str]:
    """What to say of columns in which values did not fit, by how many."""
    return [f"{column}: {count} values are not numbers like the others" for column, count in misfits.items()]
