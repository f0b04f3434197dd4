"""The page of the models: how versions stand, what they cost, what to type next, and who may see it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx
import pytest
from typer.testing import CliRunner

from foveal import artifacts
from foveal.cli import app as cli
from foveal.registry import Registry, holders
from foveal.schemas import AliasEvent
from serve import versions
from serve.app import create_app
from serve.demo.models import ModelsPage, commands
from serve.demo.models_fragments import ago, cost, drift, events
from serve.drift import LEAST
from serve.engine import Engine
from serve.lanes import Lane
from serve.metrics import Metrics
from serve.model_figures import Cost, Drifted, costs, drifts
from serve.operations import card
from serve.server import running
from serve.versions import Rollout
from tests.serve.conftest import ColourDetector, ColourEncoder
from tests.serve.test_versions import PICTURE, Numbered, breaks

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # as the server has it


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions; no gate has let the last through."""
    store = Registry(tmp_path / "registry")
    for number in (1, 2, 3):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "model.onnx").write_text(f"weights {number}")
        passed = {} if number == 3 else {"gate_passed": True}
        artifacts.seal(folder, name="colours", kind="detector", metrics=passed)
        store.register(folder)
    store.promote("colours", 1)
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "FOLLOW_SECONDS", 0.02)


@pytest.fixture
def faulty() -> list[int]:
    """Numbers of versions that fail from when they are put here."""
    return []


@pytest.fixture
def rollout(registry: Registry, faulty: list[int]) -> Rollout:
    def load(number: int) -> Numbered:
        return Numbered(number, lambda: breaks() if number in faulty else None, blind=number == 3)

    return Rollout(registry.root, "colours", share=0.5, load=load)


@pytest.fixture
def served(rollout: Rollout) -> Iterator[tuple[Engine, str]]:
    app = create_app(detector=rollout, encoder=ColourEncoder())
    with running(app) as url:
        yield app.state.engine, url


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def detect(url: str, times: int) -> None:
    with httpx.Client(base_url=url, timeout=20) as client:
        for _ in range(times):
            assert client.post("/v1/detect", files={"image": PICTURE}).status_code == 200


def seen(engine: Engine, *, figures: bool = True) -> str:
    return anyio.run(ModelsPage(engine, kept=0).look, figures)


def test_versions_their_fate_and_what_they_cost(
    served: tuple[Engine, str], registry: Registry, rollout: Rollout, faulty: list[int]
) -> None:
    engine, url = served
    assert "Nothing was asked of it" in seen(engine)
    registry.promote("colours", 2, "canary")
    registry.promote("colours", 3, "shadow")
    until(lambda: len(rollout.versions) == 3)
    detect(url, 20)
    until(lambda: all(version.disagreements for version in rollout.versions[1:]))
    page = seen(engine)
    for said in ('data-role="production"', 'data-role="canary"', 'data-role="shadow"', "passed", "from version 1 over"):
        assert said in page
    assert "0.00 <small>from version 1" in page  # the canary sees the same
    assert "1.00 <small>from version 1" in page  # the shadow sees nothing
    assert "version 3 became shadow, " in page
    assert "4 classes: red, green, blue, yellow" in page
    assert "5 dimensions" in page

    def spending() -> Cost:
        return costs(engine.metrics, engine.rollouts)["detector"]

    until(lambda: spending().requests == sum(version.asked for version in rollout.versions))  # the last comparison ends
    spent = spending()
    assert 0 < spent.seconds < 20
    assert spent.each == pytest.approx(spent.seconds / spent.requests)

    faulty.append(2)
    detect(url, 20)
    until(lambda: "canary" not in holders(registry.history("colours")))
    page = seen(engine)
    assert "Version 2 is out:</b>" in page
    assert "version 2 was withdrawn as canary: " in page
    assert "requests failed, more than 2.0%, <time" in page


