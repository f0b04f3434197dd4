"""Whether what comes in still looks like what a model was measured on: figures for `/metrics`.

Two things are watched. A detector's scores and the number of its boxes are held beside the profile that its file brings
from its gold images (`foveal export --gold`); without one, beside those of the first pictures that it is asked about.
And pictures that are embedded, with every twentieth that is detected in, are held beside the archive's regions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evals.drift import drift, psi
from foveal.detections import Detections, FloatArray
from foveal.models import Detector
from foveal.profile import FLOOR, Profile
from retrieval.archive import Archive
from retrieval.regions import Regions
from serve.metrics import Metrics

WINDOW = 1000  # pictures that are looked back on
FIRST = 500  # pictures that make a reference where a model brings none
LEAST = 100  # pictures before a figure is told, and images of an archive before it has regions
EVERY = 20  # of the pictures that are detected in, one is embedded too,
APART = 1.0  # but not within so many seconds: an encoder may cost ten times what a small detector does
GROWN = 2.0  # times the images that an archive had when its regions were learnt


@dataclass(slots=True)
class _Answers:
    """A detector's."""

    reference: Profile | None
    recent: deque[FloatArray] = field(default_factory=lambda: deque[FloatArray](maxlen=WINDOW))

    def signals(self) -> dict[str, float]:
        if self.reference is None and len(self.recent) >= FIRST:
            self.reference = Profile.of(list(self.recent))
            self.recent.clear()
        if self.reference is None or len(self.recent) < LEAST:
            return {}
        return drift(self.reference, Profile.of(list(self.recent)))


@dataclass(slots=True)
class _Pictures:
    """Those that an encoder saw."""

    archive: Archive
    regions: Regions | None = None
    size: int = 0  # of the archive when its regions were learnt
    recent: deque[FloatArray] = field(default_factory=lambda: deque[FloatArray](maxlen=WINDOW))

    def signals(self) -> dict[str, float]:
        size = len(self.archive)
        if size >= LEAST and (self.regions is None or size > GROWN * self.size):
            self.regions, self.size = Regions.of(self.archive), size
        if self.regions is None or len(self.recent) < LEAST:
            return {}
        return {"embedding": psi(self.regions.usual, self.regions.counts(np.stack(list(self.recent))))}


class Drift:
    """The figures of one server.

    Args:
        archives: by the name of the encoder that made their vectors.
    """

    def __init__(self, archives: Mapping[str, Archive], metrics: Metrics) -> None:
        self._metrics = metrics
        self._watched: dict[str, _Answers | _Pictures] = {name: _Pictures(one) for name, one in archives.items()}
        self._seen, self._embedded = 0, -APART

    def watch(self, name: str, archive: Archive) -> None:
        """From now on the pictures that an encoder sees are held beside this archive."""
        self._watched[name] = _Pictures(archive)

    def answered(self, name: str, model: Detector, found: Detections, threshold: float) -> None:
        """Notes what a detector found, unless lower scores were left out than can be compared."""
        if threshold > FLOOR:
            return
        if name not in self._watched:
            self._watched[name] = _Answers(getattr(getattr(model, "card", None), "profile", None))
        self._watched[name].recent.append(found.scores[found.scores >= FLOOR])

    def embedded(self, name: str, vectors: FloatArray) -> None:
        """Notes pictures (N, D) that an encoder embedded, where an archive says what is usual."""
        if name in self._watched:
            self._watched[name].recent.extend(vectors)

    def due(self) -> bool:
        """Whether the picture at hand is one that should be embedded too."""
        self._seen += 1
        if self._seen < EVERY or (now := time.monotonic()) < self._embedded + APART:
            return False
        self._seen, self._embedded = 0, now
        return True

    def forget(self, name: str) -> None:
        """A model that is no longer asked has no figures."""
        if self._watched.pop(name, None) is not None:
            for signal in ("score", "boxes"):
                self._metrics.drift.remove(name, signal)
            self._metrics.drift_samples.remove(name)

    def collect(self) -> None:
        """Brings the figures up to date; takes some milliseconds, and longer where an archive's regions are learnt."""
        for name, watched in list(self._watched.items()):
            self._metrics.drift_samples.labels(name).set(len(watched.recent))
            for signal, value in watched.signals().items():
                self._metrics.drift.labels(name, signal).set(value)
