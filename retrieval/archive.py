"""The archive: images embedded by one encoder, durable in a Lance table, searched through FAISS.

An archive folder holds `archive.json`, `table.lance/` (the truth), `index/` (derived) and `quarantine.jsonl`.

One writer at a time (a file lock); readers need no lock and see each commit at their next search. What a call has
returned, or progress has counted, survives `kill -9`.

Shape letters: Q queries, D embedding dimensions.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from foveal.artifacts import staged
from foveal.detections import FloatArray, IntArray
from foveal.errors import BadInput, FingerprintMismatch, FovealError, IntegrityError, Unavailable
from foveal.models import Encoder
from foveal.progress import Progress, SilentProgress
from retrieval.check import CheckReport, inspect
from retrieval.index import IndexSettings
from retrieval.ingest import Rejected, embed, identity
from retrieval.measure import RecallReport, measure
from retrieval.quarantine import Quarantine
from retrieval.query import MAX_K, Hit, SearchQuery
from retrieval.segments import SegmentStore
from retrieval.settings import Settings
from retrieval.snapshot import Snapshot
from retrieval.sources import Source, Sources
from retrieval.table import Row, Table, Value

LOCK_SECONDS = 10.0
TAIL_SHARE = 0.1  # of the indexed rows that may wait unindexed, or be dead, before the index is rebuilt
TAIL_ROWS = 1024
FILTERS_KEPT = 8


@dataclass(frozen=True, slots=True)
class AddReport:
    """What became of the files of one `add`."""

    added: int
    updated: int  # re-embedded, or given new metadata, under the same id
    unchanged: int
    quarantined: list[tuple[str, str]]  # (path, reason)
    notes: list[str]  # metadata that could not be used as given


class Archive:
    """Images of one encoder, to add to and to search."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path = path.expanduser().absolute()
        self.settings = settings
        self._segments = SegmentStore(path / "index")
        self._quarantine = Quarantine(path / "quarantine.jsonl")
        self._lock = FileLock(path / ".lock", timeout=LOCK_SECONDS)
        self._refreshing = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._filters: dict[tuple[int, str], IntArray] = {}

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
            Table.create(folder / "table.lance", encoder.dimension)
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
        """What a filter may name -> "number" or "text"."""
        return self._table().columns

    def __len__(self) -> int:
        return len(self._table())

    def quarantined(self) -> list[tuple[str, str]]:
        """Every file that could not be added so far, with the reason."""
        return [(entry.uri, entry.reason) for entry in self._quarantine.read()]

    # Writing.

    def add(self, sources: Source | Sequence[Source], encoder: Encoder, progress: Progress | None = None) -> AddReport:
        """Embeds the images of datasets, folders, files and globs; those already there and unchanged are passed over.

        Metadata comes from the dataset, or from a `metadata.csv` (column `file_name`) in or beside the images' folder.
        Each batch is durable before `progress` counts it; files that cannot be read go into quarantine.

        Raises:
            BadInput: a source does not exist or holds no image.
            FingerprintMismatch: another encoder than the archive's.
            Unavailable: another process is writing.
        """
        self._require(encoder)
        progress = progress or SilentProgress()
        found = Sources.resolve(sources)
        added = updated = unchanged = 0
        rejected: list[Rejected] = []
        notes = list(found.notes)
        with self._writing():
            table = self._table()
            known = table.known()
            progress.start("embed", len(found.items))
            try:
                for batch in embed(found.items, encoder, known):
                    if batch.rows:
                        table = table.latest()
                        notes += table.write(batch.rows, self.fingerprint, known)
                    self._quarantine.update(batch.rejected, batch.seen)
                    replaced = sum(row.id in known for row in batch.rows)
                    added, updated = added + len(batch.rows) - replaced, updated + replaced
                    unchanged += batch.unchanged
                    rejected += batch.rejected
                    progress.advance(batch.files)
            finally:
                progress.finish()
            self._maintain(progress)
        reasons = [(entry.uri, entry.reason) for entry in rejected]
        return AddReport(added, updated, unchanged, reasons, sorted(set(notes)))

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
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(length).all() and (length > 1e-6).all()):
            raise BadInput("a vector is not finite or has length 0", expected="directions")
        unit = vectors / length
        records: Sequence[Mapping[str, Value]] = metadata or [{} for _ in uris]
        shapes = sizes or [(0, 0)] * len(uris)
        rows = [
            Row(identity(uri), uri, "", *shape, record, vector)
            for uri, shape, record, vector in zip(uris, shapes, records, unit, strict=True)
        ]
        with self._writing():
            table = self._table()
            table.write(rows, fingerprint, table.known())
            self._maintain(SilentProgress())
        return [row.id for row in rows]

    def delete(self, ids: Sequence[str]) -> int:
        """Removes images; from the moment this returns no search returns them. Returns how many there were.

        Raises:
            Unavailable: another process is writing.
        """
        with self._writing():
            return self._table().delete(list(ids))

    def check(self, progress: Progress | None = None, *, repair: bool = True) -> CheckReport:
        """Verifies table, index and files, and rebuilds what is derived where it is wrong.

        Raises:
            Unavailable: another process is writing.
        """
        progress = progress or SilentProgress()
        with self._writing():
            report = inspect(
                self.path,
                self._segments,
                dimension=self.settings.dimension,
                fingerprint=self.fingerprint,
                rebuild=self._rebuild if repair else None,
                progress=progress,
            )
        self._snapshot = None
        return report

    def rebuild(self) -> None:
        """Builds the index anew over every row; Unavailable when another process is writing."""
        with self._writing():
            self._rebuild()

    # Reading.

    def search(self, query: SearchQuery, encoder: Encoder) -> list[Hit]:
        """The best `query.k` images, best first; fewer only when the filter leaves fewer.

        Raises:
            FingerprintMismatch: another encoder than the archive's.
            BadInput: the filter is not one, or the query's image cannot be decoded.
        """
        self._require(encoder)
        return self.nearest(query.vector(encoder)[None], query.k, query.filter)[0]

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
        allowed = None if filter is None else self._allowed(view, filter)
        similarity, seqs = view.nearest(queries, k, allowed)
        records = view.table.records(view.row_ids(seqs.reshape(-1)), ["id", "uri", "metadata"])
        hits = [
            Hit(record["id"], record["uri"], float(value), json.loads(record["metadata"]))
            for record, value in zip(records, similarity.reshape(-1).tolist(), strict=True)
        ]
        width = seqs.shape[1]
        return [hits[row * width : (row + 1) * width] for row in range(len(queries))]

    def snapshot(self) -> Snapshot:
        """The newest consistent view; made anew only when someone has committed since the last."""
        current = self._snapshot
        signature = self._segments.signature()
        if current is not None and current.signature == signature and not current.table.is_stale():
            return current
        with self._refreshing:
            signature = self._segments.signature()
            damage = None
            try:
                segments = self._segments.load()
            except IntegrityError as error:
                segments, damage = [], str(error)  # what is derived may be lost: search the table exactly
            # The table is read after the segments, so it is never older than they are.
            self._snapshot = Snapshot.take(self._table(), segments, signature, damage)
            return self._snapshot

    def vectors_by_content(self, hashes: Sequence[str]) -> list[FloatArray | None]:
        """The vector (D,) of each image by its `foveal.images.content_hash`, None where it is not here."""
        wanted, found = set(hashes), dict[str, FloatArray]()
        for batch in self._table().scan(["content_hash", "vector"]):
            for i, content in enumerate(batch["content_hash"].to_pylist()):
                if content in wanted:
                    found[content] = np.asarray(batch["vector"][i].as_py(), dtype=np.float32)
        return [found.get(content) for content in hashes]

    def recall_at_k(self, k: int = 10, sample: int = 200, queries: FloatArray | None = None) -> RecallReport:
        """Measures recall@k against exact search, and latency, on `queries` (Q, D) or on a sample of stored vectors.

        A stored vector used as a query does not count as its own neighbour. Recall goes by similarity, so that of two
        equal images either counts.
        """
        return measure(self.snapshot(), lambda query: self.nearest(query, k), k, sample, queries)

    def stats(self) -> dict[str, Any]:
        """Sizes, and how the archive is searched, with what tuning measured."""
        view = self.snapshot()
        index = next((part.index for part in view.parts), None)
        tuning = None if index is None or index.tuning is None else index.tuning.chosen
        return {
            "images": len(view.rows),
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "dimension": self.settings.dimension,
            "index": None if index is None else index.kind,
            "index_damage": view.damage,
            "tuning": None if tuning is None else asdict(tuning),
            "indexed": len(view.rows) - view.tail,
            "tail": view.tail,
            "dead": view.dead,
            "quarantined": len(self._quarantine.read()),
            "columns": view.table.columns,
            "version": view.table.version,
            "bytes": sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file()),
        }

    # Inside.

    def _allowed(self, view: Snapshot, expression: str) -> IntArray:
        """The seqs that a filter keeps; the last few are remembered, as a team asks for the same cameras all day."""
        key = view.table.version, expression
        found = self._filters.get(key)
        if found is None:
            found = view.table.keys(expression)[0]
            kept = list(self._filters.items())[1 - FILTERS_KEPT :]
            self._filters = {**dict(kept), key: found}
        return found

    def _table(self) -> Table:
        return Table.open(self.path / "table.lance")

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            with self._lock:
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

    def _maintain(self, progress: Progress) -> None:
        """Compacts the table and rebuilds the index when too many rows are outside it."""
        self._table().compact()
        view = self.snapshot()
        indexed = len(view.rows) - view.tail
        astray = view.tail + view.dead
        if astray and (not indexed or astray > max(TAIL_ROWS, TAIL_SHARE * indexed)):
            progress.start("index", None)
            try:
                self._rebuild()
            finally:
                progress.finish()

    def _rebuild(self) -> None:
        seqs, vectors = self._table().vectors()
        if len(seqs):
            self._segments.replace(seqs, vectors.astype(np.float32), self.settings.index)
        else:
            self._segments.clear()

    def _require(self, encoder: Encoder) -> None:
        self._require_fingerprint(encoder.fingerprint, encoder.name)

    def _require_fingerprint(self, fingerprint: str, name: str = "these vectors") -> None:
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"{self.path} was built with {self.encoder}, not with {name}",
                expected=f"fingerprint {self.fingerprint[:12]}",
                received=fingerprint[:12],
                remedy=f"Use that encoder, or embed anew: foveal archive add IMAGES --archive NEW_DIR --encoder {name}",
            )
