"""Where a reference set, the labelled images for instance, does not reach the rest of an archive.

Shape letters: N images to cover, R reference images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from foveal.detections import BoolArray, FloatArray, IntArray
from foveal.errors import BadInput
from foveal.progress import Progress, SilentProgress
from retrieval.archive import Archive
from retrieval.curate.clusters import Cluster, Naming, described
from retrieval.curate.kmeans import choose_k, partition
from retrieval.curate.neighbours import Neighbourhood
from retrieval.curate.selection import Selection, cosine_at, distance

QUANTILE = 0.95  # of the reference images that their own radius covers
REFERENCE_SAMPLE = 20_000  # reference images whose neighbours set the radius
MOST_VALUES = 24  # of a column that is looked at unasked, and shown of one that was asked for
QUARTERS = 4


@dataclass(frozen=True, slots=True)
class ValueCoverage:
    """The images with one value of a column."""

    value: str
    images: int
    covered: int
    reference: int  # reference images with that value

    @property
    def share(self) -> float:
        """Of the images that are covered."""
        return self.covered / self.images


@dataclass(frozen=True, slots=True)
class Gap:
    """Images that look alike and that the reference set does not reach."""

    cluster: Cluster  # its share is that of all uncovered images
    distance: float  # mean to the reference set


@dataclass(frozen=True, slots=True)
class Gaps:
    """How much of the images the reference set covers, and what it does not."""

    images: int
    reference: int
    k: int
    radius: float  # Euclidean between unit vectors, within which an image counts as covered
    radius_cosine: float  # the same as a cosine
    covered: int
    gaps: tuple[Gap, ...]  # most images first
    by: dict[str, tuple[ValueCoverage, ...]]  # column -> its values, the least covered first
    apart: FloatArray = field(repr=False)  # (N,) distance of each image to its k-th nearest reference image
    usual: FloatArray = field(repr=False)  # the same of reference images, each left out in turn

    @property
    def share(self) -> float:
        """Of the images that are covered, [0, 1]."""
        return self.covered / self.images

    def summary(self) -> dict[str, Any]:
        """Figures, as plain values."""
        return {
            "images": self.images,
            "reference": self.reference,
            "covered": self.covered,
            "share": self.share,
            "radius": self.radius,
            "radius_cosine": self.radius_cosine,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A plain record a gap; their numbers count from 1."""
        return [
            {"cluster": number, **asdict(gap.cluster), "distance": gap.distance}
            for number, gap in enumerate(self.gaps, 1)
        ]

    def coverage(self) -> list[dict[str, Any]]:
        """A plain record a value of each column."""
        return [
            {"column": column, **asdict(value), "share": value.share}
            for column, values in self.by.items()
            for value in values
        ]


def find_gaps(
    archive: Archive,
    reference: str,
    *,
    filter: str | None = None,
    by: Sequence[str] | None = None,
    k: int = 1,
    radius: float | None = None,
    naming: Naming | None = None,
    progress: Progress | None = None,
) -> Gaps:
    """What of the images that `filter` keeps (all others when None) the images of the filter `reference` leave out.

    An image is covered when its k-th nearest reference image lies within the radius; when None, that is the distance
    within which 95% of the reference images have k others of their own. Images that are references themselves do not
    count. The uncovered ones are clustered, and coverage is counted by the columns `by`: every one with 2 to 24
    different values when None. Times count by the hour, and numbers of many values by quarters.

    Raises:
        BadInput: a filter is not one or keeps nothing, no image is left to cover, the reference set has not more than
            k images to set a radius from, k or the radius is out of range, or there is no such column.
    """
    progress = progress or SilentProgress()
    if k < 1 or (radius is not None and not 0 < radius <= 2):
        raise BadInput("k or radius lies outside its range", expected="k from 1, radius in (0, 2]")
    known = Selection.of(archive, reference)
    if len(known) < k + (radius is None):
        raise BadInput(
            f"the reference set has {len(known)} images",
            expected=f"more than {k}" if radius is None else f"{k} or more",
            remedy="Loosen its filter, lower k, or give a radius.",
        )
    images = Selection.of(archive, filter, known.view).without(known)
    if not len(images):
        raise BadInput("there is nothing to cover: the filter keeps reference images only", remedy="Loosen the filter.")
    near = known.vectors(progress)
    search = Neighbourhood(known, near, len(images) + min(len(known), REFERENCE_SAMPLE))
    usual = _usual(search, near, k, progress)
    limit = float(np.quantile(usual, QUANTILE)) if radius is None else radius
    vectors = images.vectors(progress)
    apart = distance(search.nearest(vectors, k, progress)[0][:, -1])
    covered = apart <= limit
    found = _clustered(archive, images, np.flatnonzero(~covered), apart, naming or Naming(), progress)
    columns = _columns(images, by)
    return Gaps(
        len(images), len(known), k, limit, cosine_at(limit), int(covered.sum()), found,
        {name: _by_value(images, known, name, covered) for name in columns}, apart, usual,
    )  # fmt: skip


