"""Searches on a GPU. None is here: a copy on the CPU stands in for what faiss-gpu makes, with its limits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
import pytest

from retrieval.archive import Archive
from retrieval.index import IndexSettings
from tests.retrieval.pixels import PixelEncoder
from tests.retrieval.test_index import clustered

faiss: Any = _faiss
COUNT = 5000  # more than are searched exactly in any case
VECTORS = clustered(COUNT)
NAMES = [f"mem://{i}" for i in range(COUNT)]
QUERIES = clustered(50, seed=1)


class StandIn:
    """Compares in half precision, ignores selectors, selects 2,048 at most, and can run out of memory."""

    def __init__(self, store: Any) -> None:
        self.index = faiss.clone_index(store)
        self.asked: list[int] = []
        self.broken = False

    def search(self, queries: np.ndarray, k: int, params: object = None) -> tuple[np.ndarray, np.ndarray]:
        assert k <= 2048
        assert params is None
        if self.broken:
            raise RuntimeError("cudaErrorMemoryAllocation")
        self.asked.append(k)
        return self.index.search(queries.astype(np.float16).astype(np.float32), k)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    copies: list[StandIn] = []

    def to_gpu(resources: object, device: int, store: Any) -> StandIn:
        assert device == 0
        copies.append(StandIn(store))
        return copies[-1]

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    return copies


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    encoder = PixelEncoder()
    archive = Archive.create(tmp_path / "archive", encoder, index=IndexSettings(flat_below=1000, recall_target=0.9))
    half = [{"half": "left" if vector[0] < 0 else "right"} for vector in VECTORS]
    archive.add_vectors(NAMES, VECTORS, fingerprint=encoder.fingerprint, metadata=half)
    return archive


def best(among: np.ndarray, k: int) -> np.ndarray:
    """The true similarities (50, k)."""
    stored = VECTORS[among].astype(np.float16).astype(np.float32)
    return -np.sort(-(QUERIES @ stored.T), axis=1)[:, :k]


def similarities(archive: Archive, k: int, filter: str | None = None) -> np.ndarray:
    return np.array([[hit.similarity for hit in row] for row in archive.nearest(QUERIES, k, filter)])


def test_a_gpu_makes_searches_exact(made: list[StandIn], archive: Archive) -> None:
    assert archive.stats()["segments"][0]["gpu"] is True
    everything = np.arange(COUNT)
    np.testing.assert_allclose(similarities(archive, 10), best(everything, 10), atol=1e-6)
    (copy,) = made
    assert copy.asked == [10 + 16]
    hits = archive.nearest(VECTORS[:20])  # itself first
    assert [row[0].uri for row in hits] == NAMES[:20]


def test_what_a_gpu_cannot_leave_out_is_searched_without_it(made: list[StandIn], archive: Archive) -> None:
    right = np.flatnonzero(VECTORS[:, 0] >= 0)
    np.testing.assert_allclose(similarities(archive, 10, "half = 'right'"), best(right, 10), atol=1e-6)
    assert similarities(archive, 2500).shape == (50, 2500)  # more than it selects
    assert made[-1].asked == []


def test_the_deleted_are_passed_over(made: list[StandIn], archive: Archive) -> None:
    gone = np.argmax(QUERIES @ VECTORS.T, axis=1)  # the best hit of every query
    ids = {hit.uri: hit.id for row in archive.nearest(QUERIES, 1) for hit in row}
    archive.delete([ids[NAMES[place]] for place in set(gone.tolist())])
    left = np.setdiff1d(np.arange(COUNT), gone)
    np.testing.assert_allclose(similarities(archive, 10), best(left, 10), atol=1e-6)
    assert made[-1].asked[-1] == 10 + 16 + len(set(gone.tolist()))


def test_a_gpu_that_fails_or_is_full_is_done_without(
    made: list[StandIn], archive: Archive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive.nearest(QUERIES)
    made[-1].broken = True
    with caplog.at_level(logging.WARNING, logger="foveal.retrieval"):
        for _ in range(2):
            assert (similarities(archive, 10)[:, 0] >= best(np.arange(COUNT), 10)[:, 9]).all()
    assert caplog.text.count("cudaErrorMemoryAllocation") == 1
    assert archive.stats()["segments"][0]["gpu"] is False

    def full(*_: object) -> StandIn:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", full)
    other = Archive.open(archive.path)
    assert other.stats()["segments"][0]["gpu"] is False
    assert "5,000 vectors do not fit onto the GPU" in caplog.text
    assert len(other.nearest(QUERIES)) == 50


def test_without_a_gpu_there_is_none(archive: Archive) -> None:
    assert archive.stats()["segments"][0]["gpu"] is False
