"""The Python client against a running server, and what it makes of servers that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from foveal import schemas
from foveal.client import AsyncClient, Client, picture
from foveal.errors import BadInput, FingerprintMismatch, FovealError, Unavailable
from foveal.schemas import DetectRequest, EmbeddingRequest, FeedbackRequest, QueryPart, SearchRequest
from serve.app import create_app
from serve.keys import Keys
from serve.server import running
from tests.serve.conftest import ColourDetector, draw
from tests.serve.test_app import png

SCENE = draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)))


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with running(app) as address:
        yield address


def test_every_request_has_an_answer_and_a_route(app: FastAPI) -> None:
    requests = {kind for kind in vars(schemas).values() if isinstance(kind, type) and hasattr(kind, "path")}
    assert set(schemas.ANSWERS) == requests
    routes: dict[str, Any] = app.openapi()["paths"]
    for kind in requests:
        responses = routes[kind.path]["post"]["responses"]
        (good,) = (told for status, told in responses.items() if status[0] == "2")
        answered = good["content"]["application/json"]["schema"]["$ref"]
        assert answered.endswith(f"/{schemas.ANSWERS[kind].__name__}")


def test_what_the_server_answers_comes_back_typed(url: str, tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes(png(SCENE))
    with Client(url) as client:
        found = client.send(SearchRequest(text="red", parts=[QueryPart(text="blue", weight=-0.1)], k=3))
        assert [Path(hit.uri).name.split("-")[0] for hit in found.hits] == ["red"] * 3
        assert client.send(SearchRequest(text="red", k=3, cursor=None)).cursor is not None
        for image in (SCENE, png(SCENE), tmp_path / "scene.png", str(tmp_path / "scene.png")):
            seen = client.send(DetectRequest(image=picture(image), threshold=0.5)).detections
            assert {(one.label, one.box) for one in seen} == {("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40))}
        vector = client.send(EmbeddingRequest(input=["red", "blue"])).data[1].embedding
        assert np.linalg.norm(np.array(vector)) == pytest.approx(1, abs=1e-5)
        assert {card.kind for card in client.models()} == {"encoder", "detector", "open-detector"}
        assert [card.images for card in client.archives()] == [12]
        item = client.item(found.hits[0].id, "depot")
        assert (item.uri, item.archive) == (found.hits[0].uri, "depot")
        assert client.image(item.id, size=32)[:3] == b"\xff\xd8\xff"
        assert client.send(FeedbackRequest(text="red", right=[item.id])).kept == 1


def test_the_asynchronous_client_asks_many_at_once(url: str) -> None:
    async def main() -> None:
        async with AsyncClient(url) as client:
            requests = [SearchRequest(text=colour, k=1) for colour in ("red", "green", "blue", "yellow")]
            answers = await asyncio.gather(*(client.send(request) for request in requests))
            names = [Path(answer.hits[0].uri).name.split("-")[0] for answer in answers]
            assert names == ["red", "green", "blue", "yellow"]
            assert len(await client.models()) == 3
            assert (await client.archives())[0].name == "depot"
            id = answers[0].hits[0].id
            assert (await client.item(id)).id == id
            assert await client.image(id)
            with pytest.raises(BadInput, match="no item"):
                await client.delete("ffff")

    asyncio.run(main())


def test_errors_say_what_the_server_said(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(BadInput, match="kamera") as caught:
            client.send(SearchRequest(text="red", filter="kamera = 'north'"))
        assert "camera" in str(caught.value)
        with pytest.raises(BadInput, match="no item"):
            client.delete("ffff")
        with pytest.raises(FileNotFoundError):
            picture("no-such-file.jpg")


def test_a_key_goes_along(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.sqlite")
    secret = keys.add("ann", ["detect"])
    with running(create_app(detector=ColourDetector(), keys=keys)) as url:
        assert Client(url, secret).send(DetectRequest(image=picture(SCENE))).width == 64
        for key in (None, "fv_wrong"):
            with pytest.raises(Unavailable, match="key"):
                Client(url, key).models()


def answering(monkeypatch: pytest.MonkeyPatch, *answers: httpx.Response | Exception) -> tuple[Client, list[float]]:
    """A client whose server gives these answers in turn, and how long it slept between them."""
    left, slept = list(answers), list[float]()

    def handle(request: httpx.Request) -> httpx.Response:
        answer = left.pop(0) if left else httpx.Response(500)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = Client("http://foveal")
    client._http = httpx.Client(base_url="http://foveal", transport=httpx.MockTransport(handle))
    monkeypatch.setattr("foveal.client.time.sleep", slept.append)
    return client, slept


LIST = httpx.Response(200, json={"object": "list", "data": []})


def test_what_may_pass_is_tried_again_when_the_server_says(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = httpx.Response(503, headers={"Retry-After": "7"}, json={"error": {"message": "busy"}})
    client, slept = answering(monkeypatch, busy, httpx.ConnectError("refused"), httpx.Response(429), LIST)
    assert client.models() == []
    assert slept == [7, 1.0, 2.0]


@pytest.mark.parametrize(
    ("answers", "kind", "tries"),
    [
        ([httpx.ConnectError("refused")] * 9, Unavailable, 4),
        ([httpx.Response(503, headers={"Retry-After": "3600"})], Unavailable, 1),
        ([httpx.Response(422, json={"error": {"message": "no"}})], BadInput, 1),
        ([httpx.Response(409, json={"error": {"message": "no"}})], FingerprintMismatch, 1),
        ([httpx.Response(500, text="<html>")], FovealError, 1),
        ([httpx.Response(200, text="hello")], Unavailable, 1),
        ([httpx.Response(200, json={"data": [{"id": 1}]})], Unavailable, 1),
    ],
)
def test_what_will_not_pass_is_an_error(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], kind: type[FovealError], tries: int
) -> None:
    client, slept = answering(monkeypatch, *answers)
    with pytest.raises(kind):
        client.models()
    assert len(slept) == tries - 1
