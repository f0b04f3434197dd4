"""Searches on a GPU. None is here: an index on the CPU stands in for what faiss-gpu makes, with its limits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
import pytest

from foveal.errors import Unavailable
from retrieval.archive import Archive
from retrieval.gpu import Gpu
from retrieval.index import IndexSettings, VectorIndex, Vectors
from tests.command import foveal
from tests.retrieval.pixels import PixelEncoder
from tests.retrieval.test_index import clustered

faiss: Any = _faiss
COUNT = 5000  # more than are searched exactly in any case
VECTORS = clustered(COUNT)
NAMES = [f"mem://{i}" for i in range(COUNT)]
QUERIES = clustered(50, seed=1)
EVERYTHING = np.arange(COUNT)


class Resources:
    """What faiss keeps on a GPU for its work, and room for so many vectors."""

    room = 10**6

    def setTempMemory(self, size: int) -> None:
        assert size > 0


class Settings:
    """Of a copy."""

    useFloat16 = False


class StandIn:
    """Compares in half precision, ignores selectors, selects 2,048 at most, and can run out of memory."""

    made: list[StandIn]

    def __init__(self, resources: Resources, dimension: int, metric: int, settings: Settings) -> None:
        assert metric == faiss.METRIC_INNER_PRODUCT
        assert settings.useFloat16
        self.index = faiss.IndexFlatIP(dimension)
        self.room = resources.room
        self.asked: list[int] = []
        self.broken = False
        StandIn.made.append(self)

    def add(self, vectors: np.ndarray) -> None:
        if len(vectors) > self.room:
            raise RuntimeError("out of memory")
        self.index.add(vectors)

    def search(self, queries: np.ndarray, k: int, params: object = None) -> tuple[np.ndarray, np.ndarray]:
        assert k <= 2048
        assert params is None
        if self.broken:
            raise RuntimeError("cudaErrorMemoryAllocation")
        self.asked.append(k)
        return self.index.search(queries.astype(np.float16).astype(np.float32), k)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    StandIn.made = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatConfig", Settings, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlat", StandIn, raising=False)
    return StandIn.made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = PixelEncoder()
    path = tmp_path_factory.mktemp("gpu") / "archive"
    archive = Archive.create(path, encoder, index=IndexSettings(flat_below=1000, recall_target=0.9))
    half = [{"half": "left" if vector[0] < 0 else "right"} for vector in VECTORS]
    archive.add_vectors(NAMES, VECTORS, fingerprint=encoder.fingerprint, metadata=half)
    return path


@pytest.fixture
def archive(built: Path) -> Archive:
    archive = Archive.open(built)
    archive.search_on(Gpu())
    return archive


def best(among: np.ndarray, k: int) -> np.ndarray:
    """The true similarities (50, k)."""
    stored = VECTORS[among].astype(np.float16).astype(np.float32)
    return -np.sort(-(QUERIES @ stored.T), axis=1)[:, :k]


def similarities(archive: Archive, k: int, filter: str | None = None) -> np.ndarray:
    return np.array([[hit.similarity for hit in row] for row in archive.nearest(QUERIES, k, filter)])


def test_a_gpu_makes_searches_exact(archive: Archive, made: list[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.gpu.RESCORED_BYTES", 10_000)  # a few queries at a time
    np.testing.assert_allclose(similarities(archive, 10), best(EVERYTHING, 10), atol=1e-5)
    (copy,) = made
    assert copy.asked == [10 + 16]
    hits = archive.nearest(VECTORS[:20])  # itself first
    assert [row[0].uri for row in hits] == NAMES[:20]
    other = archive.at(archive.settings)  # the next generation is searched likewise
    other.nearest(QUERIES)
    assert len(made) == 2


def test_nothing_is_on_a_gpu_unless_it_was_asked_for(built: Path, made: list[StandIn]) -> None:
    Archive.open(built).nearest(QUERIES)
    assert made == []


def test_what_a_gpu_cannot_leave_out_is_searched_without_it(archive: Archive, made: list[StandIn]) -> None:
    right = np.flatnonzero(VECTORS[:, 0] >= 0)
    np.testing.assert_allclose(similarities(archive, 10, "half = 'right'"), best(right, 10), atol=1e-5)
    assert similarities(archive, 2500).shape == (50, 2500)  # more than it selects
    assert made[0].asked == []


@pytest.mark.parametrize(("gone", "asked"), [(100, [126]), (2022, [2048]), (3000, [])])
def test_positions_are_passed_over_while_they_are_few(made: list[StandIn], gone: int, asked: list[int]) -> None:
    index = VectorIndex.build(Vectors.of(VECTORS), 0.9)
    index = VectorIndex(index.index, index.kind, index.tuning, Gpu().hold(index.store))
    among = np.sort(np.random.default_rng(0).permutation(COUNT)[gone:])
    similarity, position = index.search(QUERIES, 10, index.subset(among, gather=False))
    assert made[0].asked == asked
    assert np.isin(position, among).all()
    if asked:
        np.testing.assert_allclose(similarity, best(among, 10), atol=1e-5)


def test_half_precision_on_the_gpu_costs_no_hit(made: list[StandIn]) -> None:
    """Ten thousand times the same but for the last digits: what the GPU ranks eleventh may be the best."""
    vectors = VECTORS.copy()
    vectors[:20] = QUERIES[0] + 1e-4 * np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = VectorIndex.build(Vectors.of(vectors), 0.9)
    index = VectorIndex(index.index, index.kind, index.tuning, Gpu().hold(index.store))
    query = QUERIES[:1]
    found, _ = index.search(query, 10)
    np.testing.assert_allclose(found, index.exact(query, 10)[0], atol=2e-7)
    assert made[0].asked == [26]


def test_a_gpu_that_fails_is_done_without(
    archive: Archive, made: list[StandIn], caplog: pytest.LogCaptureFixture
) -> None:
    archive.nearest(QUERIES)
    made[0].broken = True
    with caplog.at_level(logging.WARNING, logger="foveal.retrieval"):
        for _ in range(2):
            assert (similarities(archive, 10)[:, 0] >= best(EVERYTHING, 10)[:, 9]).all()
    assert caplog.text.count("cudaErrorMemoryAllocation") == 1


def test_what_does_not_fit_stays_with_the_cpu(
    archive: Archive, made: list[StandIn], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Resources, "room", COUNT - 1)
    assert similarities(archive, 10).shape == (50, 10)
    assert "5,000 vectors do not fit onto the GPU" in caplog.text
    assert made[0].asked == []


def test_a_merged_segment_gives_its_room_to_the_next(tmp_path: Path, made: list[StandIn]) -> None:
    encoder = PixelEncoder()
    archive = Archive.create(tmp_path / "archive", encoder, index=IndexSettings(flat_below=1000, recall_target=0.9))
    archive.add_vectors(NAMES, VECTORS, fingerprint=encoder.fingerprint)
    reader = Archive.open(archive.path)
    reader.search_on(Gpu())
    before = reader.snapshot()
    archive.rebuild()
    assert len(reader.nearest(QUERIES)) == 50
    assert [len(copy.asked) for copy in made] == [0, 1]
    before.nearest(QUERIES, 10)  # of who is still searching it
    assert made[0].asked == []


def test_a_server_is_told_what_is_missing(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    asked = ("serve", "--archive", str(built), "--gpu-search")
    assert "nvidia-smi" in foveal(*asked).error
    monkeypatch.delattr(faiss, "StandardGpuResources")
    assert "pip install faiss-gpu" in foveal(*asked).error
    with pytest.raises(Unavailable):
        Gpu()
    assert "no archive" in foveal("serve", "--detector", "bundled:owl", "--gpu-search").error
