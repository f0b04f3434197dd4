"""When a version of a model is taken back: what it did beside the version that it is to replace, against bars."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from evals.detection import match
from evals.intervals import wilson
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.models import Detector
from serve.lanes import Lane

Role = Literal["production", "canary", "shadow", "previous"]
RECENT = 500  # requests, and compared pictures, that a version is judged by
ERRORS = 3  # before the share of errors is judged at all


@dataclass(frozen=True, slots=True)
class Bars:
    """What a version may not exceed, or it is taken back.

    Args:
        errors: share of its requests that failed and that the other version could answer; judged by the lower end of
            the one-sided 95% interval, so a few errors of a few requests suffice.
        latency: 95th percentile of its seconds, as a multiple of the other's at the same time.
        disagreement: mean of one minus the F1 of its boxes against the other's, at IoU 0.5 and equal labels.
        least: requests, or compared pictures, before latency and disagreement are judged.

    Raises:
        BadInput: a bar lies outside its range.
    """

    errors: float = 0.02
    latency: float = 2.0
    disagreement: float = 0.5
    least: int = 50

    def __post_init__(self) -> None:
        if not (0 <= self.errors < 1 and self.latency >= 1 and 0 < self.disagreement <= 1 and self.least >= 1):
            raise BadInput(
                "a bar lies outside its range",
                expected="errors in [0, 1), latency >= 1, disagreement in (0, 1], least >= 1",
                received=f"errors={self.errors:g}, latency={self.latency:g}, disagreement={self.disagreement:g}, "
                f"least={self.least}",
            )

    @classmethod
    def read(cls, given: Sequence[str]) -> Bars:
        """The bars of texts such as `errors=0.05`; BadInput for a name or value that cannot be one."""
        known = {each.name: type(each.default) for each in fields(cls)}
        values: dict[str, Any] = {}
        for one in given:
            name, _, value = one.partition("=")
            try:
                values[name] = known[name](value)
            except (KeyError, ValueError):
                raise BadInput(f"{one!r} is no bar", expected=f"NAME=NUMBER, NAME of {', '.join(known)}") from None
        return cls(**values)


@dataclass(eq=False, slots=True)
class Version:
    """One loaded version, what it is at the moment, and how its recent requests went."""

    number: int
    model: Detector
    lane: Lane
    role: Role
    asked: int = 0  # in this role
    seconds: deque[float] = field(default_factory=lambda: deque[float](maxlen=RECENT))
    failed: deque[bool] = field(default_factory=lambda: deque[bool](maxlen=RECENT))
    disagreements: deque[float] = field(default_factory=lambda: deque[float](maxlen=RECENT))

    def begin(self, role: Role) -> None:
        """A new role: what counts is what happens from now on."""
        self.role, self.asked = role, 0
        for each in (self.seconds, self.failed, self.disagreements):
            each.clear()

    def count(self, seconds: float | None, *, failed: bool) -> None:
        """Notes how a request went, and how long it took where somebody waited for it."""
        self.asked += 1
        self.failed.append(failed)
        if seconds is not None:
            self.seconds.append(seconds)

    def percentile(self, q: float) -> float | None:
        """Of its recent seconds; None before any."""
        return float(np.percentile(self.seconds, q)) if self.seconds else None

    @property
    def disagreement(self) -> float | None:
        """Mean over its recent compared pictures; None before any."""
        return float(np.mean(self.disagreements)) if self.disagreements else None

    @property
    def errors(self) -> int:
        """Of its recent requests."""
        return sum(self.failed)


def verdict(version: Version, other: Version, bars: Bars) -> tuple[str, str] | None:
    """(name of the bar that a version breaks beside the one that it is to replace, in words), if any."""
    asked = len(version.failed)
    low, _ = wilson(version.errors, asked, one_sided=True)
    if version.errors >= ERRORS and low > bars.errors:
        return "errors", f"{version.errors} of {asked} requests failed, more than {bars.errors:.1%}"
    if min(len(version.seconds), len(other.seconds)) >= bars.least:
        own, usual = version.percentile(95) or 0.0, other.percentile(95) or 0.0
        if own > bars.latency * usual:
            return "latency", f"p95 {1000 * own:.1f} ms, more than {bars.latency:g} times {1000 * usual:.1f} ms"
    apart = version.disagreement
    if apart is not None and len(version.disagreements) >= bars.least and apart > bars.disagreement:
        return "disagreement", f"parts from version {other.number} by {apart:.2f}, more than {bars.disagreement:g}"
    return None


def disagreement(a: Detections, b: Detections) -> float:
    """One minus the F1 of the boxes of `a` against those of `b`: 0 where all match, 1 where none does."""
    total = len(a) + len(b)
    return 1 - 2 * int(match(a, b).sum()) / total if total else 0.0
