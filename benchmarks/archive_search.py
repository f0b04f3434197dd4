"""Archive.search against raw FAISS brute force on the same vectors, in one run.

    python benchmarks/archive_search.py --vectors 100000 --dimension 512 --out runs/archive_search.json

Prints recall@10 and queries a second of `Archive.nearest` (ids, URIs and metadata of the hits included) beside
`faiss.IndexFlatIP`, one query a call and in batches, and of filtered search beside brute force over the matching rows.
Vectors are rendered clusters of unit length; both sides hold the fp16 values that the archive stores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from foveal.runtime import describe_machine, peak_memory_mb
from retrieval.archive import Archive
from retrieval.index import IndexSettings

K = 10
FINGERPRINT = "benchmark"


class Precomputed:
    """Stands where an encoder would: the vectors exist already."""

    name, fingerprint, logit_scale = "precomputed", FINGERPRINT, 1.0

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def encode_images(self, images: Any) -> Any:
        raise NotImplementedError("this benchmark brings its own vectors")

    encode_texts = encode_images


def clustered(count: int, dimension: int, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (count, dimension) around `clusters` centres of unequal size, rounded to fp16."""
    centres = rng.standard_normal((clusters, dimension)).astype(np.float32)
    share = rng.dirichlet(np.full(clusters, 0.5))
    vectors = np.empty((count, dimension), dtype=np.float32)
    for start in range(0, count, 65_536):
        rows = slice(start, min(start + 65_536, count))
        picked = rng.choice(clusters, rows.stop - rows.start, p=share)
        vectors[rows] = centres[picked] + 0.8 * rng.standard_normal((len(picked), dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16).astype(np.float32)


def timed(call: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> tuple[list[Any], dict[str, float]]:
    """What `call` gave for each batch, and queries a second with p50 and p99 of a call in ms."""
    results: list[Any] = []
    times: list[float] = []
    for start in range(0, len(queries), batch):
        began = time.perf_counter()
        results.append(call(queries[start : start + batch]))
        times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(np.array(times) * 1000, [50, 99])
    return results, {"qps": len(queries) / sum(times), "p50_ms": float(p50), "p99_ms": float(p99)}


def share_found(found: list[set[str]], truth: list[set[str]]) -> float:
    """recall@k: the mean share of the true ids that were found."""
    return float(np.mean([len(a & b) / max(len(b), 1) for a, b in zip(found, truth, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--recall", type=float, default=0.99, help="recall target of the archive's index")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    vectors = clustered(options.vectors, options.dimension, options.clusters, rng)
    # Held-out queries: between two stored vectors, near the data and equal to none of it.
    picked = rng.integers(len(vectors), size=(options.queries, 2))
    queries = vectors[picked[:, 0]] + 0.5 * vectors[picked[:, 1]]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)

    uris = [f"mem://{i}" for i in range(len(vectors))]
    # A filter that correlates with the vectors (half a space) and one that does not, about 10% of the rows each.
    lean = np.quantile(vectors[:, 0], 0.1)
    metadata = [
        {"camera": "north" if v < lean else "south", "hour": i % 10} for i, v in enumerate(vectors[:, 0].tolist())
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = IndexSettings(recall_target=options.recall)
        archive = Archive.create(Path(folder) / "archive", Precomputed(options.dimension), index=settings)
        began = time.perf_counter()
        ids = archive.add_vectors(uris, vectors, fingerprint=FINGERPRINT, metadata=metadata)
        build = time.perf_counter() - began
        began = time.perf_counter()
        archive = Archive.open(archive.path)
        archive.nearest(queries[:1], K)
        opened = time.perf_counter() - began

        flat = faiss.IndexFlatIP(options.dimension)
        flat.add(vectors)
        report: dict[str, Any] = {
            "machine": describe_machine(),
            "settings": {k: v for k, v in vars(options).items() if k != "out"},
            "index": archive.stats()["index"],
            "tuning": archive.stats()["tuning"],
            "build_s": build,
            "open_s": opened,
            "plain": {},
            "filtered": {},
        }
        for batch in (1, 100):
            found, ours = timed(lambda q: archive.nearest(q, K), queries, batch)
            raw, theirs = timed(lambda q: flat.search(q, K)[1], queries, batch)
            truth = [{ids[i] for i in row} for rows in raw for row in rows.tolist()]
            got = [{hit.id for hit in row} for rows in found for row in rows]
            ratio = ours["qps"] / theirs["qps"]
            report["plain"][f"batch {batch}"] = {
                "recall_at_10": share_found(got, truth),
                "archive": ours,
                "faiss_flat": theirs,
                "ratio": ratio,
            }
        for name, expression, mask in (
            ("correlated 10%", "camera = 'north'", vectors[:, 0] < lean),
            ("random 10%", "hour = 3", np.arange(len(vectors)) % 10 == 3),
        ):
            rows = np.flatnonzero(mask)
            subset = faiss.IndexFlatIP(options.dimension)
            subset.add(vectors[rows])
            found, ours = timed(lambda q, e=expression: archive.nearest(q, K, e), queries[:100], 1)
            raw, theirs = timed(lambda q, s=subset: s.search(q, K)[1], queries[:100], 1)
            truth = [{ids[rows[i]] for i in row} for many in raw for row in many.tolist()]
            got = [{hit.id for hit in row} for many in found for row in many]
            report["filtered"][name] = {
                "recall_at_10": share_found(got, truth),
                "archive": ours,
                "faiss_flat_over_subset": theirs,
                "ratio": ours["qps"] / theirs["qps"],
            }
    report["peak_memory_mb"] = peak_memory_mb()
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
