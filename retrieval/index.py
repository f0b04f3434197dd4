"""FAISS over part of an archive: which index for how many vectors, and its settings measured on those vectors.

Shape letters: N vectors, D dimensions, Q queries. A position is a vector's place in the index.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import faiss as _faiss
import numpy as np

from foveal.detections import BoolArray, FloatArray, IntArray

faiss: Any = _faiss  # its wrappers are written at import, so a type checker sees other signatures

TIE = 1e-5  # similarities closer than this count as equal when recall is measured
TUNE_K = 10
TUNE_QUERIES = 256
TRAIN_PER_LIST = 64  # vectors a k-means centroid


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """When to stop searching exactly, and how much recall an approximate index must keep."""

    flat_below: int = 50_000
    recall_target: float = 0.99


@dataclass(frozen=True, slots=True)
class Operating:
    """One way to run an index, and what it was measured to give."""

    nprobe: int
    k_factor: int
    recall: float  # recall@10 against exact search, the worst of three kinds of query
    ms: float  # a query, one batch of them


@dataclass(frozen=True, slots=True)
class Tuning:
    """The chosen operating point of an approximate index and the curve it was chosen from."""

    chosen: Operating
    curve: tuple[Operating, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tuning:
        return cls(Operating(**data["chosen"]), tuple(Operating(**point) for point in data["curve"]))


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """A FAISS index over N unit vectors; every search is by inner product and exact unless `tuning` is set."""

    index: Any = field(repr=False)
    kind: str
    tuning: Tuning | None = None

    @classmethod
    def build(cls, vectors: FloatArray, settings: IndexSettings) -> VectorIndex:
        """Index of `vectors` (N, D): flat while small, else IVF tuned to the recall target on these vectors."""
        if len(vectors) < settings.flat_below:
            return cls.flat(vectors)
        index = _trained(vectors)
        return cls(index, kind_of(index), tune(index, vectors, settings.recall_target))

    @classmethod
    def flat(cls, vectors: FloatArray) -> VectorIndex:
        """An exact index of `vectors` (N, D)."""
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(index, kind_of(index))

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, queries: FloatArray, k: int, alive: BoolArray | None = None) -> tuple[FloatArray, IntArray]:
        """Best k of the positions that are `alive` (N,) -> similarities and positions (Q, min(k, alive)).

        Fast rather than exact where the index is approximate, but never short while k positions are alive.
        """
        available = len(self) if alive is None else int(alive.sum())
        k = min(k, available)
        if self.tuning is None or k == 0:
            return self.exact(queries, k, None if alive is None else np.flatnonzero(alive))
        selector = None if alive is None else faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        parameters = _parameters(self.tuning.chosen.nprobe, self.tuning.chosen.k_factor, selector)
        similarity, position = self.index.search(queries, k, params=parameters)
        short = (position < 0).any(axis=1)
        if short.any():
            everything = np.arange(len(self)) if alive is None else np.flatnonzero(alive)
            similarity[short], position[short] = self.exact(queries[short], k, everything)
        return similarity, position

    def exact(self, queries: FloatArray, k: int, positions: IntArray | None = None) -> tuple[FloatArray, IntArray]:
        """The true best k among `positions` (all when None) -> similarities and positions (Q, min(k, len))."""
        store = faiss.downcast_index(self.index if self.tuning is None else self.index.refine_index)
        k = min(k, len(self) if positions is None else len(positions))
        if k == 0:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        if positions is None:
            return store.search(queries, k)
        # faiss answers an id array with its own short loop on flat storage only; on codes it took seconds (see
        # measurements: a bitmap took 5 ms where the array took 2.3 s).
        if isinstance(store, faiss.IndexFlat):
            selector = faiss.IDSelectorArray(np.ascontiguousarray(positions, dtype=np.int64))
        else:
            mask = np.zeros(len(self), dtype=bool)
            mask[positions] = True
            selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        return store.search(queries, k, params=faiss.SearchParameters(sel=selector))


def kind_of(index: Any) -> str:
    """The index type in words, e.g. `IndexFlatIP` or `IVF1024,PQ256x4fs,Refine(SQfp16)`."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        base = faiss.downcast_index(index.base_index)
        return f"IVF{base.nlist},PQ{base.M}x4fs,Refine(SQfp16)"
    return type(index).__name__


