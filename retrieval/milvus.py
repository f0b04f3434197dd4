"""An archive in Milvus: the calls of `retrieval.archive.Archive` for more images than one machine holds.

Any number of processes may add, delete and search. What a call has returned is seen by every later one. A batch is one
upsert and not one transaction with the next; a process that is killed loses at most the batch under way, and the next
`add` embeds that again.

Not here: thumbnails (Milvus has no field of bytes, and loads what is in a field into memory with the vectors); words,
collapsing, diversity and relevance, which need the files of an `Archive`; and generations, whose place a second
collection takes. Vectors are float32, as Milvus Lite refuses float16.

Shape letters: N images, Q queries, D embedding dimensions, P parts of a query.
"""

from __future__ import annotations

import os
from collections.abc import Collection as Container
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

from foveal.detections import FloatArray
from foveal.errors import BadInput, FingerprintMismatch
from foveal.models import Encoder
from foveal.progress import Progress, SilentProgress
from retrieval.adding import AddReport, take_in
from retrieval.check import CheckReport
from retrieval.filters import parse
from retrieval.index import IndexSettings
from retrieval.ingest import Embedding, Rejected, embed, identity
from retrieval.milvus_check import inspect
from retrieval.milvus_records import Records, Settings
from retrieval.milvus_rows import COLUMNS, FIELDS, as_rows, from_vectors, told
from retrieval.milvus_search import Searcher
from retrieval.milvus_server import Collection, Place, connect
from retrieval.query import EncodedQuery, SearchQuery
from retrieval.results import Hit, Results
from retrieval.settings import NoArchive
from retrieval.sources import Source, Sources
from retrieval.table import Known, Row, Value


