"""The vectors of an archive on a GPU, which compares a query with all of them.

Made of the GPU index for half-precision vectors of faiss 1.15 (`GpuIndexFlat`). That ignores selectors unless it was
built with cuVS, so what is left out is passed over afterwards, while it is little. It has run on no GPU yet: tests put
a stand-in for faiss's calls under it.

Shape letters: Q queries, D dimensions.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import faiss as _faiss
import numpy as np

from foveal.detections import FloatArray, IntArray
from foveal.errors import Unavailable

faiss: Any = _faiss
log = logging.getLogger("foveal.retrieval")

MOST = 2048  # candidates that a GPU selects
SPARE = 16  # candidates beyond those asked for, as they are compared in half precision
RESCORED_BYTES = 64 * 2**20  # of candidates' vectors at a time
SCRATCH = 256 * 2**20  # bytes for what faiss computes; its own default is six times that


class Gpu:
    """The first GPU. Searches of all archives of a process take turns on it, as faiss wants it."""

    def __init__(self) -> None:
        """Raises Unavailable: the installed faiss is the one for CPUs, or there is no GPU."""
        if not hasattr(faiss, "StandardGpuResources"):
            raise Unavailable(
                "the faiss that is installed cannot use a GPU",
                remedy="pip uninstall faiss-cpu && pip install faiss-gpu",
            )
        if not faiss.get_num_gpus():
            raise Unavailable("faiss finds no GPU", remedy="Look at nvidia-smi, or search on the CPU.")
        self.turn = threading.Lock()
        self.resources = faiss.StandardGpuResources()
        self.resources.setTempMemory(SCRATCH)

    def hold(self, store: Any) -> OnGpu | None:
        """A copy of the vectors of a FAISS store; None where they do not fit, which is logged."""
        settings = faiss.GpuIndexFlatConfig()
        settings.useFloat16 = True
        try:
            with self.turn:
                index = faiss.GpuIndexFlat(self.resources, store.d, faiss.METRIC_INNER_PRODUCT, settings)
                # At once: piece by piece all of it is copied each time it grows.
                index.add(store.reconstruct_n(0, store.ntotal))
        except (RuntimeError, MemoryError) as error:
            log.warning("%s vectors do not fit onto the GPU, the CPU searches them: %s", f"{store.ntotal:,}", error)
            return None
        log.info("%s vectors are on the GPU", f"{store.ntotal:,}")
        return OnGpu(self, index, store)


class OnGpu:
    """The vectors of one FAISS store on a GPU."""

    def __init__(self, gpu: Gpu, index: Any, store: Any) -> None:
        self._gpu, self._index, self._store = gpu, index, store

    def search(
        self, queries: FloatArray, k: int, left_out: int = 0, bits: Any = None
    ) -> tuple[FloatArray, IntArray] | None:
        """The best k positions for `queries` (Q, D) -> similarities, as they are stored, and positions (Q, k).

        None where it cannot tell: too much is left out to pass over, or the GPU has no memory left. faiss reports that;
        any other error of CUDA ends the process.

        Args:
            left_out: positions that no answer may hold.
            bits: which may, a bit each, the lowest first; at least k of them.
        """
        wanted = min(k + SPARE + left_out, self._store.ntotal)
        position = self._candidates(queries, wanted) if wanted <= MOST else None
        if position is None:
            return None
        similarity = np.empty(position.shape, np.float32)
        size = max(1, RESCORED_BYTES // (4 * wanted * queries.shape[1]))
        for start in range(0, len(queries), size):
            some = position[start : start + size]
            vectors = self._store.reconstruct_batch(some.reshape(-1)).reshape(*some.shape, -1)
            similarity[start : start + size] = np.einsum("qd,qcd->qc", queries[start : start + size], vectors)
        if bits is not None:
            similarity[bits[position >> 3] >> (position & 7) & 1 == 0] = -np.inf
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(position, order, axis=1)

    def release(self) -> None:
        """Gives its memory back; from now on it cannot tell."""
        with self._gpu.turn:
            self._index = None

    def _candidates(self, queries: FloatArray, count: int) -> IntArray | None:
        """Positions (Q, count) in the order of half precision."""
        with self._gpu.turn:
            if self._index is None:
                return None
            try:
                found: IntArray = self._index.search(queries, count)[1]
            except RuntimeError as error:
                self._index = None
                log.warning("the GPU no longer searches, the CPU does: %s", error)
                return None
        return None if np.any(found < 0) else found  # numbers too large for half precision
