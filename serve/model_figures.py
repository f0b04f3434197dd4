"""What a server's own figures say of its models: what each cost since the start, and how far its input has drifted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from prometheus_client.metrics import MetricWrapperBase

from serve.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one model, all its versions together; comparisons and what failed are among it, answers of a cache are not."""

    requests: float = 0.0  # that the model worked on
    batches: float = 0.0
    seconds: float = 0.0  # that it worked

    @property
    def together(self) -> float | None:
        """Mean number of requests in a batch; None before any."""
        return self.requests / self.batches if self.batches else None

    @property
    def each(self) -> float | None:
        """Mean seconds of the model for one request; None before any."""
        return self.seconds / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class Drifted:
    """What is told of a model's input; `signals` is empty until enough pictures were seen."""

    signals: Mapping[str, float]  # score and boxes, or embedding: population stability index
    pictures: int  # recent ones


def costs(metrics: Metrics, followed: Collection[str]) -> dict[str, Cost]:
    """By model what it cost.

    Args:
        followed: models whose figures are kept by version, as `name@number`.
    """
    parts = (
        _by_model(metrics.batch, "foveal_batch_size_sum"),
        _by_model(metrics.batch, "foveal_batch_size_count"),
        _by_model(metrics.model_seconds, "foveal_model_seconds_total"),
    )
    found: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for place, values in enumerate(parts):
        for lane, value in values.items():
            name, _, number = lane.rpartition("@")
            found[name if name in followed and number.isdecimal() else lane][place] += value
    return {name: Cost(*values) for name, values in found.items()}


def drifts(metrics: Metrics) -> dict[str, Drifted]:
    """By model, or `name@number` of a version, how far its input has drifted, as of the last `Drift.collect`."""
    signals: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for metric in metrics.drift.collect():
        for sample in metric.samples:
            signals[sample.labels["model"]][sample.labels["signal"]] = sample.value
    seen = _by_model(metrics.drift_samples, "foveal_drift_samples")
    return {name: Drifted(signals.get(name, {}), int(count)) for name, count in seen.items()}


def _by_model(metric: MetricWrapperBase, sample: str) -> dict[str, float]:
    return {one.labels["model"]: one.value for each in metric.collect() for one in each.samples if one.name == sample}
