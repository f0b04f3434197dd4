"""X-AnyLabeling: the requests of its remote model, and what it reads of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from serve.app import create_app
from serve.drawing import FLOOR
from tests.serve.conftest import COLOURS, ColourDetector, ColourEncoder, ColourLabeller, ColourOpenDetector, draw
from tests.serve.test_app import b64, error

SCENE = (("red", (16, 12, 48, 36)), ("yellow", (0, 0, 8, 8)), ("green", (50, 40, 60, 46)))
SENT = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}  # with every request


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(
        encoder=ColourEncoder(),
        detector=ColourDetector(),
        open_detector=ColourOpenDetector(),
        labeller=ColourLabeller(),  # type: ignore[arg-type]
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def predict(client: TestClient, model: str, image: Image.Image, **params: Any) -> Any:
    """What X-AnyLabeling posts for a picture; the key, if any, is in a header of its own."""
    body = {"model": model, "image": f"data:image/png;base64,{b64(image)}", "params": SENT | params}
    return client.post("/x-anylabeling/v1/predict", json=body, headers={"Token": ""})


def shapes(client: TestClient, model: str, image: Image.Image, **params: Any) -> list[dict[str, Any]]:
    return predict(client, model, image, **params).json()["data"]["shapes"]


def test_models_come_by_id_with_the_controls_they_need(client: TestClient) -> None:
    cards = client.get("/x-anylabeling/v1/models").json()["data"]
    assert list(cards) == ["labeller", "detector", "open-detector"]  # the program picks the first
    widgets = {name: {w["name"]: w["value"] for w in card["widgets"]} for name, card in cards.items()}
    assert widgets["detector"]["edit_conf"] == FLOOR
    assert "button_run" in widgets["labeller"]
    assert {"edit_text", "button_send"} <= set(widgets["open-detector"])
    modes = {name: card["batch_processing_mode"] for name, card in cards.items()}
    assert modes == {"labeller": "default", "detector": "default", "open-detector": "text_prompt"}
    assert cards["detector"]["classes"] == list(COLOURS)
    assert all(card["display_name"] for card in cards.values())
    assert client.get("/x-anylabeling/health").json() == {"status": "healthy", "models_loaded": 3}
    assert client.get("/v1/models").json()["object"] == "list"  # OpenAI's is still there


def test_a_box_has_four_corners(client: TestClient) -> None:
    found = {shape["label"]: shape for shape in shapes(client, "detector", draw(*SCENE))}
    assert set(found) == {"red", "yellow", "green"}
    assert found["red"]["shape_type"] == "rectangle"
    assert found["red"]["points"] == [[16, 12], [48, 12], [48, 36], [16, 36]]
    assert found["red"]["score"] == 1
    assert shapes(client, "detector", draw()) == []


def test_a_labeller_gives_outlines_and_attributes_and_no_rejects(client: TestClient) -> None:
    found = {shape["label"]: shape for shape in shapes(client, "labeller", draw(*SCENE))}
    assert set(found) == {"red", "green"}
    red = found["red"]
    assert (red["shape_type"], red["score"], red["attributes"]) == ("polygon", 0.5, {"state": "worn"})
    assert red["points"][0] == red["points"][-1]
    for axis, ends in ((0, (16, 48)), (1, (12, 36))):
        values = [point[axis] for point in red["points"]]
        assert (min(values), max(values)) == pytest.approx(ends, abs=0.5)
    assert found["green"]["shape_type"] == "rectangle"


def test_an_open_detector_takes_its_classes_from_the_text(client: TestClient) -> None:
    found = shapes(client, "open-detector", draw(*SCENE), text_prompt="a red box. green thing, blue")
    assert {shape["label"] for shape in found} == {"a red box", "green thing"}
    told = error(predict(client, "open-detector", draw(*SCENE)), 422)
    assert "text" in told["expected"]


def test_threshold_and_class_filter_are_kept(client: TestClient) -> None:
    assert shapes(client, "labeller", draw(*SCENE), conf_threshold=0.6) == []
    ragged = draw(("red", (0, 0, 30, 4)), ("red", (0, 4, 4, 30)))
    assert len(shapes(client, "detector", ragged)) == 1
    assert shapes(client, "detector", ragged, conf_threshold=0.5) == []
    (only,) = shapes(client, "detector", draw(*SCENE), filter_classes=["green", "blue"])
    assert only["label"] == "green"
    assert len(shapes(client, "detector", draw(*SCENE), filter_classes=[])) == 3


def test_bad_requests_are_explained(client: TestClient) -> None:
    assert "detector" in error(predict(client, "encoder", draw()), 404)["expected"]
    error(client.post("/x-anylabeling/v1/predict", json={"model": "detector"}), 422)
    error(client.post("/x-anylabeling/v1/predict", json={"model": "detector", "image": "aGk="}), 422)
    error(client.post("/x-anylabeling/v1/predict", json={"model": "detector", "image": "http://localhost/a"}), 400)
    error(predict(client, "detector", draw(), conf_threshold=5), 422)
