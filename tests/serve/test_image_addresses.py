"""Pictures that a request names by their address: from allowed hosts only, within limits of size and time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from retrieval.archive import Archive
from retrieval.sources_web import Web
from serve import app as application
from serve.app import create_app
from serve.label_studio import Pictures
from serve.limits import Limits
from tests.serve.conftest import ColourDetector, ColourEncoder
from tests.serve.everything import WAYS, Way, everything
from tests.serve.shelves import Shelf, shelf, web
from tests.serve.test_app import error

ADDRESSED = [way for way in WAYS if way.body is not None and way.path.startswith("/v1/")]


@pytest.fixture(scope="module")
def web_server() -> Iterator[Shelf]:
    with shelf() as server:
        yield server


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    app = everything(tmp_path_factory.mktemp("addresses"), pictures=Pictures(web=web()))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("way", ADDRESSED, ids=str)
def test_every_route_takes_an_address(client: TestClient, web_server: Shelf, way: Way) -> None:
    assert way.body is not None
    answer = client.post(way.path, json=_addressed(way, f"{web_server.url}/30.png"))
    assert answer.status_code == 200, answer.text
    for name, status, word in (
        ("moved", 422, "redirects"),
        ("missing", 422, "404"),
        ("page", 422, "not an image"),
        ("large", 422, "too large"),
    ):
        told = error(client.post(way.path, json=_addressed(way, f"{web_server.url}/{name}")), status)
        assert word in f"{told['message']} {told['received']}"
    for url in ("http://127.0.0.1:1/a.png", "https://other.example/a.png", "http://localhost@other.example/a.png"):
        told = error(client.post(way.path, json=_addressed(way, url)), 400)
        assert "--allow-host" in told["remedy"]
    for url in ("file:///etc/passwd", "ftp://localhost/a.png", "gopher://localhost/"):
        error(client.post(way.path, json=_addressed(way, url)), 400)


def _addressed(way: Way, url: str) -> object:
    """The way's request with an address in the place of the picture."""
    assert way.body is not None

    def put(value: object) -> object:
        if isinstance(value, dict):
            return {key: put(one) for key, one in value.items()}
        if isinstance(value, list):
            return [put(one) for one in value]
        return url if isinstance(value, str) and value.endswith("PICTURE") else value

    return put(dict(way.body("PICTURE")))


def test_what_is_detected_is_what_lies_there(client: TestClient, web_server: Shelf) -> None:
    for address in (f"{web_server.url}/30.png", f"{web_server.url}/30.png".replace("http", "HTTP")):
        (found,) = client.post("/v1/detect", json={"image": address}).json()["detections"]
        assert (found["label"], found["box"]) == ("red", [4, 4, 35, 30])
    form = client.post("/v1/detect", files={"model": (None, "detector")}, data={"image": f"{web_server.url}/30.png"})
    assert form.json()["detections"] == [found]


def test_nobody_is_asked_where_no_host_is_allowed(archive: Archive, web_server: Shelf) -> None:
    before = web_server.asked.total()
    with TestClient(create_app(archive=archive, encoder=ColourEncoder(), detector=ColourDetector())) as closed:
        told = error(closed.post("/v1/detect", json={"image": f"{web_server.url}/30.png"}), 400)
    assert told["message"] == "this server fetches no addresses"
    assert web_server.asked.total() == before


def test_a_name_that_leads_inside_is_refused(tmp_path: Path, web_server: Shelf) -> None:
    before = web_server.asked.total()
    inside = everything(tmp_path, pictures=Pictures(web=Web(("localhost", "127.0.0.1"))))
    with TestClient(inside) as client:
        for url in (f"{web_server.url}/30.png", f"{web_server.url}/30.png".replace("localhost", "127.0.0.1")):
            assert "private network" in error(client.post("/v1/detect", json={"image": url}), 422)["message"]
            client.post("/v1/jobs", json={"urls": [url]})
        deadline = time.monotonic() + 20
        while any(job["ended"] is None for job in client.get("/v1/jobs").json()["jobs"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert [job["rejected"] for job in client.get("/v1/jobs").json()["jobs"]] == [1, 1]
    assert web_server.asked.total() == before


def test_a_host_that_drips_is_not_waited_for(web_server: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "FETCH_SECONDS", 1.0)
    app = create_app(detector=ColourDetector(), pictures=Pictures(web=web()), limits=Limits(at_once=64))
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(20) as pool:
        began = time.monotonic()
        slow = [pool.submit(client.post, "/v1/detect", json={"image": f"{web_server.url}/slow"}) for _ in range(16)]
        time.sleep(0.1)
        assert client.get("/livez").status_code == 200
        assert time.monotonic() - began < 1
        for one in slow:
            assert "not here within 1 s" in error(one.result(), 422)["message"]
        assert time.monotonic() - began < 6
