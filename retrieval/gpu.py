"""A copy of a segment's vectors on a GPU, where faiss-gpu finds one: it compares a query with all of them.

Made of the GPU index for half-precision vectors of faiss 1.15 (`GpuIndexFlat`). That ignores selectors unless it was
built with cuVS, so filters are not its business. It has run on no GPU yet: tests put a stand-in for faiss's calls
under it.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import faiss as _faiss

from foveal.detections import FloatArray, IntArray

faiss: Any = _faiss
log = logging.getLogger("foveal.retrieval")

MOST = 2048  # candidates that a GPU selects


class OnGpu:
    """The vectors of one FAISS store on the first GPU; searches of several threads take turns, as faiss wants it."""

    def __init__(self, store: Any) -> None:
        """Raises RuntimeError when the GPU has no room, as faiss does."""
        self._turn = threading.Lock()
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.index_cpu_to_gpu(self._resources, 0, store)
        self.works = True

    def candidates(self, queries: FloatArray, k: int) -> IntArray | None:
        """Positions (Q, k) most similar to `queries` (Q, D) in half precision; None once the GPU has failed."""
        if not self.works:
            return None
        try:
            with self._turn:
                return self._index.search(queries, k)[1]
        except RuntimeError as error:
            self.works = False
            log.warning("the GPU no longer searches, the CPU does: %s", error)
            return None


def on_gpu(store: Any) -> OnGpu | None:
    """The vectors of `store` on a GPU; None where there is none (always with faiss-cpu), or where they do not fit."""
    if not faiss.get_num_gpus():
        return None
    try:
        return OnGpu(store)
    except RuntimeError as error:
        log.warning("%s vectors do not fit onto the GPU, the CPU searches them: %s", f"{store.ntotal:,}", error)
        return None