def _usual(search: Neighbourhood, near: Any, k: int, progress: Progress) -> FloatArray:
    """Distances of reference images, or of a sample of them, to their k-th nearest others."""
    count = len(near)
    if count <= k:
        return np.zeros(0, np.float32)
    sample = np.sort(np.random.default_rng(0).permutation(count)[:REFERENCE_SAMPLE]).astype(np.int64)
    return distance(search.of(near, sample, k, progress, own=True)[0][:, -1])


def _clustered(
    archive: Archive, images: Selection, places: IntArray, apart: FloatArray, naming: Naming, progress: Progress
) -> tuple[Gap, ...]:
    if not len(places):
        return ()
    left = images.at(places)
    vectors = left.vectors(progress)
    parted = partition(vectors, choose_k(vectors, progress)[0])
    clusters = described(archive, left, vectors, parted, naming)
    mean = np.bincount(parted.label, apart[places]) / parted.sizes
    return tuple(Gap(cluster, float(mean[i])) for i, cluster in enumerate(clusters))


def _columns(images: Selection, asked: Sequence[str] | None) -> list[str]:
    if asked is not None:
        return list(asked)
    names = images.metadata_columns("text", "number", "time")
    if not names:
        return []
    table = images.table(names)
    times = set(images.metadata_columns("time"))
    return [name for name in names if name in times or 2 <= len(table[name].drop_null().unique()) <= MOST_VALUES]


def _by_value(images: Selection, known: Selection, column: str, covered: BoolArray) -> tuple[ValueCoverage, ...]:
    """Coverage by the values of a column, the least covered first; of many, those with most uncovered images."""
    values, reference = images.column(column), known.column(column)
    said = _said(values, images.view.table.columns[column])
    names, place = np.unique([said(value) for value in values], return_inverse=True)
    total, inside = np.bincount(place), np.bincount(place[covered], minlength=len(names))
    there = dict(zip(*np.unique([said(value) for value in reference], return_counts=True), strict=True))
    rows = [
        ValueCoverage(str(name), int(total[i]), int(inside[i]), int(there.get(name, 0))) for i, name in enumerate(names)
    ]
    most = sorted(rows, key=lambda row: row.covered - row.images)[:MOST_VALUES]
    return tuple(sorted(most, key=lambda row: (row.share, -row.images)))


def _said(values: Sequence[Any], kind: str) -> Callable[[Any], str]:
    """How a column's values are grouped: times by the hour, numbers of many different values by quarters."""
    there = [value for value in values if value is not None]
    if kind == "time":
        return lambda value: f"{value[11:13]}:00 UTC" if value and len(value) > 12 else "none"
    if kind == "number" and len(set(there)) > MOST_VALUES:
        edges = np.quantile(there, np.linspace(0, 1, QUARTERS + 1))

        def quarter(value: float | None) -> str:
            if value is None:
                return "none"
            i = int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, QUARTERS - 1))
            return f"{edges[i]:.4g} to {edges[i + 1]:.4g}"

        return quarter
    return lambda value: "none" if value is None else f"{value:g}" if isinstance(value, float) else value
