"""What `bench_search.py` compares: this project's archive and others, each built once and opened in another process.

Shape letters: N vectors, Q queries, D dimensions, K hits.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

K = 10
FINGERPRINT = "benchmark"
THOUSAND = 1000  # columns that filters use hold 0 to 999


@dataclass(frozen=True)
class Precomputed:
    """Stands where an encoder would: the vectors exist already."""

    dimension: int
    name: str = "precomputed"
    fingerprint: str = FINGERPRINT


class Engine(ABC):
    """One store: `build`, then `open`, then searches that return positions."""

    efforts: Sequence[int] = (0,)  # to tune over, ascending; (0,) where the engine tunes itself
    filters = False
    imports: Sequence[str] = ("faiss",)

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options, self.effort = folder, options, 0

    @abstractmethod
    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Stores vectors (N, D) and columns (N,)."""

    def load(self) -> None:
        """Imports what `open` needs, which is not timed."""
        for name in self.imports:
            importlib.import_module(name)

    @abstractmethod
    def open(self) -> None:
        """Opens what was built."""

    @abstractmethod
    def search(self, queries: np.ndarray) -> Any:
        """Positions (Q, K)."""

    def filtered(self, query: np.ndarray, side: str, share: float) -> Any:
        """Positions (1, K) where the column `side` lies below that share of its range."""
        raise TypeError(f"{type(self).__name__} has no filters")

    def rows(self, found: Any) -> list[list[int]]:
        """What a search returned as positions."""
        return np.asarray(found).tolist()

    def extra(self) -> dict[str, Any]:
        """Figures of this engine alone."""
        return {}


