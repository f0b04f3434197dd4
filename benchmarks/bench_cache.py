"""What a kept answer of a detector is worth, and what keeping costs where no picture comes twice.

    python -m benchmarks.bench_cache --detector onnx:runs/quickstart/student-onnx --out runs/cache.json

The same 64 JPEG files, uploaded as forms with wrk, in turns to a server without a cache, to one that has kept all of
their answers, and to one whose cache is too small to keep any: it hashes, looks and counts for nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bench_serve import PATHS, bodies, pictures, started, wrk
from foveal.runtime import describe_machine

CACHES = {"none": 0.0, "hits": 64.0, "keeps nothing": 0.0001}  # megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True, help="reference of an exported detector")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-serve"), help="folder for the images")
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--port", type=int, default=8979)
    parser.add_argument("--out", type=Path, default=Path("runs/cache.json"))
    asked = parser.parse_args()
    payloads = bodies("detect", pictures(asked.work / "images"))
    base = f"http://127.0.0.1:{asked.port}"
    turns: list[dict[str, Any]] = []
    for _ in range(asked.turns):
        turn: dict[str, Any] = {}
        for name, megabytes in CACHES.items():
            command = [
                sys.executable, "-m", "foveal", "serve", "--detector", asked.detector, "--port", str(asked.port),
                "--no-demo", "--cache", str(megabytes),
            ]  # fmt: skip
            with started(command, f"{base}/readyz"):
                wrk(base + PATHS["detect"], "detect", payloads, 4, 2)
                turn[name] = {
                    c: wrk(base + PATHS["detect"], "detect", payloads, c, asked.seconds) for c in asked.connections
                }
        turns.append(turn)
        print(json.dumps(turn), flush=True)
    ratios = {
        f"{name} / none, {c} connections": median(turn[name][c]["rate"] / turn["none"][c]["rate"] for turn in turns)
        for name in ("hits", "keeps nothing")
        for c in asked.connections
    }
    print(json.dumps(ratios, indent=1))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"machine": describe_machine(), "turns": turns, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
