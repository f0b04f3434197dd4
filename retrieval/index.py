"""FAISS over part of an archive: which index for how many vectors, and how it is searched.

Shape letters: N vectors, D dimensions, Q queries, S a sample. A position is a vector's place in the index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import faiss as _faiss
import numpy as np

from foveal.detections import BoolArray, FloatArray, IntArray
from retrieval.gpu import OnGpu
from retrieval.tuning import (
    EFFORTS,
    TUNE_K,
    Operating,
    Trial,
    Tuning,
    most_effort,
    recall,
    sample,
    search_parameters,
    tune,
)

faiss: Any = _faiss  # its wrappers are written at import, so a type checker sees other signatures

TRAIN_PER_LIST = 50  # vectors a k-means centroid
CHUNK = 65_536  # vectors read at a time
SUBSET_QUERIES = 12  # of each of four kinds
SUBSET_RECALL = 0.97  # that an approximate search of a subset must keep, or what the whole index keeps if that is less
GATHER_BYTES = 32 * 2**20  # of a subset's vectors, up to which they are copied to be searched on their own


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """When to stop searching exactly, how much recall an approximate index must keep, and what it may hold in memory.

    The memory is that of the codes of all approximate segments together, which searches go through and should find in
    memory. Not counted is what is mapped from disk, shared by processes and read a little of: the half-precision
    vectors that hits are refined with, keys, and what a hit tells; nor exact segments (mapped too) and the rows that
    wait to be indexed, which are few. Where the leanest kind needs more than is allowed, it is built nevertheless, and
    `add` and `stats` say so: unindexed, the vectors would need many times as much.
    """

    flat_below: int = 50_000
    recall_target: float = 0.99
    memory_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A kind of approximate index; all of them are refined over half-precision vectors."""

    factory: Callable[[int, int], str]  # (D, lists) -> FAISS factory string
    bytes_each: Callable[[int], float]  # resident, a vector of D dimensions


# In the order in which they are tried, the fastest at equal recall first (docs/decisions/0004).
RECIPES: dict[str, Recipe] = {
    "IVF-PQ": Recipe(lambda d, lists: f"IVF{lists},PQ{_codes(d)}x4fs", lambda d: _codes(d) / 2 + 8),
    "IVF-RaBitQ": Recipe(lambda d, lists: f"IVF{lists},RaBitQfs", lambda d: d / 8 + 20),
    "IVF-SQ8": Recipe(lambda d, lists: f"IVF{lists},SQ8", lambda d: d + 8),
    "HNSW-SQ8": Recipe(lambda d, lists: "HNSW32_SQ8", lambda d: d + 32 * 2 * 4 + 12),
}


