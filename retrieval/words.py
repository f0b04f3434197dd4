"""Keyword search over file names and text metadata: a SQLite FTS5 index, derived from the table and rebuilt at need.

One database file beside the table, a row an image, its rowid the image's seq. It is brought up to date from a snapshot:
rows newer than the last one indexed are added, rows that are gone are dropped. Writers take a file lock, so that a
database is never swapped while another process writes to it; readers take none. Whatever fails, a search goes on
without keywords and says so.
"""

from __future__ import annotations

import os
import re
import sqlite3
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from foveal.detections import IntArray
from retrieval.index import contained
from retrieval.snapshot import Snapshot
from retrieval.sqlite_files import damage
from retrieval.turns import turn

FORMAT = 1
MAX_TERMS = 32
PIECE = 8192  # rows read and written at a time
CATCH_UP = 20_000  # rows a search may index before it answers; more is for `update`
LEFT = 1000  # rows that `add` leaves to the next search: a commit here takes as long as that of a small `add`
WAIT = 0.25  # seconds that a search waits for another process
MAX_INDEXED = 20_000  # characters of one image
_TERM = re.compile(r'"([^"]+)"|(\S+)')
_SCHEMA = f"""
PRAGMA synchronous = OFF;
PRAGMA user_version = {FORMAT};
CREATE TABLE indexed(version INTEGER);  -- of the table
CREATE VIRTUAL TABLE words USING fts5(body, tokenize = 'porter unicode61 remove_diacritics 2');
"""


