"""Several processes of a server behave as one, and one of them may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from foveal.errors import BadInput
from retrieval.archive import Archive
from serve.keys import Keys
from serve.workers import serve_many
from tests.serve.conftest import ColourEncoder
from tests.serve.processes import ROOT, png
from tests.serve.test_keys import bearer

VERBS = ["search", "write", "metrics"]


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    keys: Keys
    key: str

    def pids(self) -> list[int]:
        """The processes that serve, not those that Python adds for itself."""
        return [child.pid for child in psutil.Process(self.process.pid).children() if _serves(child)]

    def find(self, key: str | None = None) -> httpx.Response:
        """A search on a connection of its own, so that any process may take it."""
        headers = bearer(key or self.key)
        return httpx.post(f"{self.url}/v1/search", json={"text": "red", "k": 50}, headers=headers, timeout=20)

    def many(self, count: int, key: str | None = None) -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: self.find(key).status_code, range(count)))

    def searched(self) -> float:
        """Searches that were answered with 200, by whichever process tells."""
        text = httpx.get(f"{self.url}/metrics", headers=bearer(self.key), timeout=20).text
        lines = [line for line in text.splitlines() if line.startswith("foveal_requests_total")]
        return sum(float(line.split()[-1]) for line in lines if "/v1/search" in line and '"200"' in line)


def _serves(child: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in child.cmdline())
    except psutil.Error:  # it has just ended
        return False


def program(depot: Path, keys: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.serve.crew", str(depot), str(keys)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def served(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("crew")
    Archive.create(home / "depot", ColourEncoder()).add(pictures, ColourEncoder())
    keys = Keys(home / "keys.sqlite")
    key = keys.add("operator", VERBS)
    process = program(home / "depot", home / "keys.sqlite")
    try:
        assert process.stdout is not None
        yield Served(process, process.stdout.readline().strip(), keys, key)
    finally:
        process.kill()
        process.communicate()


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def test_all_count_together(served: Served) -> None:
    assert len(served.pids()) == 2
    before = served.searched()
    assert set(served.many(40)) == {200}
    assert {served.searched() for _ in range(8)} == {before + 40}


def test_a_quota_is_that_of_all_processes(served: Served) -> None:
    few = served.keys.add("few", VERBS, quota=7)
    assert sorted(served.many(20, few)) == [200] * 7 + [429] * 13


def test_a_rate_is_that_of_all_processes(served: Served) -> None:
    slow = served.keys.add("slow", VERBS, rate=0.01)
    assert sorted(served.many(12, slow)) == [200] + [429] * 11


def test_what_one_took_in_every_one_finds(served: Served) -> None:
    for width in range(31, 37):
        files = {"image": (f"{width}.png", png(width))}
        answer = httpx.post(f"{served.url}/v1/items", files=files, headers=bearer(served.key), timeout=30)
        assert answer.status_code in (200, 201), answer.text
        (item,) = answer.json()["items"]
        for _ in range(4):
            assert item["id"] in [hit["id"] for hit in served.find().json()["hits"]]


def test_a_killed_process_is_started_again_and_the_others_answer(served: Served) -> None:
    first, second = served.pids()
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: first not in served.pids())
    assert set(served.many(20)) == {200}
    assert eventually(lambda: len(served.pids()) == 2)
    assert second in served.pids()
    assert set(served.many(20)) == {200}


@pytest.mark.slow
def test_a_signal_ends_all(pictures: Path, tmp_path: Path) -> None:
    Archive.create(tmp_path / "depot", ColourEncoder()).add(pictures, ColourEncoder())
    process = program(tmp_path / "depot", tmp_path / "keys.sqlite")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "ended\n"), err
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(pictures: Path, tmp_path: Path) -> None:
    Archive.create(tmp_path / "depot", ColourEncoder()).add(pictures, ColourEncoder())
    process = program(tmp_path / "depot", tmp_path / "keys.sqlite")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert psutil.wait_procs(children, timeout=20)[1] == []
    process.communicate()


@pytest.mark.slow
def test_what_keeps_a_process_from_starting_is_said_once(tmp_path: Path) -> None:
    process = program(tmp_path / "nowhere", tmp_path / "keys.sqlite")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.rstrip().endswith(f"there is no archive {tmp_path / 'nowhere'}")


def test_one_process_is_not_several(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2 or more"):
        serve_many(lambda: pytest.fail("not called"), 1, together=tmp_path)
