"""Jobs that fetch pictures into archives: what is asked and how far it is, in a SQLite file that outlives the server.

An address waits in the file until the archive holds its picture for good. A server that was killed in between fetches
the pictures of its last batch once more; an archive names pictures by their content, so none is in it twice.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foveal.errors import IntegrityError, Unavailable

WAIT = 10.0  # seconds for another process that writes
MOST = 100  # jobs that may be unfinished at once
KEEP = 30 * 86_400.0  # seconds that a finished job is remembered
LISTED = 200
REASONS = 20  # of the rejected, that are kept
State = Literal["queued", "running", "done", "failed", "cancelled"]
Fate = Literal["added", "updated", "unchanged", "rejected"]
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs(
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, archive TEXT NOT NULL, metadata TEXT NOT NULL,
    state TEXT NOT NULL, total INTEGER NOT NULL, added INTEGER NOT NULL DEFAULT 0, updated INTEGER NOT NULL DEFAULT 0,
    unchanged INTEGER NOT NULL DEFAULT 0, rejected INTEGER NOT NULL DEFAULT 0, error TEXT, created REAL NOT NULL,
    started REAL, ended REAL);
CREATE TABLE IF NOT EXISTS waiting(
    job TEXT NOT NULL, place INTEGER NOT NULL, url TEXT NOT NULL, fresh INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, place));
CREATE TABLE IF NOT EXISTS rejected(
    job TEXT NOT NULL, place INTEGER NOT NULL, url TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (job, place));
CREATE TABLE IF NOT EXISTS askers(job TEXT PRIMARY KEY, key TEXT NOT NULL);
"""
_JOB = "id, archive, metadata, state, total, added, updated, unchanged, rejected, error, created, started, ended"
_BY = "(SELECT key FROM askers WHERE job = id)"


@dataclass(frozen=True, slots=True)
class Told:
    """A job as it stands; times are Unix time."""

    id: str
    archive: str
    metadata: Mapping[str, str | int | float]
    state: State
    total: int
    added: int
    updated: int
    unchanged: int
    rejected: int
    error: str | None
    created: float
    started: float | None
    ended: float | None
    key: str | None = None  # name of the key that it was asked with
    reasons: tuple[tuple[str, str], ...] = ()  # (address, why it was rejected)


@dataclass(frozen=True, slots=True)
class Address:
    """An address that waits."""

    place: int
    url: str
    fresh: bool  # its picture was about to be added, and was not in the archive before


