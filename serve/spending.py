"""How often each key was used: a bucket of requests a second and a count of the day, for all processes of a server."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from threading import Lock

WAIT = 5.0  # seconds for another process
_TABLES = """
CREATE TABLE IF NOT EXISTS buckets(name TEXT PRIMARY KEY, tokens REAL NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS days(name TEXT, day INTEGER, requests INTEGER NOT NULL, PRIMARY KEY (name, day))
    WITHOUT ROWID;
"""


class Spending:
    """Counts in memory, or in a file that several processes share while they run.

    Args:
        file: made anew for each run of a server; nothing in it has to outlive a crash of the machine.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._lock = Lock()
        self._database = sqlite3.connect(
            ":memory:" if file is None else file, timeout=WAIT, isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.executescript(_TABLES)

    def begin(self, day: int, before: dict[str, int]) -> None:
        """Starts a day with what is written of it already, unless another process has begun it."""
        with self._lock:
            self._database.executemany(
                "INSERT OR IGNORE INTO days VALUES (?, ?, ?)", [(name, day, count) for name, count in before.items()]
            )

    def take(self, name: str, day: int, now: float, rate: float | None, quota: int | None) -> float | None:
        """Counts a request; None when it may go on, else the seconds until the key may ask again (0: another day)."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                return self._take(name, day, now, rate, quota)
            finally:
                self._database.execute("COMMIT")

    def _take(self, name: str, day: int, now: float, rate: float | None, quota: int | None) -> float | None:
        if quota is not None:
            row = self._database.execute("SELECT requests FROM days WHERE name = ? AND day = ?", (name, day)).fetchone()
            if row is not None and row[0] >= quota:
                return 0.0
        if rate is not None:
            most = max(1.0, rate)
            row = self._database.execute("SELECT tokens, since FROM buckets WHERE name = ?", (name,)).fetchone()
            tokens, since = row or (most, now)
            tokens = min(most, tokens + max(0.0, now - since) * rate)
            allowed = tokens >= 1
            self._database.execute(
                "INSERT OR REPLACE INTO buckets VALUES (?, ?, ?)", (name, tokens - 1 if allowed else tokens, now)
            )
            if not allowed:
                return (1 - tokens) / rate
        if quota is not None:
            self._database.execute(
                "INSERT INTO days VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET requests = requests + 1", (name, day)
            )
        return None
