"""What an archive costs a row, measured on this machine, for the tables of docs/scale.md.

    python benchmarks/bench_scale.py --vectors 100000 --dimension 512
    python benchmarks/bench_scale.py --vectors 1000000 --dimension 64

Prints JSON: bytes on disk and resident an image, seconds to open and to see another process' commit, and the bytes of
thumbnails of the images given by --images. Vectors are clustered, one of `bench_search.py`'s kinds; each image has four
metadata columns. It needs no encoder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from foveal.images import decode
from retrieval.archive import Archive
from retrieval.facts import as_jpeg, thumbnail

sys.path.insert(0, str(Path(__file__).parent))
from bench_search import FINGERPRINT, Precomputed, clustered

PIECE = 100_000
READER = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from retrieval.archive import Archive

def private():  # MB that are this process' own: what is mapped from files is shared, and can be dropped
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

query = np.load(sys.argv[2])
idle, began = private(), time.perf_counter()
archive = Archive.open(sys.argv[1])
archive.nearest(query[:1])
told = {"open_s": time.perf_counter() - began}
began = time.perf_counter()
for row in query:
    archive.nearest(row[None])
told["query_ms"] = (time.perf_counter() - began) / len(query) * 1000
archive._snapshot = None  # as after a commit of another process
began = time.perf_counter()
archive.nearest(query[:1])
print(json.dumps({**told, "after_commit_s": time.perf_counter() - began, "private_mb": private() - idle}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="image files whose thumbnails are measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(Path(folder), options), indent=1))


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    vectors = clustered(options.vectors, options.dimension, 1000, np.random.default_rng(0))
    archive = Archive.create(folder / "archive", Precomputed(options.dimension))
    began = time.process_time()
    for start in range(0, len(vectors), PIECE):
        place = range(start, min(start + PIECE, len(vectors)))
        archive.add_vectors(
            [f"/archive/site-{i % 50}/camera-{i % 7}/{i:012d}.jpg" for i in place],
            vectors[start : place.stop].astype(np.float32),
            fingerprint=FINGERPRINT,
            metadata=[
                {
                    "camera": f"camera-{i % 7}",
                    "site": f"site-{i % 50}",
                    "hour": i % 24,
                    "taken_at": "2026-11-02T09:30:00Z",
                }
                for i in place
            ],
        )
    build = time.process_time() - began
    queries = vectors[:: max(1, len(vectors) // 200)][:200].astype(np.float32)
    np.save(folder / "queries.npy", queries)
    read = subprocess.run(
        [sys.executable, "-c", READER, str(archive.path), str(folder / "queries.npy")],
        check=True,
        capture_output=True,
        text=True,
    )
    each = {name: size(archive.folder / name) / len(vectors) for name in ("table.lance", "index")}
    return {
        "vectors": len(vectors),
        "dimension": options.dimension,
        "segments": archive.stats()["segments"],
        "add_and_index_cpu_s": build,
        "bytes_an_image": each,
        "thumbnail_bytes": {p.name: len(as_jpeg(thumbnail(decode(p)))) for p in options.images},
        **json.loads(read.stdout),
    }


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
