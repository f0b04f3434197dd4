"""All pairs of near-equal 64-bit hashes, without comparing all pairs.

Multi-index hashing (Norouzi, Punjani and Fleet, arXiv 1307.2982): two hashes that differ in r bits differ in at most
r // 4 bits of at least one of their four 16-bit bands, so only hashes that share a band up to so many flipped bits are
compared. FAISS has the same as `IndexBinaryMultiHash`; asked about each of a million hashes it takes 17 minutes of one
core, because it walks hash maps where this joins sorted columns.

Shape letters: N different hashes, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

from foveal.detections import IntArray
from foveal.errors import BadInput
from foveal.progress import Progress, SilentProgress

HashArray = npt.NDArray[np.uint64]

BANDS, BAND_BITS = 4, 16
MAX_BITS = 11  # from 12 on, three flips in a band would be compared
AT_ONCE = 1 << 21  # candidates


def near_pairs(hashes: HashArray, bits: int, progress: Progress | None = None) -> tuple[IntArray, IntArray, IntArray]:
    """Every pair of the different `hashes` (N,) at most `bits` apart -> first < second position and distance (P,).

    Raises:
        BadInput: `bits` lies outside [0, MAX_BITS].
    """
    if not 0 <= bits <= MAX_BITS:
        raise BadInput("the bits lie outside their range", expected=f"0 to {MAX_BITS}", received=str(bits))
    progress = progress or SilentProgress()
    masks = [
        sum(1 << bit for bit in flipped)
        for count in range(bits // BANDS + 1)
        for flipped in combinations(range(BAND_BITS), count)
    ]
    found: list[IntArray] = []  # pairs as first * N + second
    progress.start("compare hashes", BANDS * len(masks))
    for band in range(BANDS):
        keys = ((hashes >> np.uint64(BAND_BITS * band)) & np.uint64(2**BAND_BITS - 1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        ordered = hashes[order]
        for mask in masks:
            for left, right in _joined(keys[order], mask):
                apart = np.bitwise_count(ordered[left] ^ ordered[right])
                near = apart <= bits
                one, other = order[left[near]], order[right[near]]
                found.append(np.minimum(one, other) * len(hashes) + np.maximum(one, other))
            progress.advance()
    progress.finish()
    pairs = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    first, second = np.divmod(pairs, max(len(hashes), 1))
    return first, second, np.bitwise_count(hashes[first] ^ hashes[second]).astype(np.int64)


def _joined(keys: IntArray, mask: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Positions (left, right) of the ascending `keys` (N,) that differ by exactly `mask`, each pair once, in pieces."""
    count = np.bincount(keys, minlength=2**BAND_BITS)
    end = np.cumsum(count)
    partner = keys ^ mask
    if mask:
        first = end[partner] - count[partner]
        partners = np.where(keys < partner, count[partner], 0)
    else:
        first = np.arange(1, len(keys) + 1)
        partners = end[keys] - first
    ends = np.cumsum(partners)
    start = 0
    while start < len(keys):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + AT_ONCE, side="right")), start + 1)
        piece = partners[start:stop]
        left = np.repeat(np.arange(start, stop), piece)
        within = np.arange(len(left)) - np.repeat(ends[start:stop] - piece - before, piece)
        yield left, np.repeat(first[start:stop], piece) + within
        start = stop
