"""A memory's word on boxes, and answers with citations, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from foveal.dataset import Dataset, Sample
from retrieval.archive import Archive
from retrieval.memory import ExemplarMemory
from serve.app import create_app
from tests.serve.conftest import COLOURS, ColourEncoder, ColourTalker, draw
from tests.serve.test_app import b64, error

SCENE = draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)))
RED, BLUE = [4, 6, 20, 30], [30, 10, 60, 40]


@pytest.fixture(scope="module")
def judging(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("crops")
    samples: list[Sample] = []
    for colour in COLOURS:
        for number in range(4):
            path = folder / f"{colour}{number}.png"
            draw((colour, (2 * number, 0, 64, 48))).save(path)
            samples.append(Sample(f"{colour}{number}", path, 64, 48, label=colour))
    memory = ExemplarMemory.build(ColourEncoder(), Dataset.build(samples, tuple(COLOURS)))
    with TestClient(create_app(archive=archive, encoder=ColourEncoder(), vlm=ColourTalker(), memory=memory)) as client:
        yield client


def test_boxes_are_classified_by_crops_like_them(judging: TestClient) -> None:
    answer = judging.post("/v1/classify", json={"image": b64(SCENE), "boxes": [RED, BLUE]}).json()
    assert [(one["label"], one["box"]) for one in answer["results"]] == [("red", RED), ("blue", BLUE)]
    for one in answer["results"]:
        assert one["probability"] == pytest.approx(one["probabilities"][one["label"]])
        assert set(one["probabilities"]) == set(COLOURS)
    whole = judging.post("/v1/classify", json={"image": b64(draw(("green", (0, 0, 64, 48))))}).json()["results"]
    assert [(one["label"], one["box"]) for one in whole] == [("green", [0, 0, 64, 48])]


def test_proposed_labels_are_borne_out_or_not_with_neighbours(judging: TestClient) -> None:
    proposals = [{"box": RED, "label": "red"}, {"box": BLUE, "label": "red"}, {"box": RED, "label": "zebra"}]
    results = judging.post("/v1/verify", json={"image": b64(SCENE), "proposals": proposals}).json()["results"]
    assert results[0]["support"] > 0.9 > 0.1 > results[1]["support"]
    assert results[2]["support"] == 0
    assert results[0]["neighbours"][0]["label"] == "red"
    for one in results:
        assert all(near["supports"] == (near["label"] == one["label"]) for near in one["neighbours"])


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [70, 0, 90, 20], [20, 6, 4, 30], [0, 0, 1e30, -5]])
def test_boxes_outside_the_picture_are_refused(judging: TestClient, box: list[float]) -> None:
    assert "64 x 48" in error(judging.post("/v1/classify", json={"image": b64(SCENE), "boxes": [box]}), 422)["expected"]


def test_a_question_is_answered_from_the_archive_with_citations(judging: TestClient) -> None:
    answer = judging.post("/v1/ask", json={"question": "is there a red box", "k": 3}).json()
    assert (answer["text"], answer["searched"], answer["nothing"]) == ("yes", "red box", False)
    assert [Path(one["uri"]).name.split("-")[0] for one in answer["citations"]] == ["red"] * 3
    assert all(one["supports"] and one["answer"] == "yes" for one in answer["citations"])
    assert judging.get(answer["citations"][0]["image_url"]).status_code == 200
    north = judging.post("/v1/ask", json={"question": "is there a red box", "filter": "camera = 'nowhere'"}).json()
    assert (north["text"], north["nothing"], north["citations"]) == ("no", True, [])
    assert "nowhere" in north["reason"]


def test_a_question_about_a_picture_is_answered_from_it(judging: TestClient) -> None:
    where = judging.post("/v1/ask", json={"question": "where is the blue box", "image": b64(SCENE)}).json()
    assert (where["text"], [place["box"] for place in where["places"]]) == ("here", [BLUE])
    both = {"question": "is there a red box", "image": b64(SCENE), "about": "red"}
    error(judging.post("/v1/ask", json=both), 400)
    error(judging.post("/v1/ask", json={"question": " ", "image": b64(SCENE)}), 422)


def test_a_server_without_a_memory_says_how_to_get_one(client: TestClient) -> None:
    assert "--memory" in error(client.post("/v1/classify", json={"image": b64(SCENE)}), 404)["remedy"]


def test_models_list_the_memory_with_its_classes(judging: TestClient) -> None:
    cards = {card["kind"]: card for card in judging.get("/v1/models").json()["data"]}
    assert set(cards) == {"encoder", "vlm", "memory"}
    assert cards["memory"]["classes"] == list(COLOURS)
    assert judging.post("/v1/classify", json={"image": b64(SCENE), "model": "memory"}).status_code == 200
    error(judging.post("/v1/classify", json={"image": b64(SCENE), "model": "other"}), 404)