def test_each_command_does_what_it_says(
    served: tuple[Engine, str], registry: Registry, rollout: Rollout, tmp_path: Path
) -> None:
    def typed(what: str) -> None:
        lines = {one.what: one.line for one in commands(rollout, card("detector", rollout))}
        done = CliRunner().invoke(cli, shlex.split(lines[what])[1:])
        assert done.exit_code == 0, done.output

    def held() -> dict[str, int]:
        return holders(registry.history("colours"))

    notes = {one.what: one.note for one in commands(rollout, card("detector", rollout))}
    assert notes["Roll back"] == "only one version has been production"
    assert notes["Withdraw"] == "there is no canary and no shadow"
    assert "it has passed no gate" in notes["Try version 3 as canary"]

    registry.promote("colours", 2, "shadow")
    until(lambda: len(rollout.versions) == 2)
    typed("Try version 2 as canary")
    assert held()["canary"] == 2
    until(lambda: rollout.canary is not None)
    typed("Withdraw version 2 as canary")
    assert "canary" not in held()
    until(lambda: rollout.shadow is not None)
    typed("Withdraw version 2 as shadow")
    registry.promote("colours", 2, "canary")
    until(lambda: rollout.canary is not None)
    typed("Put version 2 into production")
    assert held() == {"production": 2}
    until(lambda: rollout.production.number == 2)
    typed("Roll back to version 1")
    assert held() == {"production": 1}


def test_a_registry_that_cannot_be_read_is_said(served: tuple[Engine, str], registry: Registry) -> None:
    (registry.root / "colours" / "aliases.json").write_text("{")
    page = seen(served[0])
    assert "is damaged" in page
    assert "colour:encoder" in page  # the others are still shown


def test_without_the_verb_no_figure_is_told(served: tuple[Engine, str]) -> None:
    engine, url = served
    detect(url, 3)
    page = seen(engine, figures=False)
    assert "the verb metrics" in page
    assert "artifact:colours@production" in page  # as /v1/models says to any key
    for hidden in ("fv-figures", "fv-versions", "fv-command", "fv-events", "fv-drift"):
        assert hidden not in page


async def test_one_look_serves_all_visitors() -> None:
    engine: Engine = create_app(detector=ColourDetector()).state.engine
    page = ModelsPage(engine, kept=60)
    first = await page.look(True)
    engine.metrics.batch.labels("detector").observe(2)
    engine.metrics.model_seconds.labels("detector").inc(3)
    assert await page.look(True) == first
    later = await ModelsPage(engine).look(True)
    assert "<dd>1.5 s</dd>" in later
    assert "<dd>1,500 s</dd>" in later


async def test_a_lane_counts_its_seconds_of_what_fails_too() -> None:
    metrics = Metrics()
    lane = Lane("eyes", metrics, 10)

    def work(items: list[int]) -> list[int]:
        time.sleep(0.03)
        if 0 in items:
            breaks()
        return items

    assert await lane.run("detect", work, 1) == 1
    with pytest.raises(RuntimeError):
        await lane.run("detect", work, 0)
    lane.close()
    assert 0.06 <= costs(metrics, ())["eyes"].seconds < 1


def test_drift_is_marked_from_a_quarter_on() -> None:
    engine: Engine = create_app(detector=ColourDetector()).state.engine
    for signal, value in (("score", 0.02), ("boxes", 0.4)):
        engine.metrics.drift.labels("detector", signal).set(value)
    engine.metrics.drift_samples.labels("detector").set(LEAST)
    found = drifts(engine.metrics)["detector"]
    assert found == Drifted({"score": 0.02, "boxes": 0.4}, LEAST)
    drawn = drift(found)
    assert drawn.count("fv-shift") == 1
    assert "--share:80%" in drawn
    assert "0.40, a shift" in drawn
    assert "not told yet" in drift(Drifted({}, 3))


def test_the_figures_are_those_of_what_was_answered() -> None:
    assert Cost().each is None
    assert Cost(8, 4, 0.02).together == 2
    assert "<dd>2.5 ms</dd>" in cost(Cost(8, 4, 0.02))
    assert Cost(8, 4, 0.02).each == pytest.approx(0.0025)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-2, "just now"), (59, "just now"), (60, "1 minute ago"), (300, "5 minutes ago"), (7200, "2 hours ago"),
     (90_000, "1 day ago")],
)  # fmt: skip
def test_times_are_told_in_words(seconds: float, said: str) -> None:
    assert ago(seconds) == said


def test_what_the_registry_says_is_escaped(rollout: Rollout, served: tuple[Engine, str]) -> None:
    now = datetime.now(UTC)
    one = AliasEvent(at=now - timedelta(minutes=5), alias="canary", action="withdraw", version=3, reason="<b>${x}")
    told = events(card("detector", rollout).model_copy(update={"events": [one]}), now)
    assert "version 3 was withdrawn as canary: &lt;b&gt;&#36;&#123;x&#125;, " in told
    assert "5 minutes ago" in told
