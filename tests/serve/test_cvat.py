"""CVAT: what it asks of nuclio, and its auto-annotation function through CVAT's own driver."""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import httpx
import numpy as np
import pytest
from cvat_sdk import models
from cvat_sdk.auto_annotation import BadFunctionError, DetectionFunctionContext, driver
from cvat_sdk.masks import decode_mask
from fastapi.testclient import TestClient
from PIL import Image

from foveal.client import Client
from foveal.errors import BadInput, Unavailable
from foveal.formats.attributes import UNSET
from serve import cvat_function
from serve.app import create_app
from serve.server import running
from tests.serve.conftest import COLOURS, ColourDetector, ColourLabeller, ColourOpenDetector, draw
from tests.serve.test_app import b64, error

SCENE = (("red", (16, 12, 48, 36)), ("yellow", (0, 0, 8, 8)), ("green", (50, 40, 60, 46)))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(detector=ColourDetector(), labeller=ColourLabeller())  # type: ignore[arg-type]
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def invoke(client: TestClient, image: Image.Image, function: str | None = None, **asked: Any) -> Any:
    """What CVAT posts to nuclio's dashboard for a detector."""
    headers = {"x-nuclio-project-name": "cvat", "x-nuclio-invoke-via": "domain-name", "x-nuclio-path": "/"}
    named = {} if function is None else {"x-nuclio-function-name": function}
    return client.post("/api/function_invocations", json={"image": b64(image), **asked}, headers=headers | named)


def test_models_with_classes_are_functions(client: TestClient) -> None:
    functions = client.get("/api/functions").json()
    assert list(functions) == ["labeller", "detector"]
    for name, function in functions.items():
        assert client.get(f"/api/functions/{name}").json() == function
        assert function["metadata"]["name"] == name
        assert function["metadata"]["annotations"]["type"] == "detector"
        assert function["spec"]["description"]
        labels = json.loads(function["metadata"]["annotations"]["spec"])
        assert [label["name"] for label in labels] == list(COLOURS)
        assert len({label["id"] for label in labels}) == len(labels)
    (state,) = json.loads(functions["labeller"]["metadata"]["annotations"]["spec"])[0]["attributes"]
    assert state == {"name": "state", "input_type": "select", "values": [UNSET, "new", "worn"]}
    assert "detector" in error(client.get("/api/functions/other"), 404)["expected"]


def test_a_detector_gives_boxes_in_pixels(client: TestClient) -> None:
    (green, red, yellow) = sorted(invoke(client, draw(*SCENE), "detector").json(), key=lambda one: one["label"])
    assert (red["label"], red["type"], red["points"]) == ("red", "rectangle", [16, 12, 48, 36])
    assert isinstance(red["confidence"], str)
    assert float(red["confidence"]) == 1
    assert (green["label"], yellow["label"]) == ("green", "yellow")
    assert invoke(client, draw(), "detector").json() == []


def test_a_labeller_gives_masks_and_attributes_and_no_rejects(client: TestClient) -> None:
    found = {one["label"]: one for one in invoke(client, draw(*SCENE)).json()}  # the labeller, unless told otherwise
    assert set(found) == {"red", "green"}
    red = found["red"]
    *bits, left, top, right, bottom = red["mask"]
    assert (red["type"], left, top, right, bottom) == ("mask", 16, 12, 47, 35)
    assert bits == [1] * 32 * 24
    outline = np.array(red["points"]).reshape(-1, 2)
    assert [*outline.min(0), *outline.max(0)] == pytest.approx([16, 12, 48, 36], abs=0.5)
    assert red["attributes"] == [{"name": "state", "value": "worn"}]
    assert float(red["confidence"]) == 0.5
    assert found["green"]["type"] == "rectangle"


def test_the_threshold_is_kept(client: TestClient) -> None:
    assert len(invoke(client, draw(*SCENE), "labeller", threshold=0.5).json()) == 2
    assert invoke(client, draw(*SCENE), "labeller", threshold=0.6).json() == []
    ragged = draw(("red", (0, 0, 30, 4)), ("red", (0, 4, 4, 30)))  # fills a quarter of its box
    assert invoke(client, ragged, "detector").json() == []
    assert len(invoke(client, ragged, "detector", threshold=0.2).json()) == 1


def test_bad_invocations_are_explained(client: TestClient) -> None:
    error(invoke(client, draw(), "other"), 404)
    error(client.post("/api/function_invocations", json={}), 422)
    error(client.post("/api/function_invocations", json={"image": "aGk="}), 422)
    error(client.post("/api/function_invocations", json={"image": "http://localhost/a.png"}), 400)
    error(invoke(client, draw(), threshold=2), 422)


def test_an_open_detector_is_no_function() -> None:
    with TestClient(create_app(open_detector=ColourOpenDetector())) as alone:
        assert alone.get("/api/functions").json() == {}
        assert "--detector" in error(invoke(alone, draw()), 404)["remedy"]


# The auto-annotation function.


@attrs.frozen(kw_only=True)
class Context(DetectionFunctionContext):
    frame_name: str = "a.png"
    conf_threshold: float | None = None
    conv_mask_to_poly: bool = False


