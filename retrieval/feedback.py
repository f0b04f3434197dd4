"""What people said of hits: a small SQLite file beside the archive, from which relevance is fitted anew.

It holds words that were searched for and ids of images, nothing else of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Generator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from foveal.errors import BadInput, IntegrityError
from retrieval.query import MAX_TEXT
from retrieval.sqlite_files import DAMAGE, WAIT, damage, explained

_TABLE = """CREATE TABLE IF NOT EXISTS judged(
    text TEXT NOT NULL, id TEXT NOT NULL, relevant INTEGER NOT NULL, at TEXT NOT NULL, PRIMARY KEY (text, id)
) WITHOUT ROWID"""
_REMEDY = "Restore it from a backup; `sqlite3 FILE .recover` saves what can be read. Without it, judgements start anew."


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an image is what a text asks for."""

    text: str
    id: str
    relevant: bool


class Feedback:
    """The judgements on one archive; the latest on each text and image counts."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Keeps judgements; they are durable when this returns.

        Raises:
            BadInput: a text is empty or too long.
            IntegrityError: the file is damaged.
            Unavailable: another process is writing to it.
            FovealError: the disk is full, or the file may not be written.
        """
        for judgement in judgements:
            if not (judgement.text.strip() and len(judgement.text) <= MAX_TEXT):
                raise BadInput(
                    "a judged text is empty or too long",
                    expected=f"1 to {MAX_TEXT} characters",
                    received=str(len(judgement.text)),
                )
        with self._open() as database:
            database.executemany(
                "INSERT OR REPLACE INTO judged VALUES (?, ?, ?, datetime('now'))",
                [(judgement.text, judgement.id, int(judgement.relevant)) for judgement in judgements],
            )

    def remove(self, text: str, ids: Sequence[str]) -> int:
        """Takes back what was said of images for a text; returns how many judgements that were.

        Raises:
            IntegrityError: the file is damaged.
        """
        if not self.file.is_file():
            return 0
        with self._open() as database:
            return sum(
                database.execute("DELETE FROM judged WHERE text = ? AND id = ?", (text, id)).rowcount for id in ids
            )

    def read(self) -> list[Judgement]:
        """Every judgement, ordered by text; IntegrityError when the file is damaged."""
        if not self.file.is_file():
            return []
        with self._open() as database:
            rows = database.execute("SELECT text, id, relevant FROM judged ORDER BY text, id").fetchall()
        return [Judgement(text, id, bool(relevant)) for text, id, relevant in rows]

    def keep(self, ids: Collection[str]) -> int:
        """Forgets the judgements on images that are not among `ids`, for good; returns how many."""
        if not self.file.is_file():
            return 0
        known = set(ids)
        gone = sorted({judgement.id for judgement in self.read()} - known)
        with self._open() as database:
            database.execute("PRAGMA secure_delete = ON")
            count = 0
            for id in gone:
                count += database.execute("DELETE FROM judged WHERE id = ?", (id,)).rowcount
        return count

    def damage(self) -> str | None:
        """What is wrong with the file, and how many judgements can be read; see `sqlite_files.damage`."""
        if not self.file.is_file() or (why := damage(self.file)) is None:
            return None
        count = 0
        with suppress(*DAMAGE), closing(sqlite3.connect(self.file, timeout=WAIT)) as database:
            for _ in database.execute("SELECT text, id, relevant FROM judged"):
                count += 1
        return f"{self.file} is damaged: {why}; {count} of its judgements can still be read. {_REMEDY}"

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.file, timeout=WAIT)) as database, database:
                database.execute(_TABLE)
                yield database
        except DAMAGE as error:
            if (known := explained(error, self.file)) is not None:
                raise known from error
            raise IntegrityError(f"{self.file} is damaged: {error}", remedy=_REMEDY) from error
