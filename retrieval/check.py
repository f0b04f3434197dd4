"""Is an archive what it claims to be? What is derived is rebuilt, what is not is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveal.detections import IntArray
from foveal.errors import IntegrityError
from foveal.progress import Progress
from retrieval.checksums import Checksums
from retrieval.index import contained
from retrieval.segments import Segment, SegmentStore
from retrieval.sources_item import local_path, outer
from retrieval.table import Table

UNIT_TOLERANCE = 2e-3  # of a vector's length once it has been rounded to fp16
SPOT_CHECKS = 64
LUCK = 0.1  # of the spot checks that an approximate index may miss beyond what it was tuned to
NAMED = 3  # examples given for a problem that many rows share


@dataclass(frozen=True, slots=True)
class CheckReport:
    """`ok` when nothing is wrong any more."""

    ok: bool
    problems: list[str]  # what remains wrong
    repaired: list[str]
    images: int


def inspect(
    path: Path,
    store: SegmentStore,
    *,
    dimension: int,
    fingerprint: str,
    rebuild: Callable[[], None] | None,
    progress: Progress,
) -> CheckReport:
    """Checks the generation in `path`, whose locks the caller holds; `rebuild`, unless None, makes its index anew.

    Files of the table without a checksum are told of, and given one once every row could be read and is as it should
    be. That sees what a row can tell of itself: not a flipped bit in a caption, say, that was there before.
    """
    sums = Checksums(path / "table.lance")
    unknown = sums.unknown()
    unsure = sums.damaged() + _without_sum(sums, unknown)
    try:
        if changed := sums.changed():
            return CheckReport(False, [*(f"{one}; restore it from a backup" for one in changed), *unsure], [], 0)
        table = Table.open(path / "table.lance")
        problems = _table_problems(table, dimension, fingerprint, progress, every=bool(unknown))
    except (IntegrityError, OSError, ValueError) as error:
        return CheckReport(False, [f"the table cannot be read: {error}", *unsure], [], 0)
    derived = _index_problems(table, store)
    repaired: list[str] = []
    if unsure and rebuild is not None and not problems:
        sums.mend(unknown)
        repaired += unsure
    else:
        problems += unsure
    if derived and rebuild is not None and not problems:
        store.clear()
        rebuild()
        repaired += derived
        derived = _index_problems(table, store)
    if rebuild is not None and not derived:
        repaired += [f"removed {name}, which a stopped writer had left" for name in store.sweep()]
    problems += derived + _missing_files(table)
    return CheckReport(not problems, problems, repaired, len(table))


def _without_sum(sums: Checksums, names: Sequence[str]) -> list[str]:
    """A killed writer leaves some, at most those of its last commit; more come of a lost or damaged list."""
    if not names:
        return []
    some = ", ".join(str(sums.table / name) for name in names[:NAMED])
    return [f"{len(names)} files of the table have no checksum in {sums.path}, e.g. {some}"]


def _table_problems(
    table: Table, dimension: int, fingerprint: str, progress: Progress, *, every: bool = False
) -> list[str]:
    """What is wrong with rows; `every` column is read, where otherwise those that are looked at suffice."""
    problems: list[str] = []
    if table.dimension != dimension:
        problems.append(f"the table's vectors have {table.dimension} dimensions, archive.json says {dimension}")
    ids: set[str] = set()
    seqs: set[int] = set()
    twice: list[str] = []
    crooked: list[str] = []
    foreign: list[str] = []
    unreadable: list[str] = []
    rows = 0
    progress.start("check", len(table))
    try:
        columns = ["id", "seq", "metadata", "vector", "fingerprint"]
        for batch in table.scan(table.names if every else columns):
            names = batch["id"].to_pylist()
            vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            length = np.linalg.norm(vectors.reshape(len(names), -1), axis=1)
            wrong = ~(np.abs(length - 1) <= UNIT_TOLERANCE)  # also true of NaN
            crooked += [names[i] for i in np.flatnonzero(wrong)]
            foreign += [n for n, f in zip(names, batch["fingerprint"].to_pylist(), strict=True) if f != fingerprint]
            unreadable += [n for n, m in zip(names, batch["metadata"].to_pylist(), strict=True) if not _is_json(m)]
            twice += [name for name in names if name in ids]
            ids.update(names)
            seqs.update(batch["seq"].to_pylist())
            rows += len(names)
            progress.advance(len(names))
    finally:
        progress.finish()
    if len(seqs) != rows:
        problems.append(f"{rows - len(seqs)} rows share a sequence number with another")
    for what, found in (
        ("occur more than once", twice),
        ("have a vector that is not finite or not of length 1", crooked),
        ("were embedded by another encoder", foreign),
        ("have metadata that is not JSON", unreadable),
    ):
        if found:
            problems.append(f"{len(found)} ids {what}, e.g. {', '.join(found[:NAMED])}")
    return problems


def _index_problems(table: Table, store: SegmentStore) -> list[str]:
    """What is wrong with the segments: their bytes, their rows, or what they find."""
    if problems := store.damage():
        return problems
    try:
        segments = store.load()
    except IntegrityError as error:
        return [error.message]
    live, rows = table.keys()
    if len(live) and not segments:
        return ["the archive has no index"]
    problems: list[str] = []
    together = np.concatenate([segment.seqs for segment in segments]) if segments else np.zeros(0, np.int64)
    if len(np.unique(together)) != len(together):
        problems.append("two index segments hold the same row")
    for segment in segments:
        problems += _segment_problems(segment, table, live, rows)
    return problems


def _segment_problems(segment: Segment, table: Table, live: IntArray, rows: IntArray) -> list[str]:
    if (np.diff(segment.seqs) <= 0).any():
        return [f"index segment {segment.name} is out of order"]
    both = contained(live, segment.seqs)
    picked = np.random.default_rng(0).permutation(np.flatnonzero(both))[:SPOT_CHECKS]
    if not len(picked):
        return []
    queries = table.vectors(rows[picked]).astype(np.float32)
    own = np.searchsorted(segment.seqs, live[picked])
    held = segment.index.store.reconstruct_batch(own)
    if not np.allclose(held, queries, atol=1e-3):
        return [f"index segment {segment.name} holds other vectors than the table"]
    similarity, position = segment.index.search(queries, 1)
    equal = np.abs(similarity[:, 0] - (queries * queries).sum(axis=1)) < 1e-3  # itself, or a copy of the same image
    lost = int((~(equal | (position[:, 0] == own))).sum())
    tuning = segment.index.tuning
    allowed = 0 if tuning is None else len(picked) * (1 - tuning.chosen.recall + LUCK)
    return [f"index segment {segment.name} does not find {lost} of {len(picked)} of its own rows"] * (lost > allowed)


def _missing_files(table: Table) -> list[str]:
    missing = [
        uri
        for batch in table.scan(["uri"])
        for uri in batch["uri"].to_pylist()
        if (path := local_path(outer(uri))) is not None and not _exists(path)
    ]
    if not missing:
        return []
    return [f"{len(missing)} image files are gone, e.g. {', '.join(missing[:NAMED])}"]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
