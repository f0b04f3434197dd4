"""What annotators did in Label Studio, as its webhooks tell: kept in a SQLite file, given back in its own export form.

Webhooks may come twice and out of order: of each annotation the latest state counts, and what was deleted stays so.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from foveal.errors import BadInput, IntegrityError, Unavailable

WAIT = 10.0  # seconds for another process that writes
KEPT = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_DELETED")
_TABLE = """CREATE TABLE IF NOT EXISTS annotations(
    project TEXT NOT NULL, id TEXT NOT NULL, task TEXT NOT NULL, updated TEXT NOT NULL, data TEXT, annotation TEXT,
    PRIMARY KEY (project, id))"""


class _Told(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: int | str


class _Task(_Told):
    data: dict[str, Any]


class _Annotation(_Told):
    result: list[dict[str, Any]]
    updated_at: str = ""


class Event(BaseModel):
    """What is used of a webhook's body. Several annotations come with as many tasks."""

    model_config = ConfigDict(extra="ignore")

    action: str
    project: _Told | None = None
    annotation: _Annotation | list[_Annotation] | None = None
    task: _Task | list[_Task] | None = None
    annotations: list[_Told] = []
    tasks: list[_Told] = []


class Corrections:
    """The annotations in a file.

    Raises:
        IntegrityError: from any method, when the file is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def take(self, event: Event) -> int:
        """Keeps what an event says, durably when this returns; returns how many annotations or tasks it is about.

        Raises:
            BadInput: it lacks what its action needs.
            Unavailable: it cannot be written, and nothing of it is kept.
        """
        if event.project is None:
            raise BadInput(
                f"a webhook of {event.action} came without its content", expected="`project`",
                remedy="Let Label Studio send the payload.",
            )  # fmt: skip
        project = str(event.project.id)
        with self._open() as database, _writing(self.file), database:
            if event.action == "ANNOTATIONS_DELETED":
                database.executemany(_DELETED, [(project, str(one.id)) for one in event.annotations])
                return len(event.annotations)
            if event.action == "TASKS_DELETED":
                database.executemany(_TASK_DELETED, [(project, str(one.id)) for one in event.tasks])
                return len(event.tasks)
            pairs = _pairs(event)
            database.executemany(
                _KEPT,
                [
                    (
                        project, str(annotation.id), str(task.id), annotation.updated_at,
                        task.model_dump_json(include={"id", "data"}), annotation.model_dump_json(),
                    )
                    for annotation, task in pairs
                ],
            )  # fmt: skip
            return len(pairs)

    def tasks(self, project: str | None = None) -> list[dict[str, Any]]:
        """The annotated tasks of a project, or of all, with their annotations, as Label Studio exports them."""
        with self._open() as database:
            rows = database.execute(
                "SELECT project, task, data, annotation FROM annotations "
                "WHERE annotation IS NOT NULL AND (? IS NULL OR project = ?) ORDER BY updated",
                (project, project),
            ).fetchall()
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for owner, task, data, annotation in rows:
            entry = found.setdefault((owner, task), {**json.loads(data), "annotations": []})
            entry["annotations"].append(json.loads(annotation))
        return list(found.values())

    def _open(self) -> closing[sqlite3.Connection]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _writing(self.file):
                database = sqlite3.connect(self.file, timeout=WAIT)
                database.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise IntegrityError(f"{self.file} holds no corrections: {error}", remedy="Move it away.") from None
        return closing(database)


@contextmanager
def _writing(file: Path) -> Generator[None]:
    """A full disk, a file of somebody else's, or one that another process holds, is said as it is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Unavailable(
            f"corrections cannot be kept in {file}: {error}", remedy="Mend that, and let the tool send them again."
        ) from None


# "~" sorts behind every time: what is deleted is never the older state.
_DELETED = (
    "INSERT INTO annotations VALUES (?, ?, '', '~', NULL, NULL) "
    "ON CONFLICT DO UPDATE SET data = NULL, annotation = NULL, updated = '~'"
)
_TASK_DELETED = "UPDATE annotations SET data = NULL, annotation = NULL, updated = '~' WHERE project = ? AND task = ?"
_KEPT = (
    "INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET task = excluded.task, "
    "updated = excluded.updated, data = excluded.data, annotation = excluded.annotation "
    "WHERE excluded.updated >= updated"
)


def _pairs(event: Event) -> Sequence[tuple[_Annotation, _Task]]:
    made = event.annotation if isinstance(event.annotation, list) else [event.annotation]
    tasks = event.task if isinstance(event.task, list) else [event.task]
    pairs = [(a, t) for a, t in zip(made, tasks, strict=False) if a is not None and t is not None]
    if not pairs or len(made) != len(tasks):
        raise BadInput(
            f"a webhook of {event.action} came without its content", expected="`annotation` and `task`",
            remedy="Let Label Studio send the payload.",
        )  # fmt: skip
    return pairs
