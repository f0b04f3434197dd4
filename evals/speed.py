"""How long one call takes, warm, with the machine described."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
