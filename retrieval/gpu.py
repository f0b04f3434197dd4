"""The vectors of an archive on a GPU, which compares a query with all of them.

Made of the GPU index for half-precision vectors of faiss 1.15 (`GpuIndexFlat`). That ignores selectors unless it was
built with cuVS, so filters are not its business. It has run on no GPU yet: tests put a stand-in for faiss's calls
under it.

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
                index.add(
                    store.reconstruct_n(0, store.ntotal)
                )  # at once: piece by piece it is copied each time it grows
        except (RuntimeError, MemoryError) as error:
            log.warning("%s vectors do not fit onto the GPU, the CPU searches them: %s", f"{store.ntotal:,}", error)
            return None
        log.info("%s vectors are on the GPU", f"{store.ntotal:,}")
        return OnGpu(self, index)


class OnGpu:
    """The vectors of one FAISS store on a GPU."""

    def __init__(self, gpu: Gpu, index: Any) -> None:
        self._gpu, self._index = gpu, index

    def candidates(self, queries: FloatArray, k: int) -> IntArray | None:
        """Positions (Q, k) most similar to `queries` (Q, D) in half precision; None where it cannot tell.

        faiss reports a lack of memory; any other error of CUDA ends the process.
        """
        with self._gpu.turn:
            if self._index is None:
                return None
            try:
                found: IntArray = self._index.search(queries, k)[1]
            except RuntimeError as error:
                self._index = None
                log.warning("the GPU no longer searches, the CPU does: %s", error)
                return None
        return None if np.any(found < 0) else found  # numbers too large for half precision

    def release(self) -> None:
        """Gives its memory back; from now on it cannot tell."""
        with self._gpu.turn:
            self._index = None
