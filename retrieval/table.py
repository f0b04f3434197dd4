"""The durable truth of an archive: one Lance table, a row an image, every change one atomic commit.

Shape letters: N rows, D embedding dimensions.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance as _lance
import numpy as np
import numpy.typing as npt
import pyarrow as _pyarrow  # pyright: ignore[reportMissingTypeStubs]

from foveal.detections import FloatArray, IntArray
from foveal.errors import BadInput, IntegrityError

lance: Any = _lance  # neither library is typed throughout
pa: Any = _pyarrow

HalfArray = npt.NDArray[np.float16]
Value = str | int | float

RESERVED = ("id", "seq", "uri", "content_hash", "width", "height", "metadata", "vector", "fingerprint")
MAX_PROMOTED = 256  # metadata keys that become filterable columns; further ones stay in the JSON
MAX_FILTER = 10_000  # characters
SEQ_STRIDE = 1 << 24  # a row's seq is version * SEQ_STRIDE + position, so no seq is ever handed out twice
COMPACT_ABOVE = 8  # fragments


@dataclass(frozen=True, slots=True)
class Row:
    """One image as the table keeps it; `vector` None keeps the vector that the id already has."""

    id: str
    uri: str
    content_hash: str
    width: int
    height: int
    metadata: Mapping[str, Value]
    vector: FloatArray | None  # (D,) unit length


@dataclass(frozen=True, slots=True)
class Known:
    """What must be equal for an image to count as unchanged."""

    content_hash: str
    metadata: str  # canonical JSON


class Table:
    """One version of the Lance table; `latest()` moves on, nothing else changes what this version holds."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    @classmethod
    def create(cls, path: Path, dimension: int) -> Table:
        """An empty table of D-dimensional vectors at `path`."""
        text, number = pa.string(), pa.int64()
        schema = pa.schema(
            [
                pa.field("id", text, nullable=False),
                pa.field("seq", number, nullable=False),
                pa.field("uri", text, nullable=False),
                pa.field("content_hash", text, nullable=False),
                pa.field("width", number, nullable=False),
                pa.field("height", number, nullable=False),
                pa.field("metadata", text, nullable=False),
                pa.field("vector", pa.list_(pa.float16(), dimension), nullable=False),
                pa.field("fingerprint", text, nullable=False),
            ]
        )
        return cls(lance.write_dataset(schema.empty_table(), str(path), schema=schema, mode="create"))

    @classmethod
    def open(cls, path: Path) -> Table:
        """The latest version at `path`; IntegrityError when Lance cannot read it."""
        try:
            return cls(lance.dataset(str(path)))
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"archive table {path} cannot be read: {_first_line(error)}",
                remedy="Restore the archive folder, or build it anew with `foveal archive add`.",
            ) from error

    def latest(self) -> Table:
        """The newest committed version, as a table of its own."""
        return self if not self.is_stale() else Table(lance.dataset(self._dataset.uri))

    def is_stale(self) -> bool:
        """Whether anyone has committed since this version."""
        return bool(self._dataset.latest_version != self._dataset.version)

    @property
    def version(self) -> int:
        return int(self._dataset.version)

    @property
    def dimension(self) -> int:
        return int(self._dataset.schema.field("vector").type.list_size)

    @property
    def columns(self) -> dict[str, str]:
        """Filterable columns -> "number" or "text"; promoted metadata and the plain fields of a row."""
        kinds = {f.name: "text" if pa.types.is_string(f.type) else "number" for f in self._dataset.schema}
        return {name: kind for name, kind in kinds.items() if name not in ("vector", "metadata", "fingerprint", "seq")}

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    # Reading.

    def known(self) -> dict[str, Known]:
        """Every id with the hash and metadata it was stored with."""
        rows = self._dataset.to_table(columns=["id", "content_hash", "metadata"])
        return {
            key: Known(digest, metadata)
            for key, digest, metadata in zip(*(rows[name].to_pylist() for name in rows.schema.names), strict=True)
        }

    def keys(self, expression: str | None = None) -> tuple[IntArray, IntArray]:
        """seq (N,) ascending and Lance row ids (N,), of all rows or of those a filter keeps.

        Raises:
            BadInput: the expression is not a filter over this table's columns.
        """
        try:
            rows = self._dataset.to_table(columns=["seq"], with_row_id=True, filter=_guarded(expression))
        except ValueError as error:
            raise self._bad_filter(expression or "", error) from error
        except OSError as error:
            if expression is None or "not found" in str(error).lower():
                raise IntegrityError(
                    f"archive table {self._dataset.uri} cannot be read: {_first_line(error)}"
                ) from error
            raise self._bad_filter(expression, error) from error
        seqs = rows["seq"].to_numpy().astype(np.int64)
        order = np.argsort(seqs, kind="stable")
        return seqs[order], rows["_rowid"].to_numpy().astype(np.int64)[order]

    def vectors(self, rows: IntArray | None = None) -> tuple[IntArray, HalfArray]:
        """seq (N,) ascending and vectors (N, D) float16: of the given Lance row ids, or of the whole table."""
        columns = ["seq", "vector"]
        table = self._dataset.to_table(columns=columns) if rows is None else self._take(rows, columns)
        seqs = table["seq"].to_numpy().astype(np.int64)
        order = np.argsort(seqs, kind="stable")
        return seqs[order], _matrix(table["vector"], self.dimension)[order]

    def records(self, rows: IntArray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The named columns of the given Lance row ids, in that order."""
        return self._take(rows, list(columns)).to_pylist() if len(rows) else []

    def scan(self, columns: Sequence[str], batch_size: int = 8192) -> Iterable[Any]:
        """Record batches of the named columns, in no particular order."""
        return self._dataset.to_batches(columns=list(columns), batch_size=batch_size)

    # Writing: each call is one commit, except that new columns are committed just before the rows that need them.

    def write(self, rows: Sequence[Row], fingerprint: str, known: Mapping[str, Known]) -> list[str]:
        """Commits rows, replacing those whose id is known; returns notes on metadata that did not fit its column."""
        names, notes = self._promote([row.metadata for row in rows])
        table, misfits = self._as_arrow(rows, names, fingerprint)
        if any(row.id in known for row in rows):
            self._dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(table)
        else:
            self._dataset.insert(table, mode="append")
        return notes + misfits

    def delete(self, ids: Sequence[str]) -> int:
        """Commits the removal of the rows with these ids; returns how many there were."""
        before = len(self)
        if ids:
            self._dataset.delete(f"id IN ({_quoted(ids)})")
        return before - len(self)

    def compact(self) -> None:
        """Merges small fragments, and drops versions no reader can still be working on."""
        if len(self._dataset.get_fragments()) > COMPACT_ABOVE:
            self._dataset.optimize.compact_files()
            self._dataset.cleanup_old_versions(timedelta(minutes=10))

    def _take(self, rows: IntArray, columns: list[str]) -> Any:
        return self._dataset._take_rows(rows.tolist(), columns=columns)

    def _promote(self, metadata: Sequence[Mapping[str, Value]]) -> tuple[dict[str, str], list[str]]:
        """Metadata key -> column, adding the columns that are missing."""
        taken = {name.casefold(): name for name in self._dataset.schema.names if name not in RESERVED}
        names: dict[str, str] = {}
        new: dict[str, Any] = {}
        left_out: set[str] = set()
        for record in metadata:
            for key, value in record.items():
                if key in names or key in left_out:
                    continue
                column = column_name(key)
                existing = taken.get(column.casefold())
                if existing is None and len(taken) >= MAX_PROMOTED:
                    left_out.add(key)
                    continue
                if existing is None:
                    existing = taken[column.casefold()] = column
                    new[column] = pa.field(column, pa.string() if isinstance(value, str) else pa.float64())
                names[key] = existing
        if new:
            self._dataset.add_columns(pa.schema(list(new.values())))
        notes = [f"{key}: kept, but not filterable ({MAX_PROMOTED} columns are the limit)" for key in sorted(left_out)]
        return names, notes

    def _as_arrow(self, rows: Sequence[Row], names: Mapping[str, str], fingerprint: str) -> tuple[Any, list[str]]:
        schema = self._dataset.schema
        first = (self.version + 1) * SEQ_STRIDE
        columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in schema.names if name not in RESERVED}
        misfits: dict[str, int] = {}
        for position, row in enumerate(rows):
            for key, value in row.metadata.items():
                column = names.get(key)
                if column is None:
                    continue
                fitted = _fit(value, pa.types.is_string(schema.field(column).type))
                columns[column][position] = fitted
                if fitted is None:
                    misfits[column] = misfits.get(column, 0) + 1
        flat = pa.array(self._filled(rows).reshape(-1))
        arrays: dict[str, Any] = {
            "id": [row.id for row in rows],
            "seq": list(range(first, first + len(rows))),
            "uri": [row.uri for row in rows],
            "content_hash": [row.content_hash for row in rows],
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "metadata": [canonical(row.metadata) for row in rows],
            "vector": pa.FixedSizeListArray.from_arrays(flat, self.dimension),
            "fingerprint": [fingerprint] * len(rows),
            **columns,
        }
        table = pa.table([pa.array(arrays[f.name], type=f.type) for f in schema], schema=schema)
        return table, [f"{column}: {n} values are not numbers like the others" for column, n in misfits.items()]

    def _filled(self, rows: Sequence[Row]) -> HalfArray:
        """Vectors (N, D) float16 of `rows`, missing ones looked up by id."""
        missing = [row.id for row in rows if row.vector is None]
        stored: dict[str, HalfArray] = {}
        if missing:
            found = self._dataset.to_table(columns=["id", "vector"], filter=f"id IN ({_quoted(missing)})")
            stored = dict(zip(found["id"].to_pylist(), _matrix(found["vector"], self.dimension), strict=True))
        return np.stack([stored[r.id] if r.vector is None else r.vector.astype(np.float16) for r in rows])

    def _bad_filter(self, expression: str, error: Exception) -> BadInput:
        reason = _first_line(error)
        unknown = re.search(r'No field named "?([^".\s]+)', reason)
        remedy = None
        if unknown:
            reason = f"there is no column {unknown[1]}"
            close = difflib.get_close_matches(unknown[1], self.columns, n=1)
            remedy = f"Did you mean {close[0]}?" if close else None
        listed = ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())
        return BadInput(f"filter {expression!r}: {reason}", expected=f"SQL over {listed}", remedy=remedy)


def column_name(key: str) -> str:
    """The column that metadata key `key` is promoted to: word characters only, never a reserved name."""
    name = re.sub(r"\W", "_", key.strip()) or "_"
    if name.casefold() in RESERVED or name.casefold().startswith("_row"):
        return f"meta_{name.lstrip('_')}"
    return f"_{name}" if name[0].isdigit() else name


def canonical(metadata: Mapping[str, Value]) -> str:
    """Metadata as JSON with sorted keys, so that equal metadata are equal strings."""
    return json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)


def _fit(value: Value, text: bool) -> str | float | None:
    if text:
        return str(value)
    if isinstance(value, str):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _guarded(expression: str | None) -> str | None:
    """In brackets, because Lance would silently ignore whatever follows a complete expression."""
    if expression is None:
        return None
    if not expression.strip() or len(expression) > MAX_FILTER:
        raise BadInput(
            "the filter is empty or too long", expected=f"1 to {MAX_FILTER} characters", received=str(len(expression))
        )
    return f"({expression}\n)"


def _quoted(values: Iterable[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def _matrix(column: Any, dimension: int) -> HalfArray:
    chunks = [c.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension) for c in column.chunks]
    return np.concatenate(chunks) if chunks else np.zeros((0, dimension), dtype=np.float16)


def _first_line(error: Exception) -> str:
    """Lance's message without the paths of its own sources."""
    line = str(error).strip().split("\n")[0]
    line = re.sub(r",? ?/[^ ]*\.rs:\d+(:\d+)?", "", line)
    for prefix in ("Invalid user input: ", "LanceError(IO): "):
        line = line.replace(prefix, "")
    return line[:300]
