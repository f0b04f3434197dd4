"""Which images are copies of each other: equal bytes, near-equal perceptual hashes, near-equal vectors.

Shape letters: N images of a selection, P pairs of places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as _compute  # pyright: ignore[reportMissingTypeStubs]

from foveal.detections import BoolArray, FloatArray, IntArray
from foveal.errors import BadInput
from foveal.progress import Progress, SilentProgress
from retrieval.curate.hamming import HashArray, near_pairs
from retrieval.curate.neighbours import Neighbourhood
from retrieval.curate.selection import Selection, unit

pc: Any = _compute

FIRST_K, WIDEN, MOST_K = 8, 4, 512  # neighbours looked at, and further ones where all of them were copies
PIECE = 16_384  # pairs compared at a time


@dataclass(frozen=True, slots=True)
class Likeness:
    """What makes two images copies of each other, beside equal bytes.

    Raises:
        BadInput: on construction, when the cosine lies outside (0, 1], or `both` lacks one of the two.
    """

    bits: int | None = 6  # that their perceptual hashes may differ in, of 64; None: hashes do not matter
    cosine: float | None = None  # that their vectors must reach; None: vectors do not matter
    both: bool = False  # hash and vectors must agree, instead of either

    def __post_init__(self) -> None:
        if self.cosine is not None and not 0 < self.cosine <= 1:
            raise BadInput("the cosine lies outside its range", expected="(0, 1]", received=f"{self.cosine:g}")
        if self.both and (self.bits is None or self.cosine is None):
            raise BadInput("both hash and vectors are to agree, but one has no limit", expected="bits and cosine")


@dataclass(frozen=True, slots=True)
class Hashes:
    """The perceptual hashes of a selection, of those images that have a telling one."""

    places: IntArray = field(repr=False)  # (M,) that have one
    values: HashArray = field(repr=False)  # (M,)
    missing: int  # images without a hash, as those added by vector
    blank: int  # images without any structure, whose hashes are all alike whatever their colour

    @classmethod
    def of(cls, images: Selection) -> Hashes:
        """Reads the `phash` column."""
        column = images.table(["phash"])["phash"].combine_chunks()
        there = column.is_valid().to_numpy(zero_copy_only=False)
        values = column.fill_null(0).to_numpy().astype(np.int64).view(np.uint64)
        telling = there & (np.bitwise_count(values) > 1)
        places = np.flatnonzero(telling)
        return cls(places, values[places], int((~there).sum()), int(there.sum() - len(places)))

    def apart(self, first: IntArray, second: IntArray) -> IntArray:
        """In how many bits the hashes of two places (P,) each differ; -1 where one has none."""
        near = np.full(len(first), -1, np.int64)
        if not len(self.places):
            return near
        at = [np.minimum(np.searchsorted(self.places, side), len(self.places) - 1) for side in (first, second)]
        known = (self.places[at[0]] == first) & (self.places[at[1]] == second)
        near[known] = np.bitwise_count(self.values[at[0][known]] ^ self.values[at[1][known]])
        return near


@dataclass(frozen=True, slots=True)
class Links:
    """Pairs of images that are copies of each other."""

    first: IntArray  # (P,) places, each less than its second
    second: IntArray  # (P,)
    hashes: Hashes

    @classmethod
    def find(
        cls, images: Selection, like: Likeness, split: IntArray | None = None, progress: Progress | None = None
    ) -> Links:
        """Enough pairs to tell which images hang together; or, of images of different `split` (N,), enough to give
        each image that has copies in another split one of them. Not every pair: a thousand copies make half a million.
        """
        progress = progress or SilentProgress()
        hashes = Hashes.of(images)
        contents, places = _contents(images)
        nothing = np.zeros(0, np.int64)
        found = [_Bundles.of(contents, places, split).linked(nothing, nothing)]
        if like.bits is not None and not like.both:
            values, keys = np.unique(hashes.values, return_inverse=True)
            near = near_pairs(values, like.bits, progress)[:2]
            found.append(_Bundles.of(keys, hashes.places, split).linked(*near))
        if like.cosine is not None:
            first, second = _similar(images, like.cosine, progress)
            if like.both and like.bits is not None:
                apart = hashes.apart(first, second)
                agreed = (apart >= 0) & (apart <= like.bits)
                first, second = first[agreed], second[agreed]
            found.append((first, second))
        first, second = (np.concatenate(side) for side in zip(*found, strict=True))
        if split is not None:
            crossing = split[first] != split[second]
            first, second = first[crossing], second[crossing]
        pairs = np.unique(np.minimum(first, second) * len(images) + np.maximum(first, second))
        return cls(*np.divmod(pairs, len(images)), hashes)


def cosines(images: Selection, first: IntArray, second: IntArray) -> FloatArray:
    """The cosines of the vectors at two places (P,) each."""
    read = images.view.table.vectors
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), PIECE):
        part = slice(start, start + PIECE)
        one, other = (unit(read(images.rows[side[part]]).astype(np.float32)) for side in (first, second))
        found[part] = np.einsum("pd,pd->p", one, other)
    return found


def _contents(images: Selection) -> tuple[IntArray, IntArray]:
    """A number for each different content, and the places it is known of."""
    column = images.table(["content_hash"])["content_hash"]
    places = np.flatnonzero(pc.not_equal(column, "").to_numpy(zero_copy_only=False))
    keys = column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return keys[places], places


def _similar(images: Selection, cosine: float, progress: Progress) -> tuple[IntArray, IntArray]:
    """Pairs of places whose vectors reach the cosine."""
    vectors = images.vectors(progress)
    near = Neighbourhood(images, vectors, len(images))
    which, k = np.arange(len(images)), FIRST_K
    first: list[IntArray] = []
    second: list[IntArray] = []
    while len(which):
        similarity, place = near.of(vectors, which, k, progress, own=True)
        alike: BoolArray = np.asarray(similarity >= cosine)
        more: BoolArray = np.asarray(alike.all(axis=1) & (k < min(len(images) - 1, MOST_K)))
        query, column = np.nonzero(alike & ~more[:, None])
        first.append(which[query])
        second.append(place[query, column])
        which, k = which[more], k * WIDEN
    return np.concatenate(first), np.concatenate(second)


@dataclass(frozen=True, slots=True)
class _Bundles:
    """Places that share a key and a split, one bundle after the other, by key."""

    places: IntArray  # (M,)
    start: IntArray  # (B,) of each bundle within `places`
    size: IntArray  # (B,)
    key: IntArray  # (B,) ascending
    split: IntArray | None  # (B,)

    @classmethod
    def of(cls, keys: IntArray, places: IntArray, split: IntArray | None) -> _Bundles:
        mine = np.zeros(len(keys), np.int64) if split is None else split[places]
        order = np.lexsort((places, mine, keys))
        keys, mine = keys[order], mine[order]
        fresh = np.ones(len(keys), bool)
        fresh[1:] = (keys[1:] != keys[:-1]) | (mine[1:] != mine[:-1])
        start = np.flatnonzero(fresh)
        size = np.diff(np.append(start, len(keys)))
        return cls(places[order], start, size, keys[start], None if split is None else mine[start])

    def linked(self, first: IntArray, second: IntArray) -> tuple[IntArray, IntArray]:
        """Pairs of places, given the pairs (P,) of different keys that are near; equal keys are.

        Of two bundles, each place of the one is paired with the first place of the other.
        """
        own = np.unique(self.key)
        one, other = self._bundles(np.concatenate([first, own]), np.concatenate([second, own]))
        if self.split is not None:
            crossing = self.split[one] != self.split[other]
            one, other = one[crossing], other[crossing]
        pairs = [self._spread(one, other), self._spread(other, one)]
        left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
        return left[left != right], right[left != right]

    def _bundles(self, first: IntArray, second: IntArray) -> tuple[IntArray, IntArray]:
        """Every pair of a bundle of one key and a bundle of the other."""
        low = [np.searchsorted(self.key, side) for side in (first, second)]
        count = [
            np.searchsorted(self.key, side, side="right") - at for side, at in zip((first, second), low, strict=True)
        ]
        pair, number = _numbered(count[0] * count[1])
        one, other = np.divmod(number, count[1][pair])
        return low[0][pair] + one, low[1][pair] + other

    def _spread(self, bundle: IntArray, other: IntArray) -> tuple[IntArray, IntArray]:
        """Every place of each bundle with the first place of the other."""
        pair, number = _numbered(self.size[bundle])
        return self.places[self.start[bundle[pair]] + number], self.places[self.start[other[pair]]]


def _numbered(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Each index `counts[i]` times, and 0, 1, ... beside it."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
