"""The durable truth of an archive: one Lance table, a row an image, every change one atomic commit.

Shape letters: N rows, D embedding dimensions.
"""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lance as _lance
import numpy as np
import numpy.typing as npt
import pyarrow as _pyarrow  # pyright: ignore[reportMissingTypeStubs]

from foveal.detections import FloatArray, IntArray
from foveal.errors import IntegrityError
from retrieval.ages import ADDED, ages, begin, since
from retrieval.columns import RESERVED, fit, kind, misfit_notes, promote
from retrieval.filters import parse

lance: Any = _lance  # neither library is typed throughout
pa: Any = _pyarrow

HalfArray = npt.NDArray[np.float16]
T = TypeVar("T")
Value = str | int | float

HIDDEN = ("seq", "stamp", "phash", "thumbnail", "metadata", "vector", "fingerprint", ADDED)  # not for filters
LOOK_UP = 1024  # ids a statement
DELETE_AT_ONCE = 10_000  # ids a commit
SEQ_STRIDE = 1 << 24  # a row's seq is version * SEQ_STRIDE + position, so no seq is ever handed out twice
COMPACT_ABOVE = 8  # fragments


@dataclass(frozen=True, slots=True)
class Row:
    """One image as the table keeps it."""

    id: str
    uri: str
    content_hash: str
    width: int
    height: int
    metadata: Mapping[str, Value]
    vector: FloatArray | None  # (D,) unit length; None keeps the vector, hash and thumbnail that the id already has
    stamp: str = ""  # changes when the bytes may have; empty when unknown
    bytes: int = 0  # of the file
    phash: int | None = None  # 64-bit perceptual hash
    thumbnail: builtins.bytes | None = None  # JPEG
    added: int | None = None  # Unix time; None: now, or as before where the id has this content already


@dataclass(frozen=True, slots=True)
class Known:
    """What must be equal for an image to count as unchanged."""

    content_hash: str
    metadata: str  # canonical JSON
    stamp: str


