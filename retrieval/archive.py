"""The archive: images embedded by one encoder, durable in a Lance table, searched through FAISS.

An archive folder holds `archive.json`, `quarantine.jsonl`, and in `generations/` a folder for each encoder it has been
embedded with: `table.lance/` (the truth) and `index/` (derived).

One writer at a time (a file lock); readers need no lock and see each commit at their next search. What a call has
returned, or progress has counted, survives `kill -9`. The index is built beside both, under a lock of its own.

Shape letters: Q queries, D embedding dimensions.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Container, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from foveal.artifacts import staged
from foveal.detections import FloatArray
from foveal.errors import BadInput, Unavailable
from foveal.models import Encoder
from foveal.progress import Progress, SilentProgress
from retrieval import turns
from retrieval.adding import AddReport, take_in
from retrieval.check import CheckReport, inspect
from retrieval.check_files import flaws, mended
from retrieval.checksums import Checksums
from retrieval.feedback import Feedback
from retrieval.index import IndexSettings
from retrieval.ingest import Embedding, Rejected, embed, identity
from retrieval.reader import Reader, size_of
from retrieval.settings import Settings
from retrieval.sources import Source, Sources
from retrieval.table import Row, Table, Value
from retrieval.turns import Denied, explained, turn
from retrieval.upkeep import Upkeep, excess
from retrieval.words import LEFT

NO_REPAIR = "Run it with --no-repair, which only looks, or as a user who may write there."


class Archive(Reader):
    """Images of one encoder, to add to and to search."""

    def __init__(self, path: Path, settings: Settings, *, pinned: bool = False) -> None:
        """See `open`; a `pinned` archive stays with its generation when another is swapped in."""
        super().__init__(path, settings, pinned=pinned)
        self._sums = Checksums(self.folder / "table.lance")
        self._upkeep = Upkeep(self.folder, self._segments, settings.index)
        self._lock = FileLock(self.path / ".lock")

    @classmethod
    def create(
        cls, path: Path | str, encoder: Encoder, *, reference: str | None = None, index: IndexSettings | None = None
    ) -> Archive:
        """A new, empty archive for `encoder`, which later commands find by `reference` (its name when None).

        Raises:
            BadInput: something is at `path` already, or it is no folder's name.
        """
        path = _folder(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise BadInput(f"{path} exists already", expected="a new folder", remedy="Choose another --archive.")
        settings = Settings(reference or encoder.name, encoder.fingerprint, encoder.dimension, index or IndexSettings())
        with staged(path, folder=True) as folder:
            settings.folder(folder).mkdir(parents=True)
            table = settings.folder(folder) / "table.lance"
            with Checksums(table).recording():
                Table.create(table, encoder.dimension)
            settings.write(settings.folder(folder))
            settings.write(folder)
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path | str) -> Archive:
        """The archive at `path`.

        Raises:
            BadInput: there is none, a newer Foveal wrote it, or `path` is no folder's name.
            IntegrityError: its description is damaged.
        """
        path = _folder(path)
        return cls(path, Settings.read(path))

    def at(self, settings: Settings) -> Archive:
        """Another generation of the same archive, whichever is served."""
        other = Archive(self.path, settings, pinned=True)
        other._segments.gpu = self._segments.gpu
        return other

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

        Each batch is durable before `progress` counts it; files that cannot be read go into quarantine. The index is
        built meanwhile, and what that lacks in the end is made up for before this returns.

        Args:
            sync: also remove the images that these sources held once and do no longer, from quarantine too.
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
        report = AddReport(passed_over=found.passed_over)
        seen: set[str] = set()
        failures: list[str] = []
        with (
            self._writing(),
            ThreadPoolExecutor(1, "index") as beside,
            closing(through(found, encoder, lambda ids: self.table().known(ids))) as batches,
        ):
            building: Future[None] | None = None
            progress.start("embed", found.total)
            try:
                for batch in take_in(batches, self, report, progress):
                    if sync:
                        seen.update(batch.seen)
                    if (building is None or building.done()) and not failures:
                        building = beside.submit(self._index_beside, failures)
            finally:
                progress.finish()
            if sync:
                report.removed = self._delete(self._vanished(found, seen))
            self._tidy()
        report.notes[:] = sorted({*report.notes, *found.notes, *failures, *self.index(progress)})
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
        facts: Sequence[Mapping[str, Value]] = metadata or [{}] * len(uris)
        records = [
            {"uri": uri, "width": width, "height": height, "metadata": told}
            for uri, (width, height), told in zip(uris, shapes, facts, strict=True)
        ]
        self.add_records(records, vectors, fingerprint=fingerprint)
        self.index()
        return [identity(uri) for uri in uris]

    def add_records(self, records: Sequence[Mapping[str, Any]], vectors: FloatArray, *, fingerprint: str) -> list[str]:
        """Commits rows given by field (`uri` and `metadata` at least) and vector (N, D); notes on their metadata.

        Leaves indexing to the caller. Raises as `add_vectors`.
        """
        self._require_fingerprint(fingerprint)
        rows = [
            Row(
                identity(record["uri"]), record["uri"], record.get("content_hash") or "", record.get("width") or 0,
                record.get("height") or 0, record["metadata"], vector, bytes=record.get("bytes") or 0,
                phash=record.get("phash"),
            )
            for record, vector in zip(records, _directions(vectors), strict=True)
        ]  # fmt: skip
        notes: list[str] = []
        with self._writing():
            self.write(rows, notes)
            self._tidy()
        return notes

    def index(self, progress: Progress | None = None) -> list[str]:
        """Indexes vectors that are not indexed yet where that is worth it, and words; others read and write on.

        Returns notes on what could not be done.
        """
        self._upkeep.run(self.snapshot, progress or SilentProgress())
        told = (excess(self.snapshot(), self.settings.index.memory_mb), self._index_words(LEFT))
        return [note for note in told if note is not None]

    def delete(self, ids: Sequence[str]) -> int:
        """Removes images; from the moment this returns no search returns them. Returns how many there were.

        A file that has become unreadable since leaves the quarantine with its image.

        Raises:
            Unavailable: another process is writing.
        """
        with self._writing():
            return self._delete(ids)

    def date(self) -> None:
        """Has every image say since when it is here, as those of archives of an earlier Foveal do not.

        Raises:
            Unavailable: another process is writing.
        """
        with self._writing(), self._sums.recording():
            self.table().date()

    def check(self, progress: Progress | None = None, *, repair: bool = True) -> CheckReport:
        """Verifies table, index and files, and rebuilds what is derived where it is wrong.

        Raises:
            Unavailable: another process is writing, or indexing.
            BadInput: it may not be written; without `repair` it need not be.
        """
        progress = progress or SilentProgress()
        before, locked = self._signature(), True
        with ExitStack() as stack:
            try:
                stack.enter_context(self.still(denied=NO_REPAIR))
            except Denied:
                if repair:
                    raise
                locked = False
            report = inspect(
                self.folder,
                self._segments,
                dimension=self.settings.dimension,
                fingerprint=self.fingerprint,
                rebuild=self.rebuild if repair else None,
                progress=progress,
            )
            self._snapshot = None
            wrong, right = mended(flaws(self, self._quarantine, self._searcher.words), repair)
            problems = report.problems + wrong
            if repair and not problems and (lacking := self._index_words()) is not None:
                problems.append(lacking)
        if problems and not locked and self._signature() != before:
            raise Unavailable(f"{self.path} was written to meanwhile", remedy="Run it again.")
        return replace(report, ok=not problems, problems=problems, repaired=report.repaired + right)

    def rebuild(self) -> None:
        """Builds the index anew over every row; Unavailable when another process is indexing."""
        self._upkeep.rebuild(self.snapshot)

    def compact(self) -> int:
        """Makes deletions final: no file here holds name, vector, metadata or thumbnail of a deleted image any more.

        Earlier generations go too. Readers that look at an older state move to the present one at their next search.
        Returns the bytes freed.

        Raises:
            Unavailable: another process is writing, indexing, or embedding the archive anew.
            FovealError: the disk is full; what was not done yet is by the next call.
        """
        before = size_of(self.path)
        # Whoever builds the index reads files that are about to go.
        with explained(self.path), self._upkeep.turn():
            with self._writing():
                for settings in self.generations():
                    if settings.generation != self.settings.generation:
                        drop(settings.folder(self.path))
                with self._sums.recording():
                    self.table().erase()
                self._sums.tidy()
                self._quarantine.compact()
            self._upkeep.purge(self.snapshot)
            view = self.snapshot()
            self._searcher.words.purge(view)
            ids: list[str] = view.table.take(view.rows, ["id"])["id"].to_pylist()
            Feedback(self.path / "feedback.sqlite").keep(ids)
        return before - size_of(self.path)

    @contextmanager
    def still(self, seconds: float | None = None, denied: str = "Check its permissions.") -> Generator[None]:
        """Nobody changes a file of the archive meanwhile.

        Args:
            seconds: to wait for a process that builds the index, see `turns.turn`.
            denied: what to do where the archive may not be written.

        Raises:
            Unavailable: another process is writing, or indexing.
            BadInput: it may not be written.
        """
        with explained(self.path, denied), self._upkeep.turn(seconds), self._writing():
            yield

    # What `take_in` needs; the writer's lock is held.

    def write(self, rows: Sequence[Row], notes: list[str]) -> tuple[int, Sequence[Rejected]]:
        """See `Sink`; a table takes every row."""
        if not rows:
            return 0, ()
        table = self.table()
        known = table.known([row.id for row in rows])
        with self._sums.recording():
            notes += table.write(rows, self.fingerprint, known)
        return len(known), ()

    def restamp(self, stamps: Mapping[str, str]) -> None:
        """See `Sink`."""
        with self._sums.recording():
            self.table().restamp(stamps)

    def set_aside(self, rejected: Sequence[Rejected], seen: Sequence[str]) -> None:
        """See `Sink`."""
        self._quarantine.update(rejected, seen)

    # Inside.

    def _index_words(self, least: int = 1) -> str | None:
        """Brings the keyword index up to date from `least` rows on; what it still lacks."""
        return self._searcher.words.update(self.snapshot(), wait=turns.SECONDS, least=least)

    def _index_beside(self, failures: list[str]) -> None:
        """Indexes what an `add` under way has committed; it goes on whatever happens, and tries again in the end."""
        try:
            self._upkeep.run(self.snapshot, SilentProgress())
        except Exception as error:
            failures.append(f"the index could not be built while images came in: {error}")

    def _delete(self, ids: Sequence[str]) -> int:
        """Removes images, and from quarantine the files of these ids; how many images there were."""
        if not ids:
            return 0
        with self._sums.recording():
            count = self.table().delete(list(ids))
        chosen = set(ids)
        self._quarantine.update([], [entry.uri for entry in self._quarantine.read() if identity(entry.uri) in chosen])
        return count

    def _tidy(self) -> None:
        with self._sums.recording():
            self.table().tidy()
        self._sums.tidy()

    def _vanished(self, found: Sources, seen: Container[str]) -> list[str]:
        """Ids of images, and of files in quarantine, that the sources cover and do not have."""
        stored = (
            pair
            for batch in self.table().scan(["id", "uri"])
            for pair in zip(batch["id"].to_pylist(), batch["uri"].to_pylist(), strict=True)
        )
        waiting = ((identity(entry.uri), entry.uri) for entry in self._quarantine.read())
        return list({key: None for key, uri in chain(stored, waiting) if uri not in seen and found.covers(uri)})

    @contextmanager
    def _writing(self) -> Generator[None]:
        with explained(self.path), turn(self._lock, f"writing to {self.path}"):
            self._current()
            yield


def _folder(path: Path | str) -> Path:
    """BadInput for the URI of a server, even one that has been a `Path` and lost a slash."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise BadInput(
            f"{path} is no folder, and only archives in a folder can do this",
            expected="a folder",
            remedy="In a server they take `archive add`, `search`, `info`, `check`, `quarantine` and `delete`.",
        )
    return Path(path)


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
