"""What waits together is answered together, nobody is confused with another, and too much is refused early."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import ClassVar

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from foveal.detections import Detections, FloatArray
from serve.app import create_app
from serve.engine import Engine
from serve.lanes import Lane, Overloaded
from serve.limits import Limits
from serve.metrics import Metrics
from tests.serve.conftest import ColourDetector, ColourEncoder, draw
from tests.serve.test_app import b64, error


class Doubling:
    """Doubles numbers; held back until it is let go, and unable to double -1."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.go.wait(5)
        self.batches.append(items)
        if -1 in items:
            raise ValueError("cannot double -1")
        return [2 * item for item in items]


def lane(most: int = 4, deadline: float = 30.0) -> Lane:
    made = Lane("doubling", Metrics(), deadline)
    made.most = most
    return made


def test_what_gathers_while_the_model_is_busy_goes_together() -> None:
    async def main() -> None:
        queue, call = lane(), Doubling()
        waiting = [asyncio.create_task(queue.run("double", call, number)) for number in range(7)]
        await asyncio.sleep(0.01)
        call.go.set()
        assert await asyncio.gather(*waiting) == [0, 2, 4, 6, 8, 10, 12]
        assert call.batches == [[0, 1, 2, 3], [4, 5, 6]]
        queue.close()

    asyncio.run(main())


def test_different_questions_are_not_mixed_and_large_ones_go_alone() -> None:
    async def main() -> None:
        queue, call = lane(), Doubling()
        asked = [("a", 1, 1), ("b", 2, 1), ("a", 3, 9), ("a", 4, 3), ("b", 5, 1)]
        waiting = [
            asyncio.create_task(queue.run("double", call, item, key=key, weight=weight)) for key, item, weight in asked
        ]
        await asyncio.sleep(0.01)
        call.go.set()
        assert await asyncio.gather(*waiting) == [2, 4, 6, 8, 10]
        assert call.batches == [[1, 4], [2, 5], [3]]

    asyncio.run(main())


def test_one_bad_request_does_not_fail_those_beside_it() -> None:
    async def main() -> None:
        queue, call = lane(), Doubling()
        call.go.set()
        results = await asyncio.gather(
            *(queue.run("double", call, number) for number in (1, -1, 3)), return_exceptions=True
        )
        assert (results[0], results[2]) == (2, 6)
        assert isinstance(results[1], ValueError)
        assert call.batches == [[1, -1, 3], [1], [-1], [3]]

    asyncio.run(main())


def test_who_has_gone_away_is_not_worked_for() -> None:
    async def main() -> None:
        queue, call = lane(most=1), Doubling()
        waiting = [asyncio.create_task(queue.run("double", call, number)) for number in range(3)]
        await asyncio.sleep(0.01)
        waiting[1].cancel()
        call.go.set()
        assert [await waiting[0], await waiting[2]] == [0, 4]
        assert call.batches == [[0], [2]]

    asyncio.run(main())


def test_what_cannot_be_begun_in_time_is_refused_with_when_to_come_back() -> None:
    def slow(items: list[int]) -> list[int]:
        time.sleep(0.05 * len(items))
        return items

    async def main() -> None:
        queue = lane(most=1, deadline=0.12)
        assert await queue.run("slow", slow, 0) == 0
        results = await asyncio.gather(
            *(queue.run("slow", slow, number) for number in range(8)), return_exceptions=True
        )
        refused = [one for one in results if isinstance(one, Overloaded)]
        assert 0 < len(refused) < 8
        assert all(one.retry_after == 1 for one in refused)
        assert await queue.run("slow", slow, 9) == 9  # it has recovered

    asyncio.run(main())


