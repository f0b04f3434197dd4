"""A lane for each model: requests that can be answered together go through it together, on a thread of the model's own.

A free lane starts at once with whatever is waiting, so that nobody waits for company while the model is idle; while it
is busy requests gather, and batches grow by themselves, up to the size that was measured to pay for such work
(`Lane.measure`).
One thread a model, because two forward passes at once share the same cores and only lengthen both, and because the
numeric libraries keep a team of workers for each thread that calls them.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from foveal.errors import Unavailable
from serve import logs
from serve.tracing import Traces, Wait

if TYPE_CHECKING:
    from serve.metrics import Metrics

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741
MOST = 64  # of one batch
BATCH_SECONDS = 0.5  # that a batch may take: nobody waits longer than this for others' work to end
WORTH = 1.05  # times the best throughput measured: a smaller batch within this is preferred
RECENT = 0.2  # weight of the latest batch in the running mean of seconds


class Overloaded(Unavailable):
    """More is waiting than can be answered in time."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message, remedy="Try again later, or ask less at once.")
        self.retry_after = max(1, math.ceil(seconds))


@dataclass(eq=False, slots=True)
class _Job:
    key: tuple[str, Hashable]  # stage, and what else requests have in common that can be answered together
    call: Callable[[list[Any]], Sequence[Any]]
    item: Any
    weight: int
    done: asyncio.Future[Any]
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0  # seconds
    together: int = 1  # requests of its batch
    wait: Wait | None = None  # as its trace has it


class Lane:
    """The queue of one model.

    Args:
        deadline: seconds; what cannot be begun within them is refused at once.
    """

    def __init__(self, name: str, metrics: Metrics, deadline: float, traces: Traces | None = None) -> None:
        self.name, self.most, self._metrics, self._deadline = name, 1, metrics, deadline
        self.sizes: dict[Hashable, int] = {}  # by key, where a batch of it may be larger or smaller than `most`
        self._traces = traces or Traces()
        self._waiting: deque[_Job] = deque()
        self._seconds: dict[Hashable, float] = {}  # by key: running mean a unit of weight
        self._running: asyncio.Task[None] | None = None
        self._busy_until = 0.0  # expected, of the batch that runs
        self._pool: ThreadPoolExecutor | None = None

    async def run(
        self, stage: str, call: Callable[[list[I]], Sequence[O]], item: I, *, key: Hashable = None, weight: int = 1
    ) -> O:
        """`call([item])[0]`, together with other items of the same stage and key.

        Args:
            weight: how much of a batch the item fills.

        Raises:
            Overloaded: it could not be begun before the deadline.
            Otherwise what the call raises for this item.
        """
        if (ahead := self.ahead()) > self._deadline:
            self._metrics.refused.labels("queue").inc()
            raise Overloaded(f"{self.name} has {len(self._waiting)} requests waiting", ahead - self._deadline)
        job = _Job((stage, key), call, item, weight, asyncio.get_running_loop().create_future())
        job.wait = self._traces.wait(self.name)
        self._waiting.append(job)
        if self._running is None or self._running.done():
            # A context of its own: what it does is not only for the request that happens to start it.
            self._running = asyncio.create_task(self._work(), context=contextvars.Context())
        try:
            result = await job.done
            logs.batched(self.name, stage, job.together, job.waited)
            return result
        finally:
            if job.wait is not None:
                job.wait.end()
            self._metrics.waiting.labels(self.name).set(len(self._waiting))

    def ahead(self) -> float:
        """Seconds until what is asked now would be begun, expected from how long others took."""
        queued = sum(job.weight * self._seconds.get(job.key, 0.0) for job in self._waiting if not job.done.done())
        return queued + max(0.0, self._busy_until - time.perf_counter())

    async def measure(self, call: Callable[[list[I]], Sequence[Any]], item: I, keys: Collection[Hashable] = ()) -> None:
        """Finds the batch size: the smallest with almost the best throughput of those that stay under half a second.

        Args:
            keys: of the work that it is for; none: for all that is not measured apart.
        """
        seconds: dict[int, float] = {}
        await self._on_thread(call, [item])
        size = 1
        while size <= MOST:
            began = time.perf_counter()
            await self._on_thread(call, [item] * size)
            took = time.perf_counter() - began
            if took > BATCH_SECONDS and size > 1:
                break
            seconds[size] = took / size
            if took > BATCH_SECONDS / 2:
                break
            size *= 2
        best = min(seconds.values())
        found = next(size for size, each in seconds.items() if each <= best * WORTH)
        self.sizes.update(dict.fromkeys(keys, found))
        self.most = self.most if keys else found

    async def retire(self) -> None:
        """Lets the thread go once all that waits is answered."""
        if self._running is not None:
            await asyncio.wait([self._running])
        self.close()

    def close(self) -> None:
        """Lets the thread go; a later request makes a new one."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def _work(self) -> None:
        while jobs := self._next():
            began = time.perf_counter()
            weight = sum(job.weight for job in jobs)
            self._busy_until = began + weight * self._seconds.get(jobs[0].key, 0.0)
            self._metrics.batch.labels(self.name).observe(len(jobs))
            for job in jobs:
                job.waited, job.together = began - job.since, len(jobs)
                self._metrics.queued.labels(self.name).observe(job.waited)
                if job.wait is not None:
                    job.wait.end()
            await self._answer(jobs)
            took = (time.perf_counter() - began) / weight
            usual = self._seconds.get(jobs[0].key, took)
            if len(self._seconds) > 1000:  # keys hold what people asked for: prompts, for one
                self._seconds.clear()
            self._seconds[jobs[0].key] = usual + RECENT * (took - usual)

    def _next(self) -> list[_Job]:
        """The longest waiting request and those that fit beside it; whoever has gone away is passed over."""
        waiting = [job for job in self._waiting if not job.done.done()]
        taken: list[_Job] = []
        room = 0
        for job in waiting:
            room = room if taken else self.sizes.get(job.key[1], self.most)
            if not taken or (job.key == taken[0].key and job.weight <= room):
                taken.append(job)
                room -= job.weight
            if room <= 0:
                break
        chosen = set(taken)
        self._waiting = deque(job for job in waiting if job not in chosen)
        self._metrics.waiting.labels(self.name).set(len(self._waiting))
        return taken

    async def _answer(self, jobs: list[_Job]) -> None:
        try:
            results = await self._timed(jobs)
        except Exception as error:
            if len(jobs) > 1:  # one of them may be to blame: each for itself
                for job in jobs:
                    await self._answer([job])
            elif not jobs[0].done.done():
                jobs[0].done.set_exception(error)
            return
        for job, result in zip(jobs, results, strict=True):
            if not job.done.done():
                job.done.set_result(result)

    async def _timed(self, jobs: list[_Job]) -> Sequence[Any]:
        stage = jobs[0].key[0]
        waits = [job.wait for job in jobs]
        with self._metrics.stage.labels(stage).time(), self._traces.batch(self.name, stage, waits):
            began = time.perf_counter()
            try:
                return await self._on_thread(jobs[0].call, [job.item for job in jobs])
            finally:
                self._metrics.model_seconds.labels(self.name).inc(time.perf_counter() - began)

    async def _on_thread(self, call: Callable[[list[Any]], Sequence[Any]], items: list[Any]) -> Sequence[Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, f"model-{self.name}")
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, items)
