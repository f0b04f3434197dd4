"""Keeps an archive's index in step with its table, beside readers and writers.

Segments follow each other by seq, and each new one is built of the rows that came since the last. So that there are
never many of them, it takes over those before it that are not several times as large, as log-structured stores do:
every row is indexed anew a few times in its life, however large the archive grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from foveal.progress import Progress
from retrieval.index import IndexSettings, fitting, leanest, needed_mb
from retrieval.segments import APPROXIMATE_FROM, SegmentStore
from retrieval.snapshot import Part, Snapshot
from retrieval.turns import turn

TAIL_SHARE = 0.1  # of the indexed rows that may wait to be indexed ...
TAIL_MOST = 8192  # ... or this many, if that is less
TAIL_LEAST = 1024
DEAD_SHARE = 0.2  # of a segment's vectors whose rows are gone
SEVERAL = 4


@dataclass(frozen=True, slots=True)
class Size:
    """What matters about a segment when deciding on it."""

    rows: int  # alive
    dead: int
    flat: bool


class Upkeep:
    """Builds and merges the segments of one archive; one process at a time, without keeping anyone else waiting."""

    def __init__(self, folder: Path, store: SegmentStore, settings: IndexSettings) -> None:
        self._folder, self._store, self._settings = folder, store, settings
        self._lock = FileLock(folder / ".index-lock")  # taken before the lock of writers, by those who need both

    def turn(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """Nobody else builds the index meanwhile; waits and raises as `turns.turn`."""
        return turn(self._lock, f"building the index in {self._folder}", seconds)

    def needed(self, view: Snapshot) -> bool:
        """Whether `run` would do anything."""
        return self._plan(view) is not None

    def run(self, view: Callable[[], Snapshot], progress: Progress) -> None:
        """Indexes what `view()` has not indexed; at once where there is little to do, or another process is at it."""
        if not self.needed(view()):
            return
        try:
            with self._lock.acquire(timeout=0):
                while (after := self._plan(current := view())) is not None:
                    progress.start("index", None)
                    try:
                        self._build(current, after)
                    finally:
                        progress.finish()
        except Timeout:
            return

    def rebuild(self, view: Callable[[], Snapshot]) -> None:
        """One new segment of every row; Unavailable when another process is at it."""
        with self.turn():
            self._build(view(), 0)

    def purge(self, view: Callable[[], Snapshot]) -> None:
        """Builds anew every segment from the first that holds the vector of a row that is gone; raises as `rebuild`."""
        with self.turn():
            current = view()
            spoilt = [number for number, part in enumerate(current.parts) if len(part) < len(part.seqs)]
            if spoilt:
                self._build(current, spoilt[0])
            self._store.sweep()

    def _plan(self, view: Snapshot) -> int | None:
        """The segment from which on to build anew; None when all is well."""
        if view.damage is not None:
            return 0
        indexed = view.parts[: len(view.parts) - bool(view.tail)]
        sizes = [Size(len(part), len(part.seqs) - len(part), part.index.tuning is None) for part in indexed]
        return merge_from(sizes, view.tail, self._settings.flat_below)

    def _build(self, view: Snapshot, after: int) -> None:
        after, kinds = self._affordable(view, after)
        first = _first(view, after)
        self._store.build(view.table, view.seqs[first:], view.rows[first:], after, self._settings.recall_target, kinds)

    def _affordable(self, view: Snapshot, after: int) -> tuple[int, list[str]]:
        """The segment from which on to build anew, and the kinds of index to try, none for an exact one.

        A kind has to fit beside the segments that stay, and to fit for the whole archive, or small segments would use
        up what the large ones need. Where none fits beside them, everything is built anew, of a kind that does; where
        not even the leanest kind of the whole fits, of that.
        """
        total, dimension, allowed = len(view.rows), view.table.dimension, self._settings.memory_mb
        if total < self._settings.flat_below:
            return after, []
        whole = fitting(total, dimension, allowed)
        kept = view.parts[:after]
        rows = total - _first(view, after)
        if allowed is None or rows < APPROXIMATE_FROM:
            return after, whole
        left = allowed - codes_mb(kept)
        if beside := [name for name in whole if needed_mb(name, rows, dimension) <= left]:
            return after, beside
        least = leanest(dimension)
        lean = all(part.index.recipe in (None, least) for part in kept)
        return (after if lean and not whole else 0), whole or [least]


def codes_mb(parts: Iterable[Part]) -> float:
    """What they use of `IndexSettings.memory_mb`."""
    return sum(part.index.codes_mb for part in parts)


def excess(view: Snapshot, memory_mb: float | None) -> str | None:
    """What to tell of an index that uses more memory than it may; None where it does not."""
    used = codes_mb(view.parts)
    if memory_mb is None or used <= memory_mb:
        return None
    count, dimension = len(view.rows), view.table.dimension
    least = needed_mb(leanest(dimension), count, dimension)
    return (
        f"the index keeps codes of {_mb(used)} in memory, {_mb(memory_mb)} are allowed; "
        f"{count:,} images need {_mb(least)} at least"
    )


def _first(view: Snapshot, after: int) -> int:
    """The number of the first row that follows the first `after` segments."""
    return 0 if not after else int(np.searchsorted(view.seqs, view.parts[after - 1].seqs[-1], side="right"))


def _mb(size: float) -> str:
    return f"{size:,.0f} MB" if size >= 10 else f"{size:.2g} MB"


def merge_from(sizes: Sequence[Size], tail: int, flat_below: int) -> int | None:
    """The first of the segments of `sizes` that a new one should take over with the `tail`; None: not worth it yet."""
    rows = sum(size.rows for size in sizes)
    total = rows + tail
    if not total:
        return 0 if sizes else None
    if total < flat_below:  # exact, and cheap to write
        astray = tail + sum(size.dead for size in sizes)
        return 0 if not sizes or astray > max(TAIL_LEAST, TAIL_SHARE * rows) else None
    for number, size in enumerate(sizes):
        spoilt = size.dead > DEAD_SHARE * (size.rows + size.dead)
        outgrown = size.flat and size.rows > 2 * TAIL_MOST  # from when the archive was small
        if spoilt or outgrown:
            return _absorb(sizes, number, tail + sum(later.rows for later in sizes[number:]))
    if tail <= min(TAIL_MOST, max(TAIL_LEAST, TAIL_SHARE * rows)):
        return None
    return _absorb(sizes, len(sizes), tail)


def _absorb(sizes: Sequence[Size], start: int, gathered: int) -> int:
    while start and sizes[start - 1].rows < SEVERAL * gathered:
        start -= 1
        gathered += sizes[start].rows
    return start
