"""Answers given again: the same file, model, version and prompts, nothing else; equal requests are worked on once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from foveal.detections import Detections
from foveal.registry import Registry
from serve import versions
from serve.app import create_app
from serve.keys import Keys
from serve.server import running
from serve.versions import Rollout
from tests.serve.conftest import ColourDetector, ColourOpenDetector, draw
from tests.serve.test_app import error, png
from tests.serve.test_versions import Numbered, registry  # noqa: F401

RED, BLUE = (png(draw((name, (8, 8, 30, 40)), ("green", (40, 4, 50, 20)))) for name in ("red", "blue"))


class Counting(ColourDetector):
    """The colour detector; counts what it is asked, and can be told to wait or to fail."""

    def __init__(self) -> None:
        self.seen, self.fails, self.go = 0, False, threading.Event()
        self.go.set()

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        self.seen += sum(image.size != (640, 480) for image in images)  # the grey one is for warming up
        self.go.wait(20)
        if self.fails:
            raise RuntimeError("no memory")
        return super().detect(images, threshold)


class CountingOpen(ColourOpenDetector):
    def __init__(self) -> None:
        self.seen = 0

    def detect(
        self, images: Sequence[Image.Image], prompts: Sequence[str], threshold: float = 0.05
    ) -> list[Detections]:
        self.seen += sum(image.size != (640, 480) for image in images)
        return super().detect(images, prompts, threshold)


@pytest.fixture
def detector() -> Counting:
    return Counting()


@pytest.fixture
def app(detector: Counting) -> FastAPI:
    return create_app(detector=detector, open_detector=CountingOpen(), cache_bytes=2**20)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_ready(client)
        yield client


def wait_ready(client: Any) -> None:
    end = time.monotonic() + 20
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.01)


def ask(client: Any, data: bytes = RED, status: int = 200, **form: Any) -> Any:
    answer = client.post("/v1/detect", files={"image": data}, data=form)
    assert answer.status_code == status, answer.text
    return answer.json()


def outcome(app: FastAPI, name: str, model: str = "detector") -> float:
    return app.state.engine.metrics.cache.labels(model, name)._value.get()


def test_the_same_file_is_looked_at_once(client: TestClient, app: FastAPI, detector: Counting) -> None:
    first = ask(client, threshold=0.1)
    again = [ask(client, threshold=0.1) for _ in range(3)]
    assert all(one == first for one in again)
    assert (first["width"], first["height"], len(first["detections"])) == (64, 48, 2)
    assert detector.seen == 1
    assert (outcome(app, "miss"), outcome(app, "hit")) == (1, 3)
    assert app.state.engine.results.bytes > 0
    ask(client, BLUE, threshold=0.1)
    assert detector.seen == 2


def test_a_hit_is_not_decoded(client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(client)

    async def none(data: bytes) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(app.state.engine, "decode", none)
    assert ask(client) == first
    ask(client, BLUE, status=500)


def test_higher_thresholds_are_answered_from_it_and_lower_ones_are_not(detector: Counting) -> None:
    mixed = Image.new("RGB", (64, 48), (128, 128, 128))
    mixed.paste((200, 30, 30), (0, 0, 20, 20))
    for x in range(30, 60, 2):
        mixed.paste((30, 60, 210), (x, 4, x + 1, 40))  # half of its box
    app, plain = create_app(detector=detector, cache_bytes=2**20), create_app(detector=ColourDetector())
    with TestClient(app) as client, TestClient(plain) as without:
        seen = []
        for threshold in (0.4, 0.9, 0.4, 0.1, 0.2, 0.9):
            answer = ask(client, png(mixed), threshold=threshold)
            assert answer == ask(without, png(mixed), threshold=threshold)
            seen.append((len(answer["detections"]), detector.seen))
    assert seen == [(2, 1), (1, 1), (2, 1), (2, 2), (2, 2), (1, 2)]


def test_prompts_are_part_of_the_question(client: TestClient, app: FastAPI) -> None:
    model = app.state.engine.models["open-detector"]
    for prompts in (["red"], ["green"], ["red", "green"], ["red"]):
        labels = {one["label"] for one in ask(client, prompts=prompts)["detections"]}
        assert labels == set(prompts)
    assert model.seen == 3
    ask(client)
    assert app.state.engine.models["detector"].seen == 1
    error(client.post("/v1/detect", files={"image": RED}, data={"prompts": ["red", "red"]}), 422)


def test_errors_are_not_kept(client: TestClient, app: FastAPI, detector: Counting) -> None:
    detector.fails = True
    ask(client, status=500)
    detector.fails = False
    assert len(ask(client)["detections"]) == 2
    assert detector.seen == 2
    for _ in range(2):
        ask(client, RED[:60], status=422)
    assert len(app.state.engine.results) == 1


def test_equal_requests_at_once_are_worked_on_once(app: FastAPI, detector: Counting) -> None:
    with running(app) as url, ThreadPoolExecutor(6) as pool, httpx.Client(base_url=url, timeout=20) as client:
        wait_ready(client)
        detector.go.clear()
        work = [pool.submit(ask, client, RED, 200, threshold=0.3 + 0.01 * n) for n in range(6)]
        end = time.monotonic() + 20
        while outcome(app, "joined") + outcome(app, "miss") < 6:
            assert time.monotonic() < end
            time.sleep(0.01)
        detector.go.set()
        answers = [each.result() for each in work]
    assert all(len(one["detections"]) == 2 for one in answers)
    assert outcome(app, "joined") >= 1
    assert detector.seen == outcome(app, "miss")  # a lower threshold than what is under way is another question
    assert outcome(app, "joined") + outcome(app, "miss") == 6


def test_keys_and_their_rates_hold_for_what_is_kept(tmp_path: Path, detector: Counting) -> None:
    keys = Keys(tmp_path / "keys.sqlite")
    finder, searcher = keys.add("finder", ["detect"], quota=2), keys.add("searcher", ["search"])
    with TestClient(create_app(detector=detector, keys=keys, cache_bytes=2**20)) as client:
        statuses = []
        for key in (finder, searcher, None, finder, finder):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            statuses.append(client.post("/v1/detect", files={"image": RED}, headers=headers).status_code)
    assert statuses == [200, 403, 401, 200, 429]
    assert detector.seen == 1


def test_without_a_cache_every_request_is_worked_on(detector: Counting) -> None:
    with TestClient(create_app(detector=detector)) as client:
        ask(client)
        ask(client)
    assert detector.seen == 2


def test_no_version_answers_with_what_another_found(
    registry: Registry,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "FOLLOW_SECONDS", 0.02)
    monkeypatch.setattr(versions, "PROBATION", 20)
    rollout = Rollout(registry.root, "colours", share=0.5, load=lambda number: Numbered(number, blind=number == 2))
    app = create_app(detector=rollout, cache_bytes=2**20)
    with running(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        wait_ready(client)
        assert [len(ask(client)["detections"]) for _ in range(3)] == [2, 2, 2]
        assert outcome(app, "hit") == 2
        registry.promote("colours", 3, "canary")
        until(lambda: rollout.canary is not None)
        told = [ask(client)["version"] for _ in range(20)]
        assert told.count(3) == 10  # its share, as if there were no cache
        assert outcome(app, "hit") == 2
        registry.withdraw("colours", "canary", reason="test")
        until(lambda: rollout.settled)
        assert (ask(client)["version"], outcome(app, "hit")) == (1, 3)
        registry.promote("colours", 2)
        until(lambda: rollout.production.number == 2)
        answers = [ask(client) for _ in range(60)]
        assert {(one["version"], len(one["detections"])) for one in answers} == {(2, 1)}
        assert rollout.settled  # past its probation, which it could not be if answers were kept meanwhile
        assert outcome(app, "hit") > 3


def until(met: Any) -> None:
    end = time.monotonic() + 20
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)
