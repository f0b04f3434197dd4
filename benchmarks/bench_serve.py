"""The server beside the same work without one, and beside LitServe with the same models.

    python -m benchmarks.bench_serve --detector onnx:runs/quickstart/release/student-onnx --out runs/serve.json

Three kinds of work, each over HTTP with wrk's closed loop at several concurrencies, in turns with its contestants:

    search       texts against 100,000 vectors        in process: `Archive.search` in one thread, and in two
    detection    JPEG files uploaded as forms         offline: decode and detect in batches, in one thread
    embedding    texts, OpenAI's form                 in process: `encode_texts` in batches

Then detection in an open loop: at 70% of the best rate for its tail, at five times that rate for what overload does,
and at 70% again for recovery. LitServe (`pip install litserve`) is left out where it is not installed. wrk is Debian's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from foveal import world
from foveal.images import decode
from foveal.models import load_detector, load_encoder
from foveal.runtime import describe_machine
from retrieval.archive import Archive
from retrieval.query import SearchQuery

ENCODER = "bundled:clip"
VECTORS = 100_000
BOUNDARY = "foveal-benchmark"
SECONDS = 8.0
SETTLE = 3.0  # seconds for what the load before left in the queue: it would be told as the tail of the next


# What is sent.


def texts(count: int = 200) -> list[str]:
    colours = ("red", "blue", "green", "yellow", "white", "black", "orange", "grey")
    things = ("crate", "barrel", "drone", "cone", "ladder", "pallet", "helmet", "valve", "pipe", "sign")
    places = ("on the floor", "beside a wall", "in dim light")
    return [f"a {c} {t} {p}" for p in places for t in things for c in colours][:count]


def pictures(folder: Path, count: int = 64) -> list[bytes]:
    if not folder.exists():
        world.write(folder, "site", count, 5)
    made: list[bytes] = []
    for path in sorted(folder.rglob("*.jpg"))[:count] or sorted(folder.rglob("*.png"))[:count]:
        buffer = io.BytesIO()
        decode(path).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def form(picture: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + picture + f"\r\n--{BOUNDARY}--\r\n".encode()


def bodies(kind: str, sent: list[str] | list[bytes]) -> tuple[str, list[bytes]]:
    """(content type, bodies) of requests to Foveal."""
    if kind == "detect":
        return f"multipart/form-data; boundary={BOUNDARY}", [form(one) for one in sent if isinstance(one, bytes)]
    shape: Callable[[Any], Any] = (lambda t: {"text": t}) if kind == "search" else (lambda t: {"input": t})
    return "application/json", [json.dumps(shape(one)).encode() for one in sent]


PATHS = {"search": "/v1/search", "detect": "/v1/detect", "embeddings": "/v1/embeddings"}


# Servers.


@contextmanager
def started(command: list[str], ready: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server process that answers `ready`; yields its process id."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
        try:
            for _ in range(600):
                if process.poll() is not None:
                    break
                try:
                    if httpx.get(ready, timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
            if process.poll() is not None:
                log.seek(0)
                sys.exit(f"{' '.join(command)} did not start: {log.read()[-2000:].decode()}")
            yield process.pid
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wrk(
    url: str, kind: str, sent: tuple[str, list[bytes]], connections: int, seconds: float = SECONDS
) -> dict[str, Any]:
    """wrk's closed loop over the bodies in turn: requests a second, milliseconds, errors."""
    content, payloads = sent
    with tempfile.TemporaryDirectory() as folder:
        for number, payload in enumerate(payloads):
            (Path(folder) / str(number)).write_bytes(payload)
        script = Path(folder) / "script.lua"
        script.write_text(
            f"local bodies, at = {{}}, 0\nfor n = 0, {len(payloads) - 1} do\n"
            f'  local file = io.open("{folder}/" .. n, "rb"); bodies[n] = file:read("*a"); file:close()\nend\n'
            f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{content}"\n'
            f"function request()\n  at = (at + 1) % {len(payloads)}\n"
            "  return wrk.format(nil, nil, nil, bodies[at])\nend\n"
            "function done(summary, latency)\n"
            '  io.write(string.format("RESULT %d %d %d %f %f %f\\n", summary.requests, summary.duration,\n'
            "    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout,\n"
            "    latency:percentile(50), latency:percentile(99), latency.max))\nend\n"
        )
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "60s", "-s", str(script), url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("RESULT")]
    requests, duration, errors, *latency = (float(word) for word in line.split()[1:])
    p50, p99, most = (value / 1000 for value in latency)
    return {"rate": requests / duration * 1e6, "p50_ms": p50, "p99_ms": p99, "max_ms": most, "errors": int(errors)}


# Without a server.


