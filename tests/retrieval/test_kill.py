"""What was acknowledged survives `kill -9` at any moment; nothing deleted comes back, nothing is there twice.

`FOVEAL_TEST_KILLS=200 pytest -m slow tests/retrieval/test_kill.py` runs it for longer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from foveal.errors import FingerprintMismatch
from retrieval.archive import Archive
from retrieval.index import IndexSettings
from tests.retrieval.pixels import PixelEncoder

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FOVEAL_TEST_KILLS", "12"))
RUNS_SECONDS = 2.5  # at most, before a kill


@dataclass
class Ledger:
    """What must be there, what must not, and what may be either because its change was under way."""

    present: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, line: dict) -> None:
        with self.lock:
            ids = set(line.get("ids", ()))
            if "start" in line:
                self.pending |= ids
                self.gone -= ids if line["start"] == "add" else set()
                return
            self.pending -= ids
            self.present = self.present | ids if line.get("done") == "add" else self.present - ids
            self.gone |= ids if line.get("done") == "delete" else set()

    def certain(self) -> tuple[set[str], set[str]]:
        """Ids that must be found, and ids that must not."""
        with self.lock:
            return self.present - self.pending, self.gone - self.pending

    def settle(self, found: set[str]) -> None:
        """Takes over what a killed process had under way as it turned out."""
        with self.lock:
            self.present |= self.pending & found
            self.present -= self.pending - found
            self.gone |= self.pending - found
            self.pending = set()


def everything(archive: Archive) -> list[str]:
    query = np.ones((1, archive.settings.dimension), np.float32) / np.sqrt(archive.settings.dimension)
    return [hit.id for hit in archive.nearest(query, 10_000)[0]]


@contextmanager
def readers(path: Path, ledger: Ledger, count: int = 2) -> Iterator[list[str]]:
    """Threads that search all the while, each with a handle of its own; yields what they found wrong."""
    stop, wrong = threading.Event(), list[str]()

    def read() -> None:
        archive = Archive.open(path)
        while not stop.is_set():
            must, must_not = ledger.certain()
            try:
                found = everything(archive)
            except FingerprintMismatch:
                archive = Archive.open(path)
                continue
            still, still_not = ledger.certain()
            if lost := (must & still) - set(found):
                wrong.append(f"{len(lost)} acknowledged images were not found")
            if back := (must_not & still_not) & set(found):
                wrong.append(f"{len(back)} deleted images came back")
            if len(found) != len(set(found)):
                wrong.append("an image was found twice")
            time.sleep(0.02)

    threads = [threading.Thread(target=_guarded, args=(read, wrong)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _guarded(work, wrong: list[str]) -> None:
    try:
        work()
    except Exception as error:
        wrong.append(f"a reader failed: {type(error).__name__}: {error}")


def standby(path: Path, work: Path, seed: int) -> subprocess.Popen[str]:
    """A process that has imported everything and waits for its start."""
    command = [sys.executable, "-m", "tests.retrieval.churning", str(path), str(work), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)


def churn(process: subprocess.Popen[str], seconds: float, ledger: Ledger) -> str | None:
    """Lets it work for a while, then kills it; what it said of its own end, if it ended by itself."""
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline()) == {"ready": True}
    timer = threading.Timer(seconds, process.send_signal, [signal.SIGKILL])
    process.stdin.write("go\n")
    process.stdin.flush()
    timer.start()
    for line in process.stdout:
        if line.endswith("\n"):
            ledger.note(json.loads(line))
    timer.cancel()
    return None if process.wait() == -signal.SIGKILL else process.stderr.read()


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * KILLS)
def test_nothing_acknowledged_is_lost_and_nothing_deleted_returns(tmp_path: Path) -> None:
    path, work, ledger, moments = tmp_path / "archive", tmp_path / "work", Ledger(), random.Random(0)
    Archive.create(path, PixelEncoder(), index=IndexSettings(flat_below=3000, recall_target=0.9))
    waiting = standby(path, work, 0)
    with readers(path, ledger) as wrong:
        for kill in range(KILLS):
            process, waiting = waiting, standby(path, work, kill + 1)
            ended = churn(process, moments.uniform(0.05, RUNS_SECONDS), ledger)
            assert ended is None, ended
            archive = Archive.open(path)
            report = archive.check()
            problems = [p for p in report.problems if "image files are gone" not in p]
            assert not problems, (kill, problems)
            found = everything(Archive.open(path))
            assert len(found) == len(set(found)) == report.images
            must, must_not = ledger.certain()
            assert must <= set(found), (kill, len(must - set(found)))
            assert not must_not & set(found), (kill, len(must_not & set(found)))
            ledger.settle(set(found))
            assert not wrong, (kill, wrong[:3])
    waiting.kill()
    waiting.communicate()
    assert len(ledger.gone) > 0
    assert not list((Archive.open(path).folder / "index").glob("*.tmp"))
