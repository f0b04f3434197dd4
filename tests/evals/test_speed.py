"""Timing: what is counted, what is not, and that a machine is named."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from evals.speed import detector_latency, latency, over_items
from foveal.detections import Detections
from foveal.errors import BadInput


def test_warm_calls_only_are_counted() -> None:
    calls: list[float] = []

    def slow_start() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.2 if len(calls) <= 2 else 0.001)

    measured = latency(slow_start, warmup=2, runs=10)
    assert len(calls) == 12
    assert 1 <= measured["p50_ms"] <= measured["p95_ms"] <= measured["p99_ms"]
    assert measured["p50_ms"] < 100
    assert measured["runs"] == 10


def test_items_take_turns() -> None:
    seen: list[str] = []
    over_items(seen.append, ["a", "b", "c"], warmup=1, runs=5)
    assert seen == ["a", "b", "c", "a", "b", "c"]
    with pytest.raises(BadInput, match="nothing to time"):
        over_items(seen.append, [])
    with pytest.raises(BadInput, match="runs >= 1"):
        latency(lambda: None, runs=0)


class Empty:
    """A detector that finds nothing, one image at a time."""

    name, fingerprint, classes = "empty", "0", ("thing",)

    def detect(self, images: Sequence[Any], threshold: float = 0.05) -> list[Detections]:
        assert len(images) == 1
        return [Detections.empty(self.classes)]


def test_a_detector_is_timed_at_batch_one_on_a_named_machine() -> None:
    measured = detector_latency(Empty(), [Image.new("RGB", (8, 8))], warmup=1, runs=3)
    assert measured["batch"] == 1
    assert measured["detector"] == "empty"
    assert measured["machine"]
    assert measured["images_per_second"] == pytest.approx(1000 / measured["mean_ms"])
