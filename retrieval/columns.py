"""Metadata as columns that a filter may name: what they are called, of which kind they are, and what fits into them.

The column of a key that ends in `_at` holds times: given in ISO 8601 (a date, a space for the T, an offset, Z, a
fraction of a second; UTC where there is no offset), kept in UTC to the second. What a column cannot hold stays in the
metadata.

Every engine that stores an archive keeps to this, so that one filter means the same on all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval.filter_engines import Value
from retrieval.times import utc

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


def fit(value: Value, kind: str) -> str | float | None:
    """A value as a column of a kind holds it; None where it does not fit."""
    if kind == "number":
        return None if isinstance(value, str) or not math.isfinite(value) else float(value)
    return utc(str(value)) if kind == "time" else str(value)


def misfit_notes(misfits: Mapping[str, Sequence[Value]], kinds: Mapping[str, str]) -> list[str]:
    """What to say of the values that did not fit, by column."""
    told = {
        "number": "are not numbers like the others",
        "time": "are no times in ISO 8601 such as 2026-11-02T09:30:00+02:00, and cannot be filtered by",
    }
    return [
        f"{name}: {len(found)} values {told[kinds[name]]}: {str(found[0])[:40]!r}" for name, found in misfits.items()
    ]
