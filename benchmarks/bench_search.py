"""Archive.nearest against raw FAISS and against other stores, on the same vectors at the same recall, in one run.

    python -m benchmarks.bench_search --vectors 100000 --out runs/bench_search_100k.json
    python -m benchmarks.bench_search --vectors 1000000 --out runs/bench_search_1m.json

The peers need `pip install usearch lancedb pymilvus milvus-lite`. Each engine builds in one process and is measured in
another: it opens what it built, is tuned on some queries to the smallest effort that reaches `--recall` @10, and
answers others, one a call from 1 and from 2 threads, and 100 a call. `Archive.nearest` returns ids, URIs and metadata;
every peer returns ids or positions. `archive.search` is the same through `Archive.search`, less the encoder's part.
`faiss` is the archive's own index file, searched with the archive's own settings: the archive with nothing around it.
`clip-retrieval` is the index its autofaiss chooses for 4 GB, HNSW32.

Filters keep 0.1, 1, 10 and 50% of the rows: at random, all on one side of a plane, or whole clusters, the last two
being correlated with the vectors as a day or a class is; `brute force` is faiss.IndexFlatIP over just the rows that
match, taken out beforehand.

Vectors are rendered clusters of unit length, rounded to fp16; queries lie between two of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_engines import ENGINES, FINGERPRINT, THOUSAND, K

TUNING = 200  # queries that the effort is chosen on, not among those measured
SHARES = (0.001, 0.01, 0.1, 0.5)
SIDES = {"draw": "random", "place": "one side", "kind": "clusters"}  # columns, and what a filter on them keeps


# What is searched.


def clustered(count: int, dimension: int, clusters: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (count, dimension) around centres of unequal size, in fp16, and the centre (count,) of each."""
    centres = rng.standard_normal((clusters, dimension)).astype(np.float32)
    share = rng.dirichlet(np.full(clusters, 0.5))
    vectors, centre = np.empty((count, dimension), dtype=np.float16), np.empty(count, dtype=np.int64)
    for start in range(0, count, 65_536):
        rows = slice(start, min(start + 65_536, count))
        centre[rows] = picked = rng.choice(clusters, rows.stop - rows.start, p=share)
        piece = centres[picked] + 0.8 * rng.standard_normal((len(picked), dimension)).astype(np.float32)
        vectors[rows] = piece / np.linalg.norm(piece, axis=1, keepdims=True)
    return vectors, centre