class Words:
    """The keyword index of one generation of an archive."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = FileLock(file.with_name(f".{file.name}-lock"))

    def update(self, view: Snapshot, most: int | None = None, wait: float = -1, least: int = 1) -> str | None:
        """Brings the index up to date; returns what it still lacks and why, None when nothing.

        Args:
            least: leave it to a search when fewer rows than this are to be indexed.
            most: leave it when more rows than this are to be indexed.
            wait: seconds to wait for another process that is at it; -1 for as long as it takes.
        """
        try:
            if self._behind(view) < max(least, 1):
                return None
            with self._lock.acquire(timeout=wait):
                behind = self._behind(view)
                if most is not None and behind > most:
                    return f"keywords of {behind:,} images are not indexed yet"
                try:
                    if self.file.is_file():
                        self._catch_up(view, max(wait, WAIT) if wait >= 0 else 30.0)
                    else:
                        self._build(view)
                except sqlite3.DatabaseError as error:
                    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                        raise
                    self._build(view)
        except Timeout:
            return "another process is indexing keywords; the newest are left out"
        except (OSError, sqlite3.Error) as error:
            return f"keywords could not be indexed: {error}"
        return None

    def damage(self, view: Snapshot) -> str | None:
        """What is wrong with the file beside being older than `view`; see `sqlite_files.damage`, and raises as that."""
        if not self.file.is_file():
            return None
        why = damage(self.file, "words")
        if why is None:
            with self._reading() as database:
                version, _ = _state(database)
                rows = database.execute("SELECT id FROM words_docsize ORDER BY id").fetchall()
            if version > view.table.version:
                why = "it is newer than the table"
            elif version == view.table.version and [seq for (seq,) in rows] != view.seqs.tolist():
                why = "it holds other rows than the table"
        return None if why is None else f"keyword index {self.file} is damaged: {why}"

    def purge(self, view: Snapshot) -> None:
        """Builds the file anew of the rows of `view` alone: no text of a deleted image is left in it.

        FTS5 keeps deleted texts in its segments until they happen to be merged, so that deleting is not enough.

        Raises:
            Unavailable: another process is at it.
        """
        if self.file.is_file():
            with turn(self._lock, f"indexing keywords in {self.file}"):
                self._build(view)

    def find(self, text: str, among: IntArray) -> Iterator[int]:
        """Those of the ascending seqs `among` that contain one of the words of `text` or more, best first by BM25.

        Raises:
            sqlite3.Error: the index is missing, damaged or locked.
        """
        terms = self.terms(text)
        if not terms:
            return
        with self._reading() as database:
            rows = database.execute(
                "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank", (" OR ".join(map(_quoted, terms)),)
            )
            while found := rows.fetchmany(1024):
                seqs = np.array(found, dtype=np.int64)[:, 0]
                yield from seqs[contained(seqs, among)].tolist()

    def matched(self, seqs: Sequence[int], text: str) -> dict[int, tuple[str, ...]]:
        """For each of `seqs` the words of `text` that it contains.

        Raises:
            sqlite3.Error: as `find`.
        """
        found: dict[int, tuple[str, ...]] = {seq: () for seq in seqs}
        places = ", ".join("?" * len(found))
        with self._reading() as database:
            for term in self.terms(text):
                query = f"SELECT rowid FROM words WHERE words MATCH ? AND rowid IN ({places})"
                for (seq,) in database.execute(query, (_quoted(term), *found)):
                    found[seq] = (*found[seq], term)
        return found

    @staticmethod
    def terms(text: str) -> list[str]:
        """What is looked for: the words of `text`, and what stands in double quotes as a whole; each once."""
        found = (quoted or word.replace('"', "") for quoted, word in _TERM.findall(text.replace("\0", " ")))
        return list(dict.fromkeys(term for term in found if any(map(str.isalnum, term))))[:MAX_TERMS]

    # Inside.

    def _behind(self, view: Snapshot) -> int:
        """0 when the index is as new as `view`, else about how many rows it lacks, at least 1."""
        try:
            with self._reading() as database:
                version, last = _state(database)
        except sqlite3.DatabaseError:
            version, last = -1, -1
        if version >= view.table.version:
            return 0
        return max(1, len(view.seqs) - int(np.searchsorted(view.seqs, last, side="right")))

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        database = sqlite3.connect(f"{self.file.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT)
        with closing(database):
            yield database

    def _catch_up(self, view: Snapshot, timeout: float) -> None:
        database = sqlite3.connect(self.file, timeout=timeout)
        with closing(database), database:
            version, last = _state(database)
            if version >= view.table.version:  # an older view would bring back the texts of deleted rows
                return
            new = int(np.searchsorted(view.seqs, last, side="right"))
            (held,) = database.execute("SELECT count(*) FROM words_docsize").fetchone()
            if held != new:  # rows up to the last one were all indexed, so fewer means that some are gone
                indexed = np.array(database.execute("SELECT id FROM words_docsize").fetchall(), np.int64).reshape(-1)
                gone = indexed[~contained(indexed, view.seqs)]
                database.executemany("DELETE FROM words WHERE rowid = ?", ((seq,) for seq in gone.tolist()))
            self._insert(database, view, view.seqs[new:])

    def _build(self, view: Snapshot) -> None:
        """A new file, swapped in for the old one; the lock is held."""
        aside = self.file.with_name(f"{self.file.name}.{uuid.uuid4().hex[:8]}.tmp")
        for old in self.file.parent.glob(f"{self.file.name}.*.tmp*"):  # of a process that was killed
            old.unlink(missing_ok=True)
        try:
            database = sqlite3.connect(aside)
            with closing(database):
                database.executescript(_SCHEMA)
                with database:
                    self._insert(database, view, view.seqs)
                    database.execute("INSERT INTO words(words) VALUES ('optimize')")
            # A journal left by a killed writer belongs to the old file and would be played into the new one.
            self.file.with_name(f"{self.file.name}-journal").unlink(missing_ok=True)
            os.replace(aside, self.file)
        finally:
            aside.unlink(missing_ok=True)

    def _insert(self, database: sqlite3.Connection, view: Snapshot, seqs: IntArray) -> None:
        for start in range(0, len(seqs), PIECE):
            piece = seqs[start : start + PIECE]
            database.executemany("INSERT INTO words(rowid, body) VALUES (?, ?)", _bodies(view, piece))
        database.execute("DELETE FROM indexed")
        database.execute("INSERT INTO indexed VALUES (?)", (view.table.version,))


def _state(database: sqlite3.Connection) -> tuple[int, int]:
    """The table's version that was indexed, and the last seq.

    Raises:
        sqlite3.DatabaseError: the file is of another format or damaged.
    """
    if database.execute("PRAGMA user_version").fetchone() != (FORMAT,):
        raise sqlite3.DatabaseError("another format of keyword index")
    (version,) = database.execute("SELECT max(version) FROM indexed").fetchone()
    (last,) = database.execute("SELECT coalesce(max(id), -1) FROM words_docsize").fetchone()
    return int(version), int(last)


def _bodies(view: Snapshot, seqs: IntArray) -> Iterator[tuple[int, str]]:
    """Each seq with the texts to be found of its row."""
    for part in view.parts:
        places = np.searchsorted(part.seqs, seqs)
        here = contained(seqs, part.seqs)
        for seq, (_, uri, metadata) in zip(seqs[here].tolist(), part.told.at(places[here]), strict=True):
            values = (value for value in metadata.values() if isinstance(value, str))
            yield seq, "\n".join([_stem(uri), *values])[:MAX_INDEXED].encode("utf-8", "replace").decode()


def _stem(uri: str) -> str:
    """The file's name without its ending and folders."""
    name = re.split(r"[/\\]|::", uri.split("?")[0].rstrip("/"))[-1]
    return os.path.splitext(name)[0]


def _quoted(term: str) -> str:
    """A term as an FTS5 string: whatever it holds, it is no expression."""
    return '"' + term.replace('"', '""') + '"'
