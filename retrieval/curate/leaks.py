"""Copies of one picture in different splits, which make a test set easier than what it stands for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from foveal.detections import IntArray
from foveal.errors import BadInput
from foveal.progress import Progress
from retrieval.archive import Archive
from retrieval.curate.links import Likeness, Links, cosines
from retrieval.curate.selection import Picture, Selection

MAX_SPLITS = 64

How = Literal["equal bytes", "equal look"]


@dataclass(frozen=True, slots=True)
class Leak:
    """An image, and a copy of it in another split."""

    one: Picture
    one_split: str
    other: Picture
    other_split: str
    how: How
    bits: int | None  # in which their perceptual hashes differ; None when one has none
    cosine: float


@dataclass(frozen=True, slots=True)
class Leaks:
    """Pairs across splits, the surest first. Each image that has copies elsewhere occurs in at least one of them."""

    splits: dict[str, int]  # images of each
    unassigned: int  # images in no split
    pairs: tuple[Leak, ...]
    unhashed: int  # images without a perceptual hash
    blank: int  # images of one colour, told apart by their bytes only

    @property
    def leaking(self) -> dict[str, int]:
        """How many images of each split have a copy in another."""
        ids = {(leak.one_split, leak.one.id) for leak in self.pairs}
        ids |= {(leak.other_split, leak.other.id) for leak in self.pairs}
        return {name: sum(split == name for split, _ in ids) for name in self.splits}

    @property
    def between(self) -> dict[str, int]:
        """How many pairs there are for each pair of splits, e.g. "test - train"."""
        return dict(Counter(f"{leak.one_split} - {leak.other_split}" for leak in self.pairs).most_common())

    def summary(self) -> dict[str, Any]:
        """Figures, as plain values."""
        return {
            "splits": self.splits,
            "leaking": self.leaking,
            "between": self.between,
            "unassigned": self.unassigned,
            "unhashed": self.unhashed,
            "blank": self.blank,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A plain record a pair."""
        return [
            {
                "split": leak.one_split,
                "id": leak.one.id,
                "uri": leak.one.uri,
                "other_split": leak.other_split,
                "other_id": leak.other.id,
                "other_uri": leak.other.uri,
                "how": leak.how,
                "bits": leak.bits,
                "cosine": leak.cosine,
            }
            for leak in self.pairs
        ]


def find_leaks(
    archive: Archive,
    split: str | tuple[str, str],
    like: Likeness | None = None,
    *,
    filter: str | None = None,
    progress: Progress | None = None,
) -> Leaks:
    """Copies across splits: `split` is a metadata column, or two filters that each keep one side.

    Unlike groups of duplicates, a pair is near by itself and not through a third image.

    Raises:
        BadInput: there is no such column, fewer than two splits or more than 64, the filters are none or keep common
            images, or a limit lies outside its range.
    """
    images = Selection.of(archive, filter)
    names, side = _by_column(images, split) if isinstance(split, str) else _by_filters(archive, images, *split)
    counts = dict(zip(names, np.bincount(side[side >= 0], minlength=len(names)).tolist(), strict=True))
    assigned = np.flatnonzero(side >= 0)
    chosen, side = images.at(assigned), side[assigned]
    links = Links.find(chosen, like or Likeness(), side, progress)
    pairs = _pairs(chosen, links, names, side)
    return Leaks(counts, len(images) - len(chosen), pairs, links.hashes.missing, links.hashes.blank)


def _by_column(images: Selection, column: str) -> tuple[list[str], IntArray]:
    """The names of the splits, and which of them each image (N,) lies in, -1 for none."""
    values = [
        "" if value is None else f"{value:g}" if isinstance(value, float) else value for value in images.column(column)
    ]
    names, side = np.unique(np.array(values, dtype=object), return_inverse=True)
    found = [str(name) for name in names if name]
    if not 2 <= len(found) <= MAX_SPLITS:
        raise BadInput(
            f"column {column!r} does not split the images",
            expected=f"2 to {MAX_SPLITS} different values",
            received=f"{len(found)}: {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}",
            remedy="Name the column that says train or test, or give two filters.",
        )
    return found, side - (len(names) - len(found))


def _by_filters(archive: Archive, images: Selection, first: str, second: str) -> tuple[list[str], IntArray]:
    one, other = (images.within(Selection.of(archive, side, images.view)) for side in (first, second))
    if (one & other).any():
        raise BadInput(
            f"{int((one & other).sum()):,} images are on both sides",
            expected="filters that keep different images",
            received=f"{first!r} and {second!r}",
        )
    for side, name in ((one, first), (other, second)):
        if not side.any():
            raise BadInput(f"the side {name!r} is empty", remedy="Loosen it, or the filter beside it.")
    return [first, second], np.where(one, 0, np.where(other, 1, -1))


def _pairs(images: Selection, links: Links, names: list[str], side: IntArray) -> tuple[Leak, ...]:
    swap = side[links.first] > side[links.second]
    first, second = np.where(swap, links.second, links.first), np.where(swap, links.first, links.second)
    bits, cosine = links.hashes.apart(first, second), cosines(images, first, second)
    rows = [images.table(["id", "uri", "content_hash"], places).to_pylist() for places in (first, second)]
    found: list[Leak] = []
    for i, (one, other) in enumerate(zip(*rows, strict=True)):
        same = one["content_hash"] == other["content_hash"] != ""
        found.append(
            Leak(
                Picture(one["id"], one["uri"]),
                names[side[first[i]]],
                Picture(other["id"], other["uri"]),
                names[side[second[i]]],
                "equal bytes" if same else "equal look",
                None if bits[i] < 0 else int(bits[i]),
                float(cosine[i]),
            )
        )
    return tuple(sorted(found, key=lambda leak: (leak.how, -leak.cosine)))
