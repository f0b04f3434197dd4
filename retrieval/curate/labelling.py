"""What to label next: images that differ from the labelled ones and from each other, and that a model is unsure of.

Shape letters: N images to choose from.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveal.detections import FloatArray
from foveal.errors import BadInput
from foveal.progress import Progress, SilentProgress
from retrieval.archive import Archive
from retrieval.curate.kcenter import farthest_first
from retrieval.curate.listing import write_rows
from retrieval.curate.neighbours import Neighbourhood
from retrieval.curate.selection import Picture, Selection, distance

Uncertainty = str | Mapping[str, float]  # a numeric column, or id or URI -> value


@dataclass(frozen=True, slots=True)
class Pick:
    """One image to label."""

    rank: int  # from 1
    image: Picture
    distance: float | None  # to the labelled images and the picks before, when picked; None of the very first
    uncertainty: float | None


@dataclass(frozen=True, slots=True)
class Picks:
    """Images to label, in the order in which they are worth it."""

    images: int  # chosen from
    labelled: int
    unsure: int | None  # images with an uncertainty; None when none was asked for
    picks: tuple[Pick, ...]
    radius: float  # how far any image lies from all labelled ones and picks, times its uncertainty's weight

    def summary(self) -> dict[str, Any]:
        """Figures, as plain values."""
        return {
            "images": self.images,
            "labelled": self.labelled,
            "unsure": self.unsure,
            "chosen": len(self.picks),
            "radius": self.radius,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Plain records, in order."""
        return [
            {"rank": p.rank, "id": p.image.id, "uri": p.image.uri, "distance": p.distance, "uncertainty": p.uncertainty}
            for p in self.picks
        ]

    def write(self, path: Path) -> None:
        """The picks as .csv, .json or .txt (a URI a line), by the suffix of `path`.

        Raises:
            BadInput: another suffix.
        """
        write_rows(path, self.rows())


def select(
    archive: Archive,
    n: int,
    *,
    labelled: str | None = None,
    uncertainty: Uncertainty | None = None,
    filter: str | None = None,
    progress: Progress | None = None,
) -> Picks:
    """Up to n of the images that `filter` keeps, less those that the filter `labelled` keeps, by greedy k-center.

    Each pick is the image with the largest distance to all labelled images and all picks before it, so that asking for
    more later continues the same list. With `uncertainty`, it is the largest distance times uncertainty, the latter as
    a share of the largest there is: an image twice as uncertain counts like one twice as far away, and one of which a
    model is sure never comes. (BADGE, arXiv 1906.03671, spreads its picks over gradient embeddings, whose length is the
    uncertainty in the same way.) Images without an uncertainty count like the median. Fewer than n come only when the
    rest are copies of picks, or sure.

    In archives too large to compare all images with all labelled ones, distances to the latter go through an index and
    a few in a thousand are a little too large.

    Raises:
        BadInput: n is less than 1, a filter is not one or keeps nothing, everything is labelled, or an uncertainty is
            negative or not a number.
    """
    if n < 1:
        raise BadInput("n lies outside its range", expected="1 or more", received=str(n))
    progress = progress or SilentProgress()
    images = Selection.of(archive, filter)
    known = None if labelled is None else Selection.of(archive, labelled, images.view)
    pool = images if known is None else images.without(known)
    if not len(pool):
        raise BadInput("every image that the filter keeps is labelled", remedy="Loosen the filter, or add images.")
    values = None if uncertainty is None else _uncertainty(pool, uncertainty)
    vectors = pool.vectors(progress)
    bound = None
    if known is not None:
        search = Neighbourhood(known, known.vectors(progress), len(pool))
        bound = distance(search.nearest(vectors, 1, progress)[0][:, 0])
    weight = None if values is None else _weight(values)
    cover = farthest_first(vectors, n, bound=bound, weight=weight, progress=progress)
    pictures = pool.pictures(cover.places)
    picks = tuple(
        Pick(
            rank,
            pictures[rank - 1],
            apart if math.isfinite(apart) else None,
            None if values is None or not np.isfinite(values[place]) else float(values[place]),
        )
        for rank, (place, apart) in enumerate(zip(cover.places.tolist(), cover.distance.tolist(), strict=True), 1)
    )
    unsure = None if values is None else int(np.isfinite(values).sum())
    return Picks(len(pool), 0 if known is None else len(known), unsure, picks, cover.radius)


def read_uncertainty(path: Path) -> dict[str, float]:
    """Uncertainties by id or URI from a .csv or .jsonl file with fields `id` or `uri`, and `uncertainty`.

    Raises:
        BadInput: the file is neither, cannot be read, or lacks a field.
    """
    try:
        text = path.read_text("utf-8")
        rows: list[dict[str, Any]]
        if path.suffix.casefold() == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return {str(row["id"] if "id" in row else row["uri"]): float(row["uncertainty"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} holds no uncertainties: {error}",
            expected="CSV or JSONL with the fields id (or uri) and uncertainty",
        ) from error


def _uncertainty(pool: Selection, given: Uncertainty) -> FloatArray:
    """The uncertainty (N,) of each image, NaN where there is none."""
    if isinstance(given, str):
        values = pool.numbers(given).astype(np.float32)
    else:
        pictures = pool.pictures(np.arange(len(pool)))
        values = np.array([given.get(p.id, given.get(p.uri, math.nan)) for p in pictures], dtype=np.float32)
    if not np.isfinite(values).any():
        raise BadInput(
            "no image to choose from has an uncertainty", expected="values by the ids or URIs of the archive"
        )
    if np.isinf(values).any() or (values < 0).any():
        raise BadInput("an uncertainty is negative or infinite", expected="0 or more")
    return values


def _weight(values: FloatArray) -> FloatArray:
    """Weights (N,) in [0, 1] from uncertainties with gaps."""
    filled = np.where(np.isnan(values), np.float32(np.nanmedian(values)), values)
    largest = float(filled.max())
    return (filled / largest if largest > 0 else np.ones_like(filled)).astype(np.float32)
