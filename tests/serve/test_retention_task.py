"""A server that removes what its rules say: at the start, counted, and written down first."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import lance
import pytest
from fastapi.testclient import TestClient

from retrieval.ages import ADDED
from retrieval.archive import Archive
from retrieval.retention import DAY, Rule
from serve.app import create_app
from serve.audit import Audit
from tests.serve.conftest import ColourEncoder, draw
from tests.serve.test_app import png
from tests.serve.test_uploads import found, send


def wait(for_: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not for_():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def store(tmp_path: Path) -> Archive:
    """Two uploads of ten days ago, one of today, and a file of a folder of ten days ago."""
    store = Archive.create(tmp_path / "depot", ColourEncoder())
    draw(("blue", (0, 0, 9, 9))).save(tmp_path / "mine.png")
    store.add(tmp_path / "mine.png", ColourEncoder())
    with TestClient(create_app(archive=store, encoder=ColourEncoder())) as client:
        for name in ("a", "b"):
            data = png(draw(("red", (0, 0, 20 + ord(name) - 97, 30))))
            send(client, (f"{name}.png", data), metadata={"camera": name})
        lance.dataset(str(store.folder / "table.lance")).update({ADDED: str(int(time.time() - 10 * DAY))})
        send(client, ("c.png", png(draw(("green", (0, 0, 20, 30))))), metadata={"camera": "a"})
    return store


def value(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


def files(store: Archive) -> int:
    return sum(path.is_file() for path in (store.path / "uploads").rglob("*"))


def test_what_is_due_goes_at_the_start(store: Archive, tmp_path: Path) -> None:
    due = set(store.matching("camera = 'a' OR camera = 'b'")) - set(store.matching("name = 'c.png'"))
    app = create_app(
        archive=store, encoder=ColourEncoder(), retain=[Rule(7, "camera IS NOT NULL")], audit=Audit(tmp_path / "audit")
    )
    with TestClient(app) as client:
        wait(lambda: value(client, 'foveal_retention_runs_total{archive="depot",outcome="done"}') == 1)
        assert value(client, 'foveal_retained_total{archive="depot"}') == 2
        assert len(store) == 2
        assert {hit["metadata"].get("name") for hit in found(client, "red green blue")} == {None, "c.png"}
    assert files(store) == 2  # the picture and what is told of it
    assert (tmp_path / "mine.png").exists()
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    (line,) = [line for line in lines if line.get("event") == "retention"]
    assert line["rule"] == "7:camera IS NOT NULL"
    assert set(line["items"]["depot"]) == due


def test_nothing_goes_that_cannot_be_written_down(store: Archive, tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit")
    (tmp_path / "audit").mkdir()
    app = create_app(archive=store, encoder=ColourEncoder(), retain=[Rule(7)], audit=audit)
    with TestClient(app):
        wait(lambda: app.state.engine.metrics.retention_runs.labels("depot", "failed")._value.get() == 1)
    assert (len(store), files(store)) == (4, 6)


def test_a_rule_that_fails_is_counted_and_the_others_go_on(store: Archive) -> None:
    rules = [Rule(7, "nowhere = 1"), Rule(7, "camera = 'b'")]
    with TestClient(create_app(archive=store, encoder=ColourEncoder(), retain=rules)) as client:
        wait(lambda: value(client, 'foveal_retention_runs_total{archive="depot",outcome="done"}') == 1)
        assert value(client, 'foveal_retention_runs_total{archive="depot",outcome="failed"}') == 1
    assert len(store) == 3


def test_of_two_servers_one_removes_and_the_other_goes_on_when_it_ends(
    store: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.retention.HELD", 0.1)

    def server() -> TestClient:
        return TestClient(create_app(archive=store, encoder=ColourEncoder(), retain=[Rule(7)]))

    done = 'foveal_retention_runs_total{archive="depot",outcome="done"}'
    with server() as second, server() as first:
        wait(lambda: value(first, done) + value(second, done) == 1)
        holder, other = (first, second) if value(first, done) else (second, first)
        time.sleep(0.5)
        assert value(other, done) == 0
        assert holder is second, "the one that came first"
    with server() as third:
        wait(lambda: value(third, done) == 1)
