"""Jobs and the processes that do them: killed at any moment, and started from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from foveal.models import load_encoder
from retrieval.archive import Archive
from serve.jobs import Jobs
from tests.command import foveal
from tests.serve.conftest import ColourEncoder
from tests.serve.processes import program
from tests.serve.shelves import Shelf, shelf
from tests.serve.test_jobs import ended, start

pytestmark = pytest.mark.slow
SERVER = """
import sys
from pathlib import Path
from retrieval.archive import Archive
from serve.app import create_app
from serve.label_studio import Pictures
from serve.server import serve
from tests.serve.conftest import ColourEncoder
from tests.serve.shelves import web
app = create_app(archive=Archive.open(Path(sys.argv[1])), encoder=ColourEncoder(), pictures=Pictures(web=web()))
serve(app, port=0, on_ready=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="module")
def web_server() -> Iterator[Shelf]:
    with shelf() as server:
        yield server


@pytest.mark.timeout(1800)
def test_a_killed_server_goes_on_and_adds_every_picture_once(tmp_path: Path, web_server: Shelf) -> None:
    store = Archive.create(tmp_path / "depot", ColourEncoder())
    urls = [f"{web_server.url}/{number}.png?{number}" for number in range(50)]
    urls += [f"{web_server.url}/missing?{number}" for number in range(5)]
    urls += [f"{web_server.url}/{number}.png?again" for number in range(50)]
    id, kills, seen = "", 0, set[float]()
    for turn in range(40):
        process = program(SERVER, store.path)
        assert process.stdout is not None
        base = process.stdout.readline().strip()
        try:
            with httpx.Client(base_url=base, timeout=30) as client:
                id = id or start(client, *urls)
                deadline = time.monotonic() + 0.15 + 0.037 * turn  # at any moment: before, in and after a batch
                while (job := client.get(f"/v1/jobs/{id}").json())["ended"] is None and time.monotonic() < deadline:
                    time.sleep(0.01)
        finally:
            process.kill()
            process.communicate()
        seen.add(job["progress"])
        if job["ended"] is not None:
            break
        kills += 1
    assert kills >= 3
    assert len(seen) >= 3
    assert job["state"] == "done", job
    assert (job["added"], job["rejected"], job["added"] + job["updated"] + job["unchanged"]) == (50, 5, 100), job
    held = Archive.open(store.path)
    assert len(held) == 50
    assert len({path.stem for path in (store.path / "uploads").rglob("*.png")}) == 50
    shown = foveal("archive", "check", "--archive", str(store.path), "--json")
    assert shown.json["ok"] is True, shown.out


def test_the_command_keeps_jobs_where_it_is_told(tmp_path: Path, web_server: Shelf) -> None:
    encoder = load_encoder("bundled:clip")
    Archive.create(tmp_path / "depot", encoder)
    words = ("serve", "--archive", str(tmp_path / "depot"), "--jobs", str(tmp_path / "jobs.sqlite"), "--port", "0")
    words = (*words, "--json", "--allow-host", "localhost")
    code = f"import sys; from foveal.cli import main; sys.argv[1:] = {words!r}; main()"
    process = program(code)
    try:
        assert process.stdout is not None
        with httpx.Client(base_url=json.loads(process.stdout.readline())["url"]) as client:
            job = ended(client, start(client, f"{web_server.url}/1.png"))
    finally:
        process.kill()
        process.communicate()
    assert "private network" in job["reasons"][0]["reason"]  # this machine is none of the internet
    (kept,) = Jobs(tmp_path / "jobs.sqlite").list()
    assert (kept.id, kept.rejected) == (job["id"], 1)
    assert not (tmp_path / "depot" / "jobs.sqlite").exists()
