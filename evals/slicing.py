"""Words by which items can be divided, from what is known of them as text, as a time or as a number."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from foveal.dataset import Sample

Words = list[str | None]  # one an item, None where nothing is known
MOST_WORDS = 50  # in a field from which it names images rather than divides them
QUARTERS = 4


def columns_of(samples: Sequence[Sample]) -> dict[str, Words]:
    """What the samples' metadata and sizes say, a column a field.

    Text divides as it is. Times (ISO 8601, EXIF) become an `hour` of the day and a `month`; numbers become quarters of
    the samples, few different ones stay as they are; the `image size` is the square root of its pixels, in quarters.
    Fields that say the same of all samples, or of each something else, are left out.
    """
    names = sorted({name for sample in samples for name in sample.metadata})
    images = len({sample.id for sample in samples})
    columns: dict[str, Words] = {}
    for name in names:
        values = [sample.metadata.get(name) for sample in samples]
        if not (
            len(set(values)) == images and all(isinstance(value, int) for value in values)
        ):  # a number of the image
            columns |= divided(name, values)
    columns |= divided("image size", [round((sample.width * sample.height) ** 0.5) for sample in samples], " px")
    return {name: column for name, column in columns.items() if 1 < len(set(column)) <= MOST_WORDS}


def divided(name: str, values: Sequence[Any], unit: str = "") -> dict[str, Words]:
    """The columns that one field becomes."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, (int, float)) for value in known):
        return {name: quarters(values, unit)}
    times = [_time(value) for value in values]
    if all((time is None) == (value is None) for time, value in zip(times, values, strict=True)):
        month: Words = [None if time is None else f"{time:%Y-%m}" for time in times]
        hour: Words = [None if time is None else f"{time:%H}:00" for time in times]
        timed = {f"{name} month": month}
        return timed if set(hour) <= {"00:00", None} else {f"{name} hour": hour, **timed}
    return {name: [value if isinstance(value, str) else None for value in values]}


def quarters(values: Sequence[float | None], unit: str = "") -> Words:
    """Which quarter of the known values each lies in, as `from to` words; a few different values stay as they are."""
    known = np.array([value for value in values if value is not None and np.isfinite(value)], dtype=np.float64)
    different = np.unique(known)
    if len(different) <= QUARTERS:
        return [None if value is None else f"{value:g}{unit}" for value in values]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, QUARTERS + 1), method="inverted_cdf"))
    names = [f"{low:.4g} to {high:.4g}{unit}" for low, high in pairwise(edges)]

    def place(value: float) -> int:
        return int(np.clip(np.searchsorted(edges, value, side="left") - 1, 0, len(names) - 1))

    return [None if value is None or not np.isfinite(value) else names[place(value)] for value in values]


def _time(value: Any) -> datetime | None:
    """A moment written as ISO 8601 or as EXIF does (2026:11:30 06:15:00)."""
    if not isinstance(value, str) or len(value) < len("2026-11-30"):
        return None
    try:
        return datetime.fromisoformat(value.replace(":", "-", 2) if value[4] == value[7] == ":" else value)
    except ValueError:
        return None