def test_batches_are_as_large_as_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("serve.lanes.time.perf_counter", lambda: now[0])

    async def most(fixed: float, each: float) -> int:
        def call(items: list[int]) -> list[int]:
            now[0] += fixed + each * len(items)
            return items

        measured = lane()
        await measured.measure(call, 0)
        return measured.most

    assert asyncio.run(most(0.03, 0)) == 64
    assert asyncio.run(most(0, 0.03)) == 1
    assert asyncio.run(most(0.02, 0.02)) == 16  # twice as many would hold others up for longer than half a second
    assert asyncio.run(most(9, 1)) == 1


def test_texts_go_together_in_batches_of_their_own_size() -> None:
    class Uneven(ColourEncoder):
        """Pictures take ten times what a batch of texts does."""

        sizes: ClassVar[list[int]] = []

        def encode_texts(self, texts: Sequence[str]) -> FloatArray:
            self.sizes.append(len(texts))
            time.sleep(0.02)
            return super().encode_texts(texts)

        def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
            time.sleep(0.2 * len(images))
            return super().encode_images(images)

    async def main() -> None:
        engine = Engine({"encoder": Uneven()}, {}, Limits(), Metrics())
        await engine.warm_up()
        assert engine.lanes["encoder"].most == 1
        assert engine.lanes["encoder"].sizes["texts"] >= 16
        Uneven.sizes.clear()
        image = Image.new("RGB", (8, 8))
        await asyncio.gather(engine.embed(images=[image]), *(engine.embed(["red"]) for _ in range(16)))
        assert max(Uneven.sizes) == 16
        engine.close()

    asyncio.run(main())


class Slow(ColourDetector):
    """Takes its time, and remembers how many pictures came at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        self.sizes.append(len(images))
        time.sleep(0.05)
        return super().detect(images, threshold)


def together(client: TestClient, count: int) -> list[tuple[int, str | None]]:
    answers: list[tuple[int, str | None]] = []
    body = {"image": b64(draw(("red", (4, 6, 20, 30)))), "threshold": 0.1}

    def ask() -> None:
        answer = client.post("/v1/detect", json=body)
        answers.append((answer.status_code, answer.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_detections_asked_for_together_are_made_together() -> None:
    slow = Slow()
    app = create_app(detector=slow)
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:  # batches are measured meanwhile
            time.sleep(0.02)
        app.state.engine.lanes["detector"].most = 8  # whatever was measured beside other work
        slow.sizes.clear()
        assert together(client, 6) == [(200, None)] * 6
        text = client.get("/metrics").text
    assert max(slow.sizes) > 1
    assert 'foveal_queue_length{model="detector"} 0.0' in text
    assert 'foveal_batch_size_count{model="detector"}' in text


def test_too_many_at_once_and_too_late_are_refused_with_a_time_to_come_back() -> None:
    with TestClient(create_app(detector=Slow(), limits=Limits(at_once=2))) as client:
        answers = together(client, 6)
        assert {status for status, _ in answers} == {200, 503}
        assert all(retry == "1" for status, retry in answers if status == 503)
        assert 'foveal_refused_total{reason="at once"}' in client.get("/metrics").text
    with TestClient(create_app(detector=Slow(), limits=Limits(seconds=0.01))) as client:
        found = client.post("/v1/detect", json={"image": b64(draw())})
        assert "within 0.01 s" in error(found, 503)["message"]
        assert found.headers["retry-after"] == "1"


def test_each_request_keeps_its_own_threshold_in_a_batch() -> None:
    corner = draw(("red", (0, 0, 8, 8)), ("red", (56, 40, 64, 48)))  # one loose box around both: a low score
    slow = Slow()

    async def main() -> None:
        engine = create_app(detector=slow).state.engine
        engine.lanes["detector"].most = 8
        first = asyncio.create_task(engine.detect(corner, threshold=0.0))
        await asyncio.sleep(0.05)
        low, high = await asyncio.gather(engine.detect(corner, threshold=0.0), engine.detect(corner, threshold=0.5))
        await first
        assert (len(low[1]), len(high[1])) == (1, 0)
        engine.close()

    asyncio.run(main())
    assert slow.sizes == [1, 2]