def rate(work: Callable[[int], int], seconds: float, threads: int = 1) -> float:
    """Units a second of `work(turn)`, which says how many it did."""
    stop, done = time.perf_counter() + seconds, [0] * threads

    def loop(slot: int) -> None:
        turn = slot
        while time.perf_counter() < stop:
            done[slot] += work(turn)
            turn += threads

    work(0)
    began = time.perf_counter()
    stop = began + seconds
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(loop, range(threads)))
    return sum(done) / (time.perf_counter() - began)


def offline(kind: str, archive: Path, detector: str, sent: list[Any]) -> dict[str, float]:
    if kind == "search":
        opened, encoder = Archive.open(archive), load_encoder(ENCODER)

        def one(turn: int) -> int:
            opened.search(SearchQuery(text=sent[turn % len(sent)]), encoder)
            return 1

        return {"one thread": rate(one, SECONDS), "two threads": rate(one, SECONDS, 2)}
    if kind == "detect":
        model = load_detector(detector)
        found: dict[str, float] = {}
        for size in (1, 8, 32):

            def batch(turn: int, size: int = size) -> int:
                chosen = [decode(sent[(turn * size + n) % len(sent)]) for n in range(size)]
                model.detect(chosen, 0.3)
                return size

            found[f"batches of {size}"] = rate(batch, SECONDS)
        return found
    encoder = load_encoder(ENCODER)

    def embed(turn: int, size: int = 32) -> int:
        encoder.encode_texts([sent[(turn * size + n) % len(sent)] for n in range(size)])
        return size

    return {"batches of 32": rate(embed, SECONDS), "batches of 1": rate(lambda turn: embed(turn, 1), SECONDS)}


# LitServe's server over the same models, as its documentation writes one with batching.

LITSERVE = """
import base64, sys
import litserve as ls
from foveal.images import decode
from foveal.models import load_detector, load_encoder

class Detect(ls.LitAPI):
    def setup(self, device):
        self.model = load_detector(sys.argv[2])
    def decode_request(self, request):
        return decode(request["image"].file.read())
    def predict(self, images):
        many = isinstance(images, list)
        found = self.model.detect(images if many else [images], 0.3)
        return found if many else found[0]
    def encode_response(self, found):
        return {"detections": [
            {"box": box, "label": label, "score": score}
            for box, label, score in zip(found.boxes.tolist(), found.label_names, found.scores.tolist())
        ]}

class Embed(ls.LitAPI):
    def setup(self, device):
        self.model = load_encoder(sys.argv[2])
    def decode_request(self, request):
        return request["input"]
    def predict(self, texts):
        many = isinstance(texts, list)
        found = self.model.encode_texts(texts if many else [texts])
        return list(found) if many else found[0]
    def encode_response(self, vector):
        return {"data": [{"object": "embedding", "index": 0, "embedding": vector.tolist()}]}

if __name__ == "__main__":
    kind, _, port, size = sys.argv[1:5]
    api = (Detect if kind == "detect" else Embed)(max_batch_size=int(size), batch_timeout=0.01)
    ls.LitServer(api, accelerator="cpu").run(port=int(port), generate_client_file=False, log_level="error")
"""


@contextmanager
def litserve(kind: str, model: str, size: int, port: int) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "lit.py"
        script.write_text(LITSERVE)
        command = [sys.executable, str(script), kind, model, str(port), str(size)]
        path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        with started(command, f"http://127.0.0.1:{port}/health", {"PYTHONPATH": path}) as process:
            yield process


def has_litserve() -> bool:
    return subprocess.run([sys.executable, "-c", "import litserve"], capture_output=True).returncode == 0


# The open loop.