def thousandths(values: np.ndarray) -> np.ndarray:
    """Where each of the values (N,) ranks among all, 0 to 999."""
    return (np.argsort(np.argsort(values, kind="stable")) * THOUSAND // len(values)).astype(np.int64)


def write_data(folder: Path, options: argparse.Namespace) -> None:
    """vectors.npy, queries.npy (tuning ones first), columns.npz and truth.npz in `folder`."""
    rng = np.random.default_rng(0)
    vectors, centre = clustered(options.vectors, options.dimension, options.clusters, rng)
    picked = rng.integers(len(vectors), size=(TUNING + options.queries, 2))
    queries = vectors[picked[:, 0]].astype(np.float32) + 0.5 * vectors[picked[:, 1]].astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    direction = rng.standard_normal(options.dimension).astype(np.float32)
    along = np.concatenate([part.astype(np.float32) @ direction for part in np.array_split(vectors, 64)])
    columns = {
        "draw": thousandths(rng.permutation(len(vectors))),
        "place": thousandths(along),
        "kind": thousandths(rng.permutation(options.clusters)[centre]),
    }
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", queries)
    np.savez(folder / "columns.npz", **columns)
    truth = {"all": nearest(vectors, queries)}
    for side, column in columns.items():
        for share in SHARES:
            rows = np.flatnonzero(column < share * THOUSAND)
            truth[f"{side} {share}"] = rows[nearest(vectors[rows], queries[TUNING : TUNING + options.filtered])]
    np.savez(folder / "truth.npz", **truth)


def nearest(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The true best K positions (Q, K), by brute force."""
    import faiss

    heap = faiss.ResultHeap(len(queries), K, keep_max=True)
    for start in range(0, len(vectors), 65_536):
        chunk = vectors[start : start + 65_536].astype(np.float32)
        similarity, position = faiss.knn(queries, chunk, min(K, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(similarity, position + start)
    heap.finalize()
    return heap.I


# How it is measured.


def timed(call: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int, threads: int) -> dict[str, Any]:
    """Queries a second, and p50 and p99 of a call in ms; `threads` callers take turns at the queries."""
    pieces = [queries[start : start + batch] for start in range(0, len(queries), batch)]

    def one(piece: np.ndarray) -> tuple[float, Any]:
        began = time.perf_counter()
        found = call(piece)
        return time.perf_counter() - began, found

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        lists = list(pool.map(lambda offset: [one(p) for p in pieces[offset::threads]], range(threads)))
    seconds = time.perf_counter() - began
    p50, p99 = np.percentile([1000 * took for done in lists for took, _ in done], [50, 99])
    found = [lists[i % threads][i // threads][1] for i in range(len(pieces))]
    return {"qps": len(queries) / seconds, "p50_ms": float(p50), "p99_ms": float(p99), "found": found}


def share_found(found: list[list[int]], truth: np.ndarray) -> float:
    """recall@K: the mean share of the true positions that were found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth.tolist(), strict=True)]))


def memory_mb() -> dict[str, float]:
    """Resident memory of this process: its own, and file pages that others can share."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(told[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("shared", "RssFile"))}


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Opens, tunes and times an engine that has been built in `folder`."""
    import faiss

    faiss.omp_set_num_threads(1)
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npz")
    tuning, asked = queries[:TUNING], queries[TUNING:]
    engine = ENGINES[name](folder / name, options)
    engine.load()
    before = memory_mb()
    began = time.perf_counter()
    engine.open()
    engine.effort = engine.efforts[0]
    engine.search(asked[:1])
    report: dict[str, Any] = {"open_s": time.perf_counter() - began}
    gc.freeze()  # what was imported is not looked through again while an answer is waited for, as in a server
    for effort in engine.efforts:
        engine.effort = effort
        if share_found(engine.rows(engine.search(tuning)), truth["all"][:TUNING]) >= options.recall:
            break
    report["effort"] = engine.effort
    timed(engine.search, asked, 1, 1)  # warm: the pages of mapped files are there
    for label, batch, threads in (("1 thread", 1, 1), ("2 threads", 1, 2), ("100 a call", 100, 1)):
        told = timed(engine.search, asked, batch, threads)
        rows = [row for found in told.pop("found") for row in engine.rows(found)]
        report[label] = {**told, "recall": share_found(rows, truth["all"][TUNING:])}
    report["memory_mb"] = {key: value - before[key] for key, value in memory_mb().items()}
    if engine.filters:
        report["filtered"] = {}
        for side in SIDES:
            for share in SHARES:
                few = asked[: options.filtered]
                began = time.perf_counter()
                engine.filtered(few[:1], side, share)
                first = time.perf_counter() - began
                for query in np.array_split(few[:4], 4):  # an archive measures a filter that is used repeatedly
                    engine.filtered(query, side, share)
                told = timed(lambda query, s=side, f=share: engine.filtered(query, s, f), few, 1, 1)
                rows = [row for found in told.pop("found") for row in engine.rows(found)]
                figures = {**told, "first_ms": 1000 * first, "recall": share_found(rows, truth[f"{side} {share}"])}
                report["filtered"][f"{SIDES[side]} {share:.1%}"] = figures
    return report | engine.extra()


