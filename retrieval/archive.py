"""The archive: images embedded by one encoder, durable in a Lance table, searched through FAISS.

An archive folder holds `archive.json`, `quarantine.jsonl`, and in `generations/` a folder for each encoder it has been
embedded with: `table.lance/` (the truth) and `index/` (derived).

One writer at a time (a file lock); readers need no lock and see each commit at their next search. What a call has
returned, or progress has counted, survives `kill -9`. The index is built beside both, under a lock of its own.

Shape letters: Q queries, D embedding dimensions.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Collection, Container, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from foveal.artifacts import staged
from foveal.detections import FloatArray
from foveal.errors import BadInput, FingerprintMismatch, FovealError, IntegrityError, Unavailable
from foveal.models import Encoder
from foveal.progress import Progress, SilentProgress
from retrieval.check import CheckReport, inspect
from retrieval.checksums import Checksums
from retrieval.index import IndexSettings, Subset
from retrieval.ingest import Embedding, embed, identity
from retrieval.measure import RecallReport, measure
from retrieval.quarantine import Quarantine
from retrieval.query import MAX_K, EncodedQuery, SearchQuery
from retrieval.results import Hit, Results
from retrieval.search import Searcher
from retrieval.segments import MANIFEST, SegmentStore
from retrieval.settings import Settings
from retrieval.snapshot import Snapshot
from retrieval.sources import Source, Sources
from retrieval.table import Row, Table, Value
from retrieval.upkeep import Upkeep

LOCK_SECONDS = 10.0
FILTERS_KEPT = 8
TUNED_AT = 4  # uses of a filter


@dataclass(slots=True)
class AddReport:
    """What became of the images of one `add`."""

    added: int = 0
    updated: int = 0  # re-embedded, or given new metadata, under the same id
    unchanged: int = 0
    removed: int = 0  # no longer in the sources
    quarantined: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (URI, reason)
    notes: list[str] = field(default_factory=list[str])  # what could not be used as given


class Archive:
    """Images of one encoder, to add to and to search."""

    def __init__(self, path: Path, settings: Settings, *, pinned: bool = False) -> None:
        """See `open`; a `pinned` archive stays with its generation when another is swapped in."""
        self.path = path = path.expanduser().absolute()
        self.settings = settings
        self.folder = settings.folder(path)
        self._pinned = pinned
        # Strings, and the table first (see `Snapshot.settles`): they are looked at before each search.
        watched = (self.folder / "table.lance" / "_versions", self.folder / "index" / MANIFEST, path / "archive.json")
        self._watched = [str(each) for each in watched]
        self._segments = SegmentStore(self.folder / "index")
        self._sums = Checksums(self.folder / "table.lance")
        self._searcher = Searcher(self.folder)
        self._upkeep = Upkeep(self.folder, self._segments, settings.index)
        self._quarantine = Quarantine(path / "quarantine.jsonl")
        self._lock = FileLock(path / ".lock", timeout=LOCK_SECONDS)
        self._refreshing = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._filters: dict[tuple[tuple[int, ...], str], tuple[tuple[Subset, ...], int]] = {}

    @classmethod
    def create(
        cls, path: Path | str, encoder: Encoder, *, reference: str | None = None, index: IndexSettings | None = None
    ) -> Archive:
        """A new, empty archive for `encoder`, which later commands find by `reference` (its name when None).

        Raises:
            BadInput: something is at `path` already.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise BadInput(f"{path} exists already", expected="a new folder", remedy="Choose another --archive.")
        settings = Settings(reference or encoder.name, encoder.fingerprint, encoder.dimension, index or IndexSettings())
        with staged(path, folder=True) as folder:
            settings.folder(folder).mkdir(parents=True)
            Table.create(settings.folder(folder) / "table.lance", encoder.dimension)
            settings.write(settings.folder(folder))
            settings.write(folder)
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path | str) -> Archive:
        """The archive at `path`.

        Raises:
            BadInput: there is none, or a newer Foveal wrote it.
            IntegrityError: its description is damaged.
        """
        return cls(Path(path), Settings.read(Path(path)))

    def at(self, settings: Settings) -> Archive:
        """Another generation of the same archive, whichever is served."""
        return Archive(self.path, settings, pinned=True)

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

    def quarantined(self) -> list[tuple[str, str]]:
        """Every file that could not be added so far, with the reason."""
        return [(entry.uri, entry.reason) for entry in self._quarantine.read()]

    # Writing.

    def add(
        self,
        sources: Source | Sequence[Source] | Sources,
        encoder: Encoder,
        progress: Progress | None = None,
        *,
        sync: bool = False,
        allow: Collection[str] = (),
        through: Embedding = embed,
    ) -> AddReport:
        """Embeds the images of the sources (see `Sources.resolve`); those already there and unchanged are passed over.

        Each batch is durable before `progress` counts it; files that cannot be read go into quarantine.

        Args:
            sync: also remove the images that these sources held once and do no longer.
            allow: hosts and buckets that may be fetched from.
            through: makes the rows: `ingest.embed` here, or `ray_job.RayJob` on a cluster.

        Raises:
            BadInput: a source does not exist, holds no image, or may not be fetched.
            FingerprintMismatch: another encoder than the archive's.
            Unavailable: another process is writing, or a source does not answer.
        """
        self.require(encoder)
        progress = progress or SilentProgress()
        found = sources if isinstance(sources, Sources) else Sources.resolve(sources, allow=allow)
        report = AddReport()
        seen: set[str] = set()
        with (
            self._writing(),
            ThreadPoolExecutor(1, "index") as beside,
            closing(through(found, encoder, lambda ids: self.table().known(ids))) as batches,
        ):
            building: Future[None] | None = None
            progress.start("embed", found.total)
            try:
                for batch in batches:
                    replaced = self._write(batch.rows, report.notes)
                    if batch.restamped:
                        self.table().restamp(batch.restamped)
                    self._quarantine.update(batch.rejected, batch.seen)
                    report.added += len(batch.rows) - replaced
                    report.updated += replaced
                    report.unchanged += batch.unchanged
                    report.quarantined += [(entry.uri, entry.reason) for entry in batch.rejected]
                    if sync:
                        seen.update(batch.seen)
                    progress.advance(batch.files)
                    if building is None or building.done():
                        building = beside.submit(self._upkeep.run, self.snapshot, SilentProgress())
            finally:
                progress.finish()
            if sync:
                report.removed = self._delete(self._vanished(found, seen))
            self.table().tidy()
            self._sums.record()
        self.index(progress)
        report.notes[:] = sorted({*report.notes, *found.notes})
        return report

    def add_vectors(
        self,
        uris: Sequence[str],
        vectors: FloatArray,
        *,
        fingerprint: str,
        sizes: Sequence[tuple[int, int]] | None = None,
        metadata: Sequence[Mapping[str, Value]] | None = None,
    ) -> list[str]:
        """Commits embeddings (N, D) computed elsewhere, in one go; returns the ids.

        Raises:
            BadInput: the lengths differ, or a vector is not finite or has no direction.
            FingerprintMismatch: they were made by another encoder.
            Unavailable: another process is writing.
        """
        self._require_fingerprint(fingerprint)
        if vectors.shape != (len(uris), self.settings.dimension) or len(set(uris)) != len(uris):
            raise BadInput(
                "vectors do not fit the URIs",
                expected=f"({len(set(uris))}, {self.settings.dimension}), a different URI each",
                received=str(vectors.shape),
            )
        shapes = sizes or [(0, 0)] * len(uris)
        records: Sequence[Mapping[str, Value]] = metadata or [{}] * len(uris)
        unit = _directions(vectors)
        rows = [
            Row(identity(uri), uri, "", *shape, record, vector)
            for uri, shape, record, vector in zip(uris, shapes, records, unit, strict=True)
        ]
        with self._writing():
            self._write(rows, [])
            self.table().tidy()
            self._sums.record()
        self.index()
        return [row.id for row in rows]

    def add_records(self, records: Sequence[Mapping[str, Any]], vectors: FloatArray) -> list[str]:
        """Commits rows of another archive, given by field and vector (N, D); returns notes on their metadata.

        Unlike `add_vectors` it leaves indexing to the caller, and the fingerprint too.
        """
        rows = [
            Row(
                identity(record["uri"]), record["uri"], record["content_hash"] or "", record["width"] or 0,
                record["height"] or 0, record["metadata"], vector, bytes=record["bytes"] or 0, phash=record["phash"],
            )
            for record, vector in zip(records, _directions(vectors), strict=True)
        ]  # fmt: skip
        notes: list[str] = []
        with self._writing():
            self._write(rows, notes)
            self.table().tidy()
            self._sums.record()
        return notes

    def index(self, progress: Progress | None = None) -> None:
        """Indexes what is not indexed yet where that is worth it; others go on reading and writing."""
        self._upkeep.run(self.snapshot, progress or SilentProgress())

    def delete(self, ids: Sequence[str]) -> int:
        """Removes images; from the moment this returns no search returns them. Returns how many there were.

        Raises:
            Unavailable: another process is writing.
        """
        with self._writing():
            gone = self._delete(ids)
            self._sums.record()
            return gone

    def check(self, progress: Progress | None = None, *, repair: bool = True) -> CheckReport:
        """Verifies table, index and files, and rebuilds what is derived where it is wrong.

        Raises:
            Unavailable: another process is writing.
        """
        progress = progress or SilentProgress()
        with self.still():
            report = inspect(
                self.folder,
                self._segments,
                dimension=self.settings.dimension,
                fingerprint=self.fingerprint,
                rebuild=self.rebuild if repair else None,
                progress=progress,
            )
        self._snapshot = None
        return report

    def rebuild(self) -> None:
        """Builds the index anew over every row."""
        self._upkeep.rebuild(self.snapshot)

    def compact(self) -> int:
        """Makes deletions final: no file here holds vector, metadata or thumbnail of a deleted image any more.

        Earlier generations go too. Readers that look at an older state move to the present one at their next search.
        Returns the bytes freed.

        Raises:
            Unavailable: another process is writing, or embedding the archive anew.
        """
        before = _size(self.path)
        with self._upkeep.lock:  # whoever builds the index reads files that are about to go
            with self._writing():
                for settings in self.generations():
                    if settings.generation != self.settings.generation:
                        drop(settings.folder(self.path))
                self.table().erase()
                self._sums.record()
            self._upkeep.purge(self.snapshot)
        self._searcher.words.purge(self.snapshot())
        return before - _size(self.path)

    def generations(self) -> list[Settings]:
        """Every embedding of the archive that is still here, oldest first; the last may be unfinished."""
        folders = sorted((self.path / "generations").iterdir())
        return [Settings.read(folder) for folder in folders if (folder / "archive.json").is_file()]

    # Reading.

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
        view, filter = self.snapshot(), asked.query.filter
        return self._searcher.run(view, asked, None if filter is None else self._allowed(view, filter))

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
        view = self.snapshot()
        found = view.nearest(queries, k, None if filter is None else self._allowed(view, filter))
        width = found.similarity.shape[1]
        similarity = found.similarity.reshape(-1).tolist()
        hits = [
            Hit(id, uri, value, metadata)
            for (id, uri, metadata), value in zip(view.told(found), similarity, strict=True)
        ]
        return [hits[row * width : (row + 1) * width] for row in range(len(queries))]

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
            signature = self._signature()
            self._current()
            damage = None
            try:
                segments = self._segments.load()
            except IntegrityError as error:
                segments, damage = [], str(error)  # what is derived may be lost: search the table exactly
            # The table is read after the segments, so it is never older than they are.
            self._snapshot = Snapshot.take(self.table(), segments, signature, current, damage)
            return self._snapshot

    def table(self) -> Table:
        """The newest version of the table."""
        return Table.open(self.folder / "table.lance")

    def matching(self, filter: str) -> list[str]:
        """Ids of the images that a filter keeps, in the order they came; BadInput when it is none."""
        table = self.table()
        _, rows = table.keys(filter)
        return table.take(rows, ["id"])["id"].to_pylist()

    def items(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The named columns of those of `ids` that are here, by id."""
        return self.table().find(ids, columns)

    def vectors_by_content(self, hashes: Sequence[str]) -> list[FloatArray | None]:
        """The vector (D,) of each image by its `foveal.images.content_hash`, None where it is not here."""
        view = self.snapshot()
        contents: list[str] = view.table.take(view.rows, ["content_hash"])["content_hash"].to_pylist()
        place = {content: row for row, content in enumerate(contents)}
        rows = [place.get(content) for content in hashes]
        vectors = iter(view.table.vectors(view.rows[[row for row in rows if row is not None]]).astype(np.float32))
        return [None if row is None else next(vectors) for row in rows]

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
                    "tuning": None if part.index.tuning is None else asdict(part.index.tuning.chosen),
                }
                for part in view.parts[:indexed]
            ],
            "index_damage": view.damage,
            "indexed": len(view.rows) - view.tail,
            "tail": view.tail,
            "dead": view.dead,
            "quarantined": len(self._quarantine.read()),
            "columns": view.table.columns,
            "version": view.table.version,
            "bytes": _size(self.path),
        }

    @contextmanager
    def still(self) -> Generator[None]:
        """Nobody changes a file of the archive meanwhile; Unavailable when another process is writing."""
        with self._upkeep.lock, self._writing():
            yield

    # Inside.

    def _write(self, rows: Sequence[Row], notes: list[str]) -> int:
        """Commits rows, adding to `notes`; returns how many of their ids were there already."""
        if not rows:
            return 0
        table = self.table()
        known = table.known([row.id for row in rows])
        notes += table.write(rows, self.fingerprint, known)
        return len(known)

    def _delete(self, ids: Sequence[str]) -> int:
        return self.table().delete(list(ids)) if ids else 0

    def _vanished(self, found: Sources, seen: Container[str]) -> list[str]:
        """Ids of images that the sources cover and do not have."""
        return [
            key
            for batch in self.table().scan(["id", "uri"])
            for key, uri in zip(batch["id"].to_pylist(), batch["uri"].to_pylist(), strict=True)
            if uri not in seen and found.covers(uri)
        ]

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

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            with self._lock:
                self._current()
                yield
        except Timeout as error:
            raise Unavailable(
                f"another process is writing to {self.path}", remedy="Wait for it, then retry."
            ) from error
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise BadInput(f"{self.path} cannot be written: {error}", remedy="Check its permissions.") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
                raise FovealError(
                    f"no space left while writing {self.path}",
                    remedy="Free some and run the command again; what was acknowledged is safe.",
                ) from error
            raise

    def require(self, encoder: Encoder) -> None:
        """FingerprintMismatch unless `encoder` made the vectors here."""
        self._require_fingerprint(encoder.fingerprint, encoder.name)

    def _require_fingerprint(self, fingerprint: str, name: str = "these vectors") -> None:
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"{self.path} was built with {self.encoder}, not with {name}",
                expected=f"fingerprint {self.fingerprint[:12]}",
                received=fingerprint[:12],
                remedy=f"Use that encoder, or embed anew: foveal archive add IMAGES --archive NEW_DIR --encoder {name}",
            )


def drop(folder: Path) -> None:
    """Removes a generation; Unavailable while a process builds it."""
    try:
        with FileLock(folder / ".building", timeout=0):
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != ".building":
                    path.unlink()
    except Timeout as error:
        raise Unavailable(f"{folder} is being built", remedy="Wait for `foveal archive reembed`.") from error
    shutil.rmtree(folder)


def _directions(vectors: FloatArray) -> FloatArray:
    """The vectors (N, D) at unit length; BadInput when one is not finite or has none."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 1e-6).all()):
        raise BadInput("a vector is not finite or has length 0", expected="directions")
    return vectors / length


def _size(folder: Path) -> int:
    """Bytes of the files in `folder`, whatever others remove meanwhile."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total
