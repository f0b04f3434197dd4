"""How long one call takes, warm; how many pictures a second, in how much memory, with what energy, at what cost.

A model is timed in a process of its own (`evals.speed_probe`), a running server from outside by several callers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from evals.prices import Machine, cost
from evals.results import Measured
from evals.speed_probe import KINDS, LEAST_BATCHES, Request, Timed, probe
from foveal.errors import BadInput
from foveal.models import Detector
from foveal.runtime import describe_machine


def latency(fn: Callable[[], object], *, warmup: int = 3, runs: int = 50) -> dict[str, float]:
    """Milliseconds of one call of `fn` -> `p50_ms`, `p95_ms`, `p99_ms`, `mean_ms`, `runs`.

    The first `warmup` calls are not counted: they pay for compilation, page faults and lazy loading. Percentiles are
    of `runs` single calls, so p99 of fewer than 100 is close to the slowest seen.
    """
    if runs < 1 or warmup < 0:
        raise BadInput("nothing to time", expected="runs >= 1 and warmup >= 0", received=f"{runs} and {warmup}")
    for _ in range(warmup):
        fn()
    times = np.empty(runs)
    for i in range(runs):
        start = time.perf_counter()
        fn()
        times[i] = (time.perf_counter() - start) * 1000
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "mean_ms": float(times.mean()), "runs": float(runs)}


def over_items(
    fn: Callable[[Any], object], items: Sequence[Any], *, warmup: int = 3, runs: int = 50
) -> dict[str, float]:
    """As `latency`, each call on the next of `items` in turn, so no cache answers for the model."""
    if not items:
        raise BadInput("nothing to time", expected="at least one item")
    position = -1

    def call() -> object:
        nonlocal position
        position = (position + 1) % len(items)
        return fn(items[position])

    return latency(call, warmup=warmup, runs=runs)


def detector_latency(detector: Detector, images: Sequence[Any], *, warmup: int = 3, runs: int = 50) -> dict[str, Any]:
    """Warm latency of a detector at batch 1 on upright RGB images, pre- and post-processing included.

    Returns `latency`'s numbers with `images_per_second` (1000 / mean), `detector` and `machine`.
    """
    measured = over_items(lambda image: detector.detect([image]), images, warmup=warmup, runs=runs)
    return {
        **measured,
        "images_per_second": 1000 / measured["mean_ms"],
        "batch": 1,
        "detector": detector.name,
        "machine": describe_machine(),
    }


def kind_of(reference: str) -> str:
    """What a reference is timed as when nobody says: by its scheme, or what is bundled.

    Raises:
        BadInput: it may be several things.
    """
    from foveal.models import DETECTORS

    scheme = reference.partition(":")[0]
    bundled = {"bundled:clip": "encoder", "bundled:owl": "open-detector", "bundled:vlm": "vlm"}
    found = bundled.get(reference.partition("+")[0])
    if found is None and scheme == "open_clip":
        found = "encoder"
    if found is None and scheme in (*DETECTORS, "artifact"):
        found = "detector"
    if found is None:
        raise BadInput(f"{reference} may be several things", expected=f"--as with one of {', '.join(KINDS)}")
    return found


def time_model(request: Request) -> Timed:
    """A model timed in a process of its own, a running server from this one; raises as what it asks."""
    from foveal.served import is_server

    return _time_server(request) if is_server(request.reference) else probe(request)


def _time_server(request: Request) -> Timed:
    """Single calls one after the other, then as many callers at once as each of the batch sizes says."""
    from foveal.images import decode
    from foveal.served import connect

    pictures = [decode(Path(file)) for file in request.images]
    callers = [_caller(connect(request.reference, [request.kind]), request) for _ in range(max(request.batches))]
    name, fingerprint, ask = callers[0]
    for turn in range(request.warmup):
        ask(pictures[turn % len(pictures)])
    turns = range(request.calls)
    ms = [_milliseconds(lambda turn=turn: ask(pictures[turn % len(pictures)])) for turn in turns]
    rates: dict[int, float] = {}
    for width in sorted(set(request.batches)):

        def work(place: int, until: float) -> int:
            count = 0
            while count < LEAST_BATCHES or time.perf_counter() < until:
                callers[place][2](pictures[(place + count) % len(pictures)])
                count += 1
            return count

        with ThreadPoolExecutor(width) as pool:
            began = time.perf_counter()
            counts = list(pool.map(work, range(width), [began + request.seconds] * width))
            rates[width] = sum(counts) / (time.perf_counter() - began)
    return Timed(
        ms=ms,
        images=[Path(request.images[turn % len(pictures)]).name for turn in turns],
        images_per_second=rates,
        joules_per_image={},
        peak_mb={},
        energy_why_not="not readable: it is the server's machine that uses it",
        name=name,
        fingerprint=fingerprint,
    )


def _caller(model: Any, request: Request) -> tuple[str, str, Callable[[Any], object]]:
    """Name and fingerprint of a served model, and how it is asked about one picture; each has its own connection."""
    ask: Callable[[Any], object] = lambda image: model.encode_images([image])  # noqa: E731
    if request.kind == "detector":
        ask = lambda image: model.detect([image])  # noqa: E731
    elif request.kind == "open-detector":
        ask = lambda image: model.detect([image], request.prompts)  # noqa: E731
    elif request.kind == "vlm":
        ask = lambda image: model.answer(image, request.question, request.max_tokens)  # noqa: E731
    return model.name, model.fingerprint, ask


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def measure(timed: Timed, price: Machine | None = None, currency: str | None = None) -> Measured:
    """What was timed as figures, and each single call as an item with its `image` and `ms`.

    Figures: `p50_ms`, `p95_ms`, `p99_ms`, `mean_ms` of single calls; `images_per_second` at the best of the batch sizes
    in `throughput`, which is `best_batch`; `peak_memory_mb` (and by batch size), `before_mb`, `gpu_memory_mb`,
    `load_seconds`; `joules_per_image` at the best batch size with what was counted, or why it cannot be read; and
    `cost_per_1000` images where a price is given.
    """
    times = np.asarray(timed.ms)
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    best = max(timed.images_per_second, key=lambda batch: timed.images_per_second[batch])
    rate, joules = timed.images_per_second[best], timed.joules_per_image.get(best)
    figures: dict[str, Any] = {
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "mean_ms": float(times.mean()),
        "calls": len(times),
        "images_per_second": rate,
        "best_batch": best,
        "throughput": {str(batch): value for batch, value in timed.images_per_second.items()},
        "peak_memory_mb": max(timed.peak_mb.values(), default=None),
        "memory_by_batch": {str(batch): value for batch, value in timed.peak_mb.items()},
        "before_mb": timed.before_mb,
        "gpu_memory_mb": timed.gpu_peak_mb,
        "load_seconds": timed.load_seconds,
        "joules_per_image": joules,
        "energy": timed.energy or timed.energy_why_not,
    }
    if price is not None:
        spent = cost(price, rate, joules)
        figures |= {
            "cost_per_1000": spent.total,
            "currency": currency,
            "cost": {"machine": spent.machine, "electricity": spent.electricity, "note": spent.note},
        }
    items: dict[str, list[Any]] = {
        "id": [f"call {number}" for number in range(len(times))],
        "image": list(timed.images),
        "ms": list(timed.ms),
    }
    return Measured(figures, items)