class ArchiveEngine(Engine):
    """What this project ships."""

    filters = True
    imports = ("retrieval.archive",)

    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        from retrieval.archive import Archive
        from retrieval.index import IndexSettings

        settings = IndexSettings(recall_target=self.options.recall)
        archive = Archive.create(self.folder, Precomputed(vectors.shape[1]), index=settings)
        for start in range(0, len(vectors), 50_000):
            rows = range(start, min(start + 50_000, len(vectors)))
            archive.add_records(
                [
                    {"uri": f"mem://{i}", "metadata": {n: int(c[i]) for n, c in columns.items()} | {"camera": i % 40}}
                    for i in rows
                ],
                vectors[rows.start : rows.stop].astype(np.float32),
                fingerprint=FINGERPRINT,
            )  # fmt: skip
        archive.rebuild()

    def open(self) -> None:
        from retrieval.archive import Archive

        self.archive = Archive.open(self.folder)
        self.archive.snapshot()

    def search(self, queries: np.ndarray) -> Any:
        return self.archive.nearest(queries, K)

    def filtered(self, query: np.ndarray, side: str, share: float) -> Any:
        return self.archive.nearest(query, K, f"{side} < {share * THOUSAND:g}")

    def rows(self, found: Any) -> list[list[int]]:
        return [[int(hit.uri[6:]) for hit in hits] for hits in found]

    def extra(self) -> dict[str, Any]:
        """Seconds from when another process has added 1,000 images, or deleted them, until a search here shows it."""
        report: dict[str, Any] = {}
        command = [sys.executable, "-m", "benchmarks.bench_search", "--case", "change", "archive", str(self.folder)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        query = np.zeros((1, self.options.dimension), np.float32)
        query[0, 0] = 1.0
        for line in writer.stdout:
            what, took, acknowledged = line.split()
            while (self.archive.nearest(query, 1)[0][0].uri == "mem://-1") != (what == "add"):
                pass
            report[what] = {"took_s": float(took), "visible_s": time.time() - float(acknowledged)}
        return report


class ArchiveSearch(ArchiveEngine):
    """The same archive through `Archive.search`, once the encoder has seen the query.

    Beside what `nearest` does it scores 17 candidates more than asked for anew from the stored vectors, so that pages
    follow each other without gaps, looks for a model of relevance, and says of each hit what made it one.
    """

    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Nothing: it is the archive's."""

    def open(self) -> None:
        self.folder = self.folder.with_name("archive")
        super().open()

    def search(self, queries: np.ndarray) -> Any:
        return [self.answered(query, None) for query in queries]

    def filtered(self, query: np.ndarray, side: str, share: float) -> Any:
        return [self.answered(query[0], f"{side} < {share * THOUSAND:g}")]

    def answered(self, vector: np.ndarray, filter: str | None) -> Any:
        """The hits of one query (D,)."""
        from retrieval.query import EncodedQuery, Part, SearchQuery

        query = SearchQuery(text="x", filter=filter, k=K)
        return self.archive.answer(EncodedQuery(query, (Part(text="x"),), (vector,), FINGERPRINT, "x"))

    def extra(self) -> dict[str, Any]:
        return {}


class FaissEngine(Engine):
    """The archive's own index file and settings, without the archive."""

    imports = ("retrieval.archive",)

    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Nothing: it is the archive's."""

    def open(self) -> None:
        import faiss

        from retrieval.archive import Archive
        from retrieval.tuning import search_parameters

        part = Archive.open(self.folder.with_name("archive")).snapshot().parts[0]
        path = next((self.folder.with_name("archive")).rglob("*.faiss"))
        self.index = faiss.read_index(str(path))
        self.parameters = None
        if part.index.tuning is not None:
            chosen = part.index.tuning.chosen
            self.parameters = search_parameters(self.index, chosen.effort, chosen.k_factor)

    def search(self, queries: np.ndarray) -> Any:
        return self.index.search(queries, K, params=self.parameters)[1]


class ClipRetrieval(Engine):
    """What autofaiss, which clip-retrieval's `index` calls with 4 GB, picks up to some two million vectors of 512."""

    efforts = (16, 32, 64, 128, 256, 512, 1024)

    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        import faiss

        index = faiss.index_factory(vectors.shape[1], "HNSW32", faiss.METRIC_INNER_PRODUCT)
        for start in range(0, len(vectors), 65_536):
            index.add(vectors[start : start + 65_536].astype(np.float32))
        self.folder.mkdir(parents=True)
        faiss.write_index(index, str(self.folder / "index"))

    def open(self) -> None:
        import faiss

        self.index = faiss.read_index(str(self.folder / "index"))

    def search(self, queries: np.ndarray) -> Any:
        import faiss

        return self.index.search(queries, K, params=faiss.SearchParametersHNSW(efSearch=self.effort))[1]


class Usearch(Engine):
    """usearch, bf16."""

    imports = ("usearch.index",)
    efforts = (16, 32, 64, 128, 256, 512, 1024)

    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        from usearch.index import Index

        index = Index(ndim=vectors.shape[1], metric="ip", dtype="bf16")
        for start in range(0, len(vectors), 65_536):
            piece = vectors[start : start + 65_536].astype(np.float32)
            index.add(np.arange(start, start + len(piece)), piece, threads=2)
        self.folder.mkdir(parents=True)
        index.save(str(self.folder / "index"))

    def open(self) -> None:
        from usearch.index import Index

        self.index: Any = Index.restore(str(self.folder / "index"))

    def search(self, queries: np.ndarray) -> Any:
        self.index.expansion_search = self.effort
        keys = self.index.search(queries, K, threads=1).keys
        return np.asarray(keys).reshape(len(queries), -1)


class LanceDB(Engine):
    """LanceDB with IVF_HNSW_SQ on the vectors and a BTREE on each column that filters use."""

    efforts = (1, 2, 4, 8, 16, 32, 64, 128)
    filters = True
    imports = ("lancedb",)

    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        import lancedb
        import pyarrow as pa

        flat = pa.array(vectors.astype(np.float32).reshape(-1))
        data = pa.table(
            {
                "position": np.arange(len(vectors)),
                **{name: column for name, column in columns.items()},
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        table: Any = lancedb.connect(str(self.folder)).create_table("images", data)
        table.create_index(metric="dot", index_type="IVF_HNSW_SQ", vector_column_name="vector")
        for name in columns:
            table.create_scalar_index(name)

    def open(self) -> None:
        import lancedb

        self.table: Any = lancedb.connect(str(self.folder)).open_table("images")

    def search(self, queries: np.ndarray) -> Any:
        return [self._one(query) for query in queries]

    def filtered(self, query: np.ndarray, side: str, share: float) -> Any:
        return [self._one(query[0], f"{side} < {share * THOUSAND:g}")]

    def _one(self, query: np.ndarray, where: str | None = None) -> Any:
        asked = self.table.search(query).distance_type("dot").nprobes(self.effort).ef(max(20, 2 * self.effort))
        asked = asked.refine_factor(2).limit(K).select(["position"])
        asked = asked.where(where, prefilter=True) if where else asked
        return asked.to_arrow()["position"].to_pylist()


class MilvusLite(Engine):
    """Milvus Lite, HNSW."""

    efforts = (16, 32, 64, 128, 256, 512)
    filters = True
    imports = ("pymilvus",)

    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        from pymilvus import DataType, MilvusClient

        self.folder.mkdir(parents=True)
        client: Any = MilvusClient(str(self.folder / "milvus.db"))
        schema = client.create_schema()
        schema.add_field("position", DataType.INT64, is_primary=True)
        for name in columns:
            schema.add_field(name, DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
        index = client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 32, "efConstruction": 128})
        client.create_collection("images", schema=schema, index_params=index)
        for start in range(0, len(vectors), 5000):
            rows = range(start, min(start + 5000, len(vectors)))
            others = {i: {name: int(column[i]) for name, column in columns.items()} for i in rows}
            client.insert(
                "images", [{"position": i, "vector": vectors[i].astype(np.float32), **others[i]} for i in rows]
            )
        client.flush("images")
        client.close()

    def open(self) -> None:
        from pymilvus import MilvusClient

        self.client: Any = MilvusClient(str(self.folder / "milvus.db"))
        self.client.load_collection("images")

    def search(self, queries: np.ndarray, where: str = "") -> Any:
        found = self.client.search(
            "images", data=list(queries), limit=K, filter=where, search_params={"params": {"ef": self.effort}}
        )
        return [[hit["position"] for hit in hits] for hits in found]

    def filtered(self, query: np.ndarray, side: str, share: float) -> Any:
        return self.search(query, f"{side} < {share * THOUSAND:g}")


class BruteForce(Engine):
    """faiss.IndexFlatIP over just the rows that match; of all rows, over all."""

    filters = True

    def build(self, vectors: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Nothing: it needs the vectors only."""

    def open(self) -> None:
        self.vectors = np.load(self.folder.with_name("vectors.npy"), mmap_mode="r")
        self.columns = np.load(self.folder.with_name("columns.npz"))
        self.index = self._over(np.arange(len(self.vectors)))
        self.subset: tuple[Any, Any, Any] = (None, None, None)

    def search(self, queries: np.ndarray) -> Any:
        return self.index.search(queries, K)[1]

    def filtered(self, query: np.ndarray, side: str, share: float) -> Any:
        if self.subset[0] != (side, share):
            rows = np.flatnonzero(self.columns[side] < share * THOUSAND)
            self.subset = (side, share), rows, self._over(rows)
        return self.subset[1][self.subset[2].search(query, K)[1]]

    def _over(self, rows: np.ndarray) -> Any:
        import faiss

        index = faiss.IndexFlatIP(self.vectors.shape[1])
        for part in np.array_split(rows, max(1, len(rows) // 65_536)):
            index.add(self.vectors[part].astype(np.float32))
        return index


ENGINES: dict[str, type[Engine]] = {
    "archive": ArchiveEngine,
    "archive.search": ArchiveSearch,
    "faiss": FaissEngine,
    "clip-retrieval": ClipRetrieval,
    "usearch": Usearch,
    "lancedb": LanceDB,
    "milvus-lite": MilvusLite,
    "brute force": BruteForce,
}