class Table:
    """One version of the Lance table; a commit makes another, which `open` finds."""

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
                pa.field("stamp", text, nullable=False),
                pa.field("width", number, nullable=False),
                pa.field("height", number, nullable=False),
                pa.field("bytes", number, nullable=False),
                pa.field("phash", number),
                pa.field("thumbnail", pa.large_binary()),
                pa.field("metadata", text, nullable=False),
                pa.field("vector", pa.list_(pa.float16(), dimension), nullable=False),
                pa.field("fingerprint", text, nullable=False),
                pa.field(ADDED, number),
            ]
        )
        dataset = lance.write_dataset(schema.empty_table(), str(path), schema=schema, mode="create")
        dataset.create_scalar_index("id", "BTREE")
        return cls(dataset)

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
        """Filterable columns -> "number", "text" or "time"; promoted metadata and the plain fields of a row."""
        return {f.name: kind(f.name, pa.types.is_string(f.type)) for f in self._dataset.schema if f.name not in HIDDEN}

    @property
    def names(self) -> list[str]:
        """Every column."""
        return list(self._dataset.schema.names)

    def schema(self, columns: Sequence[str]) -> Any:
        """The Arrow schema of the named columns."""
        return pa.schema([self._dataset.schema.field(name) for name in columns])

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    # Reading.

    def known(self, ids: Sequence[str]) -> dict[str, Known]:
        """Those of `ids` that are stored, with the hash, metadata and stamp they were stored with."""
        found: dict[str, Known] = {}
        for part in batched(ids, LOOK_UP):
            rows = self._dataset.to_table(columns=["id", "content_hash", "metadata", "stamp"], filter=_among(part))
            for key, *rest in zip(*(rows[name].to_pylist() for name in rows.schema.names), strict=True):
                found[key] = Known(*rest)
        return found

    def keys(self, expression: str | None = None) -> tuple[IntArray, IntArray]:
        """seq (N,) ascending and Lance row ids (N,), of all rows or of those a filter keeps.

        Raises:
            BadInput: the expression is not a filter over this table's columns (see `retrieval.filters`).
            IntegrityError: Lance cannot read the table.
        """
        sql = None if expression is None else parse(expression, self.columns).sql()
        try:
            rows = self._dataset.to_table(columns=["seq"], with_row_id=True, filter=sql)
        except (OSError, ValueError) as error:
            raise IntegrityError(f"archive table {self._dataset.uri} cannot be read: {_first_line(error)}") from error
        seqs = rows["seq"].to_numpy().astype(np.int64)
        order = np.argsort(seqs, kind="stable")
        return seqs[order], rows["_rowid"].to_numpy().astype(np.int64)[order]

    def take(self, rows: IntArray, columns: Sequence[str]) -> Any:
        """The named columns of the given Lance row ids as an Arrow table, in that order."""
        return self._dataset._take_rows(rows.tolist(), columns=list(columns))

    def vectors(self, rows: IntArray) -> HalfArray:
        """Vectors (N, D) float16 of the given Lance row ids, in that order."""
        return _matrix(self.take(rows, ["vector"])["vector"], self.dimension)

    def find(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The named columns of those of `ids` that are stored, by id."""
        found: dict[str, dict[str, Any]] = {}
        for part in batched(ids, LOOK_UP):
            rows = self._dataset.to_table(columns=["id", *columns], filter=_among(part)).to_pylist()
            found |= {row.pop("id"): row for row in rows}
        return found

    def added(self) -> dict[str, int]:
        """id -> Unix time since which each image is there."""
        return ages(self._dataset)

    def scan(self, columns: Sequence[str], batch_size: int = 8192) -> Iterable[Any]:
        """Record batches of the named columns, in no particular order."""
        return self._dataset.to_batches(columns=list(columns), batch_size=batch_size)

    # Writing: each call is one commit, except that new columns are committed just before the rows that need them.

    def write(self, rows: Sequence[Row], fingerprint: str, known: Container[str]) -> list[str]:
        """Commits rows, replacing those whose id is known; returns notes on metadata that did not fit its column."""
        if ADDED not in self._dataset.schema.names:
            self.date()
        names, notes = self._promote([row.metadata for row in rows])
        table, misfits = self._as_arrow(rows, names, fingerprint, known)
        if any(row.id in known for row in rows):
            self._dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(table)
        else:
            self._dataset.insert(table, mode="append")
        return notes + misfits

    def date(self) -> None:
        """Has every row say since when it is there, as those of earlier archives do not; one commit, once."""
        begin(self._dataset)

    def restamp(self, stamps: Mapping[str, str]) -> None:
        """Commits new stamps of images, by id, whose bytes have turned out the same."""
        columns = pa.schema([self._dataset.schema.field(name) for name in ("id", "stamp")])
        table = pa.table([list(stamps.keys()), list(stamps.values())], schema=columns)
        self._dataset.merge_insert("id").when_matched_update_all().execute(table)

    def delete(self, ids: Sequence[str]) -> int:
        """Commits the removal of the rows with these ids; returns how many there were."""
        before = len(self)
        for part in batched(ids, DELETE_AT_ONCE):
            self._dataset.delete(_among(part))
        return before - len(self)

    def tidy(self) -> None:
        """Merges small fragments, and drops versions no reader can still be working on."""
        if len(self._dataset.get_fragments()) > COMPACT_ABOVE:
            self._dataset.optimize.compact_files()
            self._dataset.optimize.optimize_indices()
            self._dataset.cleanup_old_versions(timedelta(minutes=10))

    def erase(self) -> None:
        """Rewrites every fragment that has deleted rows, and drops every version but the newest."""
        self._dataset.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
        self._dataset.optimize.optimize_indices()
        self._dataset.cleanup_old_versions(retain_versions=1, delete_unverified=True)

    def _promote(self, metadata: Sequence[Mapping[str, Value]]) -> tuple[dict[str, str], list[str]]:
        """Metadata key -> column, adding the columns that are missing."""
        found = promote(metadata, [name for name in self._dataset.schema.names if name not in RESERVED])
        if found.new:
            types = {name: pa.float64() if of == "number" else pa.string() for name, of in found.new.items()}
            self._dataset.add_columns(pa.schema(list(types.items())))
        return found.names, found.notes

    def _as_arrow(
        self, rows: Sequence[Row], names: Mapping[str, str], fingerprint: str, known: Container[str]
    ) -> tuple[Any, list[str]]:
        schema = self._dataset.schema
        first = (self.version + 1) * SEQ_STRIDE
        columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in schema.names if name not in RESERVED}
        kinds, misfits = self.columns, dict[str, list[Value]]()
        for position, row in enumerate(rows):
            for key, value in row.metadata.items():
                column = names.get(key)
                if column is None:
                    continue
                columns[column][position] = fitted = fit(value, kinds[column])
                if fitted is None:
                    misfits.setdefault(column, []).append(value)
        kept = self._kept(rows)
        old = [row.id for row in rows if row.id in known]
        before = self.find(old, ["content_hash", ADDED]) if old else {}
        vectors = [kept[r.id]["vector"] if r.vector is None else r.vector.astype(np.float16) for r in rows]
        flat = pa.array(np.concatenate(vectors, dtype=np.float16))
        arrays: dict[str, Any] = {
            "id": [row.id for row in rows],
            "seq": list(range(first, first + len(rows))),
            "uri": [row.uri for row in rows],
            "content_hash": [row.content_hash for row in rows],
            "stamp": [row.stamp for row in rows],
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "bytes": [row.bytes for row in rows],
            "phash": [kept[row.id]["phash"] if row.id in kept else row.phash for row in rows],
            "thumbnail": [kept[row.id]["thumbnail"] if row.id in kept else row.thumbnail for row in rows],
            "metadata": [canonical(row.metadata) for row in rows],
            "vector": pa.FixedSizeListArray.from_arrays(flat, self.dimension),
            "fingerprint": [fingerprint] * len(rows),
            ADDED: since(rows, before),
            **columns,
        }
        table = pa.table([pa.array(arrays[f.name], type=f.type) for f in schema], schema=schema)
        return table, misfit_notes(misfits, kinds)

    def _kept(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """What is stored of the rows that come without a vector, by id."""
        ids = [row.id for row in rows if row.vector is None]
        return self.find(ids, ["vector", "phash", "thumbnail"]) if ids else {}


def canonical(metadata: Mapping[str, Value]) -> str:
    """Metadata as JSON with sorted keys, so that equal metadata are equal strings."""
    return json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)


def _among(ids: Iterable[str]) -> str:
    quoted = ("'" + value.replace("'", "''") + "'" for value in ids)
    return f"id IN ({', '.join(quoted)})"


def batched(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`values` in pieces of at most `size`."""
    return (values[start : start + size] for start in range(0, len(values), size))


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
