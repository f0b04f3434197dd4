"""A server over an archive in Milvus (Milvus Lite here), over several, and what it says it cannot do with them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from foveal.errors import BadInput, Unavailable
from retrieval.archive import Archive
from retrieval.retention import Rule
from retrieval.stores import AnyArchive, create_archive
from serve import launch
from serve.app import create_app
from serve.launch import Launch
from tests.serve.conftest import COLOURS, ColourDetector, ColourEncoder, ColourTalker, draw
from tests.serve.everything import scene

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pymilvus", "milvus_lite"))),
    reason="needs pymilvus and milvus-lite: pip install 'foveal[milvus]' milvus-lite",
)
ENCODER = ColourEncoder()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        draw((list(COLOURS)[number % 4], (8, 8, 24 + number, 40))).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> AnyArchive:
    made = create_archive(f"milvus://{tmp_path_factory.mktemp('lite')}/lite.db/depot", ENCODER, reference=ENCODER.name)
    made.add(pictures, ENCODER)
    return made


@pytest.fixture(scope="module")
def client(archive: AnyArchive) -> Iterator[TestClient]:
    app = create_app(archive=archive, encoder=ENCODER, detector=ColourDetector(), vlm=ColourTalker(), demo=True)
    with TestClient(app) as made:
        yield made


def test_it_is_searched_and_shown(client: TestClient) -> None:
    card = client.get("/v1/archives").json()["archives"][0]
    assert (card["name"], card["images"], card["columns"]["width"]) == ("depot", 12, "number")
    asked = {"text": "red", "k": 2, "filter": "width = 64", "thumbnails": 32}
    first = client.post("/v1/search", json=asked).json()
    assert (first["archive"], first["kept"], len(first["hits"])) == ("depot", 12, 2)
    assert first["hits"][0]["similarity"] >= first["hits"][1]["similarity"]
    assert first["hits"][0]["thumbnail"]
    more = client.post("/v1/search", json={**asked, "cursor": first["cursor"]}).json()
    assert not {hit["id"] for hit in first["hits"]} & {hit["id"] for hit in more["hits"]}
    for hit in first["hits"]:
        assert client.get(f"/v1/items/{hit['id']}").json()["width"] == 64
        assert client.get(hit["image_url"]).headers["content-type"] == "image/jpeg"
    like = client.post("/v1/search", json={"image_id": first["hits"][0]["id"], "k": 1}).json()["hits"]
    assert like[0]["id"] == first["hits"][0]["id"]
    answer = client.post("/v1/ask", json={"question": "is it red", "k": 2})
    assert answer.status_code == 200
    assert len(answer.json()["citations"]) == 2
    assert 'foveal_archive_items{archive="depot"} 12' in client.get("/metrics").text


def test_what_goes_is_never_returned_again(client: TestClient, archive: AnyArchive, pictures: Path) -> None:
    gone = client.post("/v1/search", json={"text": "blue", "k": 1}).json()["hits"][0]
    assert client.delete(f"/v1/items/{gone['id']}").status_code == 204
    assert gone["id"] not in {hit["id"] for hit in client.post("/v1/search", json={"text": "blue"}).json()["hits"]}
    assert client.delete(f"/v1/items/{gone['id']}").status_code == 404
    assert Path(gone["uri"]).is_file()  # somebody else's
    archive.add(pictures, ENCODER)


def test_what_only_folders_can_do_is_refused_with_what_to_do(client: TestClient) -> None:
    id = client.post("/v1/search", json={"text": "red", "k": 1}).json()["hits"][0]["id"]
    refused = {
        "add": client.post("/v1/items", files={"image": ("a.png", scene())}),
        "judge": client.post("/v1/search/feedback", json={"text": "red", "right": [id]}),
        "words": client.post("/v1/search", json={"text": "red", "words": "crate"}),
        "number": client.post("/knn-service", json={"text": "red", "num_images": 1}),
    }
    for what, answer in refused.items():
        assert answer.status_code == 422, (what, answer.text)
        assert "folder" in answer.json()["error"]["remedy"] + answer.json()["error"]["expected"], what
    assert client.get("/indices-list").json() == []
    assert client.post("/v1/jobs", json={"urls": ["https://a.example/a.png"]}).status_code == 404


def test_its_pages_leave_out_what_cannot_work(client: TestClient) -> None:
    page = client.get("/").text
    assert "Search" in page
    assert "Curate" not in page


def test_beside_a_folder_each_does_what_it_can(archive: AnyArchive, tmp_path: Path, pictures: Path) -> None:
    folder = Archive.create(tmp_path / "shelf", ENCODER)
    folder.add(pictures, ENCODER)
    app = create_app(archive={"depot": archive, "shelf": folder}, encoder=ENCODER)
    with TestClient(app) as client:
        for name in ("depot", "shelf"):
            assert client.post("/v1/search", json={"text": "red", "archive": name}).json()["archive"] == name
        sent = {"files": {"image": ("a.png", scene())}}
        assert client.post("/v1/items", data={"archive": "shelf"}, **sent).status_code == 201
        assert client.post("/v1/items", data={"archive": "depot"}, **sent).status_code == 422
        assert client.get("/indices-list").json() == ["shelf"]
        assert client.get("/v1/jobs").status_code == 200
    with pytest.raises(BadInput, match="'depot' lies in a database"):
        create_app(archive={"depot": archive, "shelf": folder}, encoder=ENCODER, retain=[Rule(30)])


def test_its_figures_do_without_it_while_it_is_gone(archive: AnyArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(archive=archive, encoder=ENCODER)

    def gone(_: object) -> int:
        raise Unavailable("Milvus does not answer")

    with TestClient(app) as client:
        monkeypatch.setattr(type(archive), "__len__", gone)
        assert "foveal_requests_total" in client.get("/metrics").text
        monkeypatch.undo()


def test_a_place_in_a_database_can_be_named_on_the_command_line(tmp_path: Path) -> None:
    place = f"milvus://{tmp_path}/a/lite.db/depot"
    with pytest.raises(BadInput, match="no archive at"), Launch(archives=(place,)).application():
        pass
    assert not any(tmp_path.iterdir())


class OtherEncoder(ColourEncoder):
    """The same, to be told apart."""

    fingerprint = "other"


def test_several_archives_are_served_each_by_its_encoder(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"colour": ColourEncoder(), "other": OtherEncoder()}
    loaded: list[str] = []

    def load(reference: str, *_: object) -> ColourEncoder:
        loaded.append(reference)
        return made[reference]

    monkeypatch.setattr(launch, "load_encoder", load)
    for name, reference in (("day", "colour"), ("night", "other"), ("dusk", "colour")):
        Archive.create(tmp_path / name, made[reference], reference=reference).add(pictures, made[reference])
    places = [str(tmp_path / name) for name in ("day", "night", "dusk")]
    with Launch(archives=tuple(places)).application() as app, TestClient(app) as client:
        assert [card["name"] for card in client.get("/v1/archives").json()["archives"]] == ["day", "night", "dusk"]
        assert client.post("/v1/search", json={"text": "red"}).json()["archive"] == "day"
        found = client.post("/v1/search", json={"text": "red", "archive": "night"}).json()
        assert (found["archive"], found["fingerprint"]) == ("night", "other")
    assert loaded == ["colour", "other"]
    with pytest.raises(BadInput, match="two archives are named 'day'"), Launch(archives=(places[0],) * 2).application():
        pass