class MilvusArchive:
    """Images of one encoder in a collection of a Milvus server."""

    def __init__(self, place: Place, rows: Collection, records: Records, settings: Settings) -> None:
        """See `open`."""
        self.place, self.settings = place, settings
        self._rows, self._records = rows, records
        self._searcher = Searcher(rows, settings.dimension)

    @classmethod
    def create(
        cls, uri: Path | str, encoder: Encoder, *, reference: str | None = None, index: IndexSettings | None = None
    ) -> MilvusArchive:
        """A new, empty archive for `encoder`, which later commands find by `reference` (its name when None).

        Raises:
            BadInput: the collection exists, `uri` is no place in Milvus, or there are `index` settings.
            Unavailable: pymilvus is not installed, or the server does not answer.
        """
        if index is not None:
            raise BadInput("Milvus chooses its index itself", remedy="Leave --recall and --memory out.")
        place = Place.parse(str(uri), os.environ)
        rows = Collection(connect(place), place.collection)
        if rows.exists():
            raise BadInput(
                f"{place} exists already", expected="a new collection", remedy="Choose another, or drop this one."
            )
        settings = Settings(reference or encoder.name, encoder.fingerprint, encoder.dimension)
        records = Records(rows)
        records.create()
        rows.create(FIELDS, settings.dimension)
        records.settle(settings)
        return cls(place, rows, records, settings)

    @classmethod
    def open(cls, uri: Path | str) -> MilvusArchive:
        """The archive at `uri` (see `milvus_server.FORMS`).

        Raises:
            BadInput: there is none, a newer Foveal wrote it, or `uri` is no place in Milvus.
            Unavailable: pymilvus is not installed, or the server does not answer.
        """
        place = Place.parse(str(uri), os.environ)
        shown = str(uri).partition("?")[0]  # without the token
        nothing = NoArchive(f"no archive at {place}", remedy=f"Build one: foveal archive add IMAGES --archive {shown}")
        if place.vacant:  # connecting would make it
            raise nothing
        rows = Collection(connect(place), place.collection)
        records = Records(rows)
        settings = records.settings() if rows.load() else None
        if settings is None:
            raise nothing
        return cls(place, rows, records, settings)

    @property
    def name(self) -> str:
        """What a server calls it."""
        return self.place.collection

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
        return COLUMNS | self._records.columns()

    def __len__(self) -> int:
        return self._rows.count()

    def quarantined(self) -> list[tuple[str, str]]:
        """Every file that could not be added so far, with the reason."""
        return [(entry.uri, entry.reason) for entry in self._records.rejected()]

    # Writing.

    def add(
        self,
        sources: Source | Sequence[Source] | Sources,
        encoder: Encoder,
        progress: Progress | None = None,
        *,
        sync: bool = False,
        allow: Container[str] = (),
        through: Embedding = embed,
    ) -> AddReport:
        """Embeds the images of the sources; those already there and unchanged are passed over.

        As `Archive.add`, but several processes may do it at once: of two that add the same image the last one wins.

        Raises:
            BadInput: a source does not exist, holds no image, or may not be fetched.
            FingerprintMismatch: another encoder than the archive's.
            Unavailable: the server or a source does not answer.
        """
        self.require(encoder)
        progress = progress or SilentProgress()
        found = sources if isinstance(sources, Sources) else Sources.resolve(sources, allow=allow)
        report = AddReport(passed_over=found.passed_over)
        seen: set[str] = set()
        progress.start("embed", found.total)
        try:
            with closing(through(found, encoder, self._known)) as batches:
                for batch in take_in(batches, self, report, progress):
                    if sync:
                        seen.update(batch.seen)
        finally:
            progress.finish()
        if sync:
            stored = ((row["id"], row["uri"]) for row in self._scan(["id", "uri"]))
            waiting = ((identity(entry.uri), entry.uri) for entry in self._records.rejected())
            gone = {key: None for key, uri in chain(stored, waiting) if uri not in seen and found.covers(uri)}
            report.removed = self.delete(list(gone))
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
        """Commits embeddings (N, D) computed elsewhere; returns the ids.

        Raises:
            BadInput: the lengths differ, a vector is not finite or has no direction, or a record is too large.
            FingerprintMismatch: they were made by another encoder.
        """
        self._require_fingerprint(fingerprint)
        rows = from_vectors(uris, vectors, self.settings.dimension, sizes, metadata)
        _, refused = self.write(rows, [])
        if refused:
            raise BadInput(f"{len(refused)} records cannot be stored, e.g. of {refused[0].uri}: {refused[0].reason}")
        return [row.id for row in rows]

    def delete(self, ids: Sequence[str]) -> int:
        """Removes images; from the moment this returns no search returns them. Returns how many there were."""
        there = sorted(self._rows.find(list(dict.fromkeys(ids)), []))
        self._rows.delete(there)
        self._records.forget(ids)
        return len(there)

    def check(self, progress: Progress | None = None, *, repair: bool = True) -> CheckReport:
        """Looks at the collection's description and at a sample of rows; there is nothing derived to repair here."""
        return inspect(self._rows, self.settings.dimension, progress or SilentProgress())

    # Reading.

    def search(self, query: SearchQuery, encoder: Encoder) -> Results:
        """A page of the best `query.k` images, best first; none when nothing matches, see `Results.reason`.

        Raises:
            FingerprintMismatch: another encoder than the archive's.
            BadInput: the filter or the cursor is not one, the query's image cannot be decoded, or it asks for what
                archives in Milvus do not do.
        """
        self.require(encoder)
        return self.answer(query.encoded(encoder))

    def answer(self, asked: EncodedQuery) -> Results:
        """`search` for a query that has met the encoder already; raises as that."""
        self._require_fingerprint(asked.fingerprint)
        filter = asked.query.filter
        return self._searcher.run(asked, "" if filter is None else self._expression(filter))

    def nearest(self, queries: FloatArray, k: int = 10, filter: str | None = None) -> list[list[Hit]]:
        """The best k images for each unit vector of `queries` (Q, D), best first.

        Raises:
            BadInput: wrong dimensions, k out of range, or the filter is not one.
        """
        return self._searcher.nearest(queries, k, "" if filter is None else self._expression(filter))

    def matching(self, filter: str) -> list[str]:
        """Ids of the images that a filter keeps, in no particular order; BadInput when it is none."""
        return [row["id"] for piece in self._rows.scan(self._expression(filter), ["id"]) for row in piece]

    def some(self, count: int) -> list[str]:
        """Ids of up to `count` images, the lowest ones."""
        return [row["id"] for row in islice(self._scan(["id"]), count)]

    def items(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The named columns of those of `ids` that are here, by id; BadInput when there is no such column."""
        known = (*FIELDS, "vector", "fingerprint", "thumbnail", *self.columns)
        for name in columns:
            if name not in known:
                raise BadInput(f"the archive has no column {name}", expected=f"one of {', '.join(known)}")
        found = self._rows.find(ids, [*FIELDS, *(["vector"] if "vector" in columns else [])])
        constant = {"fingerprint": self.fingerprint, "thumbnail": None}
        return {key: told({**row, **constant}, columns) for key, row in found.items()}

    def stats(self) -> dict[str, Any]:
        """Sizes, and how the archive is searched."""
        return {
            "images": len(self),
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "dimension": self.settings.dimension,
            "engine": "milvus",
            "place": str(self.place),
            "index": dict(self._rows.ask("describe_index", index_name="vector")),
            "quarantined": len(self._records.rejected()),
            "columns": self.columns,
        }

    def require(self, encoder: Encoder) -> None:
        """FingerprintMismatch unless `encoder` made the vectors here."""
        self._require_fingerprint(encoder.fingerprint, encoder.name)

    # What `take_in` needs.

    def write(self, rows: Sequence[Row], notes: list[str]) -> tuple[int, Sequence[Rejected]]:
        """See `Sink`; upserts what Milvus can take."""
        if not rows:
            return 0, []
        kept = ["vector", "phash"] if any(row.vector is None for row in rows) else []
        stored = self._rows.find([row.id for row in rows], kept)
        made = as_rows(rows, self._records.columns(), stored)
        if made.kinds:
            self._records.add_columns(made.kinds)
        self._rows.upsert(made.rows)
        notes += made.notes
        return sum(row["id"] in stored for row in made.rows), made.refused

    def set_aside(self, rejected: Sequence[Rejected], seen: Sequence[str]) -> None:
        """See `Sink`."""
        self._records.update(rejected, seen)

    def restamp(self, stamps: Mapping[str, str]) -> None:
        """See `Sink`; Milvus Lite writes whole rows only."""
        rows = self._rows.find(list(stamps), [*FIELDS, "vector"])
        self._rows.upsert([{**row, "stamp": stamps[key]} for key, row in rows.items()])

    # Inside.

    def _known(self, ids: Sequence[str]) -> dict[str, Known]:
        found = self._rows.find(ids, ["content_hash", "metadata", "stamp"])
        return {key: Known(row["content_hash"], row["metadata"], row["stamp"]) for key, row in found.items()}

    def _scan(self, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        for piece in self._rows.scan('id != ""', fields):
            yield from piece

    def _expression(self, filter: str) -> str:
        """In Milvus' language; columns may have come since they were last read."""
        try:
            return parse(filter, COLUMNS | self._records.columns(fresh=False)).milvus()
        except BadInput:
            return parse(filter, self.columns).milvus()

    def _require_fingerprint(self, fingerprint: str, name: str = "these vectors") -> None:
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"{self.place} was built with {self.encoder}, not with {name}",
                expected=f"fingerprint {self.fingerprint[:12]}",
                received=fingerprint[:12],
                remedy=f"Use that encoder, or embed anew: foveal archive add IMAGES --archive NEW --encoder {name}",
            )
