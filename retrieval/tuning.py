"""How far an approximate index has to look for the recall asked of it, measured on the vectors that it holds.

Shape letters: N vectors, D dimensions, Q queries, S a sample. A position is a vector's place in the index.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import faiss as _faiss
import numpy as np

from foveal.detections import FloatArray, IntArray

if TYPE_CHECKING:
    from retrieval.index import Vectors

faiss: Any = _faiss  # its wrappers are written at import, so a type checker sees other signatures

TIE = 1e-5  # similarities closer than this count as equal when recall is measured
TUNE_K = 10
TUNE_QUERIES = 128  # of each of three kinds
EFFORTS = sorted({n for e in range(17) for n in (2**e, 3 * 2**e // 2)})  # 1, 2, 3, 4, 6, 8, 12, ...


@dataclass(frozen=True, slots=True)
class Operating:
    """One way to run an index, and what it was measured to give."""

    effort: int  # lists visited (IVF) or candidates kept (HNSW)
    k_factor: int  # times k candidates are refined
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


@dataclass(slots=True)
class Trial:
    """Queries to tune with, and the best similarities there are for them, found while the index is filled."""

    queries: FloatArray  # (Q, D)
    kinds: IntArray  # (Q,) 0, 1 or 2
    itself: IntArray  # (Q,) position of the vector that is no answer, -1 where all may be
    truth: FloatArray  # (Q, TUNE_K) best first

    @classmethod
    def draw(cls, vectors: Vectors) -> Trial:
        """Three kinds of query, as an index that is good for one can fail for another: stored vectors, as in searches
        by an image of the archive; means of two, which lie between clusters as composed queries do; and vectors with
        twice their length of noise, far from every cluster as text queries are from images (arXiv 2203.02053).
        """
        rng = np.random.default_rng(1)
        own = sample(len(vectors), TUNE_QUERIES)
        stored = vectors.at(own)
        between = stored + stored[rng.permutation(len(own))]
        noise = rng.standard_normal(stored.shape).astype(np.float32)
        afar = stored + 2 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        queries = np.concatenate([stored, between, afar])
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        kinds = np.repeat(np.arange(3), len(own))
        itself = np.where(kinds == 0, np.tile(own, 3), -1)
        return cls(queries, kinds, itself, np.full((len(queries), TUNE_K), -np.inf, np.float32))

    def look(self, chunk: FloatArray, start: int) -> None:
        """Takes the vectors (S, D) at positions `start` and on into the truth."""
        chunk = chunk.astype(np.float16).astype(np.float32)  # as they are stored
        k = min(TUNE_K + 1, len(chunk))
        similarity, position = faiss.knn(self.queries, chunk, k, metric=faiss.METRIC_INNER_PRODUCT)
        similarity[position + start == self.itself[:, None]] = -np.inf
        both = np.concatenate([self.truth, similarity], axis=1)
        self.truth = -np.sort(-both, axis=1)[:, :TUNE_K]


def tune(index: Any, trial: Trial, target: float) -> Tuning:
    """The fastest (effort, k_factor) that keeps `target` recall@10; the one with the best recall when none does."""
    most = most_effort(index)
    curve: list[Operating] = []
    for k_factor in (4, 16, 64):
        for effort in (each for each in EFFORTS if each <= most):
            began = time.perf_counter()
            found = index.search(trial.queries, TUNE_K + 1, params=search_parameters(index, effort, k_factor))
            ms = (time.perf_counter() - began) * 1000 / len(trial.queries)
            each = recall(without(found, trial.itself)[:, :TUNE_K], trial.truth)
            worst = float(min(each[trial.kinds == kind].mean() for kind in range(3)))
            curve.append(Operating(effort, k_factor, worst, ms))
            if worst >= target or (effort > 64 and worst - curve[-2].recall < 1e-3):
                break  # reached, or more effort no longer helps at this k_factor
    reached = [point for point in curve if point.recall >= target]
    chosen = min(reached, key=lambda p: p.ms) if reached else max(curve, key=lambda p: p.recall)
    return Tuning(chosen, tuple(curve))


def most_effort(index: Any) -> int:
    base = faiss.downcast_index(index.base_index)
    return 2048 if isinstance(base, faiss.IndexHNSW) else int(base.nlist)


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


def search_parameters(index: Any, effort: int, k_factor: int, selector: Any = None) -> Any:
    # Per call: changing nprobe on a shared index would race with other threads' searches.
    chosen: dict[str, Any] = {} if selector is None else {"sel": selector}
    if isinstance(faiss.downcast_index(index.base_index), faiss.IndexHNSW):
        inner = faiss.SearchParametersHNSW(efSearch=effort, **chosen)
    else:
        inner = faiss.IVFSearchParameters(nprobe=effort, **chosen)
    return faiss.IndexRefineSearchParameters(k_factor=k_factor, base_index_params=inner)


def sample(count: int, at_most: int) -> IntArray:
    return np.sort(np.random.default_rng(0).permutation(count)[:at_most]).astype(np.int64)
