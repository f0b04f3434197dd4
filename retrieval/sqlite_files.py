"""The small SQLite files of an archive: what is wrong with one, and what an error about one means."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from foveal.errors import BadInput, FovealError, Unavailable

WAIT = 10.0  # seconds for another process that writes
DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)  # the latter from a message that quotes damaged text


def damage(file: Path, words: str | None = None) -> str | None:
    """What is wrong with a database, None when nothing is found.

    SQLite checks pages, order and counts, and FTS5 whether the table `words` is the index of its texts, where the file
    may be written. Neither keeps a checksum: a bit that flipped inside a value that no index repeats, in the case of a
    letter, or in space that is not in use, is not seen.

    Raises:
        Unavailable: another process is writing to it.
        BadInput: it may not be read.
    """
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=WAIT)) as database:
            (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if found == "ok" and words is not None:
                try:
                    database.execute(f"INSERT INTO {words}({words}) VALUES ('integrity-check')")
                    database.rollback()
                except sqlite3.OperationalError as error:
                    if _code(error) != "SQLITE_READONLY":
                        raise
            return None if found == "ok" else str(found)
    except DAMAGE as error:
        if (known := explained(error, file)) is not None:
            raise known from error
        return str(error)


def explained(error: Exception, file: Path) -> FovealError | None:
    """What an error about `file` means to who runs the command; None where the file is damaged."""
    code = _code(error)
    if code in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return Unavailable(f"another process is writing to {file}", remedy="Wait for it, then retry.")
    if code == "SQLITE_FULL":
        return no_space(file)
    if code in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH"):
        return BadInput(f"{file} cannot be used: {error}", remedy="Check the permissions of it and its folder.")
    if code == "SQLITE_IOERR":
        return FovealError(
            f"{file} cannot be used: {error}", remedy="Check its disk and the space left there, then retry."
        )
    return None


def no_space(path: Path) -> FovealError:
    """There is none where `path` is."""
    return FovealError(
        f"no space left while writing {path}",
        remedy="Free some and run the command again; what was acknowledged is safe.",
    )


def _code(error: Exception) -> str:
    """The name of SQLite's primary code."""
    name: str = getattr(error, "sqlite_errorname", None) or ""
    return "_".join(name.split("_")[:2])
