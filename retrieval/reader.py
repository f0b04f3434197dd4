"""What can be asked of an archive; no lock is needed for it, and each commit is seen by the next call.

Shape letters: Q queries, D embedding dimensions, N images.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from foveal.detections import FloatArray
from foveal.errors import BadInput, FingerprintMismatch, IntegrityError
from foveal.models import Encoder
from retrieval.gpu import Gpu
from retrieval.index import Subset
from retrieval.measure import RecallReport, measure
from retrieval.quarantine import Quarantine
from retrieval.query import MAX_K, EncodedQuery, SearchQuery
from retrieval.results import Hit, Results
from retrieval.search import Searcher
from retrieval.segments import MANIFEST, SegmentStore
from retrieval.settings import Settings
from retrieval.snapshot import Snapshot
from retrieval.table import Table
from retrieval.upkeep import codes_mb, excess

T = TypeVar("T")
FILTERS_KEPT = 8
TUNED_AT = 4  # uses of a filter
ATTEMPTS = 5  # to read what `compact` may be taking away
VANISHED = (IntegrityError, OSError, ValueError)  # how that shows, Lance raising now the one and now the other


class Reader:
    """One generation of an archive, to search; `Archive` adds the writing."""

    def __init__(self, path: Path, settings: Settings, *, pinned: bool = False) -> None:
        """See `Archive.open`; a `pinned` archive stays with its generation when another is swapped in."""
        self.path = path = path.expanduser().absolute()
        self.settings = settings
        self.folder = settings.folder(path)
        self._pinned = pinned
        # Strings, and the table first (see `Snapshot.settles`): they are looked at before each search.
        watched = (self.folder / "table.lance" / "_versions", self.folder / "index" / MANIFEST, path / "archive.json")
        self._watched = [str(each) for each in watched]
        self._segments = SegmentStore(self.folder / "index")
        self._searcher = Searcher(self.folder)
        self._quarantine = Quarantine(path / "quarantine.jsonl")
        self._refreshing = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._filters: dict[tuple[tuple[int, ...], str], tuple[tuple[Subset, ...], int]] = {}

    @property
    def name(self) -> str:
        """What a server calls it."""
        return self.path.name

    @property
    def encoder(self) -> str:
        """The model reference of the encoder."""
        return self.settings.encoder

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the encoder."""
        return self.settings.fingerprint

    @property
    def columns(self) -> dict[str, str]:
        """What a filter may name -> "number", "text" or "time"."""
        return self.table().columns

    def __len__(self) -> int:
        return len(self.table())

    def some(self, count: int) -> list[str]:
        """Ids of up to `count` images, spread evenly over the archive; the same ones as long as nothing changes."""

        def run(view: Snapshot) -> list[str]:
            every = max(1, len(view.rows) // max(count, 1))
            return view.table.take(view.rows[::every][:count], ["id"])["id"].to_pylist()

        return self._steady(run)

    def search_on(self, gpu: Gpu) -> None:
        """Has segments searched on a GPU as well, from the first search on: exactly, where there is no filter.

        To be called before anything is searched. Where more than some 2,000 images of a segment have been deleted and
        it was not merged yet, or as many hits are asked for, the CPU searches it.
        """
        self._segments.gpu = gpu

    def quarantined(self) -> list[tuple[str, str]]:
        """Every file that could not be added so far, with the reason."""
        return [(entry.uri, entry.reason) for entry in self._quarantine.read()]

    def generations(self) -> list[Settings]:
        """Every embedding of the archive that is still here, oldest first; the last may be unfinished."""
        folders = sorted((self.path / "generations").iterdir())
        return [Settings.read(folder) for folder in folders if (folder / "archive.json").is_file()]

    def search(self, query: SearchQuery, encoder: Encoder) -> Results:
        """A page of the best `query.k` images, best first; none when nothing matches, see `Results.reason`.

        Raises:
            FingerprintMismatch: another encoder than the archive's.
            BadInput: the filter or the cursor is not one, or the query's image cannot be decoded.
        """
        self.require(encoder)
        return self.answer(query.encoded(encoder))

    def answer(self, asked: EncodedQuery) -> Results:
        """`search` for a query that has met the encoder already; raises as that."""
        self._require_fingerprint(asked.fingerprint)
        filter = asked.query.filter

        def run(view: Snapshot) -> Results:
            return self._searcher.run(view, asked, None if filter is None else self._allowed(view, filter))

        return self._steady(run)

    def nearest(self, queries: FloatArray, k: int = 10, filter: str | None = None) -> list[list[Hit]]:
        """The best k images for each unit vector of `queries` (Q, D), best first.

        Raises:
            BadInput: wrong dimensions, k out of range, or the filter is not one.
        """
        if queries.ndim != 2 or queries.shape[1] != self.settings.dimension:
            raise BadInput(
                "queries have the wrong shape", expected=f"(Q, {self.settings.dimension})", received=str(queries.shape)
            )
        if not 1 <= k <= MAX_K:
            raise BadInput("k lies outside its range", expected=f"1 to {MAX_K}", received=str(k))
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if not np.isfinite(queries).all():
            raise BadInput("a query holds NaN or infinity", expected="finite numbers")

        def run(view: Snapshot) -> list[list[Hit]]:
            found = view.nearest(queries, k, None if filter is None else self._allowed(view, filter))
            width = found.similarity.shape[1]
            similarity = found.similarity.reshape(-1).tolist()
            hits = [
                Hit(id, uri, value, metadata)
                for (id, uri, metadata), value in zip(view.told(found), similarity, strict=True)
            ]
            return [hits[row * width : (row + 1) * width] for row in range(len(queries))]

        return self._steady(run)

    def snapshot(self) -> Snapshot:
        """The newest consistent view; made anew only when someone has committed since the last."""
        current = self._snapshot
        signature = self._signature()
        if current is not None and current.signature == signature:
            if current.settled:
                return current
            if not current.table.is_stale():
                if current.settles():
                    self._snapshot = replace(current, settled=True)
                return current
        with self._refreshing:
            for attempt in range(ATTEMPTS):
                signature = self._signature()
                self._current()
                try:
                    self._snapshot = self._taken(signature, current)
                except VANISHED:
                    if self._signature() == signature or attempt + 1 == ATTEMPTS:
                        raise
                else:
                    return self._snapshot
        raise AssertionError("unreachable")

    def table(self) -> Table:
        """The newest version of the table."""
        return Table.open(self.folder / "table.lance")

    def matching(self, filter: str) -> list[str]:
        """Ids of the images that a filter keeps, in the order they came; BadInput when it is none."""
        return self._steady(lambda view: view.table.take(view.table.keys(filter)[1], ["id"])["id"].to_pylist())

    def items(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The named columns of those of `ids` that are here, by id."""
        return self._steady(lambda view: view.table.find(ids, columns))

    def vectors_by_content(self, hashes: Sequence[str]) -> list[FloatArray | None]:
        """The vector (D,) of each image by its `foveal.images.content_hash`, None where it is not here."""

        def run(view: Snapshot) -> list[FloatArray | None]:
            contents: list[str] = view.table.take(view.rows, ["content_hash"])["content_hash"].to_pylist()
            place = {content: row for row, content in enumerate(contents)}
            rows = [place.get(content) for content in hashes]
            vectors = iter(view.table.vectors(view.rows[[row for row in rows if row is not None]]).astype(np.float32))
            return [None if row is None else next(vectors) for row in rows]

        return self._steady(run)

    def recall_at_k(self, k: int = 10, sample: int = 200, queries: FloatArray | None = None) -> RecallReport:
        """Measures recall@k against exact search, and latency, on `queries` (Q, D) or on a sample of stored vectors.

        A stored vector used as a query does not count as its own neighbour. Recall goes by similarity, so that of two
        equal images either counts.
        """
        return measure(self.snapshot(), lambda query: self.nearest(query, k), k, sample, queries)

    def stats(self) -> dict[str, Any]:
        """Sizes, and how the archive is searched, with what tuning measured."""
        view = self.snapshot()
        indexed = len(view.parts) - bool(view.tail)
        told = excess(view, self.settings.index.memory_mb)
        return {
            "images": len(view.rows),
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "dimension": self.settings.dimension,
            "generation": self.settings.generation,
            "segments": [
                {
                    "images": len(part),
                    "index": part.index.kind,
                    "codes_mb": part.index.codes_mb,
                    "tuning": None if part.index.tuning is None else asdict(part.index.tuning.chosen),
                    "curve": [] if part.index.tuning is None else [asdict(one) for one in part.index.tuning.curve],
                }
                for part in view.parts[:indexed]
            ],
            "codes_mb": codes_mb(view.parts),
            "memory_mb": self.settings.index.memory_mb,
            "notes": [] if told is None else [told],
            "index_damage": view.damage,
            "indexed": len(view.rows) - view.tail,
            "tail": view.tail,
            "dead": view.dead,
            "quarantined": len(self._quarantine.read()),
            "columns": view.table.columns,
            "version": view.table.version,
            "bytes": size_of(self.path),
        }

    # Inside.

    def _steady(self, read: Callable[[Snapshot], T]) -> T:
        """What `read` makes of the newest snapshot; again, if another process took away the files it was reading."""
        for _ in range(ATTEMPTS - 1):
            view = self.snapshot()
            try:
                return read(view)
            except VANISHED:
                if self._signature() == view.signature:
                    raise
        return read(self.snapshot())

    def _taken(self, signature: tuple[int, ...], previous: Snapshot | None) -> Snapshot:
        damage = None
        try:
            segments = self._segments.load()
        except IntegrityError as error:
            segments, damage = [], str(error)  # what is derived may be lost: search the table exactly
        # The table is read after the segments, so it is never older than they are.
        return Snapshot.take(self.table(), segments, signature, previous, damage)

    def _allowed(self, view: Snapshot, expression: str) -> tuple[Subset, ...]:
        """The rows that a filter keeps; the last few are remembered, as a team asks for the same cameras all day.

        One that is asked for repeatedly is worth measuring whether an approximate search of its rows will do.
        """
        key = view.signature, expression
        found, uses = self._filters.get(key, (None, 0))
        if found is None:
            found = view.select(view.table.keys(expression)[0])
        elif uses + 1 == TUNED_AT:
            found = view.tuned(found)
        kept = [pair for pair in self._filters.items() if pair[0] != key][1 - FILTERS_KEPT :]
        self._filters = {**dict(kept), key: (found, uses + 1)}
        return found

    def _signature(self) -> tuple[int, ...]:
        """Changes with every commit to the table, every swap of the index, and when another generation is served."""
        told: list[int] = []
        for path in self._watched:
            try:
                status = os.stat(path)
                told += status.st_mtime_ns, status.st_ino
            except FileNotFoundError:
                told += 0, 0
        return tuple(told)

    def _current(self) -> None:
        """FingerprintMismatch when another generation is served by now."""
        if self._pinned:
            return
        served = Settings.read(self.path)
        if served.generation != self.settings.generation:
            raise FingerprintMismatch(
                f"{self.path} has been embedded anew since it was opened",
                expected=f"vectors of {served.encoder}",
                received=self.encoder,
                remedy="Open it again, with that encoder.",
            )

    def require(self, encoder: Encoder) -> None:
        """FingerprintMismatch unless `encoder` made the vectors here."""
        self._require_fingerprint(encoder.fingerprint, encoder.name)

    def _require_fingerprint(self, fingerprint: str, name: str = "these vectors") -> None:
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"{self.path} was built with {self.encoder}, not with {name}",
                expected=f"fingerprint {self.fingerprint[:12]}",
                received=fingerprint[:12],
                remedy=f"Use that encoder, move this archive to {name} with `foveal archive reembed`, or begin another "
                "with `foveal archive add`.",
            )


def size_of(folder: Path) -> int:
    """Bytes of the files in `folder`, whatever others remove meanwhile."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total
