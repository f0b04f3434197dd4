"""The tables of docs/scale.md, from constants that were measured and prices that are yours to change.

python benchmarks/scale_tables.py --ram 3 --disk 0.1 --core 15
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

from retrieval.index import RECIPES, TRAIN_PER_LIST

D = 512
# Bytes an image, `bench_scale.py --vectors 100000`:
ROW = 1_078  # of the table without a thumbnail, 1,024 of them the vector
TOLD = 216  # of the index beside codes and vectors: id, URI and metadata for hits
PRIVATE = 97  # resident in each process that searches, beside the codes
THUMBNAIL = 10_234  # mean of five photographs

KMEANS = 10  # iterations of faiss
SIZES = {"1 M": 10**6, "100 M": 10**8, "1 B": 10**9}


@dataclass(frozen=True)
class Kind:
    """One kind of index, as measured for one number of vectors."""

    rate: float  # queries a core second at recall@10 of 0.98 or more
    build: float  # core seconds
    count: int  # of vectors that both were measured with
    slower: Callable[[float], float]  # how the cost of a query grows with the number of vectors
    work: Callable[[float], float]  # how that of building does


def lists(count: float) -> float:
    """As in `retrieval.index`."""
    return 2 ** round(math.log2(4 * math.sqrt(count)))


def ivf(count: float) -> float:
    """Similarities computed: each vector to each centroid, and k-means before that."""
    return count * lists(count) + KMEANS * TRAIN_PER_LIST * lists(count) ** 2


def graph(count: float) -> float:
    return count * math.log(count)


KINDS = {
    "flat": Kind(271, 0, 100_000, lambda n: n, lambda n: 0),
    "IVF-PQ": Kind(10_100, 134, 10**6, math.sqrt, ivf),
    "IVF-RaBitQ": Kind(12_400, 135, 10**6, math.sqrt, ivf),
    "IVF-SQ8": Kind(7_700, 8, 100_000, math.sqrt, ivf),
    "HNSW-SQ8": Kind(7_500, 12, 100_000, math.log, graph),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ram", type=float, default=3.0, help="price of a GB of memory a month")
    parser.add_argument("--disk", type=float, default=0.1, help="price of a GB of NVMe a month")
    parser.add_argument("--core", type=float, default=15.0, help="price of a core a month")
    price = parser.parse_args()
    for title, count in SIZES.items():
        print(f"\n**{title}**\n")
        print("| index | memory | disk | build, 2 cores | 64 cores | q/s a core | memory + disk | 1,000 q/s |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for name, kind in KINDS.items():
            # A flat index is mapped float32; what it does not hold in memory it reads from disk for every query.
            codes = 4 * D if name == "flat" else RECIPES[name].bytes_each(D)
            memory = (codes + PRIVATE) * count
            disk = (ROW + THUMBNAIL + TOLD + codes + (0 if name == "flat" else 2 * D)) * count
            build = kind.build * kind.work(count) / (kind.work(kind.count) or 1)
            rate = kind.rate * kind.slower(kind.count) / kind.slower(count)
            monthly = (memory * price.ram + disk * price.disk) / 1e9
            cells = [
                name, size(memory), size(disk), duration(build / 2), duration(build / 64), figure(rate),
                f"${monthly:,.0f}", f"${1000 / rate * price.core:,.0f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |")


def size(count: float) -> str:
    unit, many = ("TB", count / 1e12) if count >= 1e12 else ("GB", count / 1e9)
    return f"{many:,.1f} {unit}" if many < 20 else f"{many:,.0f} {unit}"


def figure(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 2 else f"{value:.2g}"


def duration(seconds: float) -> str:
    if not seconds:
        return "none"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
