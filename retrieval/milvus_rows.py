"""Images as rows of a Milvus collection: fields that are never missing, and the metadata as JSON that filters read.

Shape letters: N images, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from foveal.detections import FloatArray
from foveal.errors import BadInput
from retrieval.columns import fit, misfit_notes, promote
from retrieval.filter_engines import MILVUS_FIELDS, Value, milvus_meta
from retrieval.ingest import Rejected, identity
from retrieval.table import Row, canonical

MOST = 65_535  # bytes of a text or JSON field: the server's limit
FIELDS: dict[str, dict[str, Any]] = {
    "id": {"type": "VARCHAR", "is_primary": True, "max_length": 64},
    "uri": {"type": "VARCHAR", "max_length": MOST},
    "content_hash": {"type": "VARCHAR", "max_length": 64},
    "stamp": {"type": "VARCHAR", "max_length": 4096},
    "width": {"type": "INT64"},
    "height": {"type": "INT64"},
    "bytes": {"type": "INT64"},
    "phash": {"type": "INT64", "nullable": True},
    "meta": {"type": "JSON"},  # column -> value: what filters see
    "metadata": {"type": "VARCHAR", "max_length": MOST},  # as it was given, in canonical JSON
}
# Never missing, so that a filter needs not ask for their existence.
COLUMNS = {name: "number" if FIELDS[name]["type"] == "INT64" else "text" for name in MILVUS_FIELDS}


@dataclass(slots=True)
class Made:
    """Rows to write, and what writing them needs and leaves out."""

    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    kinds: dict[str, str] = field(default_factory=dict[str, str])  # of columns that are new
    notes: list[str] = field(default_factory=list[str])
    refused: list[Rejected] = field(default_factory=list[Rejected])


def as_rows(rows: Sequence[Row], kinds: Mapping[str, str], stored: Mapping[str, Mapping[str, Any]]) -> Made:
    """`rows` as Milvus takes them, beside columns of `kinds`.

    Args:
        stored: `vector` and `phash`, by id, of rows that are there already; those that come without a vector keep it.
    """
    promotion = promote([row.metadata for row in rows], list(kinds))
    made = Made(kinds=promotion.new, notes=promotion.notes)
    all_kinds = {**kinds, **promotion.new}
    misfits: dict[str, list[Value]] = {}
    for row in rows:
        meta: dict[str, Value] = {}
        for key, value in row.metadata.items():
            if (column := promotion.names.get(key)) is None:
                continue
            if (fitted := fit(value, all_kinds[column])) is None:
                misfits.setdefault(column, []).append(value)
            else:
                meta[column] = fitted
        found = _row(row, milvus_meta(meta), stored.get(row.id, {}))
        longest = max(("uri", "meta", "metadata"), key=lambda name: _size(found[name]))
        if (size := _size(found[longest])) > MOST:
            what = "URI" if longest == "uri" else "metadata"
            made.refused.append(Rejected(row.uri, f"its {what} has {size:,} bytes, Milvus takes {MOST:,}"))
        else:
            made.rows.append(found)
    made.notes += misfit_notes(misfits, all_kinds)
    return made


def from_vectors(
    uris: Sequence[str],
    vectors: FloatArray,
    dimension: int,
    sizes: Sequence[tuple[int, int]] | None,
    metadata: Sequence[Mapping[str, Value]] | None,
) -> list[Row]:
    """Rows of embeddings (N, D) computed elsewhere, at unit length.

    Raises:
        BadInput: the lengths differ, or a vector is not finite or has no direction.
    """
    if vectors.shape != (len(uris), dimension) or len(set(uris)) != len(uris):
        raise BadInput(
            "vectors do not fit the URIs",
            expected=f"({len(set(uris))}, {dimension}), a different URI each",
            received=str(vectors.shape),
        )
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 1e-6).all()):
        raise BadInput("a vector is not finite or has length 0", expected="directions")
    shapes = sizes or [(0, 0)] * len(uris)
    records: Sequence[Mapping[str, Value]] = metadata or [{}] * len(uris)
    return [
        Row(identity(uri), uri, "", *shape, record, vector)
        for uri, shape, record, vector in zip(uris, shapes, records, vectors / length, strict=True)
    ]


def told(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The named columns of a stored row, promoted ones among them, None where missing."""
    return {name: row[name] if name in row else row["meta"].get(name) for name in columns}


def _row(row: Row, meta: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    kept = row.vector is None
    return {
        "id": row.id,
        "uri": row.uri,
        "content_hash": row.content_hash,
        "stamp": row.stamp,
        "width": row.width,
        "height": row.height,
        "bytes": row.bytes,
        "phash": stored["phash"] if kept else row.phash,
        "meta": dict(meta),
        "metadata": canonical(row.metadata),
        "vector": stored["vector"] if kept else np.asarray(row.vector, np.float32),
    }


def _size(value: Any) -> int:
    return len(value.encode() if isinstance(value, str) else orjson.dumps(value))
