"""Times as they are stored and compared: ISO 8601 in UTC, to the second, all of one length: `2026-11-02T09:30:00Z`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

# With the date's hyphens, or a T behind a date without: digits alone may be a count of seconds or a number.
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].+)?|\d{8}T.+", re.ASCII)


def utc(text: str) -> str | None:
    """A time in ISO 8601 as it is stored; None when `text` is none, or none that is certain, such as `11/30/2026`.

    A date alone is its midnight, a time without an offset is in UTC, and a fraction of a second is dropped.
    """
    text = text.strip()
    if not _ISO.fullmatch(text):
        return None
    try:
        return stored(datetime.fromisoformat(text))
    except ValueError:
        return None


def stored(moment: datetime) -> str | None:
    """A moment as it is stored, in UTC where it has no zone; None outside the years 1 to 9999."""
    try:
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except OverflowError:
        return None
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"
