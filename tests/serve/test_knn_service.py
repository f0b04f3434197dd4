"""clip-retrieval's service: its requests, its client, and nothing fetched from elsewhere."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from retrieval.archive import Archive
from retrieval.sources_web import Web
from serve.app import create_app
from serve.label_studio import Pictures
from serve.server import running
from tests.serve.conftest import ColourEncoder, draw
from tests.serve.test_app import b64, error, png

ASKED = {
    "text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": False, "modality": "image",
    "use_safety_model": True, "use_violence_detector": True, "indice_name": "depot", "use_mclip": False,
    "aesthetic_score": 9, "aesthetic_weight": 0.5, "num_images": 3, "num_result_ids": 3,
}  # fmt: skip


def ask(client: TestClient, **asked: Any) -> Any:
    """What the client posts: JSON that does not say it is."""
    return client.post("/knn-service", content=json.dumps(ASKED | asked))


def colours(found: list[dict[str, Any]]) -> list[str]:
    return [Path(one["image_path"]).name.split("-")[0] for one in found]


def test_a_text_an_image_and_an_embedding_find_the_same(client: TestClient) -> None:
    red = draw(("red", (0, 0, 40, 40)))
    vector = ColourEncoder().encode_images([red])[0].tolist()
    by_image, by_vector = (
        ask(client, image=b64(red)).json(),
        ask(client, embedding_input=[5 * v for v in vector]).json(),
    )
    assert [one["id"] for one in by_image] == [one["id"] for one in by_vector]
    assert [one["similarity"] for one in by_image] == pytest.approx([one["similarity"] for one in by_vector])
    for found in (by_image, ask(client, text="a red box").json()):
        assert colours(found) == ["red"] * 3
        similarities = [one["similarity"] for one in found]
        assert similarities == sorted(similarities, reverse=True)
        assert all(isinstance(one["id"], int) for one in found)
        assert {one["camera"] for one in found} <= {"north", "south"}


def test_ids_are_stable_and_lead_back_to_the_item(client: TestClient) -> None:
    first, *_ = found = ask(client, text="blue").json()
    assert found == ask(client, text="blue").json()
    item = client.get(f"/v1/items/{first['item_id']}").json()
    assert item["uri"] == first["image_path"]
    address = urlsplit(first["url"])
    picture = client.get(f"{address.path}?{address.query}")
    assert Image.open(io.BytesIO(picture.content)).size == (64, 48)


def test_metadata_by_ids_is_that_of_the_search(client: TestClient) -> None:
    found = ask(client, text="blue", num_images=2, num_result_ids=5).json()
    assert len(found) == 5
    assert [set(one) == {"id", "similarity"} for one in found] == [False, False, True, True, True]
    ids = [one["id"] for one in reversed(found)]
    asked = {"indice_name": "depot", "ids": [*ids, 5, -1, 2**70]}  # others were never there
    told = client.post("/metadata", content=json.dumps(asked)).json()
    assert [one["id"] for one in told] == ids
    for one, other in zip(reversed(told), found[:2], strict=False):
        assert one["metadata"] == {key: value for key, value in other.items() if key not in ("id", "similarity")}
    assert client.post("/metadata", json={"indice_name": "depot", "ids": []}).json() == []


def test_archives_are_indices(client: TestClient) -> None:
    assert client.get("/indices-list").json() == ["depot"]


def test_duplicates_are_left_out_when_asked(tmp_path: Path) -> None:
    for name in "ab":
        draw(("red", (0, 0, 20, 20))).save(tmp_path / f"{name}.png")
    encoder = ColourEncoder()
    archive = Archive.create(tmp_path / "twins", encoder)
    archive.add(tmp_path, encoder)
    vector = encoder.encode_texts(["red"])[0].tolist()
    with TestClient(create_app(archive=archive, encoder=encoder)) as client:
        for way in ({"text": "red"}, {"embedding_input": vector}):
            for deduplicate, count in ((False, 2), (True, 1)):
                assert len(ask(client, indice_name=None, deduplicate=deduplicate, **way).json()) == count


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({}, 400),
        ({"text": "red", "image": "aGk="}, 400),
        ({"text": "red", "indice_name": "other"}, 404),
        ({"text": "red", "modality": "text"}, 422),
        ({"text": "red", "num_images": 0}, 422),
        ({"text": "red", "num_images": 21}, 422),
        ({"image": "aGk="}, 422),
        ({"image": "http://localhost/a.png"}, 400),
        ({"embedding_input": [1.0]}, 422),
        ({"embedding_input": [0.0] * 5}, 422),
        ({"embedding_input": [float("inf")] * 5}, 400),
        ({"image_url": "http://127.0.0.1:1/x.png"}, 422),
        ({"image_url": "http://169.254.169.254/latest/meta-data"}, 422),
        ({"image_url": "file:///etc/passwd"}, 422),
    ],
)
def test_bad_requests_are_explained(client: TestClient, asked: dict[str, Any], status: int) -> None:
    assert error(ask(client, **asked), status)["message"]


def test_what_is_no_json_is_explained(client: TestClient) -> None:
    for path in ("/knn-service", "/metadata"):
        error(client.post(path, content=b"{"), 400)
        error(client.post(path, content=b"x" * 300_000), 413)
    error(client.post("/metadata", content=b"{}"), 422)


def test_more_ids_than_the_limit_are_cut_to_it(client: TestClient) -> None:
    assert len(ask(client, text="red", num_result_ids=5000).json()) == 12


class Shelf(Web):
    """Hosts that answer without a network."""

    def read(self, url: str) -> bytes:
        self.check(url)
        return png(draw(("green", (0, 0, 40, 40))))


def test_an_address_is_fetched_from_allowed_hosts(archive: Archive) -> None:
    pictures = Pictures("http://studio", "key", Shelf(("pictures.example",)))
    with TestClient(create_app(archive=archive, encoder=ColourEncoder(), pictures=pictures)) as client:
        assert colours(ask(client, image_url="https://pictures.example/a.png").json()) == ["green"] * 3
        assert "--allow-host" in error(ask(client, image_url="https://other.example/a.png"), 422)["remedy"]
        error(ask(client, image_url="http://studio/data/upload/7/a.png"), 422)  # its key is not for strangers


@pytest.fixture(scope="module")
def clip_client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """clip-retrieval's own module, by itself: the package pins libraries of years ago, and imports a server."""
    folder = tmp_path_factory.mktemp("clip")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "clip-retrieval"]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        pytest.skip("clip-retrieval cannot be installed here")
    spec = importlib.util.spec_from_file_location("clip_client", folder / "clip_retrieval" / "clip_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_clip_retrievals_client_finds_its_way(clip_client: Any, app: FastAPI, tmp_path: Path) -> None:
    red = draw(("red", (0, 0, 40, 40)))
    red.save(tmp_path / "red.png")
    vector = ColourEncoder().encode_images([red])[0].tolist()
    with running(app) as url:
        client = clip_client.ClipClient(url=f"{url}/knn-service", indice_name="depot", num_images=3)
        for found in (
            client.query(text="a red box"),
            client.query(image=str(tmp_path / "red.png")),
            client.query(embedding_input=vector),
        ):
            assert colours(found)[0] == "red"
            assert {"id", "similarity", "url", "item_id"} <= set(found[0])
        assert "not an allowed host" in client.query(image="http://localhost/a.png")["error"]["message"]
