"""Answers of detectors that are given again: the same file asked of the same model is neither decoded nor looked at.

An answer goes by the sha256 of the file's bytes, the model's name, version and fingerprint, and the prompts, so that no
version answers with what another one found. It holds what was found from some score on, its floor, and answers every
threshold from there on. Of equal requests at the same time one is worked on, and the others wait for it. Errors are not
kept. What was used longest ago goes first when the bytes are spent.

While a canary, a shadow or a version on probation is compared (`Rollout.settled`), that model's requests pass by: bars
go by what versions do with the traffic, and an answer from here says nothing of that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from foveal.detections import Detections
from serve.versions import Answerer

if TYPE_CHECKING:
    from serve.metrics import Metrics

OVERHEAD = 1500  # bytes of the objects around an answer's arrays, and of its key


@dataclass(frozen=True, slots=True)
class Key:
    """What an answer depends on, but for the threshold."""

    digest: str  # sha256 hex of the picture's file
    model: str
    fingerprint: str
    version: int | None
    prompts: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model found in a picture."""

    made: Answerer
    found: Detections
    size: tuple[int, int]  # width and height of the picture, pixels

    def above(self, threshold: float) -> Seen:
        """What of it scores at least so much, in arrays of its own."""
        return replace(self, found=self.found[self.found.scores >= threshold])


@dataclass(slots=True)
class _Flight:
    floor: float
    task: asyncio.Task[Seen]
    waiting: int = 0  # requests


class ResultCache:
    """Answers of some bytes in all; used on the event loop only."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self.most, self.bytes, self._metrics = most, 0, metrics
        self._kept: OrderedDict[Key, tuple[float, Seen, int]] = OrderedDict()  # floor, answer, bytes
        self._flights: dict[Key, _Flight] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, key: Key, threshold: float, work: Callable[[], Coroutine[Any, Any, Seen]]) -> Seen:
        """What was found before from a score of `threshold` on, or what `work` finds; raises what that raises."""
        floor, seen, _ = self._kept.get(key, (2.0, None, 0))
        if seen is not None and floor <= threshold:
            self._kept.move_to_end(key)
            self._metrics.cache.labels(key.model, "hit").inc()
            return seen.above(threshold)
        flight = self._flights.get(key)
        if flight is None or flight.floor > threshold:
            self._metrics.cache.labels(key.model, "miss").inc()
            flight = self._flights[key] = _Flight(threshold, asyncio.create_task(self._found(key, threshold, work)))
        else:
            self._metrics.cache.labels(key.model, "joined").inc()
        flight.waiting += 1
        try:
            # Whoever began it may go away or run out of time, and the others still get their answer.
            return (await asyncio.shield(flight.task)).above(threshold)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():  # nobody is left
                flight.task.cancel()
                self._land(key, flight.task)

    async def _found(self, key: Key, floor: float, work: Callable[[], Coroutine[Any, Any, Seen]]) -> Seen:
        task = asyncio.current_task()
        try:
            seen = await work()
            if (seen.made.fingerprint, seen.made.version) == (key.fingerprint, key.version):  # else it was swapped
                self._keep(key, floor, seen.above(floor))
            return seen
        finally:
            self._land(key, task)

    def _land(self, key: Key, task: asyncio.Task[Seen] | None) -> None:
        if key in self._flights and self._flights[key].task is task:
            del self._flights[key]

    def _keep(self, key: Key, floor: float, seen: Seen) -> None:
        if key in self._kept and self._kept[key][0] <= floor:
            return
        self.bytes -= self._kept.pop(key, (0.0, None, 0))[2]
        size = OVERHEAD + sum(2 * len(prompt) for prompt in key.prompts or ()) + _bytes(seen.found)
        self._kept[key] = floor, seen, size
        self.bytes += size
        while self.bytes > self.most:
            self.bytes -= self._kept.popitem(last=False)[1][2]
        self._metrics.cache_bytes.set(self.bytes)


def _bytes(found: Detections) -> int:
    arrays = (found.boxes, found.scores, found.labels, found.probabilities)
    texts = sum(len(mask) for mask in found.masks or ())
    return texts + sum(array.nbytes for array in arrays if array is not None)
