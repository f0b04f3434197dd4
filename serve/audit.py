"""Who saw or changed what: a line of JSON for each request, with the items it showed; nothing of pictures or texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_shown: ContextVar[list[tuple[str, str]] | None] = ContextVar("shown", default=None)


def showing() -> list[tuple[str, str]]:
    """Starts a request's list of (archive, item) that it shows or changes, which `note` adds to."""
    shown: list[tuple[str, str]] = []
    _shown.set(shown)
    return shown


def note(archive: str, ids: Iterable[str]) -> None:
    """Notes items that the request at hand shows or changes."""
    if (shown := _shown.get()) is not None:
        shown.extend((archive, id) for id in ids)


class NotAudited(Exception):
    """A line could not be written; no FovealError, because what raises it is the answer that is then not given."""


class Audit:
    """A file that lines are added to; it may be moved away at any time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._torn = False  # whether a line was cut short: the next one begins on a line of its own
        file.parent.mkdir(parents=True, exist_ok=True)

    def write(self, shown: list[tuple[str, str]], **facts: Any) -> None:
        """Adds a line.

        Raises:
            NotAudited: it could not be written, or not whole.
        """
        items: dict[str, list[str]] = {}
        for archive, id in dict.fromkeys(shown):
            items.setdefault(archive, []).append(id)
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts, "items": items}
        line = b"\n" * self._torn + json.dumps(told).encode() + b"\n"
        try:
            handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                written = os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise NotAudited(f"{self.file} cannot be written: {error.strerror}") from None
        if written < len(line):
            self._torn = True
            raise NotAudited(f"{self.file} cannot be written: there is no room for a whole line")
        self._torn = False
