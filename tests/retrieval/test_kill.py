"""What was acknowledged survives `kill -9` at any moment; nothing is there twice, nothing half written."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from retrieval.archive import Archive
from retrieval.query import SearchQuery
from tests.retrieval.pixels import PixelEncoder, write_images

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FOVEAL_TEST_KILLS", "5"))  # set it higher for a longer run


def start(archive: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.retrieval.adding", str(archive), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def kill_after(process: subprocess.Popen[str], seconds: float) -> list[str]:
    """Lines printed before SIGKILL, which comes `seconds` after the first of them."""
    assert process.stdout is not None
    lines = [process.stdout.readline().strip()]
    timer = threading.Timer(seconds, process.send_signal, [signal.SIGKILL])
    timer.start()
    lines += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait()
    timer.cancel()
    return [line for line in lines if line]


@pytest.mark.slow
def test_acknowledged_images_survive_kill_9(tmp_path: Path) -> None:
    rng = random.Random(0)
    files = write_images(tmp_path / "world" / "images", 2000)
    path = tmp_path / "archive"
    encoder = PixelEncoder()
    killed = 0
    for _ in range(KILLS):
        lines = kill_after(start(path, files[0].parent), rng.uniform(0, 0.8))
        killed += "done" not in lines
        acknowledged = max((int(line) for line in lines if line != "done"), default=0)
        archive = Archive.open(path)
        report = archive.check()
        assert report.ok, report.problems
        hits = archive.search(SearchQuery(text="red", k=5000), encoder)
        uris = [hit.uri for hit in hits]
        assert len(uris) == len(set(uris)) == report.images
        assert {str(file) for file in files[:acknowledged]} <= set(uris)
        for file in rng.sample(files[:acknowledged], min(10, acknowledged)):
            assert archive.search(SearchQuery(image=file, k=1), encoder)[0].uri == str(file)
    assert killed
    began = time.monotonic()
    process = start(path, files[0].parent)
    assert "done" in kill_after(process, 120), time.monotonic() - began
    final = Archive.open(path)
    assert len(final) == 2000
    assert final.check().ok
    assert not list((path / "index").glob("*.tmp"))