@pytest.fixture
def server(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The function's requests go to `client`; the keys that came along."""
    keys: list[str | None] = []

    def call(self: Client, method: str, path: str, **sent: Any) -> httpx.Response:
        keys.append(self._http.headers.get("Authorization"))
        return client.request(method, path, **sent)

    monkeypatch.setattr(Client, "_call", call)
    monkeypatch.delenv("FOVEAL_API_KEY", raising=False)
    return keys


def test_the_function_draws_what_the_server_finds(server: list[str | None]) -> None:
    function = cvat_function.create("http://foveal", model="detector")
    assert [(label.id, label.name, label.type) for label in function.spec.labels] == [
        (number, name, "rectangle") for number, name in enumerate(COLOURS)
    ]
    found = function.detect(Context(), draw(*SCENE))
    assert {(one.label_id, one.type.value, tuple(one.points), one.score) for one in found} == {
        (list(COLOURS).index(name), "rectangle", box, 1.0) for name, box in SCENE
    }


def test_the_function_draws_masks_or_polygons_of_a_labeller(server: list[str | None]) -> None:
    function = cvat_function.create()
    red, green = sorted(function.detect(Context(), draw(*SCENE)), key=lambda one: one.label_id)
    assert (red.type.value, red.score, green.type.value) == ("mask", 0.5, "rectangle")
    drawn = decode_mask(red.points, image_width=64, image_height=48)
    assert drawn.sum() == drawn[12:36, 16:48].sum() == 32 * 24
    turned = function.detect(Context(conv_mask_to_poly=True), draw(*SCENE))
    assert sorted(one.type.value for one in turned) == ["polygon", "rectangle"]
    assert function.detect(Context(conf_threshold=0.6), draw(*SCENE)) == []


def test_a_jpeg_stays_one(server: list[str | None]) -> None:
    buffer = io.BytesIO()
    draw(*SCENE).resize((256, 192)).save(buffer, "JPEG", quality=90)
    image = Image.open(buffer)
    sent = cvat_function._packed(image)
    again = Image.open(io.BytesIO(sent))
    assert again.format == "JPEG"
    assert np.abs(np.asarray(again, np.float32) - np.asarray(image, np.float32)).mean() < 0.5
    assert Image.open(io.BytesIO(cvat_function._packed(pickle.loads(pickle.dumps(image))))).format == "PNG"
    assert cvat_function.create(model="detector").detect(Context(), image)


def test_the_key_goes_along(server: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    cvat_function.create(key="one")
    monkeypatch.setenv("FOVEAL_API_KEY", "two")
    cvat_function.create().detect(Context(), draw())
    assert server == ["Bearer one", "Bearer two", "Bearer two"]


def test_what_the_server_lacks_is_said(server: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="labeller, detector"):
        cvat_function.create(model="other")
    function = cvat_function.create()
    monkeypatch.setattr(ColourLabeller, "fingerprint", "another")
    with pytest.raises(Unavailable, match="another model"):
        function.detect(Context(), draw())


@pytest.mark.slow
@pytest.mark.parametrize("poly", [False, True])
def test_cvats_driver_annotates_a_task(monkeypatch: pytest.MonkeyPatch, poly: bool) -> None:
    """`annotate_task` itself: only the task's frames and labels, and the upload, are stand-ins."""
    pictures = [draw(*SCENE), draw(), draw(("blue", (8, 8, 40, 40)))]
    labels = [
        models.Label(id=70 + n, name=name, attributes=[], sublabels=[], type="any") for n, name in enumerate(COLOURS)
    ]
    samples = [
        SimpleNamespace(frame_name=f"{n}.png", frame_index=n, media=SimpleNamespace(load_image=lambda p=picture: p))
        for n, picture in enumerate(pictures)
    ]
    sent: list[models.PatchedLabeledDataRequest] = []

    def upload(action: str, task: int, *, patched_labeled_data_request: models.PatchedLabeledDataRequest) -> None:
        assert (action, task) == ("create", 7)
        sent.append(patched_labeled_data_request)

    monkeypatch.setattr(driver, "TaskDataset", lambda *_, **__: SimpleNamespace(labels=labels, samples=samples))
    api = SimpleNamespace(partial_update_annotations=upload)
    cvat: Any = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
    app = create_app(detector=ColourDetector(), labeller=ColourLabeller())  # type: ignore[arg-type]
    with running(app) as url:
        driver.annotate_task(cvat, 7, cvat_function.create(url), conv_mask_to_poly=poly, conf_threshold=0.1)
        labels.pop()  # the task no longer has yellow
        with pytest.raises(BadFunctionError, match="yellow"):
            driver.annotate_task(cvat, 7, cvat_function.create(url, "detector"))
        driver.annotate_task(cvat, 7, cvat_function.create(url, "detector"), allow_unmatched_labels=True)
    drawn = "polygon" if poly else "mask"
    shapes = [{(s.frame, s.label_id, s.type.value, s.source) for s in request.shapes} for request in sent]
    assert shapes[0] == {(0, 70, drawn, "auto"), (0, 71, "rectangle", "auto"), (2, 72, drawn, "auto")}
    assert shapes[1] == {(f, i, "rectangle", "auto") for f, i in ((0, 70), (0, 71), (2, 72))}
