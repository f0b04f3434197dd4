"""How long an archive keeps what: images that were added, or taken, longer ago than that are removed for good.

The file of a picture that was sent here goes first, then its row, and at last every trace in the archive's files. A run
that is interrupted leaves a mark; the next one begins with what is due still, and ends what the mark stands for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from foveal.artifacts import write_text
from foveal.errors import BadInput
from retrieval.filters import parse
from retrieval.ingest import identity
from retrieval.table import batched
from retrieval.times import stored, utc
from retrieval.uploaded import drop, uploaded

if TYPE_CHECKING:
    from retrieval.archive import Archive

DAY = 86_400
MOST_DAYS = 100_000  # older than any photograph, and still within the years that a time can have
MARK = ".retaining"
AT_ONCE = 1000  # images whose files and rows go together


@dataclass(frozen=True, slots=True)
class Rule:
    """Which images go, once they are older than so many days.

    Raises:
        BadInput: the days are none.
    """

    days: float
    filter: str | None = None
    by: Literal["added", "taken"] = "added"

    def __post_init__(self) -> None:
        if not 0 < self.days < MOST_DAYS:
            expected = f"above 0 and below {MOST_DAYS:,}"
            raise BadInput("the days lie outside their range", expected=expected, received=f"{self.days:g}")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule that `DAYS[:FILTER]` means; BadInput when it means none."""
        days, colon, filter = text.partition(":")
        try:
            return cls(float(days), filter.strip() or None if colon else None)
        except ValueError as error:
            raise BadInput("a rule cannot be used", expected="DAYS or DAYS:FILTER", received=text) from error

    def __str__(self) -> str:
        return f"{self.days:g}" + (f":{self.filter}" if self.filter else "")


@dataclass(frozen=True, slots=True)
class Retained:
    """What a run removed."""

    deleted: int = 0  # images
    files: int = 0  # that had been sent here
    freed_bytes: int = 0


def due(archive: Archive, rule: Rule, now: float | None = None) -> list[str]:
    """Ids of the images that are to go, in the order they came; by `taken` those that say when that was.

    None goes by a time that is not as `retrieval.times` has it, as archives of an earlier Foveal hold some.

    Raises:
        BadInput: the rule's filter is none over this archive's columns.
    """
    before = (time.time() if now is None else now) - rule.days * DAY
    if rule.by == "taken":
        kept = _matching(archive, rule.filter) if rule.filter else None  # a wrong one is told of in any case
        if archive.columns.get("taken_at") != "time":
            return []
        old = _matching(archive, f"taken_at < '{stored(datetime.fromtimestamp(before, UTC))}'")
        chosen = None if kept is None else set(kept)
        return [id for id in old if chosen is None or id in chosen]
    since = archive.table().added()
    ids = _matching(archive, rule.filter or "width >= 0")
    return [id for id in ids if since.get(id, before) < before]


def _matching(archive: Archive, filter: str) -> list[str]:
    """Ids of the images that the filter keeps, without those it would judge by a time that is in no certain form."""
    ids, kinds = archive.matching(filter), archive.columns
    times = [name for name in parse(filter, kinds).columns if kinds[name] == "time"]
    if not times:
        return ids
    told = archive.items(ids, times)
    return [id for id in ids if id in told and all(time is None or utc(time) == time for time in told[id].values())]


def retain(
    archive: Archive, rule: Rule, now: float | None = None, *, tell: Callable[[Sequence[str]], None] | None = None
) -> Retained:
    """Removes what is due, for good.

    Args:
        tell: is told of the ids before anything goes; what it raises stops the run.

    Raises:
        BadInput: as `due`.
        Unavailable: another process is writing, or embedding the archive anew; the next run goes on.
    """
    now = time.time() if now is None else now
    archive.date()
    mark = archive.path / MARK
    ids = due(archive, rule, now)
    if ids and tell is not None:
        tell(ids)
    left = _left(archive, rule, now)
    if not ids and not left and not mark.exists():
        return Retained()
    write_text(mark, f"{rule}\n")
    deleted = files = 0
    for part in batched(ids, AT_ONCE):
        files += sum(drop(archive.path, row["uri"]) for row in archive.items(part, ["uri"]).values())
        deleted += archive.delete(part)
    files += sum(drop(archive.path, uri) for uri in left)
    archive.delete([identity(uri) for uri in left])  # those in quarantine leave it
    freed = archive.compact()
    mark.unlink(missing_ok=True)
    return Retained(deleted, files, freed)


def _left(archive: Archive, rule: Rule, now: float) -> list[str]:
    """Files that were sent here so long ago and belong to no image, as an add that was killed leaves them."""
    if rule.filter is not None or rule.by != "added":
        return []
    before = now - rule.days * DAY
    old = [str(path) for path in uploaded(archive.path) if os.stat(path).st_mtime < before]
    known = archive.items([identity(uri) for uri in old], ["uri"])
    return [uri for uri in old if identity(uri) not in known]