def change(folder: Path) -> None:
    """Adds 1,000 images to an archive, the first of them like nothing else, then deletes it, telling when."""
    from retrieval.archive import Archive

    archive = Archive.open(folder)
    vectors = np.random.default_rng(5).standard_normal((1000, archive.settings.dimension)).astype(np.float32)
    vectors[0] = np.eye(1, archive.settings.dimension)
    uris = [f"mem://-{i}" for i in range(1, 1001)]
    for what in ("add", "delete"):
        began = time.perf_counter()
        if what == "add":
            ids = archive.add_vectors(uris, vectors, fingerprint=FINGERPRINT)
        else:
            archive.delete(ids)
        print(what, time.perf_counter() - began, time.time(), flush=True)
        time.sleep(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--filtered", type=int, default=100, help="queries of each filter")
    parser.add_argument("--recall", type=float, default=0.95, help="that every engine is tuned to")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave what was built there, and use it again")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("WHAT", "ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        what, name, place = options.case
        if what == "build":
            vectors, columns = np.load(Path(place) / "vectors.npy", mmap_mode="r"), np.load(Path(place) / "columns.npz")
            ENGINES[name](Path(place) / name, options).build(vectors, {key: columns[key] for key in SIDES})
        elif what == "data":
            write_data(Path(place), options)
        elif what == "change":
            change(Path(place))
        else:
            print("\n" + json.dumps(measure(name, Path(place), options)))
        return

    from foveal.runtime import describe_machine

    report: dict[str, Any] = {
        "machine": describe_machine(),
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "keep", "case")},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "truth.npz").is_file():
            _child("data", "-", folder, options)
        for name in options.engines:
            began = time.perf_counter()
            if not (folder / f"{name}.built").exists():
                _child("build", name, folder, options)
                (folder / f"{name}.built").write_text(str(time.perf_counter() - began))
            report[name] = json.loads(_child("measure", name, folder, options).splitlines()[-1])
            report[name]["build_s"] = float((folder / f"{name}.built").read_text())
            print(f"{name}: {json.dumps(report[name])}", file=sys.stderr, flush=True)
    print(tables(report))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1))


def _child(what: str, name: str, folder: Path, options: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "benchmarks.bench_search", "--case", what, name, str(folder)]
    for option in ("vectors", "dimension", "clusters", "queries", "filtered", "recall"):
        command += [f"--{option}", str(getattr(options, option))]
    # Teams of OpenMP threads wait for each other on a busy machine, and one query is no work for a team.
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        **({"OMP_NUM_THREADS": "1"} if what == "measure" else {}),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    return done.stdout


def tables(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    names = [name for name in ENGINES if name in report]
    lines = [
        "| engine | recall@10 | q/s, 1 thread | p99 ms | q/s, 2 threads | p99 ms | q/s, 100 a call | open s | own MB "
        "| shared MB | build s |",
        "| --- |" + " ---: |" * 10,
    ]
    for name in names:
        told = report[name]
        one, two, many = told["1 thread"], told["2 threads"], told["100 a call"]
        memory = told["memory_mb"]
        lines.append(
            f"| {name} | {one['recall']:.3f} | {one['qps']:,.0f} | {one['p99_ms']:.2f} | {two['qps']:,.0f} "
            f"| {two['p99_ms']:.2f} | {many['qps']:,.0f} | {told['open_s']:.2f} | {memory['own']:,.0f} "
            f"| {memory['shared']:,.0f} | {told['build_s']:.0f} |"
        )
    filtering = [name for name in names if "filtered" in report[name]]
    lines += ["", f"| filter | {' | '.join(f'{name}: recall, q/s' for name in filtering)} |"]
    lines.append("| --- |" + " --- |" * len(filtering))
    kinds = report[filtering[0]]["filtered"] if filtering else {}
    for kind in kinds:
        cells = [report[name]["filtered"][kind] for name in filtering]
        lines.append(f"| {kind} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['recall']:.3f}, {figures['qps']:,.0f}"


if __name__ == "__main__":
    main()
