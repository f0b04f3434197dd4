"""Taking turns at an archive's files, and errors of the system that say what to do."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from foveal.errors import BadInput, FovealError, Unavailable
from retrieval import sqlite_files

SECONDS = 10.0  # to wait for another process


class Denied(BadInput):
    """What may not be written."""


@contextmanager
def turn(lock: FileLock, what: str, seconds: float | None = None) -> Generator[None]:
    """Holds a lock that another process may hold while it is `what`.

    Args:
        seconds: to wait for it; None: `SECONDS`, -1: as long as it takes.

    Raises:
        Unavailable: it did not end in time.
    """
    try:
        lock.acquire(timeout=SECONDS if seconds is None else seconds)
    except Timeout as error:
        raise Unavailable(f"another process is {what}", remedy="Wait for it, then retry.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def explained(path: Path, denied: str = "Check its permissions.") -> Generator[None]:
    """What a user can do about errors while `path` is being changed; `denied` where it may not be.

    Raises:
        Denied: `path` may not be written.
        FovealError: the disk is full.
    """
    try:
        yield
    except FovealError:
        raise
    except sqlite3.OperationalError as error:
        if (known := sqlite_files.explained(error, path)) is None:
            raise
        raise known from error
    except Exception as error:  # libraries wrap what the system says in errors of their own
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Denied(f"{path} cannot be written: {error}", remedy=denied) from error
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise sqlite_files.no_space(path) from error
        raise