def _trained(vectors: FloatArray) -> Any:
    """IVF fast-scan codes refined over fp16: at a million vectors it beat HNSW at the same recall (measurements)."""
    count, dimension = vectors.shape
    lists = 2 ** round(np.log2(4 * np.sqrt(count)))
    codes = next(m for m in (dimension // 2, dimension) if m and dimension % m == 0)
    index = faiss.index_factory(dimension, f"IVF{lists},PQ{codes}x4fs,Refine(SQfp16)", faiss.METRIC_INNER_PRODUCT)
    sample = _sample(count, TRAIN_PER_LIST * lists)
    index.train(np.ascontiguousarray(vectors[sample], dtype=np.float32))
    for start in range(0, count, 65_536):
        index.add(np.ascontiguousarray(vectors[start : start + 65_536], dtype=np.float32))
    return index


def _parameters(nprobe: int, k_factor: int, selector: Any = None) -> Any:
    # Per call: changing nprobe on a shared index would race with other threads' searches.
    inner = faiss.IVFSearchParameters(nprobe=nprobe, **({} if selector is None else {"sel": selector}))
    return faiss.IndexRefineSearchParameters(k_factor=k_factor, base_index_params=inner)


def tune(index: Any, vectors: FloatArray, target: float) -> Tuning:
    """The fastest (nprobe, k_factor) that keeps `target` recall@10, measured on queries made from `vectors` (N, D).

    When no setting reaches the target, the one with the best recall is taken.
    """
    queries, kinds, itself = _trial_queries(vectors)
    lists = faiss.downcast_index(index.base_index).nlist
    store = faiss.downcast_index(index.refine_index)
    truth = without(store.search(queries, TUNE_K + 1), itself)[:, :TUNE_K]

    curve: list[Operating] = []
    for k_factor in (4, 16, 64):
        nprobe = 1
        while nprobe <= lists:
            began = time.perf_counter()
            found = index.search(queries, TUNE_K + 1, params=_parameters(nprobe, k_factor))
            ms = (time.perf_counter() - began) * 1000 / len(queries)
            each = recall(without(found, itself)[:, :TUNE_K], truth)
            curve.append(Operating(nprobe, k_factor, float(min(each[kinds == kind].mean() for kind in range(3))), ms))
            if curve[-1].recall >= target or (nprobe > 64 and curve[-1].recall - curve[-2].recall < 1e-3):
                break  # reached, or more lists no longer help at this k_factor
            nprobe *= 2
    reached = [point for point in curve if point.recall >= target]
    chosen = min(reached, key=lambda p: p.ms) if reached else max(curve, key=lambda p: p.recall)
    return Tuning(chosen, tuple(curve))


def _trial_queries(vectors: FloatArray) -> tuple[FloatArray, IntArray, IntArray]:
    """Queries (Q, D), their kind (Q,) and the position (Q,) of the vector that is no answer, -1 where all may be.

    Three kinds, as an index that is good for one can fail for another: stored vectors, as in searches by an image of
    the archive; means of two, which lie between clusters as composed queries do; and vectors with twice their length
    of noise, far from every cluster as text queries are from images (arXiv 2203.02053).
    """
    rng = np.random.default_rng(1)
    own = _sample(len(vectors), TUNE_QUERIES)
    stored = vectors[own].astype(np.float32)
    between = stored + vectors[rng.permutation(own)].astype(np.float32)
    noise = rng.standard_normal(stored.shape).astype(np.float32)
    afar = stored + 2 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    queries = np.concatenate([stored, between, afar])
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    kinds = np.repeat(np.arange(3), len(own))
    return queries, kinds, np.where(kinds == 0, np.tile(own, 3), -1)


def recall(found: FloatArray, truth: FloatArray) -> FloatArray:
    """Share of the true best k similarities (Q, k) that `found` (Q, k) matches, a query at a time -> (Q,).

    By similarity and not by id, so that of two equal vectors either will do.
    """
    worst = truth[:, -1:] - TIE
    return (found >= worst).mean(axis=1).astype(np.float32)


def without(found: tuple[FloatArray, IntArray], itself: IntArray) -> FloatArray:
    """Similarities (Q, k) less the one at the query's own position (Q,) -> (Q, k - 1), still best first."""
    similarity, position = found
    kept = np.where(position == itself[:, None], -np.inf, similarity)
    return -np.sort(-kept, axis=1)[:, : kept.shape[1] - 1].astype(np.float32)


def _sample(count: int, at_most: int) -> IntArray:
    return np.sort(np.random.default_rng(0).permutation(count)[:at_most]).astype(np.int64)
