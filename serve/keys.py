"""API keys: who may do what, on which archives, how often. A small SQLite file; the keys themselves are not in it.

A key is shown once, when it is made. Its sha256 is kept, which is enough for 32 random bytes. A running server sees a
changed file at its next request. Rates and quotas are counted in `serve.spending`; the use of each day (UTC) is written
every few seconds.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Collection, Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from foveal.errors import BadInput, FovealError, IntegrityError
from serve.spending import Spending

PREFIX = "fv_"
WAIT = 10.0  # seconds for another process that writes
DAY = 86_400
# What a key may be allowed to do, and the addresses that each verb opens.
VERBS: dict[str, tuple[str, ...]] = {
    "search": ("/v1/search", "/v1/archives", "/v1/items", "/knn-service", "/metadata", "/indices-list"),
    "detect": (
        "/v1/detect",
        "/v1/prelabel",
        "/v1/classify",
        "/v1/verify",
        "/label-studio",
        "/x-anylabeling",
        "/api",
    ),
    "ask": ("/v1/ask", "/v1/chat"),
    "embed": ("/v1/embeddings",),
    "write": ("/v1/jobs",),  # and whatever else changes something: see `verb_of`
    "metrics": ("/metrics", "/v1/versions"),
    "pages": (),  # the demo, with all that it shows: everything that is no API
}
OPEN = ("/livez", "/readyz", "/openapi.json", "/login")
ABOUT = ("/v1/models",)  # any key
WRITES = (
    ("DELETE", "/v1/items"),
    ("POST", "/v1/items"),
    ("POST", "/v1/search/feedback"),
    ("POST", "/label-studio/webhook"),
)
_TABLES = """
CREATE TABLE IF NOT EXISTS keys(
    name TEXT NOT NULL, digest TEXT PRIMARY KEY, verbs TEXT NOT NULL, archives TEXT, rate REAL, quota INTEGER,
    created REAL NOT NULL, expires REAL
);
CREATE TABLE IF NOT EXISTS used(name TEXT NOT NULL, day INTEGER NOT NULL, requests INTEGER NOT NULL,
    PRIMARY KEY (name, day));
"""


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key."""

    name: str
    verbs: frozenset[str]
    archives: frozenset[str] | None  # None: all
    rate: float | None  # requests a second, with as many at once
    quota: int | None  # requests a day
    created: float  # Unix time
    expires: float | None


caller: ContextVar[Key | None] = ContextVar("caller", default=None)  # of the request that is being worked on


