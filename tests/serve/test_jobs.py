"""Jobs: pictures from the web into an archive, each once, whatever happens to the server meanwhile."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from filelock import FileLock
from PIL import Image

from foveal.client import AsyncClient, Client
from foveal.errors import BadInput
from foveal.schemas import Job
from retrieval.archive import Archive
from serve import job_runner
from serve.app import create_app
from serve.audit import Audit, NotAudited
from serve.jobs import Jobs
from serve.keys import Keys
from serve.label_studio import Pictures
from serve.limits import Limits
from serve.server import running
from tests.serve.conftest import ColourDetector, ColourEncoder
from tests.serve.processes import png
from tests.serve.shelves import Shelf, shelf, web
from tests.serve.test_app import error
from tests.serve.test_keys import bearer


@pytest.fixture(scope="module")
def web_server() -> Iterator[Shelf]:
    with shelf() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "depot", ColourEncoder())


def made(store: Archive, **options: Any) -> FastAPI:
    limits = Limits(body_bytes=2_000_000, pixels=1_000_000)
    return create_app(archive=store, encoder=ColourEncoder(), pictures=Pictures(web=web()), limits=limits, **options)


@pytest.fixture
def client(store: Archive) -> Iterator[TestClient]:
    with TestClient(made(store), raise_server_exceptions=False) as client:
        yield client


def ended(client: TestClient | httpx.Client, id: str, seconds: float = 60) -> dict[str, Any]:
    """The job once it is over."""
    deadline = time.monotonic() + seconds
    while (job := client.get(f"/v1/jobs/{id}").json())["ended"] is None:
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def start(client: TestClient | httpx.Client, *urls: str, **more: Any) -> str:
    answer = client.post("/v1/jobs", json={"urls": urls, **more})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["state"], answer.json()["total"]) == ("queued", len(urls))
    return answer.json()["id"]


def test_pictures_are_fetched_and_found_with_their_metadata(client: TestClient, web_server: Shelf) -> None:
    urls = [f"{web_server.url}/{number}.png?token=secret" for number in range(40)]
    job = ended(client, start(client, *urls, metadata={"camera": "north"}, archive="depot"))
    counts = {name: job[name] for name in ("state", "added", "updated", "unchanged", "rejected", "progress", "error")}
    assert counts == {
        "state": "done", "added": 40, "updated": 0, "unchanged": 0, "rejected": 0, "progress": 1, "error": None,
    }  # fmt: skip
    assert job["created"] <= job["started"] <= job["ended"]
    hits = client.post("/v1/search", json={"text": "red", "filter": "camera = 'north'", "k": 50}).json()["hits"]
    assert len(hits) == 40
    told = {hit["metadata"]["name"]: hit["metadata"]["source"] for hit in hits}
    assert told["7.png"] == f"{web_server.url}/7.png", "without what may be a secret"
    size = Image.open(io.BytesIO(client.get(hits[0]["image_url"]).content)).size
    assert size == (64, 48)
    again = ended(client, start(client, *urls, metadata={"camera": "north"}))
    assert (again["added"], again["unchanged"]) == (0, 40)
    moved = ended(client, start(client, *urls[:3], metadata={"camera": "south"}))
    assert (moved["updated"], moved["unchanged"]) == (3, 0)
    assert [one["id"] for one in client.get("/v1/jobs").json()["jobs"]][:2] == [moved["id"], again["id"]]


def test_what_cannot_be_used_is_counted_with_reasons(
    client: TestClient, web_server: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "PAUSE", 0.01)
    odd = ("moved", "missing", "page", "large", "1.png", "1.png", "2.png")
    web_server.failing.add("/2.png")  # once: it is asked for anew
    job = ended(client, start(client, *(f"{web_server.url}/{name}" for name in odd)))
    assert (job["state"], job["added"], job["unchanged"], job["rejected"]) == ("done", 2, 1, 4)
    reasons = {one["name"].rpartition("/")[2]: one["reason"] for one in job["reasons"]}
    assert list(reasons) == ["moved", "missing", "page", "large"]
    for name, word in (("moved", "redirects"), ("missing", "404"), ("page", "not an image"), ("large", "too large")):
        assert word in reasons[name]
    assert web_server.asked["/2.png"] >= 2


def test_only_allowed_hosts_are_asked(client: TestClient, web_server: Shelf, store: Archive) -> None:
    for url in ("http://127.0.0.1:1/a.png", "http://169.254.169.254/", "file:///etc/passwd", "ftp://localhost/a", "x"):
        told = error(client.post("/v1/jobs", json={"urls": [f"{web_server.url}/1.png", url]}), 422)
        assert told["message"].startswith("urls.1: ")
    assert client.get("/v1/jobs").json() == {"jobs": []}
    for body in ({"urls": []}, {"urls": ["x"] * 10_001}, {"urls": ["x" * 3000]}, {"urls": [1]}, {}):
        error(client.post("/v1/jobs", json=body), 422)
    error(client.post("/v1/jobs", json={"urls": ["http://localhost/"], "archive": "other"}), 404)
    error(client.get("/v1/jobs/none"), 404)
    error(client.delete("/v1/jobs/none"), 404)
    with TestClient(create_app(archive=store, encoder=ColourEncoder())) as closed:  # no host is allowed
        told = error(closed.post("/v1/jobs", json={"urls": [f"{web_server.url}/1.png"]}), 422)
        assert "--allow-host localhost" in told["remedy"]


def test_a_cancelled_job_stops_and_the_next_one_begins(client: TestClient, web_server: Shelf) -> None:
    web_server.gate.clear()
    first = start(client, *(f"{web_server.url}/{number % 50}.png?{number}" for number in range(300)))
    second = start(client, f"{web_server.url}/3.png")
    time.sleep(0.1)
    assert client.get(f"/v1/jobs/{first}").json()["state"] == "running"
    assert client.get(f"/v1/jobs/{second}").json()["state"] == "queued"
    assert client.delete(f"/v1/jobs/{first}").json()["state"] == "cancelled"
    web_server.gate.set()
    assert ended(client, second)["state"] == "done"
    job = client.get(f"/v1/jobs/{first}").json()
    assert (job["state"], job["added"] + job["unchanged"] <= job_runner.BATCH) == ("cancelled", True)
    assert client.delete(f"/v1/jobs/{second}").json()["state"] == "done"  # too late, and no harm


def test_requests_are_answered_while_pictures_come(store: Archive, web_server: Shelf) -> None:
    app = made(store, detector=ColourDetector())
    with running(app) as url, httpx.Client(base_url=url) as client:
        job = start(client, *(f"{web_server.url}/{number % 50}.png?{number}" for number in range(200)))
        took: list[float] = []
        while client.get(f"/v1/jobs/{job}").json()["ended"] is None:
            began = time.monotonic()
            assert client.post("/v1/detect", files={"image": png()}).status_code == 200
            took.append(time.monotonic() - began)
        assert ended(client, job)["added"] == 50
    assert len(took) > 5
    assert sorted(took)[len(took) // 2] < 0.5


def test_a_job_waits_for_who_else_writes(client: TestClient, store: Archive, web_server: Shelf) -> None:
    with FileLock(store.path / "jobs.sqlite.lock"):  # another server does the jobs of this file
        id = start(client, f"{web_server.url}/1.png")
        time.sleep(0.3)
        assert client.get(f"/v1/jobs/{id}").json()["state"] in ("queued", "running")
        assert len(store) == 0
    assert ended(client, id)["added"] == 1


def test_a_job_that_waits_for_another_writer_can_be_cancelled(
    tmp_path: Path, web_server: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "HELD", 0.05)
    monkeypatch.setattr("retrieval.turns.SECONDS", 0.05)
    store = Archive.create(tmp_path / "depot", ColourEncoder())
    with TestClient(made(store)) as client:
        with FileLock(store.path / ".lock"):
            first = start(client, f"{web_server.url}/1.png")
            time.sleep(0.3)
            assert client.get(f"/v1/jobs/{first}").json()["state"] == "running"
            assert client.delete(f"/v1/jobs/{first}").json()["state"] == "cancelled"
            time.sleep(0.5)
        assert ended(client, start(client, f"{web_server.url}/2.png"))["added"] == 1
        assert client.get(f"/v1/jobs/{first}").json()["added"] == 0


def test_an_archive_that_is_gone_fails_its_jobs(store: Archive, web_server: Shelf) -> None:
    jobs = Jobs(store.path / "jobs.sqlite")
    id = jobs.add("other", [f"{web_server.url}/1.png"], {}).id
    with TestClient(made(store)) as client:
        job = ended(client, id)
    assert (job["state"], "no archive 'other'" in job["error"]) == ("failed", True)


def test_keys_see_jobs_of_their_archives_only(store: Archive, tmp_path: Path, web_server: Shelf) -> None:
    keys, hidden = Keys(tmp_path / "keys.sqlite"), Archive.create(tmp_path / "hidden", ColourEncoder())
    app = create_app(
        archive={"depot": store, "hidden": hidden}, encoder=ColourEncoder(), keys=keys, pictures=Pictures(web=web())
    )
    all_, some = bearer(keys.add("all", ["write"])), bearer(keys.add("some", ["write"], archives=["depot"]))
    reader = bearer(keys.add("reader", ["search", "detect", "embed", "ask", "metrics"]))
    body = {"urls": [f"{web_server.url}/1.png"], "archive": "hidden"}
    with TestClient(app) as client:
        id = client.post("/v1/jobs", json=body, headers=all_).json()["id"]
        for method, path in (("GET", "/v1/jobs"), ("GET", f"/v1/jobs/{id}"), ("DELETE", f"/v1/jobs/{id}")):
            error(client.request(method, path, headers=reader), 403)
            error(client.request(method, path), 401)
        error(client.post("/v1/jobs", json=body, headers=reader), 403)
        error(client.post("/v1/jobs", json=body, headers=some), 404)
        error(client.get(f"/v1/jobs/{id}", headers=some), 404)
        error(client.delete(f"/v1/jobs/{id}", headers=some), 404)
        assert client.get("/v1/jobs", headers=some).json() == {"jobs": []}
        assert [job["id"] for job in client.get("/v1/jobs", headers=all_).json()["jobs"]] == [id]


def test_the_clients_start_watch_and_cancel_jobs(store: Archive, web_server: Shelf) -> None:
    async def more(url: str) -> Job:
        async with AsyncClient(url) as client:
            job = await client.add_urls([f"{web_server.url}/2.png"], metadata={"camera": "east"})
            while (job := await client.job(job.id)).ended is None:
                await asyncio.sleep(0.02)
            assert (await client.jobs())[0] == job.model_copy(update={"reasons": []})
            return await client.cancel(job.id)

    with running(made(store)) as url, Client(url) as client:
        job = client.add_urls([f"{web_server.url}/1.png"], archive="depot")
        while (job := client.job(job.id)).ended is None:
            time.sleep(0.02)
        assert (job.state, job.added, job.archive) == ("done", 1, "depot")
        assert asyncio.run(more(url)).state == "done"
        assert [one.total for one in client.jobs()] == [1, 1]
        assert client.cancel(job.id) == job
        with pytest.raises(BadInput, match="urls"):
            client.add_urls([])


def test_what_a_job_adds_is_counted_and_written_down_before_it_is_there(
    store: Archive, tmp_path: Path, web_server: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "HELD", 0.05)
    keys, audit = Keys(tmp_path / "keys.sqlite"), Audit(tmp_path / "audit.jsonl")
    secret = keys.add("collector", ["write", "search", "metrics"])
    written, locked = audit.write, [True]

    def write(shown: list[tuple[str, str]], **facts: Any) -> None:
        if locked[0] and facts.get("event") == "job":
            raise NotAudited("the disk is full")
        written(shown, **facts)

    monkeypatch.setattr(audit, "write", write)
    with TestClient(made(store, keys=keys, audit=audit), headers=bearer(secret)) as client:
        id = start(client, *[f"{web_server.url}/{number}.png" for number in range(3)], f"{web_server.url}/none.png")
        deadline = time.monotonic() + 20
        while "foveal_job_addresses 4.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline
        time.sleep(0.2)
        assert len(store) == 0  # nothing comes in that cannot be written down
        locked[0] = False
        assert ended(client, id)["added"] == 3
        lines = [json.loads(line) for line in audit.file.read_text().splitlines()]
        told = [line for line in lines if line.get("event") == "job"]
        assert [(line["job"], line["key"], sorted(line["items"])) for line in told] == [(id, "collector", ["depot"])]
        assert set(told[0]["items"]["depot"]) == set(store.matching("width >= 0"))
        figures = client.get("/metrics").text
    for figure in (
        'foveal_job_pictures_total{archive="depot",outcome="added"} 3.0',
        'foveal_job_pictures_total{archive="depot",outcome="rejected"} 1.0',
        'foveal_jobs_total{archive="depot",state="done"} 1.0',
        "foveal_job_addresses 0.0",
    ):
        assert figure in figures
