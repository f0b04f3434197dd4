"""The cache of answers by itself: bounded, and fair to whoever waits or goes away."""

from __future__ import annotations

import asyncio

from foveal.detections import Detections
from serve.metrics import Metrics
from serve.result_cache import Key, ResultCache, Seen
from serve.versions import Answerer


def seen(count: int = 3, fingerprint: str = "f", score: float = 0.5) -> Seen:
    boxes = [[0, 0, 4, 4]] * count
    found = Detections.build(boxes, [score] * count, [0] * count, ("a",)) if count else Detections.empty(("a",))
    return Seen(Answerer("m", fingerprint), found, (8, 8))


def key(name: str, fingerprint: str = "f") -> Key:
    return Key(name, "m", fingerprint, None, None)


async def told(cache: ResultCache, name: str, answer: Seen, fingerprint: str = "f") -> Seen:
    async def work() -> Seen:
        return answer

    return await cache.get(key(name, fingerprint), 0.3, work)


def test_what_was_used_longest_ago_goes_first_and_bytes_are_bounded() -> None:
    async def run() -> None:
        cache = ResultCache(10_000, Metrics())
        for name in "abc":
            await told(cache, name, seen())
        each = cache.bytes // 3
        most = 10_000 // each
        await told(cache, "a", seen(0))  # a hit
        for name in [str(n) for n in range(most - 1)]:
            await told(cache, name, seen())
        assert cache.bytes <= 10_000
        assert len(cache) == most
        assert len((await told(cache, "a", seen(0))).found) == 3
        assert len((await told(cache, "b", seen(0))).found) == 0
        await told(cache, "large", seen(5000))
        assert cache.bytes <= 10_000

    asyncio.run(run())


def test_an_answer_of_a_version_that_came_meanwhile_is_given_but_not_kept() -> None:
    async def run() -> None:
        cache = ResultCache(10_000, Metrics())
        assert len((await told(cache, "a", seen(fingerprint="new"), "old")).found) == 3
        assert len(cache) == 0

    asyncio.run(run())


def test_who_goes_away_takes_nobody_along_and_the_last_one_ends_the_work() -> None:
    async def run() -> None:
        cache, ended, go = ResultCache(10_000, Metrics()), list[str](), asyncio.Event()

        async def work() -> Seen:
            try:
                await go.wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return seen()

        first, second = (asyncio.create_task(cache.get(key("a"), 0.3, work)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        go.set()
        assert len((await second).found) == 3
        go.clear()
        alone = asyncio.create_task(cache.get(key("b"), 0.3, work))
        await asyncio.sleep(0.01)
        alone.cancel()
        after = asyncio.create_task(cache.get(key("b"), 0.3, work))  # is not drawn into the end of the other
        await asyncio.sleep(0.01)
        assert ended == ["cancelled"]
        go.set()
        assert len((await after).found) == 3

    asyncio.run(run())


def test_what_is_given_is_the_callers_own() -> None:
    async def run() -> None:
        cache = ResultCache(10_000, Metrics())
        (await told(cache, "a", seen())).found.boxes[:] = 7
        (await told(cache, "a", seen())).found.boxes[:] = 7
        assert (await told(cache, "a", seen())).found.boxes.max() == 4

    asyncio.run(run())
