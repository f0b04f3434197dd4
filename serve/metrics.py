"""Prometheus metrics of one server."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters with a registry of their own, so that several apps in one process do not mix.

    Of several processes that share a folder of figures (`serve.workers`) each tells those of all.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._together = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self.requests = Counter(
            "foveal_requests", "Answered requests.", ["route", "method", "status"], registry=registry
        )
        self.latency = Histogram(
            "foveal_request_seconds", "Time to the end of the answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self.in_flight = Gauge(
            "foveal_requests_in_flight", "Requests being worked on.", registry=registry, multiprocess_mode="livesum"
        )
        self.stage = Histogram(
            "foveal_stage_seconds",
            "Time in one stage (decode, encode, search, detect, answer), without waiting for the model to be free.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "foveal_batch_size", "Requests that a model answered together.", ["model"], buckets=SIZES, registry=registry
        )
        self.model_seconds = Counter(
            "foveal_model_seconds", "Time that a model worked, by whatever it worked on.", ["model"], registry=registry
        )
        self.queued = Histogram(
            "foveal_queue_seconds", "Time that a request waited for its model.", ["model"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "foveal_queue_length",
            "Requests that wait for a model.",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.refused = Counter(
            "foveal_refused",
            "Requests refused that might have been answered: queue, at once, deadline, audit.",
            ["reason"],
            registry=registry,
        )
        self.model = Gauge(
            "foveal_model_info", "Always 1; the labels say what is loaded.", ["name", "kind", "fingerprint"],
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        self.items = Gauge(
            "foveal_archive_items",
            "Images in an archive.",
            ["archive"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.cache = Counter(
            "foveal_cache", "Detections asked of the cache: hit, miss, or joined to an equal request under way.",
            ["model", "outcome"], registry=registry,
        )  # fmt: skip
        self.cache_bytes = Gauge(
            "foveal_cache_bytes", "Bytes of the answers in the cache.", registry=registry, multiprocess_mode="livesum"
        )
        self.retained = Counter(
            "foveal_retained", "Images that a rule of retention removed.", ["archive"], registry=registry
        )
        self.retention_runs = Counter(
            "foveal_retention_runs", "Applications of a rule of retention, done or failed.", ["archive", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.jobs = Counter("foveal_jobs", "Jobs that ended: done or failed.", ["archive", "state"], registry=registry)
        self.job_pictures = Counter(
            "foveal_job_pictures", "What became of jobs' pictures: added, updated, unchanged or rejected.",
            ["archive", "outcome"], registry=registry,
        )  # fmt: skip
        self.job_addresses = Gauge(
            "foveal_job_addresses", "Addresses that jobs have yet to fetch.", registry=registry,
            multiprocess_mode="livemostrecent",
        )  # fmt: skip
        self.ready = Gauge(
            "foveal_ready", "1 once every model is warm.", registry=registry, multiprocess_mode="livemin"
        )
        self.version_info = Gauge(
            "foveal_version_info", "1 for what a version of a model is, 0 for what it was.",
            ["name", "version", "role"], registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        self.version_requests = Counter(
            "foveal_version_requests", "What a version was asked, comparisons too.",
            ["name", "version", "role", "outcome"], registry=registry,
        )  # fmt: skip
        self.version_seconds = Histogram(
            "foveal_version_seconds", "Time of a version's answer, with waiting.", ["name", "version", "role"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.version_disagreement = Gauge(
            "foveal_version_disagreement",
            "Mean of one minus the F1 of a version's boxes against those of the one it is compared with.",
            ["name", "role"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rollbacks = Counter(
            "foveal_rollbacks", "Versions taken back, by the bar that they broke; `load` when one could not be used.",
            ["name", "reason"], registry=registry,
        )  # fmt: skip
        self.drift = Gauge(
            "foveal_drift",
            "Population stability index of what comes in against what the model was measured on; 0.25 is a shift.",
            ["model", "signal"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.drift_samples = Gauge(
            "foveal_drift_samples",
            "Recent pictures that the drift is told of.",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )

    def exposition(self) -> bytes:
        """All figures in Prometheus' text form."""
        if self._together is None:
            return generate_latest(self.registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone, self._together)
        return generate_latest(everyone)