class Refused(FovealError):
    """No key, or one that may not do this."""

    def __init__(self, message: str, status: int, *, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


class TooOften(FovealError):
    """The key's rate or quota is spent."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message, remedy="Ask less often, or have the key's rate or quota raised.")
        self.retry_after = max(1, int(seconds + 0.999))


def verb_of(method: str, path: str) -> str | None:
    """The verb that a request needs; "" where any key will do, None where none is needed."""
    if within(path, OPEN):
        return None
    if within(path, ABOUT):
        return ""
    if any(method == changing and within(path, (prefix,)) for changing, prefix in WRITES):
        return "write"
    return next((verb for verb, prefixes in VERBS.items() if within(path, prefixes)), "pages")


def within(path: str, prefixes: Collection[str]) -> bool:
    """Whether a path is one of the prefixes or lies below one."""
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


class Keys:
    """The keys in a file.

    Args:
        spending: what counts their use; of this process alone by default.

    Raises:
        IntegrityError: from any method, when the file is damaged.
    """

    def __init__(self, file: Path, spending: Spending | None = None) -> None:
        self.file = file
        self._spending = spending or Spending()
        self._known: dict[str, Key] = {}
        self._version: tuple[int, int] | None = None
        self._unsaved: dict[tuple[str, int], int] = {}
        self._day = -1

    # For who gives keys out.

    def add(
        self,
        name: str,
        verbs: Sequence[str],
        *,
        archives: Sequence[str] | None = None,
        rate: float | None = None,
        quota: int | None = None,
        days: float | None = None,
    ) -> str:
        """A new key, which is kept nowhere.

        Args:
            archives: those it may see; None: all.
            rate: requests a second.
            quota: requests a day.
            days: until it expires.

        Raises:
            BadInput: the name is taken or empty, or a number or verb is none.
        """
        if not name.strip() or any(key.name == name for key in self.list()):
            raise BadInput(f"a key named {name!r} cannot be made", expected="a new name", remedy="Rotate or revoke it.")
        unknown = sorted(set(verbs) - set(VERBS))
        if unknown or not verbs:
            raise BadInput(
                "a key is for something", expected=f"verbs among {', '.join(VERBS)}", received=", ".join(unknown)
            )
        if archives is not None and "pages" in verbs:
            raise BadInput("the pages show every archive", remedy="Leave out the archives, or the verb pages.")
        for what, value in (("rate", rate), ("quota", quota), ("days", days)):
            if value is not None and not value > 0:
                raise BadInput(f"{what} lies outside its range", expected="above 0", received=f"{value:g}")
        now = time.time()
        made = Key(
            name, frozenset(verbs), None if archives is None else frozenset(archives), rate, quota, now,
            None if days is None else now + days * DAY,
        )  # fmt: skip
        return self._insert(made)

    def rotate(self, name: str, *, grace_hours: float = 24.0) -> str:
        """A new key of the same name and rights; the old ones go on for the grace period.

        Raises:
            BadInput: there is no such key.
        """
        newest = max((key for key in self.list() if key.name == name), key=lambda key: key.created, default=None)
        if newest is None:
            raise BadInput(f"no key is named {name!r}", expected=", ".join(sorted({k.name for k in self.list()})))
        with self._open() as database, database:
            ends = time.time() + grace_hours * 3600
            database.execute(
                "UPDATE keys SET expires = min(coalesce(expires, ?), ?) WHERE name = ?", (ends, ends, name)
            )
        now = time.time()
        lasts = None if newest.expires is None else now + newest.expires - newest.created
        return self._insert(replace(newest, created=now, expires=lasts))

    def revoke(self, name: str) -> int:
        """Takes the keys of that name back, from the next request on; returns how many. BadInput when there is none."""
        with self._open() as database, database:
            gone = database.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount
        if not gone:
            raise BadInput(f"no key is named {name!r}", expected=", ".join(sorted({k.name for k in self.list()})))
        return gone

    def list(self) -> list[Key]:
        """All keys, the oldest first."""
        if not self.file.is_file():
            return []
        return sorted(self._read().values(), key=lambda key: key.created)

    def used(self, day: int | None = None) -> dict[str, int]:
        """Requests by name on a day since the epoch, today by default, as far as they are written."""
        day = int(time.time() // DAY) if day is None else day
        with self._open() as database:
            return dict(database.execute("SELECT name, requests FROM used WHERE day = ?", (day,)).fetchall())

    # For the server.

    def admit(self, secret: str | None, verb: str) -> Key:
        """The key of a request, counted.

        Raises:
            Refused: no key (401), or it may not (403).
            TooOften: its rate or quota is spent.
        """
        if secret is None:
            raise Refused("this server wants a key", 401, remedy="Send it as `Authorization: Bearer KEY`.")
        version = self._stamp()
        if version != self._version:
            self._known, self._version = self._read(), version
        key = self._known.get(_digest(secret))
        if key is None or (key.expires is not None and key.expires < time.time()):
            raise Refused("this key is not known or has ended", 401, remedy="Ask for a new one.")
        allowed = key.verbs | {"search"} if "pages" in key.verbs else key.verbs  # pages show pictures by the API
        if verb and verb not in allowed:
            raise Refused(f"the key {key.name!r} is not for this", 403, remedy=f"It takes the verb {verb!r}.")
        self._count(key)
        return key

    def save_counts(self) -> None:
        """Writes how often keys were used; call it every few seconds, on a thread."""
        counts, self._unsaved = self._unsaved, {}
        if not counts:
            return
        try:
            with self._open() as database, database:
                database.executemany(
                    "INSERT INTO used VALUES (?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET requests = requests + excluded.requests",
                    [(name, day, count) for (name, day), count in counts.items()],
                )
                database.execute("DELETE FROM used WHERE day < ?", (int(time.time() // DAY) - 400,))
        except (FovealError, sqlite3.Error):
            for key, count in counts.items():  # for the next time
                self._unsaved[key] = self._unsaved.get(key, 0) + count
            raise

    # Inside.

    def _count(self, key: Key) -> None:
        now = time.time()
        today = int(now // DAY)
        if today != self._day:
            self._spending.begin(today, self.used(today))
            self._day = today
        if key.rate is not None or key.quota is not None:
            wait = self._spending.take(key.name, today, now, key.rate, key.quota)
            if wait == 0:
                raise TooOften(f"the key {key.name!r} has had its {key.quota:,} requests of today", DAY - now % DAY)
            if wait is not None:
                raise TooOften(f"the key {key.name!r} may ask {key.rate:g} times a second", wait)
        self._unsaved[key.name, today] = self._unsaved.get((key.name, today), 0) + 1

    def _stamp(self) -> tuple[int, int]:
        try:
            seen = self.file.stat()
        except FileNotFoundError:
            return (0, 0)
        return seen.st_mtime_ns, seen.st_size

    def _insert(self, key: Key) -> str:
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._open() as database, database:
            database.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key.name, _digest(secret), ",".join(sorted(key.verbs)),
                    None if key.archives is None else "\n".join(sorted(key.archives)), key.rate, key.quota,
                    key.created, key.expires,
                ),
            )  # fmt: skip
        return secret

    def _read(self) -> dict[str, Key]:
        with self._open() as database:
            rows = database.execute(
                "SELECT digest, name, verbs, archives, rate, quota, created, expires FROM keys"
            ).fetchall()
        return {
            digest: Key(
                name,
                frozenset(verbs.split(",")),
                None if archives is None else frozenset(archives.split("\n")),
                *rest,
            )
            for digest, name, verbs, archives, *rest in rows
        }

    def _open(self) -> closing[sqlite3.Connection]:
        try:
            if not self.file.exists():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.touch(mode=0o600)
            database = sqlite3.connect(self.file, timeout=WAIT)
            database.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise IntegrityError(
                f"{self.file} holds no keys: {error}", remedy="Restore it, or make new keys."
            ) from None
        return closing(database)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
