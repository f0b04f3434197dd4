"""Alerts, runbooks and dashboard: they name what the server exports, and a real Prometheus takes them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI
from prometheus_client import generate_latest

from retrieval.archive import Archive
from serve.app import create_app
from serve.keys import Keys
from serve.metrics import Metrics
from serve.server import running
from tests.command import parse
from tests.serve.conftest import ColourDetector, ColourEncoder
from tests.serve.promql import SCRAPED, Labels, exported, series, unknown

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS, RUNBOOKS = DEPLOY / "prometheus", DEPLOY / "runbooks"
SECTIONS = ["What it means", "How to see it", "What to do", "How to know that it is over"]


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _dashboard() -> list[str]:
    """Every expression of the dashboard."""
    board = json.loads((DEPLOY / "grafana" / "foveal.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return [*asked, *(v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query")]


def _blocks(language: str) -> list[str]:
    texts = [path.read_text() for path in sorted(RUNBOOKS.glob("*.md"))]
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)]


RULES = _rules()
NAMES = [rule["alert"] for rule in RULES]


@pytest.fixture(scope="module")
def known() -> Labels:
    """What a server exports once everything has happened."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        if names := getattr(metric, "_labelnames", ()):
            metric.labels(*names)
    return exported(generate_latest(metrics.registry).decode()) | SCRAPED


def test_rules_dashboard_and_runbooks_name_only_what_is_exported(known: Labels) -> None:
    asked = [*(rule["expr"] for rule in RULES), *_dashboard(), *_blocks("promql")]
    assert len(asked) > 50
    assert unknown(asked, known) == []


def test_every_metric_of_the_server_is_looked_at(known: Labels) -> None:
    seen = {name for expression in _dashboard() for name, _ in series(expression)}
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in known if not name.endswith("_created")}
    assert families - {re.sub(r"_(bucket|count|sum)$", "", name) for name in seen} == set()


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ('sum by (le, route) (rate(foveal_request_seconds_bucket{route=~"/v1/.*"}[5m]))', 0),
        ("sum by (model) (rate(foveal_request_seconds_bucket[5m]))", 1),  # a label that it has not
        ('foveal_requests_total{code="500"}', 1),
        ('foveal_request_total{status="500"} > 0 and foveal_ready == 1', 1),
        ("foveal_ready / foveal_nothing offset 1h", 1),
    ],
)
def test_what_is_not_exported_would_be_found(known: Labels, expression: str, wrong: int) -> None:
    assert len(unknown([expression], known)) == wrong


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_every_alert_has_a_runbook_and_a_test(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["annotations"]["runbook"] == f"deploy/runbooks/{name}.md"
    assert rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in ("page", "ticket")
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)", text, flags=re.MULTILINE) == SECTIONS
    assert all(len(part.strip()) > 40 for part in re.split(r"^## .*\n", text, flags=re.MULTILINE)[1:])
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (RUNBOOKS / target).is_file(), target
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == name]
    assert any(case.get("exp_alerts") for case in cases), "no test in which it fires"


def test_no_runbook_is_left_over_and_their_commands_exist() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == set(NAMES)
    lines = [line.strip() for block in _blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("foveal ")]
    assert len(commands) > 10
    for line in commands:
        parse(shlex.split(line.replace("VERSION", "1"))[1:])


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


def _configured(folder: Path, target: str, secret: str) -> Path:
    """The shipped configuration, but for where the server and its key are."""
    shutil.copytree(PROMETHEUS, folder)
    (folder / "metrics_key").write_text(secret)
    text = (folder / "prometheus.yml").read_text()
    for given, here in (("foveal:8000", target), ("/run/secrets/metrics_key", str(folder / "metrics_key"))):
        assert text.count(given) == 1
        text = text.replace(given, here)
    file = folder / "prometheus.yml"
    file.write_text(re.sub(r"(scrape|evaluation)_interval: 15s", r"\1_interval: 1s", text))
    return file


