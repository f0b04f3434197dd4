"""Label Studio's backend: its requests, its projects' own names, its pictures, and nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from distill.ontology import Ontology
from distill.prelabel import load_labeller, prelabel
from foveal.errors import BadInput
from foveal.formats.label_studio import labelling_config
from foveal.formats.label_studio_config import LabellingConfig
from retrieval.sources_web import Web
from serve.app import create_app
from serve.label_studio import Pictures
from tests.distill.painted import CLASSES, DenseBlobs, painted, remember
from tests.serve.conftest import ColourDetector, ColourOpenDetector, draw
from tests.serve.test_app import error

PROJECT = """
<View>
  <Header value="Boxes"/>
  <RectangleLabels name="boxes" toName="photo">
    <Label value="Tomato" predicted_values="red, crimson"/>
    <Label value="blue"/>
  </RectangleLabels>
  <Image name="photo" value="$picture"/>
</View>"""
KEY = "a-key-of-label-studio"


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def ask(client: TestClient, *addresses: str, config: str = PROJECT, key: str = "picture") -> Any:
    """What Label Studio posts for these tasks."""
    body = {
        "tasks": [{"id": n, "data": {key: a}, "annotations": [], "predictions": []} for n, a in enumerate(addresses)],
        "model_version": None,
        "project": "7.1767958400",
        "label_config": config,
        "params": {"login": None, "password": None, "context": None},
    }
    return client.post("/label-studio/predict", json=body)


@pytest.fixture(scope="module")
def studio() -> Iterator[tuple[str, list[str]]]:
    """Something that gives a picture to those who have the key, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            allowed = self.headers.get("Authorization") == f"Token {KEY}"
            data = png(draw(("red", (16, 12, 48, 36)))) if allowed else b"no"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.fixture(scope="module")
def client(studio: tuple[str, list[str]]) -> Iterator[TestClient]:
    app = create_app(detector=ColourDetector(), pictures=Pictures(studio[0], KEY, Web(())))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_boxes_come_in_percent_under_the_projects_own_names(client: TestClient) -> None:
    picture = draw(("red", (16, 12, 48, 36)), ("green", (0, 0, 8, 8)))
    answer = ask(client, data_url(picture)).json()
    (result,) = answer["results"]
    (region,) = result["result"]  # the project knows no green
    assert (region["from_name"], region["to_name"], region["type"]) == ("boxes", "photo", "rectanglelabels")
    assert region["value"]["rectanglelabels"] == ["Tomato"]
    assert [region["value"][k] for k in ("x", "y", "width", "height")] == pytest.approx([25, 25, 50, 50])
    assert (region["original_width"], region["original_height"]) == picture.size
    assert 0 < region["score"] <= 1
    assert result["score"] == region["score"]
    assert result["model_version"].startswith("detector@")


def test_one_answer_a_task_in_their_order_and_an_empty_picture_is_no_failure(client: TestClient) -> None:
    found = ask(
        client, data_url(draw(("blue", (0, 0, 32, 24)))), data_url(draw()), data_url(draw(("red", (0, 0, 32, 24))))
    ).json()["results"]
    names = [[r["value"]["rectanglelabels"][0] for r in one["result"]] for one in found]
    assert names == [["blue"], [], ["Tomato"]]


def test_pictures_come_from_label_studio_with_its_key(client: TestClient, studio: tuple[str, list[str]]) -> None:
    url, asked = studio
    for address in ("/data/upload/7/a.png", f"{url}/data/local-files/?d=b.png"):
        (one,) = ask(client, address).json()["results"]
        assert len(one["result"]) == 1
    assert asked[-2:] == ["/data/upload/7/a.png", "/data/local-files/?d=b.png"]


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/x.png", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "s3://b/x"]
)
def test_nothing_is_fetched_from_elsewhere(client: TestClient, address: str) -> None:
    error(ask(client, address), 422)


def test_without_an_address_of_label_studio_its_paths_are_refused_with_a_remedy() -> None:
    with TestClient(create_app(detector=ColourDetector())) as alone:
        told = error(ask(alone, "/data/upload/7/a.png"), 422)
    assert "--label-studio" in told["remedy"]


def test_a_bad_picture_costs_only_its_own_task(client: TestClient) -> None:
    good = data_url(draw(("red", (0, 0, 32, 24))))
    broken = "data:image/png;base64," + base64.b64encode(b"no picture").decode()
    found = ask(client, broken, good).json()["results"]
    assert [len(one["result"]) for one in found] == [0, 1]
    assert "image" in error(ask(client, broken), 422)["message"]
    assert "data.picture" in error(ask(client, good, key="other"), 422)["expected"]


def test_a_project_that_shares_no_class_is_told_when_it_is_connected(client: TestClient) -> None:
    config = labelling_config(("bolt", "nut"))
    told = error(client.post("/label-studio/setup", json={"project": "7.1", "schema": config}), 422)
    assert "predicted_values" in told["remedy"]
    assert told["received"] == "bolt, nut"
    assert error(ask(client, data_url(draw()), config=config), 422)["type"] == "BadInput"
    for wrong in ("<View>", "<View><Text name='t' value='$t'/></View>"):
        error(ask(client, data_url(draw()), config=wrong), 422)
    answer = client.post("/label-studio/setup", json={"project": "7.1", "schema": PROJECT, "access_token": "x"})
    assert answer.json()["model_version"].startswith("detector@")


