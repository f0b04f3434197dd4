"""What clients notice when versions of a model change under load: failed requests, and the tail.

    python -m benchmarks.bench_rollout runs/quickstart/student-onnx runs/quickstart/int8-onnx --out runs/rollout.json

The two folders become versions 1 and 2 of a registry; version 3 is the first with its weights shuffled: a file that
loads and answers, wrongly. A server of its own process answers a closed loop of clients, while version 2 is compared as
a shadow, tried as a canary, promoted and rolled back, and version 3 is tried as a canary, which the bars must end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.bench_serve import pictures
from foveal import artifacts
from foveal.registry import Registry
from foveal.runtime import describe_machine

CLIENTS = 8
SECONDS = 12.0  # of each phase


def shuffled(source: Path, target: Path) -> Path:
    """The artifact with the values of its largest weight in another order."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source / "model.onnx")
    rng = np.random.default_rng(0)
    for weight in sorted(model.graph.initializer, key=lambda one: -len(one.raw_data))[:8]:
        values = numpy_helper.to_array(weight).copy()
        weight.CopyFrom(numpy_helper.from_array(rng.permutation(values.ravel()).reshape(values.shape), weight.name))
    target.mkdir(parents=True)
    onnx.save(model, target / "model.onnx")
    manifest = artifacts.read(source)
    artifacts.seal(target, name="shuffled", kind=manifest.kind)
    return target


class Load:
    """Clients that ask without a pause; what they were told, by the phase that it was in."""

    def __init__(self, url: str, sent: list[bytes]) -> None:
        self.url, self.sent, self.phase = url, sent, "before"
        self.told: list[tuple[str, float, float, int, int | None]] = []

    async def client(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            while self.phase != "over":
                phase, began = self.phase, time.perf_counter()
                picture = self.sent[(number + len(self.told)) % len(self.sent)]
                try:
                    answer = await client.post("/v1/detect", files={"image": picture})
                    status, version = answer.status_code, answer.json().get("version")
                except httpx.HTTPError:
                    status, version = 0, None
                self.told.append((phase, began, time.perf_counter() - began, status, version))

    def summary(self, phase: str) -> dict[str, Any]:
        rows = [row for row in self.told if row[0] == phase]
        seconds = np.array([row[2] for row in rows])
        versions = [row[4] for row in rows]
        return {
            "requests": len(rows),
            "failed": sum(row[3] != 200 for row in rows),
            "per_second": round(len(rows) / SECONDS, 1),
            "p50_ms": round(1000 * float(np.percentile(seconds, 50)), 1),
            "p99_ms": round(1000 * float(np.percentile(seconds, 99)), 1),
            "max_ms": round(1000 * float(seconds.max()), 1),
            "answered_by": {str(one): versions.count(one) for one in sorted(set(versions), key=str)},
        }


async def measure(url: str, registry: Registry, sent: list[bytes]) -> dict[str, Any]:
    load = Load(url, sent)
    clients = [asyncio.create_task(load.client(number)) for number in range(CLIENTS)]
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("production only", lambda: None),
        ("2 as shadow", lambda: registry.promote("depot", 2, "shadow")),
        (
            "2 as canary",
            lambda: (registry.withdraw("depot", "shadow"), registry.promote("depot", 2, "canary", gate="b")),
        ),
        ("2 promoted", lambda: registry.promote("depot", 2, gate="b")),
        ("rolled back to 1", lambda: registry.rollback("depot")),
        ("3 as canary, which answers wrongly", lambda: registry.promote("depot", 3, "canary", gate="b")),
    ]
    result: dict[str, Any] = {}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for phase, act in steps:
            load.phase, began = phase, time.perf_counter()
            await asyncio.to_thread(act)
            await asyncio.sleep(SECONDS)
            rollout = (await client.get("/v1/versions")).json()["rollouts"][0]
            first = [row for row in load.told if row[0] == phase and row[4] not in (None, 1)]
            result[phase] = load.summary(phase) | {
                "seconds_to_first_other": round(first[0][1] + first[0][2] - began, 2) if first else None,
                "compared": {
                    f"{one['version']} ({one['role']})": [one["compared"], one["disagreement"]]
                    for one in rollout["versions"]
                    if one["compared"]
                },
                "refused": rollout["refused"],
            }
            print(phase, json.dumps(result[phase]), flush=True)
    load.phase = "over"
    await asyncio.gather(*clients)
    result["registry"] = [
        f"{event.action} {event.version} {event.alias}: {event.reason}" for event in registry.history("depot")
    ]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        registry = Registry(Path(scratch) / "registry")
        for folder in (asked.first, asked.second, shuffled(asked.first, Path(scratch) / "shuffled")):
            registry.register(folder, "depot")
        registry.promote("depot", 1, gate="benchmark")
        sent = pictures(Path(scratch) / "site")
        line = [sys.executable, "-m", "foveal", "serve", "--detector", "artifact:depot@production", "--port", "0"]
        line += ["--registry", str(registry.root), "--no-demo", "--json"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            while httpx.get(f"{url}/readyz").status_code != 200:
                time.sleep(0.1)
            result = asyncio.run(measure(url, registry, sent))
            server.terminate()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"machine": describe_machine(), "clients": CLIENTS, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