@pytest.mark.slow
def test_promtool_takes_configuration_and_rules(tmp_path: Path) -> None:
    tool, file = _tool("promtool"), _configured(tmp_path / "made", "127.0.0.1:1", "key")
    for words in (("check", "config", file), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        ran = subprocess.run([tool, *map(str, words)], cwd=file.parent, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("bar", ["lower", "higher"])
def test_the_tests_of_an_alert_notice_another_bar(rule: dict[str, Any], bar: str, tmp_path: Path) -> None:
    tool, folder = _tool("promtool"), tmp_path / "made"
    shutil.copytree(PROMETHEUS, folder)
    changes = ((r"(>=?) [\d.]+", r"\1 -1"), (r"== 0", ">= 0"), (r"< 0\.8", "< 2"))
    if bar == "higher":
        changes = ((r"(>=?) [\d.]+", r"\1 1e9"), (r"== 0", "< 0"), (r"< 0\.8", "< 0.1"))
    changed = rule["expr"]
    for pattern, now in changes:
        changed = re.sub(pattern, now, changed)
    assert changed != rule["expr"]
    rules = yaml.safe_load((folder / "alerts.yml").read_text())
    (mine,) = (one for group in rules["groups"] for one in group["rules"] if one["alert"] == rule["alert"])
    mine["expr"] = changed
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    ran = subprocess.run([tool, "test", "rules", "alerts_test.yml"], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 1
    assert rule["alert"] in ran.stdout + ran.stderr


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """Starts a Prometheus over a server's address with a key, and gives its own address."""
    program, started = _tool("prometheus"), list[subprocess.Popen[bytes]]()

    def start(server: str, secret: str) -> str:
        folder = tmp_path / f"prometheus-{len(started)}"
        file = _configured(folder, server.removeprefix("http://"), secret)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        words = [f"--config.file={file}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
        log = (folder / "log").open("wb")
        started.append(subprocess.Popen([program, *words], stdout=log, stderr=log))
        return f"http://{address}"

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def _asked(prometheus: str, expression: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, timeout=10).json()
    assert answer["status"] == "success", f"{expression}: {answer}"
    return answer["data"]["result"]


def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except httpx.TransportError:
            pass  # it is starting
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.2)


def _up(prometheus: str) -> str | None:
    found = _asked(prometheus, 'up{job="foveal"}')
    return found[0]["value"][1] if found else None


@pytest.mark.slow
def test_a_prometheus_scrapes_a_server_that_wants_keys(
    scraped: Callable[[str, str], str], archive: Archive, tmp_path: Path
) -> None:
    keys = Keys(tmp_path / "keys.sqlite")
    good, bad = keys.add("prometheus", ["metrics"]), keys.add("other", ["search"])
    app: FastAPI = create_app(archive=archive, encoder=ColourEncoder(), detector=ColourDetector(), keys=keys)
    with running(app) as url:
        seeing, refused = scraped(url, good), scraped(url, bad)
        _until(lambda: _up(seeing) == "1" and _up(refused) == "0")
        _until(lambda: bool(_asked(seeing, "foveal_ready == 1")))
        assert [row["value"][1] for row in _asked(seeing, "foveal_archive_items")] == ["12"]
        for expression in [*_dashboard()[:-1], *_blocks("promql")]:
            asked = expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
            _asked(seeing, asked)  # fails where Prometheus cannot read it
        assert sorted(rule["name"] for rule in _all_rules(seeing)) == sorted(NAMES)
        _until(lambda: all(rule["health"] == "ok" for rule in _all_rules(seeing)))
        assert [rule["name"] for rule in _all_rules(seeing) if rule["state"] != "inactive"] == []
    _until(lambda: {rule["name"] for rule in _all_rules(seeing) if rule["state"] == "pending"} == {"FovealDown"})


def _all_rules(prometheus: str) -> list[dict[str, Any]]:
    groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]
