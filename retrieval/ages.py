"""Since when each image of an archive's table is there: a column of it that filters do not see, in Unix seconds.

Archives that an earlier Foveal made have no such column. Their rows say which version of the table they came with, and
Lance knows when the versions that it still has were made: the time of the first of these that is not older than the row
is never before the row came. `begin` writes it down once, before those versions go.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as _pyarrow  # pyright: ignore[reportMissingTypeStubs]

pa: Any = _pyarrow

ADDED = "foveal_added"
MOST = 200  # versions that the ages of old rows are told by
VERSION_BITS = 24  # of a seq, below the version: see `retrieval.table.SEQ_STRIDE`


def begin(dataset: Any) -> None:
    """Has every row of a Lance dataset say since when it is there; the caller is the only writer."""
    if ADDED not in dataset.schema.names:
        told, now = _told(dataset), int(time.time())

        def dated(batch: Any) -> Any:
            times = [_when(seq, told, now) for seq in batch["seq"].to_pylist()]
            return pa.record_batch([pa.array(times, pa.int64())], names=[ADDED])

        dataset.add_columns(dated, read_columns=["seq"])
    elif dataset.count_rows(filter=f"{ADDED} IS NULL"):  # of an earlier Foveal that wrote here again
        told, now = _told(dataset), int(time.time())
        rows = dataset.to_table(columns=["id", "seq"], filter=f"{ADDED} IS NULL")
        times = pa.array([_when(seq, told, now) for seq in rows["seq"].to_pylist()], pa.int64())
        schema = pa.schema([dataset.schema.field(name) for name in ("id", ADDED)])
        dataset.merge_insert("id").when_matched_update_all().execute(pa.table([rows["id"], times], schema=schema))


def ages(dataset: Any) -> dict[str, int]:
    """id -> Unix time since which the image is there, or a later one where that is not known."""
    there = ADDED in dataset.schema.names
    told, now = _told(dataset), int(time.time())
    found: dict[str, int] = {}
    for batch in dataset.to_batches(columns=["id", "seq", *([ADDED] if there else [])], batch_size=8192):
        stamps = batch[ADDED].to_pylist() if there else [None] * len(batch)
        for key, seq, stamp in zip(batch["id"].to_pylist(), batch["seq"].to_pylist(), stamps, strict=True):
            found[key] = _when(seq, told, now) if stamp is None else stamp
    return found


def since(rows: Iterable[Any], before: dict[str, dict[str, Any]]) -> list[int]:
    """What `ADDED` is to say of rows; those with the same content as `before` keep their time."""
    now = int(time.time())
    times: list[int] = []
    for row in rows:
        old = before.get(row.id)
        same = old is not None and old["content_hash"] == row.content_hash
        times.append(row.added or (old[ADDED] if same and old is not None else None) or now)
    return times


def _when(seq: int, told: Sequence[tuple[int, int]], now: int) -> int:
    """The time of the first version told of that is not older than a row with this seq."""
    at = bisect_left(told, (seq >> VERSION_BITS, 0))
    return told[at][1] if at < len(told) else now


def _told(dataset: Any) -> list[tuple[int, int]]:
    """(version, when it was made) of those that Lance still has, oldest first, the newest always among them."""
    listed: Sequence[tuple[int, int]] = sorted(
        (int(one["version"]), int(one["timestamp"].timestamp()) + 1) for one in dataset.versions()
    )
    step = -(-len(listed) // MOST)
    return list(reversed(listed[::-1][::step])) if step else []