async def open_loop(url: str, sent: tuple[str, list[bytes]], per_second: float, seconds: float) -> dict[str, Any]:
    """Requests at fixed times, whatever became of those before them."""
    content, payloads = sent
    host, port = url.split("/")[2].split(":")
    path = "/" + url.split("/", 3)[3]
    heads = [
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content}\r\nContent-Length: {len(p)}\r\n\r\n".encode()
        + p
        for p in payloads
    ]
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    done: list[tuple[float, int, bool]] = []

    async def ask(number: int, due: float) -> None:
        try:
            while True:
                kept = bool(free)
                reader, writer = free.pop() if kept else await asyncio.open_connection(host, int(port))
                try:
                    writer.write(heads[number % len(heads)])
                    head = await reader.readuntil(b"\r\n\r\n")
                    break
                except (OSError, asyncio.IncompleteReadError):
                    if not kept:  # a connection that lay idle may have been closed meanwhile
                        raise
            words = head.lower()
            length = int(words.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            status, retry = int(words.split(b" ", 2)[1]), b"retry-after" in words
            if b"connection: close" in words:
                writer.close()
            else:
                free.append((reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            status, retry = 0, False
        done.append((time.perf_counter() - due, status, retry))

    gc.freeze()  # or collections of this process, 0.1 s each, would be told as the server's
    began, tasks = time.perf_counter(), set[asyncio.Task[None]]()
    for number in range(int(per_second * seconds)):
        due = began + number / per_second
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(ask(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    took = time.perf_counter() - began
    good = sorted(seconds for seconds, status, _ in done if status == 200)
    refused = [retry for _, status, retry in done if status in (429, 503)]
    return {
        "asked": len(done),
        "good": len(good),
        "goodput": len(good) / took,
        "refused": len(refused),
        "with Retry-After": sum(refused),
        "failed": len(done) - len(good) - len(refused),
        "p50_ms": 1000 * good[len(good) // 2] if good else None,
        "p99_ms": 1000 * good[int(len(good) * 0.99)] if good else None,
        "max_ms": 1000 * max(seconds for seconds, _, _ in done),
    }


def megabytes(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def prepare(folder: Path) -> Path:
    """An archive of 100,000 vectors: texts' embeddings with noise, so that searches have neighbours."""
    place = folder / "archive"
    if not place.exists():
        encoder = load_encoder(ENCODER)
        centres = encoder.encode_texts(texts())
        noise = np.random.default_rng(0)
        rows = centres[noise.integers(0, len(centres), VECTORS)]
        rows = rows + 0.4 * noise.standard_normal(rows.shape).astype(np.float32) / np.sqrt(rows.shape[1])
        archive = Archive.create(place, encoder, reference=ENCODER)
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        archive.add_vectors(
            [f"image-{n}.jpg" for n in range(VECTORS)], rows, fingerprint=encoder.fingerprint,
            metadata=[{"camera": f"cam-{n % 12}"} for n in range(VECTORS)],
        )  # fmt: skip
    return place


def overloaded(url: str, payloads: tuple[str, list[bytes]], process: int) -> dict[str, Any]:
    """Detection asked for at fixed rates, whatever becomes of it."""
    peak = wrk(url, "detect", payloads, 32)["rate"]
    found: dict[str, Any] = {"peak": peak}
    for name, share in (("70%", 0.7), ("100%", 1.0), ("500%", 5.0), ("70% after", 0.7)):
        time.sleep(SETTLE)
        result = asyncio.run(open_loop(url, payloads, share * peak, SECONDS))
        found[name] = {**result, "megabytes": megabytes(process)}
        print(name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True, help="reference of an exported detector")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-serve"), help="folder for the archive and images")
    parser.add_argument("--kinds", nargs="+", choices=list(PATHS), default=list(PATHS))
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--port", type=int, default=8977)
    parser.add_argument(
        "--with", dest="options", action="append", default=[], metavar="OPTIONS",
        help="serve with these too, e.g. '--workers 2' or '--runtime openvino'; repeatable",
    )  # fmt: skip
    parser.add_argument("--open-loop", choices=("yes", "no", "only"), default="yes")
    parser.add_argument("--out", type=Path, default=Path("runs/serve.json"))
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    archive, images = prepare(asked.work), pictures(asked.work / "images")
    sent: dict[str, list[Any]] = {"search": texts(), "detect": images, "embeddings": texts()}
    ours = [
        sys.executable, "-m", "foveal", "serve", "--archive", str(archive), "--detector", asked.detector, "--port",
        str(asked.port), "--no-demo",
    ]  # fmt: skip
    ready, base = f"http://127.0.0.1:{asked.port}/readyz", f"http://127.0.0.1:{asked.port}"
    found: dict[str, Any] = {"machine": describe_machine(), "turns": []}
    for _ in range(0 if asked.open_loop == "only" else asked.turns):
        turn: dict[str, Any] = {}
        for kind in asked.kinds:
            made: dict[str, Any] = {"without a server": offline(kind, archive, asked.detector, sent[kind])}
            payloads = bodies(kind, sent[kind])
            for options in ("", *asked.options):
                with started([*ours, *options.split()], ready):
                    made[f"foveal {options}".strip()] = {
                        c: wrk(base + PATHS[kind], kind, payloads, c) for c in asked.connections
                    }
            if kind != "search" and has_litserve():
                for size in (1, 32):
                    model = asked.detector if kind == "detect" else ENCODER
                    with litserve(kind, model, size, asked.port + 1):
                        url = f"http://127.0.0.1:{asked.port + 1}/predict"
                        made[f"litserve, batches of {size}"] = {
                            c: wrk(url, kind, payloads, c) for c in asked.connections
                        }
            turn[kind] = made
            print(json.dumps({kind: made}, indent=1), flush=True)
        found["turns"].append(turn)
    if asked.open_loop != "no":
        with started(ours, ready) as process:
            payloads = bodies("detect", images)
            found["open loop"] = overloaded(base + PATHS["detect"], payloads, process)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
