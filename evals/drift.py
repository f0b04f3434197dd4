"""How far what is seen now is from what was seen when a model was measured: population stability index.

Shape letters: B bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveal.detections import IntArray
from foveal.profile import Profile

Counts = NDArray[np.float64]
SHIFT = 0.25  # from which on a population has shifted, by long custom (Siddiqi, Credit Risk Scorecards, 2006)
CROWDED = 2.0  # design effect of scores that come several to an image
EACH = 5  # of both, in a bin


def psi(reference: Sequence[int] | IntArray, live: Sequence[int] | IntArray, effect: float = 1.0) -> float:
    """Population stability index of two histograms (B,), less what chance alone is expected to give; 0 or more.

    Neighbouring bins are joined until each holds a few of either. For equal populations the index is expected at
    (B - 1) (1/n + 1/m) (Yurdakul, Statistical Properties of PSI, 2018): that is taken off, or small samples would
    always have shifted.

    Args:
        effect: how many counts tell as much as an independent one (Kish's design effect), above 1 where several come
            from the same image.
    """
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(live, dtype=np.float64)
    if not first.sum() or not second.sum():
        return 0.0
    edges = _joined(first + second)
    first, second = np.add.reduceat(first, edges), np.add.reduceat(second, edges)
    n, m, p, q = first.sum(), second.sum(), _shares(first), _shares(second)
    return max(0.0, float(((p - q) * np.log(p / q)).sum()) - (len(edges) - 1) * effect * (1 / n + 1 / m))


def drift(reference: Profile, live: Profile) -> dict[str, float]:
    """The index of a detector's scores (`score`) and of the number of its boxes in an image (`boxes`)."""
    return {
        "score": psi(reference.scores, live.scores, CROWDED),
        "boxes": psi(reference.boxes, live.boxes),
    }


def _joined(counts: Counts) -> IntArray:
    """Where each of the joined bins begins."""
    edges, held = [0], 0.0
    for place, count in enumerate(counts):
        if held >= EACH and counts[place:].sum() >= EACH:
            edges.append(place)
            held = 0.0
        held += count
    return np.array(edges, dtype=np.int64)


def _shares(counts: Counts) -> Counts:
    """Shares of each bin, none of them zero."""
    return (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