class Vectors:
    """The vectors an index is built of, read piece by piece so that they need not fit into memory twice."""

    def __init__(self, count: int, dimension: int, read: Callable[[IntArray], Any]) -> None:
        self.count, self.dimension = count, dimension
        self._read = read  # positions (S,) -> (S, D) of any float type

    @classmethod
    def of(cls, array: FloatArray) -> Vectors:
        """Those of an array (N, D)."""
        return cls(len(array), array.shape[1], lambda positions: array[positions])

    def __len__(self) -> int:
        return self.count

    def at(self, positions: IntArray) -> FloatArray:
        """(S, D) float32."""
        return np.ascontiguousarray(self._read(positions), dtype=np.float32)

    def chunks(self) -> Iterator[tuple[int, FloatArray]]:
        """First position and vectors of each piece, in order."""
        for start in range(0, self.count, CHUNK):
            yield start, self.at(np.arange(start, min(start + CHUNK, self.count)))


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """A FAISS index over N unit vectors; every search is by inner product and exact unless `tuning` is set."""

    index: Any = field(repr=False)
    kind: str
    tuning: Tuning | None = None
    gpu: OnGpu | None = field(default=None, repr=False)  # which answers instead of the approximate index where it can
    plain: Any = field(init=False, repr=False)  # parameters of a search for `TUNE_K` or more of all positions

    def __post_init__(self) -> None:
        tuned = self.tuning is not None
        object.__setattr__(self, "plain", self._parameters(TUNE_K, None) if tuned else None)

    @classmethod
    def build(cls, vectors: Vectors, recall_target: float, kinds: Iterable[str] = RECIPES) -> VectorIndex:
        """The first of the `kinds` of approximate index that reaches the recall target on `vectors`.

        When none reaches it, the kind with the best recall.
        """
        best: VectorIndex | None = None
        for name in kinds:
            built = _built(name, vectors, recall_target)
            assert built.tuning is not None
            if best is None or best.tuning is None or built.tuning.chosen.recall > best.tuning.chosen.recall:
                best = built
            if built.tuning.chosen.recall >= recall_target:
                break
        assert best is not None
        return best

    @classmethod
    def flat(cls, vectors: Vectors) -> VectorIndex:
        """An exact index of `vectors`."""
        index = faiss.IndexFlatIP(vectors.dimension)
        for _, chunk in vectors.chunks():
            index.add(chunk)
        return cls(index, "flat")

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def recipe(self) -> str | None:
        """The name of its recipe; None of an exact one."""
        if self.tuning is None:
            return None
        return next(name for name in RECIPES if all(part in self.kind for part in name.split("-")))

    @property
    def codes_mb(self) -> float:
        """What it uses of `IndexSettings.memory_mb`."""
        return 0.0 if self.recipe is None else needed_mb(self.recipe, len(self), self.index.d)

    @property
    def store(self) -> Any:
        """The FAISS index that holds the vectors themselves."""
        return faiss.downcast_index(self.index if self.tuning is None else self.index.refine_index)

    def search(self, queries: FloatArray, k: int, among: Subset | None = None) -> tuple[FloatArray, IntArray]:
        """Best k of the positions `among` -> similarities and positions (Q, min(k, among)).

        Fast rather than exact where the index is approximate, but never short while k positions are there.
        """
        k = min(k, len(self) if among is None else len(among))
        if self.tuning is None or k == 0:
            return self.exact(queries, k, among)
        if self.gpu is not None:
            left_out, bits = (0, None) if among is None else (len(self) - len(among), among.bits)
            if (found := self.gpu.search(queries, k, left_out, bits)) is not None:
                return found
        parameters = self.plain if among is None and k >= TUNE_K else self._parameters(k, among)
        similarity, position = self.index.search(queries, k, params=parameters)
        short = position[:, -1] < 0  # what is missing is missing at the end
        if short.any():
            similarity[short], position[short] = self.exact(queries[short], k, among)
        return similarity, position

    def exact(self, queries: FloatArray, k: int, among: Subset | None = None) -> tuple[FloatArray, IntArray]:
        """The true best k `among` positions (all when None) -> similarities and positions (Q, min(k, among))."""
        k = min(k, len(self) if among is None else len(among))
        if k == 0:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        if among is None:
            return self.store.search(queries, k)
        if among.gathered is not None:
            similarity, place = among.gathered.search(queries, k)
            return similarity, among.positions[place]
        return self.store.search(queries, k, params=faiss.SearchParameters(sel=among.selector))

    def subset(self, positions: IntArray, *, gather: bool) -> Subset:
        """The ascending `positions` (S,), prepared for searches; `gather` copies the vectors of small ones.

        A filtered scan of half-precision vectors tests a bit for every vector there is, which for few of many costs
        more than the similarities do.
        """
        mask = np.zeros(len(self), dtype=bool)
        mask[positions] = True
        bits = np.packbits(mask, bitorder="little")
        gathered = None
        size = self.store.code_size
        if gather and len(positions) and len(positions) * size <= GATHER_BYTES:
            codes = faiss.rev_swig_ptr(self.store.codes.data(), len(self) * size).reshape(-1, size)
            gathered = _like(self.store)
            gathered.add_sa_codes(np.ascontiguousarray(codes[positions]))
        return Subset(positions, bits, faiss.IDSelectorBitmap(bits), gathered)

    def tuned(self, among: Subset) -> Subset:
        """The same positions, searched approximately if that was measured to keep the recall and to be faster.

        Lists and graphs are laid out for all vectors. How far one has to look among them for those of one camera or
        day differs from filter to filter, so it is measured: a few queries from inside and outside the subset.
        """
        if self.tuning is None or among.gathered is not None or len(among) <= TUNE_K:
            return among
        rng = np.random.default_rng(2)
        inside = rng.choice(among.positions, SUBSET_QUERIES)
        anywhere = rng.choice(len(self), SUBSET_QUERIES)
        stored = self.store.reconstruct_batch(np.concatenate([inside, anywhere]))
        queries = np.concatenate([stored, stored + stored[rng.permutation(len(stored))]])
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        began = time.perf_counter()
        truth = self.exact(queries, TUNE_K, among)[0]
        exact_ms = (time.perf_counter() - began) * 1000 / len(queries)
        chosen = self.tuning.chosen
        target, most = min(chosen.recall, SUBSET_RECALL), most_effort(self.index)
        for effort in (each for each in EFFORTS if chosen.effort <= each <= most):
            began = time.perf_counter()
            parameters = search_parameters(self.index, effort, chosen.k_factor, among.selector)
            found = self.index.search(queries, TUNE_K, params=parameters)[0]
            ms = (time.perf_counter() - began) * 1000 / len(queries)
            if ms >= exact_ms:
                break
            each = recall(found, truth)
            worst = float(min(part.mean() for part in np.split(each, 4)))
            if worst >= target:
                return replace(among, point=Operating(effort, chosen.k_factor, worst, ms))
        return among

    def _parameters(self, k: int, among: Subset | None) -> Any:
        """As tuned; for fewer than `TUNE_K` hits as many candidates are refined as for those."""
        assert self.tuning is not None
        point = self.tuning.chosen if among is None or among.point is None else among.point
        k_factor = point.k_factor * max(1, -(-TUNE_K // k))
        return search_parameters(self.index, point.effort, k_factor, None if among is None else among.selector)


@dataclass(frozen=True, slots=True)
class Subset:
    """Some positions of an index, in the forms its searches need."""

    positions: IntArray  # (S,) ascending
    bits: Any = field(repr=False)  # kept because FAISS only points to it
    selector: Any = field(repr=False)
    gathered: Any = field(repr=False)  # an exact index of just these vectors, or None
    point: Operating | None = None  # how to search the approximate index for them; None: exactly

    def __len__(self) -> int:
        return len(self.positions)


def needed_mb(name: str, count: int, dimension: int) -> float:
    """Memory of the codes of `count` vectors by a recipe."""
    return RECIPES[name].bytes_each(dimension) * count / 2**20


def fitting(count: int, dimension: int, memory_mb: float | None) -> list[str]:
    """The recipes whose codes of `count` vectors fit into memory, in the order to try them."""
    return [name for name in RECIPES if memory_mb is None or needed_mb(name, count, dimension) <= memory_mb]


def leanest(dimension: int) -> str:
    """The recipe that needs the least memory."""
    return min(RECIPES, key=lambda name: RECIPES[name].bytes_each(dimension))


def _codes(dimension: int) -> int:
    """Sub-quantisers of a PQ with two dimensions each, or one where D is odd."""
    return dimension // 2 if dimension % 2 == 0 else dimension


def _like(store: Any) -> Any:
    """An empty index that takes the codes of `store`."""
    if isinstance(store, faiss.IndexScalarQuantizer):
        return faiss.IndexScalarQuantizer(store.d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexFlatIP(store.d)


def _built(name: str, vectors: Vectors, target: float) -> VectorIndex:
    """A trained and filled index of the recipe, tuned against exact search over the same vectors."""
    lists = 2 ** round(np.log2(4 * np.sqrt(len(vectors))))
    described = f"{RECIPES[name].factory(vectors.dimension, lists)},Refine(SQfp16)"
    index = faiss.index_factory(vectors.dimension, described, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.at(sample(len(vectors), TRAIN_PER_LIST * lists)))
    trial = Trial.draw(vectors)
    for start, chunk in vectors.chunks():
        index.add(chunk)
        trial.look(chunk, start)
    return VectorIndex(index, described, tune(index, trial, target))


def contained(values: IntArray, ascending: IntArray) -> BoolArray:
    """Which of `values` (N,) occur in the sorted `ascending` (M,) -> (N,)."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[place] == values