class Jobs:
    """The jobs in a file.

    Raises:
        IntegrityError: from any method, when the file is damaged.
        Unavailable: from any method, when it cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(
        self, archive: str, urls: Sequence[str], metadata: Mapping[str, str | int | float], key: str | None = None
    ) -> Told:
        """A new job, asked for with a key of that name; durable when this returns.

        Raises:
            Unavailable: too many are unfinished.
        """
        id, now = secrets.token_hex(8), time.time()
        with self._open() as database, database:
            database.execute("BEGIN IMMEDIATE")
            (unfinished,) = database.execute("SELECT count(*) FROM jobs WHERE ended IS NULL").fetchone()
            if unfinished >= MOST:
                raise Unavailable(f"{unfinished} jobs wait already", remedy="Ask again when some of them are done.")
            for table in ("waiting", "rejected", "askers"):
                database.execute(
                    f"DELETE FROM {table} WHERE job IN (SELECT id FROM jobs WHERE ended < ?)", (now - KEEP,)
                )
            database.execute("DELETE FROM jobs WHERE ended < ?", (now - KEEP,))
            database.execute(
                "INSERT INTO jobs(id, archive, metadata, state, total, created) VALUES (?, ?, ?, 'queued', ?, ?)",
                (id, archive, json.dumps(dict(metadata)), len(urls), now),
            )
            database.executemany(
                "INSERT INTO waiting(job, place, url) VALUES (?, ?, ?)",
                [(id, place, url) for place, url in enumerate(urls)],
            )
            if key is not None:
                database.execute("INSERT INTO askers VALUES (?, ?)", (id, key))
        return Told(id, archive, metadata, "queued", len(urls), 0, 0, 0, 0, None, now, None, None, key)

    def get(self, id: str) -> Told | None:
        """A job with the reasons of its first rejected addresses; None where there is none."""
        if not self.file.is_file():
            return None
        with self._open() as database:
            row = database.execute(f"SELECT {_JOB}, {_BY} FROM jobs WHERE id = ?", (id,)).fetchone()
            reasons = database.execute(
                "SELECT url, reason FROM rejected WHERE job = ? ORDER BY place", (id,)
            ).fetchall()
        return None if row is None else _told(row, tuple(reasons))

    def list(self, archives: Collection[str] | None = None) -> list[Told]:
        """The newest jobs, of these archives or of all, without reasons."""
        if not self.file.is_file():
            return []
        with self._open() as database:
            rows = database.execute(
                f"SELECT {_JOB}, {_BY} FROM jobs WHERE ? OR archive IN (SELECT value FROM json_each(?)) "
                "ORDER BY number DESC LIMIT ?",
                (archives is None, json.dumps(sorted(archives or ())), LISTED),
            ).fetchall()
        return [_told(row) for row in rows]

    def cancel(self, id: str) -> None:
        """Ends a job, if it has not ended; what is in the archive stays there."""
        self.end(id, "cancelled")

    # For who does the work.

    def left(self) -> int:
        """How many addresses wait."""
        if not self.file.is_file():
            return 0
        with self._open() as database:
            return int(database.execute("SELECT count(*) FROM waiting").fetchone()[0])

    def next(self) -> Told | None:
        """The oldest job that is not done with, running from now on; None when there is none."""
        if not self.file.is_file():
            return None
        with self._open() as database, database:
            found = database.execute("SELECT id FROM jobs WHERE ended IS NULL ORDER BY number LIMIT 1").fetchone()
            if found is None:
                return None
            database.execute(
                "UPDATE jobs SET state = 'running', started = coalesce(started, ?) WHERE id = ? AND ended IS NULL",
                (time.time(), *found),
            )
            row = database.execute(f"SELECT {_JOB}, {_BY} FROM jobs WHERE id = ?", found).fetchone()
        return _told(row)

    def waiting(self, id: str, count: int) -> list[Address]:
        """The first addresses that wait; none when the job has ended."""
        with self._open() as database:
            rows = database.execute(
                "SELECT place, url, fresh FROM waiting JOIN jobs ON jobs.id = job WHERE job = ? AND ended IS NULL "
                "ORDER BY place LIMIT ?",
                (id, count),
            ).fetchall()
        return [Address(place, url, bool(fresh)) for place, url, fresh in rows]

    def about_to_add(self, id: str, places: Sequence[int]) -> None:
        """Notes whose pictures are new to the archive, before it holds them."""
        with self._open() as database, database:
            database.executemany(
                "UPDATE waiting SET fresh = 1 WHERE job = ? AND place = ?", [(id, place) for place in places]
            )

    def done(self, id: str, fates: Mapping[Address, tuple[Fate, str]]) -> None:
        """Takes addresses off: what became of each, and why."""
        with self._open() as database, database:
            for address, (fate, reason) in fates.items():
                database.execute("DELETE FROM waiting WHERE job = ? AND place = ?", (id, address.place))
                database.execute(f"UPDATE jobs SET {fate} = {fate} + 1 WHERE id = ?", (id,))
                if fate == "rejected":
                    database.execute(
                        "INSERT INTO rejected SELECT ?, ?, ?, ? "
                        "WHERE (SELECT count(*) FROM rejected WHERE job = ?) < ?",
                        (id, address.place, address.url, reason, id, REASONS),
                    )

    def end(self, id: str, state: State, error: str | None = None) -> bool:
        """Ends a job, and forgets what waits; False when it had ended already."""
        with self._open() as database, database:
            ended = database.execute(
                "UPDATE jobs SET state = ?, error = ?, ended = ? WHERE id = ? AND ended IS NULL",
                (state, error, time.time(), id),
            )
            if ended.rowcount:
                database.execute("DELETE FROM waiting WHERE job = ?", (id,))
        return bool(ended.rowcount)

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.file, timeout=WAIT)) as database:
                database.executescript(_TABLES)
                yield database
        except sqlite3.OperationalError as error:
            raise Unavailable(f"jobs cannot be kept in {self.file}: {error}", remedy="Mend that, then retry.") from None
        except sqlite3.DatabaseError as error:
            raise IntegrityError(f"{self.file} holds no jobs: {error}", remedy="Move it away.") from None


def _told(row: tuple[Any, ...], reasons: tuple[tuple[str, str], ...] = ()) -> Told:
    id, archive, metadata, *rest = row
    return Told(id, archive, json.loads(metadata), *rest, reasons=reasons)
