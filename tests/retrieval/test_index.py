from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval.index import RECIPES, VectorIndex, Vectors, contained, fitting, leanest, needed_mb
from retrieval.tuning import Tuning, recall, without


def clustered(count: int, dimension: int = 32, clusters: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dimension))
    vectors = centres[rng.integers(clusters, size=count)] + 0.5 * rng.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS = clustered(2000)


@pytest.fixture(scope="module", params=["flat", *RECIPES])
def index(request: pytest.FixtureRequest) -> VectorIndex:
    if request.param == "flat":
        return VectorIndex.flat(Vectors.of(VECTORS))
    return VectorIndex.build(Vectors.of(VECTORS), 0.99, [request.param])


def truth(queries: np.ndarray, positions: np.ndarray, k: int) -> np.ndarray:
    return -np.sort(-(queries @ VECTORS[positions].T), axis=1)[:, :k]


def test_search_finds_what_exact_search_finds(index: VectorIndex) -> None:
    queries = clustered(100, seed=1)  # around other centres than the stored vectors
    found, position = index.search(queries, 10)
    assert recall(found, truth(queries, np.arange(2000), 10) - 1e-3).mean() >= 0.97
    np.testing.assert_allclose(found, np.einsum("qd,qkd->qk", queries, VECTORS[position]), atol=2e-3)


@pytest.mark.parametrize("gather", [True, False])
def test_exact_is_exact_on_any_subset(index: VectorIndex, gather: bool) -> None:
    queries = clustered(20, seed=2)
    for positions in (np.array([7]), np.flatnonzero(VECTORS[:, 0] > 0), np.arange(2000)):
        found, position = index.exact(queries, 10, index.subset(positions, gather=gather))
        assert np.isin(position, positions).all()
        np.testing.assert_allclose(found, truth(queries, positions, 10), atol=2e-3)
    assert index.exact(queries, 10, index.subset(np.zeros(0, np.int64), gather=gather))[0].shape == (20, 0)


@pytest.mark.parametrize("alive_count", [0, 3, 50, 1999])
def test_only_the_living_are_returned_and_never_too_few(index: VectorIndex, alive_count: int) -> None:
    alive = np.sort(np.random.default_rng(3).permutation(2000)[:alive_count])
    _, position = index.search(VECTORS[:30], 10, index.subset(alive, gather=False))
    assert position.shape == (30, min(10, alive_count))
    assert np.isin(position, alive).all()
    assert all(len(set(row)) == len(row) for row in position.tolist())


def test_a_subset_prepared_once_serves_many_threads(index: VectorIndex) -> None:
    positions = np.flatnonzero(VECTORS[:, 1] > 0)
    among = index.subset(positions, gather=False)
    alone = index.exact(VECTORS[:64], 5, among)[1].tolist()
    with ThreadPoolExecutor(4) as pool:
        rows = pool.map(lambda i: index.exact(VECTORS[i : i + 1], 5, among)[1][0].tolist(), range(64))
    assert list(rows) == alone


def test_an_approximate_index_says_what_was_measured(index: VectorIndex) -> None:
    if index.tuning is None:
        assert index.kind == "flat"
        return
    assert index.tuning.chosen.recall >= 0.99
    assert index.tuning.chosen in index.tuning.curve
    assert Tuning.from_json(index.tuning.as_json()) == index.tuning
    assert index.kind.endswith("Refine(SQfp16)")


def test_a_subset_is_searched_approximately_only_where_that_was_measured_to_keep_the_recall() -> None:
    vectors = clustered(30_000, dimension=64, clusters=50)
    index = VectorIndex.build(Vectors.of(vectors), 0.97)
    queries = clustered(40, dimension=64, clusters=50, seed=4)
    for keep in (vectors[:, 0] > 0.0, np.arange(30_000) % 2 == 0, np.arange(30_000) < 5):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("retrieval.index.GATHER_BYTES", 0)  # which would make it exact and fast
            among = index.tuned(index.subset(np.flatnonzero(keep), gather=True))
        found, position = index.search(queries, 10, among) if among.point else index.exact(queries, 10, among)
        assert keep[position].all()
        best = -np.sort(-(queries @ vectors[keep].T), axis=1)[:, : found.shape[1]]
        assert recall(found, best - 1e-3).mean() >= 0.9
    assert index.tuned(index.subset(np.arange(5), gather=False)).point is None


def test_memory_decides_which_kinds_are_tried() -> None:
    assert fitting(10**6, 512, None) == list(RECIPES)
    assert fitting(10**6, 512, 100) == ["IVF-RaBitQ"] == [leanest(512)]
    assert fitting(10**6, 512, 50) == []


def test_an_index_knows_what_its_codes_need(index: VectorIndex) -> None:
    assert index.recipe is None or index.recipe in RECIPES
    assert index.codes_mb == (0 if index.recipe is None else needed_mb(index.recipe, 2000, 32))


def test_unclustered_vectors_get_the_kind_that_reaches_the_target_or_the_best_there_is() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1500, 48)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    built = VectorIndex.build(Vectors.of(noise), 0.9)
    assert built.tuning is not None
    assert built.tuning.chosen.recall >= 0.9


def test_recall_counts_ties_and_leaves_the_query_itself_out() -> None:
    best = np.array([[0.9, 0.8, 0.8]], dtype=np.float32)
    assert recall(np.array([[0.9, 0.8, 0.8]], np.float32), best).tolist() == [1.0]
    assert recall(np.array([[0.9, 0.8, 0.7]], np.float32), best) == pytest.approx([2 / 3])
    kept = without((np.array([[1.0, 0.9, 0.8]], np.float32), np.array([[4, 2, 9]])), np.array([4]))
    np.testing.assert_allclose(kept, [[0.9, 0.8]])


def test_contained_is_set_membership() -> None:
    assert contained(np.array([5, 1, 9]), np.array([1, 5])).tolist() == [True, True, False]
    assert contained(np.array([5]), np.array([], dtype=np.int64)).tolist() == [False]
    assert contained(np.array([], dtype=np.int64), np.array([1])).tolist() == []
