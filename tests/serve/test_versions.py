"""Versions that change while the server answers: swapped, tried on a share, compared unseen, and taken back."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from foveal import artifacts
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.registry import Registry, holders
from serve import versions
from serve.app import create_app
from serve.bars import Bars
from serve.keys import Keys
from serve.lanes import Lane
from serve.server import running
from serve.versions import Rollout, detector_of
from tests.serve.conftest import ColourDetector, draw, find


class Numbered(ColourDetector):
    """The colour detector as a numbered version; `fault` is called before each batch."""

    def __init__(self, number: int, fault: Callable[[], None] = lambda: None, blind: bool = False) -> None:
        self.fingerprint, self.fault, self.blind = f"{number:064d}", fault, blind

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        self.fault()
        seen = [Image.new("RGB", image.size) if self.blind else image for image in images]
        return [find(image, self.classes, threshold) for image in seen]


def png() -> bytes:
    buffer = io.BytesIO()
    draw(("red", (8, 8, 30, 40))).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = png()


def breaks() -> None:
    raise RuntimeError("the operator is not there")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    store = Registry(tmp_path / "registry")
    for number in (1, 2, 3):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "model.onnx").write_text(f"weights {number}")
        artifacts.seal(folder, name="colours", kind="detector", metrics={"gate_passed": True})
        store.register(folder)
    store.promote("colours", 1)
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "FOLLOW_SECONDS", 0.02)


class Traffic:
    """Clients that ask without a pause, and what they were told."""

    def __init__(self, url: str) -> None:
        self.url, self.told, self.stop = url, list[tuple[int, int | None]](), threading.Event()
        self.pool = ThreadPoolExecutor(4)

    def __enter__(self) -> Traffic:
        self.work = [self.pool.submit(self._ask) for _ in range(4)]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for each in self.work:
            each.result()

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while not self.stop.is_set():
                answer = client.post("/v1/detect", files={"image": PICTURE})
                self.told.append((answer.status_code, answer.json().get("version")))

    def until(self, met: Callable[[list[tuple[int, int | None]]], bool]) -> None:
        deadline = time.monotonic() + 20
        while not met(self.told):
            assert time.monotonic() < deadline, self.told[-20:]
            time.sleep(0.02)

    @property
    def failed(self) -> list[tuple[int, int | None]]:
        return [one for one in self.told if one[0] != 200]


def status(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/v1/versions").json()["rollouts"][0]


def test_a_promotion_swaps_the_model_and_no_request_fails(registry: Registry) -> None:
    rollout = Rollout(registry.root, "colours", load=Numbered)
    with running(create_app(detector=rollout)) as url, Traffic(url) as traffic:
        traffic.until(lambda told: len(told) > 50)
        registry.promote("colours", 2)
        traffic.until(lambda told: bool(told) and told[-1][1] == 2)
        registry.rollback("colours")
        traffic.until(lambda told: bool(told) and told[-1][1] == 1)
    assert not traffic.failed
    assert traffic.told[0][1] == 1


def test_a_canary_gets_its_share_and_moves_up_without_loading_again(registry: Registry) -> None:
    loaded: list[int] = []

    def load(number: int) -> Numbered:
        loaded.append(number)
        return Numbered(number)

    with running(create_app(detector=Rollout(registry.root, "colours", share=0.25, load=load))) as url:
        registry.promote("colours", 2, "canary")
        with Traffic(url) as traffic:
            traffic.until(lambda told: 2 in [version for _, version in told])
            begun = len(traffic.told)
            traffic.until(lambda told: len(told) > begun + 200)
            since = [version for _, version in traffic.told[begun:]]
            assert since.count(2) / len(since) == pytest.approx(0.25, abs=0.05)
            card = status(url)
            assert [(one["version"], one["role"]) for one in card["versions"]] == [(1, "production"), (2, "canary")]
            assert card["versions"][1]["compared"] > 0
            assert card["versions"][1]["disagreement"] == 0
            registry.promote("colours", 2)
            traffic.until(lambda told: {version for _, version in told[-50:]} == {2})
        assert not traffic.failed
        assert loaded == [1, 2]
        assert (
            'foveal_version_info{name="detector",role="production",version="2"} 1.0' in httpx.get(url + "/metrics").text
        )


def test_a_canary_that_fails_is_withdrawn_and_nobody_notices(registry: Registry) -> None:
    gone = threading.Event()
    healthy = [True]

    def fault() -> None:
        if not healthy[0]:
            gone.set()
            breaks()

    rollout = Rollout(
        registry.root, "colours", share=0.5, load=lambda n: Numbered(n, fault if n == 2 else lambda: None)
    )
    with running(create_app(detector=rollout)) as url:
        registry.promote("colours", 2, "canary")
        with Traffic(url) as traffic:
            traffic.until(lambda told: 2 in [version for _, version in told])
            healthy[0] = False
            assert gone.wait(10)
            deadline = time.monotonic() + 10
            while "canary" in holders(registry.history("colours")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            begun = len(traffic.told)
            traffic.until(lambda told: len(told) > begun + 100)
            assert {version for _, version in traffic.told[begun + 8 :]} == {1}
        assert not traffic.failed
        card = status(url)
        assert "requests failed" in card["refused"]["2"]
        assert card["events"][0]["action"] == "withdraw"
        assert "requests failed" in card["events"][0]["reason"]
        assert 'foveal_rollbacks_total{name="detector",reason="errors"} 1.0' in httpx.get(url + "/metrics").text
        healthy[0] = True
        registry.promote("colours", 2, "canary")  # given anew, it gets another chance
        with Traffic(url) as traffic:
            traffic.until(lambda told: 2 in [version for _, version in told])


def test_a_slow_canary_is_withdrawn(registry: Registry) -> None:
    rollout = Rollout(
        registry.root, "colours", share=0.5, bars=Bars(latency=3, least=20),
        load=lambda n: Numbered(n, (lambda: time.sleep(0.15)) if n == 2 else lambda: None),
    )  # fmt: skip
    with running(create_app(detector=rollout)) as url:
        registry.promote("colours", 2, "canary")
        with Traffic(url) as traffic:
            traffic.until(lambda told: 2 in [version for _, version in told])
            traffic.until(lambda _: "canary" not in holders(registry.history("colours")))
        assert not traffic.failed
        assert "p95" in status(url)["refused"]["2"]


def test_a_canary_that_sees_other_things_is_withdrawn(registry: Registry) -> None:
    rollout = Rollout(
        registry.root, "colours", share=0.5, bars=Bars(least=10, latency=1000),
        load=lambda n: Numbered(n, blind=n == 2),
    )  # fmt: skip
    with running(create_app(detector=rollout)) as url:
        registry.promote("colours", 2, "canary")
        with Traffic(url) as traffic:
            traffic.until(lambda _: len(registry.history("colours")) == 3)
        assert "parts from version 1 by 1.00" in status(url)["refused"]["2"]


def test_a_shadow_answers_nobody_and_is_compared(registry: Registry) -> None:
    rollout = Rollout(registry.root, "colours", share=0.5, load=lambda n: Numbered(n, blind=n == 3))
    with running(create_app(detector=rollout)) as url:
        registry.promote("colours", 3, "shadow")
        with Traffic(url) as traffic:
            traffic.until(lambda _: any(one["compared"] > 5 for one in status(url)["versions"]))
        assert {version for _, version in traffic.told} == {1}
        shadow = status(url)["versions"][1]
        assert (shadow["role"], shadow["disagreement"]) == ("shadow", 1.0)
        assert 'foveal_version_disagreement{name="detector",role="shadow"} 1.0' in httpx.get(url + "/metrics").text
        registry.withdraw("colours", "shadow")
        deadline = time.monotonic() + 10
        while len(status(url)["versions"]) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_promotion_that_fails_in_use_is_rolled_back(registry: Registry) -> None:
    warmed = threading.Event()

    def fault() -> None:
        if warmed.is_set():
            breaks()

    rollout = Rollout(registry.root, "colours", load=lambda n: Numbered(n, fault if n == 2 else lambda: None))
    with running(create_app(detector=rollout)) as url, Traffic(url) as traffic:
        registry.promote("colours", 2)
        traffic.until(lambda told: bool(told) and told[-1][1] == 2)
        warmed.set()
        traffic.until(lambda _: holders(registry.history("colours"))["production"] == 1)
        begun = len(traffic.told)
        traffic.until(lambda told: len(told) > begun + 100)
        assert {version for _, version in traffic.told[begun + 8 :]} == {1}
    assert not traffic.failed
    assert registry.history("colours")[-1].action == "rollback"


def test_after_its_probation_the_old_version_is_let_go(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PROBATION", 30)
    with running(create_app(detector=Rollout(registry.root, "colours", load=Numbered))) as url, Traffic(url) as traffic:
        registry.promote("colours", 2)
        traffic.until(lambda told: [version for _, version in told].count(2) > 60)
        assert [one["version"] for one in status(url)["versions"]] == [2]


@pytest.mark.parametrize("alias", ["production", "canary"])
def test_a_version_that_cannot_be_loaded_stays_out(registry: Registry, alias: str) -> None:
    def load(number: int) -> Numbered:
        return Numbered(number, breaks if number == 2 else lambda: None)

    with running(create_app(detector=Rollout(registry.root, "colours", load=load))) as url:
        registry.promote("colours", 2, alias)
        deadline = time.monotonic() + 10
        while not status(url)["refused"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        answer = httpx.post(url + "/v1/detect", files={"image": PICTURE})
        assert (answer.status_code, answer.json()["version"]) == (200, 1)
        assert 'foveal_rollbacks_total{name="detector",reason="load"} 1.0' in httpx.get(url + "/metrics").text


def test_a_damaged_file_stays_out_and_the_old_version_answers(registry: Registry) -> None:
    def load(number: int) -> Numbered:
        artifacts.read(registry.resolve(f"colours@{number}"))  # what every loader does first
        return Numbered(number)

    with running(create_app(detector=Rollout(registry.root, "colours", load=load))) as url:
        weights = registry.root / "colours" / "2" / "model.onnx"
        weights.chmod(0o644)
        weights.write_text("weights 3")
        registry.promote("colours", 2)
        deadline = time.monotonic() + 10
        while not (refused := status(url)["refused"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "has changed" in refused["2"]


def test_a_log_that_makes_no_sense_ends_nothing(registry: Registry) -> None:
    with running(create_app(detector=Rollout(registry.root, "colours", load=Numbered))) as url:
        log = registry.root / "colours" / "aliases.json"
        whole = log.read_text()
        log.write_text('[{"at": "2026-01-01T00:00:00Z", "alias": "production", "action": "rollback", "version": 1}]')
        time.sleep(0.2)
        answer = httpx.post(url + "/v1/detect", files={"image": PICTURE})
        assert (answer.status_code, answer.json()["version"]) == (200, 1)
        log.write_text(whole)
        registry.promote("colours", 2)
        deadline = time.monotonic() + 10
        while httpx.post(url + "/v1/detect", files={"image": PICTURE}).json()["version"] != 2:
            assert time.monotonic() < deadline, "it follows on once the log is whole"
            time.sleep(0.02)


def test_a_request_that_no_version_can_answer_speaks_against_none(registry: Registry) -> None:
    broken = [False]

    def fault() -> None:
        if broken[0]:
            breaks()

    with running(
        create_app(detector=Rollout(registry.root, "colours", share=1, load=lambda n: Numbered(n, fault)))
    ) as url:
        registry.promote("colours", 2, "canary")
        with Traffic(url) as traffic:
            traffic.until(lambda told: 2 in [version for _, version in told])
        time.sleep(0.3)  # comparisons under way
        broken[0] = True
        for _ in range(6):
            assert httpx.post(url + "/v1/detect", files={"image": PICTURE}).status_code == 500
        assert [one["errors"] for one in status(url)["versions"]] == [0, 0]
        assert holders(registry.history("colours"))["canary"] == 2


def test_only_an_alias_is_followed(registry: Registry) -> None:
    with pytest.raises(BadInput, match="share"):
        detector_of("artifact:colours@production", registry.root, 0.0, Bars())
    for bad in ("errors", "speed=2", "latency=fast", "latency=0.5"):
        with pytest.raises(BadInput, match="bar"):
            Bars.read([bad])
    assert Bars.read(["errors=0.1", "least=5"]) == Bars(errors=0.1, least=5)


def test_who_may_see_the_versions(registry: Registry, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.sqlite")
    one, other = keys.add("ops", ["metrics"]), keys.add("annotators", ["detect"])
    app = create_app(detector=Rollout(registry.root, "colours", load=Numbered), keys=keys)
    with running(app) as url:
        for key, expected in ((one, 200), (other, 403), ("nobody", 401)):
            answer = httpx.get(url + "/v1/versions", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == expected


def test_a_retired_lane_answers_what_it_has() -> None:
    async def scenario() -> list[int]:
        from serve.metrics import Metrics

        lane = Lane("old", Metrics(), 10)
        gate = threading.Event()

        def slow(items: list[int]) -> list[int]:
            gate.wait(5)
            return items

        asked = [asyncio.create_task(lane.run("detect", slow, number, key=number)) for number in range(5)]
        await asyncio.sleep(0.05)
        ending = asyncio.create_task(lane.retire())
        await asyncio.sleep(0.05)
        assert not ending.done()
        gate.set()
        answers = await asyncio.gather(*asked)
        await ending
        return list(answers)

    assert asyncio.run(scenario()) == list(range(5))
