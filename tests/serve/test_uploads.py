"""Pictures sent to an archive: found at once, kept for good, gone for good."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from foveal.client import AsyncClient, Client
from retrieval.archive import Archive
from serve.app import create_app
from serve.limits import Limits
from serve.server import running
from tests.serve.conftest import ColourEncoder, draw
from tests.serve.test_app import error, png

RED, BLUE = png(draw(("red", (0, 0, 40, 40)))), png(draw(("blue", (0, 0, 40, 40))))


@pytest.fixture
def store(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "depot", ColourEncoder())


@pytest.fixture
def filling(store: Archive) -> Iterator[TestClient]:
    app = create_app(archive=store, encoder=ColourEncoder(), limits=Limits(pixels=1_000_000, body_bytes=500_000))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def send(
    client: TestClient, *files: tuple[str, bytes], metadata: dict[str, Any] | None = None, status: int = 201
) -> Any:
    said = {} if metadata is None else {"metadata": json.dumps(metadata)}
    answer = client.post("/v1/items", files=[("image", file) for file in files], data=said)
    assert answer.status_code == status, answer.text
    return answer.json()


def found(client: TestClient, text: str = "red", **more: Any) -> list[dict[str, Any]]:
    return client.post("/v1/search", json={"text": text, "k": 10, **more}).json()["hits"]


def test_what_is_sent_is_found_with_its_metadata(filling: TestClient, store: Archive) -> None:
    answer = send(filling, ("a.png", RED), ("b.png", BLUE), metadata={"camera": "north", "hour": 4})
    assert [(one["name"], one["status"]) for one in answer["items"]] == [("a.png", "added"), ("b.png", "added")]
    assert (answer["archive"], answer["rejected"]) == ("depot", [])
    hit = found(filling, filter="camera = 'north' AND hour = 4")[0]
    assert hit["id"] == answer["items"][0]["id"]
    assert hit["metadata"]["name"] == "a.png"
    assert found(filling, words="b.png")[0]["id"] == answer["items"][1]["id"]
    assert filling.get(hit["image_url"]).headers["content-type"] == "image/jpeg"
    assert len(Archive.open(store.path)) == 2


def test_the_same_picture_is_there_once_and_takes_new_metadata(filling: TestClient, store: Archive) -> None:
    first = send(filling, ("a.png", RED), metadata={"camera": "north"})["items"][0]
    again = send(filling, ("a.png", RED), metadata={"camera": "north"})["items"][0]
    moved = send(filling, ("a.png", RED), metadata={"camera": "south"})["items"][0]
    assert [one["status"] for one in (first, again, moved)] == ["added", "unchanged", "updated"]
    assert first["id"] == again["id"] == moved["id"]
    assert [hit["metadata"]["camera"] for hit in found(filling)] == ["south"]
    assert len(store) == 1


def test_what_is_deleted_leaves_no_file(filling: TestClient, store: Archive) -> None:
    id = send(filling, ("a.png", RED), ("b.png", BLUE))["items"][0]["id"]
    assert filling.delete(f"/v1/items/{id}").status_code == 204
    left = [path.read_bytes() for path in (store.path / "uploads").rglob("*") if path.is_file()]
    assert RED not in left
    assert BLUE in left
    assert not any(b"a.png" in data for data in left)
    assert {hit["id"] for hit in found(filling)}.isdisjoint({id})
    assert send(filling, ("a.png", RED))["items"][0]["status"] == "added"


def test_files_elsewhere_are_not_deleted(filling: TestClient, store: Archive, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(RED)
    store.add(tmp_path / "mine.png", ColourEncoder())
    assert filling.delete(f"/v1/items/{found(filling)[0]['id']}").status_code == 204
    assert (tmp_path / "mine.png").read_bytes() == RED


def test_bad_pictures_do_not_stop_good_ones(filling: TestClient, store: Archive) -> None:
    answer = send(filling, ("a.png", RED), ("b.png", RED[:90]), ("c.png", b"hello"), ("../../d.png", BLUE))
    assert [one["status"] for one in answer["items"]] == ["added", "added"]
    assert [one["name"] for one in answer["rejected"]] == ["b.png", "c.png"]
    assert all(one["reason"] for one in answer["rejected"])
    assert all(store.path in path.parents for path in (store.path / "uploads").rglob("*.png"))
    buffer = io.BytesIO()
    draw(size=(1200, 1200)).save(buffer, "PNG")
    assert "pixels" in send(filling, ("big.png", buffer.getvalue()), status=413)["error"]["message"]
    send(filling, ("c.png", b"hello"), status=422)
    assert len(store) == 2


@pytest.mark.parametrize("metadata", ["[1]", "{", '{"a": {"b": 1}}', '{"a": null}'])
def test_metadata_that_is_not_flat_is_refused(filling: TestClient, store: Archive, metadata: str) -> None:
    answer = filling.post("/v1/items", files={"image": ("a.png", RED)}, data={"metadata": metadata})
    assert "flat" in error(answer, 400)["expected"]
    assert len(store) == 0


def test_requests_without_pictures_are_explained(filling: TestClient) -> None:
    error(filling.post("/v1/items", json={"image": "aGk="}), 400)
    error(filling.post("/v1/items", files={"other": ("a.png", RED)}), 400)
    error(filling.post("/v1/items", files={"image": ("a.png", RED)}, data={"archive": "other"}), 404)


def test_the_clients_send_files(store: Archive, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(BLUE)

    async def more(url: str) -> list[str]:
        async with AsyncClient(url) as client:
            return [one.status for one in (await client.add(tmp_path / "a.png", tmp_path / "b.png")).items]

    with running(create_app(archive=store, encoder=ColourEncoder())) as url, Client(url) as client:
        (item,) = client.add(tmp_path / "a.png", metadata={"camera": "north"}, archive="depot").items
        assert client.item(item.id).metadata["camera"] == "north"
        assert asyncio.run(more(url)) == ["updated", "added"]
        client.delete(item.id)
        assert [card.images for card in client.archives()] == [1]
