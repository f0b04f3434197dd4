"""How good and how fast an archive's index is, against exact search over the vectors it was made from.

Shape letters: Q queries, D embedding dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveal.detections import FloatArray
from foveal.errors import BadInput
from retrieval.snapshot import Snapshot
from retrieval.tuning import recall, without


@dataclass(frozen=True, slots=True)
class RecallReport:
    """The index against exact search over the table's own vectors."""

    recall: float
    k: int
    queries: int
    p50_ms: float  # one query at a time, metadata of its hits included
    p99_ms: float


def measure(
    view: Snapshot, search: Callable[[FloatArray], Any], k: int, sample: int, queries: FloatArray | None
) -> RecallReport:
    """Recall@k of `view` and the latency of `search` (one query (1, D) a call); see `Archive.recall_at_k`.

    Raises:
        BadInput: there is nothing to ask.
    """
    itself = None
    if queries is None:
        picked = np.sort(np.random.default_rng(0).permutation(len(view.rows))[:sample])
        itself, queries = view.seqs[picked], view.table.vectors(view.rows[picked]).astype(np.float32)
    if not len(queries):
        raise BadInput("recall cannot be measured on an empty archive or without queries", remedy="Add images.")
    if itself is None:
        truth, found = view.brute_force(queries, k)[0], view.nearest(queries, k).similarity
    else:
        near = view.nearest(queries, k + 1)
        truth = without(view.brute_force(queries, k + 1), itself)
        found = without((near.similarity, view.seqs_of(near)), itself)
    times: list[float] = []
    for query in queries:
        began = time.perf_counter()
        search(query[None])
        times.append((time.perf_counter() - began) * 1000)
    p50, p99 = np.percentile(times, [50, 99]).tolist()
    share = float(recall(found, truth).mean()) if truth.shape[1] else 1.0
    return RecallReport(share, k, len(queries), p50, p99)