def test_it_says_that_it_is_up(client: TestClient) -> None:
    for path in ("/label-studio/health", "/label-studio/"):
        assert client.get(path).json()["status"] == "UP"
    assert client.get("/label-studio/metrics").json() == {}
    assert client.post("/label-studio/webhook", json={"action": "TASKS_CREATED"}).json() == {"status": "Unknown event"}
    broken = client.post("/label-studio/webhook", content=b"{", headers={"Content-Type": "application/json"})
    error(broken, 400)


def test_an_open_detector_is_asked_for_the_projects_labels() -> None:
    with TestClient(create_app(open_detector=ColourOpenDetector())) as open_client:
        (one,) = ask(open_client, data_url(draw(("red", (16, 12, 48, 36))))).json()["results"]
    assert [r["value"]["rectanglelabels"] for r in one["result"]] == [["Tomato"]]


def test_a_labelling_jobs_labeller_answers_with_probabilities_and_no_rejects(tmp_path: Path) -> None:
    gold, source = painted(tmp_path / "gold", 40, 1), painted(tmp_path / "source", 12, 2)
    memory = remember(gold)
    prelabel(source, Ontology.of(CLASSES), DenseBlobs(), gold, memory, tmp_path / "job")
    labeller = load_labeller(tmp_path / "job", lambda: (DenseBlobs(), memory, None))
    image = source[0].image()
    (labelled,) = labeller.label([image])
    with TestClient(create_app(detector=ColourDetector(), labeller=labeller)) as one:
        answer = one.post("/v1/prelabel", json={"image": data_url(image)}).json()
        (shown,) = ask(one, data_url(image), config=labelling_config(CLASSES), key="image").json()["results"]
        listed = {card["id"]: card["kind"] for card in one.get("/v1/models").json()["data"]}
    routes = [p.route for p in labelled.detections.provenance or ()]
    assert [box["route"] for box in answer["boxes"]] == routes
    assert [box["box"] for box in answer["boxes"]] == labelled.detections.boxes.tolist()
    assert answer["proven"]
    assert answer["target_precision"] == 0.9
    assert all(box["neighbours"] for box in answer["boxes"])
    assert listed["labeller"] == "labeller"
    kept = [box for box in answer["boxes"] if box["route"] != "reject"]
    assert 0 < len(kept) == len(shown["result"])
    assert [r["score"] for r in shown["result"]] == pytest.approx([box["probability"] for box in kept], abs=1e-6)
    assert shown["score"] == min(r["score"] for r in shown["result"])
    assert shown["model_version"].startswith("labeller@")


def test_without_a_labeller_prelabel_says_how_to_get_one(client: TestClient) -> None:
    assert "--prelabels" in error(client.post("/v1/prelabel", json={"image": data_url(draw())}), 404)["remedy"]


# The configuration.


def test_outlines_go_to_polygon_labels_and_become_boxes_where_there_are_none() -> None:
    outline = {
        "id": "a", "type": "polygonlabels", "from_name": "polygon", "to_name": "image",
        "value": {"points": [[10, 20], [30, 20], [20, 60]], "closed": True, "polygonlabels": ["red"]},
    }  # fmt: skip
    chosen = {"id": "a", "type": "choices", "from_name": "state", "to_name": "image", "value": {"choices": ["new"]}}
    (box,) = LabellingConfig.parse(PROJECT).adopt([outline, chosen])
    assert box["type"] == "rectanglelabels"
    assert [box["value"][k] for k in ("x", "y", "width", "height")] == [10, 20, 20, 40]
    assert box["value"]["rectanglelabels"] == ["Tomato"]
    both = PROJECT.replace(
        "</View>",
        '<PolygonLabels name="outlines" toName="photo"><Label value="red"/></PolygonLabels>'
        '<Choices name="state" toName="photo" perRegion="true"><Choice value="new"/></Choices></View>',
    )
    drawn, said = LabellingConfig.parse(both).adopt([outline, chosen])
    assert (drawn["type"], drawn["from_name"], drawn["to_name"]) == ("polygonlabels", "outlines", "photo")
    assert (said["from_name"], said["to_name"]) == ("state", "photo")


def test_a_label_that_only_the_other_tool_has_is_drawn_with_that() -> None:
    apart = PROJECT.replace('<Label value="blue"/>', "").replace(
        "</View>", '<PolygonLabels name="outlines" toName="photo"><Label value="blue"/></PolygonLabels></View>'
    )
    box = {"x": 10, "y": 20, "width": 20, "height": 40, "rotation": 0}
    outline = {"points": [[10, 20], [30, 20], [20, 60]], "closed": True}
    regions = [
        {"id": "a", "type": "rectanglelabels", "value": {**box, "rectanglelabels": ["blue"]}},
        {"id": "b", "type": "polygonlabels", "value": {**outline, "polygonlabels": ["red"]}},
        {"id": "c", "type": "rectanglelabels", "value": {**box, "rectanglelabels": ["green"]}},
    ]
    corners, around = LabellingConfig.parse(apart).adopt(regions)  # nothing is called green there
    assert (corners["type"], corners["from_name"]) == ("polygonlabels", "outlines")
    points = [[10, 20], [30, 20], [30, 60], [10, 60]]
    assert corners["value"] == {"points": points, "closed": True, "polygonlabels": ["blue"]}
    assert (around["type"], around["from_name"]) == ("rectanglelabels", "boxes")
    assert around["value"] == {**box, "rectanglelabels": ["Tomato"]}


def test_what_has_nothing_for_a_detector_is_refused() -> None:
    with pytest.raises(BadInput, match="not XML"):
        LabellingConfig.parse("no")
    with pytest.raises(BadInput, match="RectangleLabels or PolygonLabels"):
        LabellingConfig.parse('<View><Image name="i" value="$i"/><Choices name="c" toName="i"/></View>')
