from __future__ import annotations

import base64
import io
import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from foveal.errors import BadInput, FingerprintMismatch
from retrieval.archive import Archive
from retrieval.feedback import Feedback
from serve.app import create_app
from tests.serve.conftest import ColourDetector, ColourEncoder, ColourOpenDetector, draw


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def b64(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, checked to be in the one shape and free of tracebacks."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message", "expected", "received", "remedy"}
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"]
    return body["error"]


# Search.


def test_search_by_text_finds_the_colour(client: TestClient) -> None:
    answer = client.post("/v1/search", json={"text": "a red box", "k": 3}).json()
    assert answer["archive"] == "depot"
    assert [Path(hit["uri"]).name.split("-")[0] for hit in answer["hits"]] == ["red"] * 3
    similarities = [hit["similarity"] for hit in answer["hits"]]
    assert similarities == sorted(similarities, reverse=True)
    assert set(answer["hits"][0]["metadata"]) >= {"camera", "hour"}


def test_search_by_image_both_negative_and_filter(client: TestClient) -> None:
    blue = draw(("blue", (0, 0, 40, 40)))
    hits = client.post("/v1/search", json={"image": b64(blue), "k": 1}).json()["hits"]
    assert "blue" in hits[0]["uri"]
    data_url = f"data:image/png;base64,{b64(blue)}"
    both = {"image": data_url, "text": "green", "image_weight": 0.1, "k": 3}
    assert all("green" in hit["uri"] for hit in client.post("/v1/search", json=both).json()["hits"])
    less = {"text": "red blue", "negative": "red", "negative_weight": 0.9, "k": 3}
    assert all("blue" in hit["uri"] for hit in client.post("/v1/search", json=less).json()["hits"])
    north = {"text": "red", "filter": "camera = 'north' AND hour >= 4", "k": 12}
    hits = client.post("/v1/search", json=north).json()["hits"]
    assert {hit["metadata"]["camera"] for hit in hits} == {"north"}
    assert len(hits) == 2


def test_search_like_an_item_returns_it_first(client: TestClient) -> None:
    first = client.post("/v1/search", json={"text": "yellow", "k": 1}).json()["hits"][0]
    hits = client.post("/v1/search", json={"image_id": first["id"], "k": 2}).json()["hits"]
    assert hits[0]["id"] == first["id"]
    assert hits[0]["similarity"] == pytest.approx(1, abs=1e-3)


def test_search_mixes_parts_and_explains_them(client: TestClient) -> None:
    item = client.post("/v1/search", json={"text": "green", "k": 1}).json()["hits"][0]
    crop = draw(("red", (0, 0, 32, 48)), ("blue", (32, 0, 64, 48)))
    parts = [
        {"image": b64(crop), "box": [32, 0, 64, 48]},
        {"image_id": item["id"], "weight": -0.5},
    ]
    hit = client.post("/v1/search", json={"parts": parts, "k": 1, "explain": True}).json()["hits"][0]
    assert "blue" in hit["uri"]
    assert [part["weight"] for part in hit["parts"]] == [1, -0.5]
    assert sum(part["amount"] for part in hit["parts"]) == pytest.approx(hit["similarity"], abs=1e-5)
    assert client.post("/v1/search", json={"text": "red", "k": 1}).json()["hits"][0]["parts"] is None


def test_pages_follow_each_other_without_repeats(client: TestClient) -> None:
    asked: dict[str, Any] = {"text": "a red box", "k": 5, "liked": [], "diversity": 0.2}
    seen: list[str] = []
    for _ in range(10):
        answer = client.post("/v1/search", json=asked).json()
        seen += [hit["id"] for hit in answer["hits"]]
        if answer["cursor"] is None:
            break
        asked["cursor"] = answer["cursor"]
    assert (len(seen), len(set(seen)), answer["kept"]) == (12, 12, 12)
    other = {**asked, "text": "blue", "cursor": asked["cursor"]}
    error(client.post("/v1/search", json=other), 422)


def test_search_by_words_and_by_liked_items_and_without_duplicates(client: TestClient) -> None:
    named = client.post("/v1/search", json={"words": "yellow", "k": 20}).json()
    assert {Path(hit["uri"]).name.split("-")[0] for hit in named["hits"]} == {"yellow"}
    assert all(hit["keywords"] == ["yellow"] for hit in named["hits"])
    none = client.post("/v1/search", json={"words": "zeppelin"}).json()
    assert (none["hits"], "zeppelin" in none["reason"]) == ([], True)
    blue = client.post("/v1/search", json={"text": "blue", "k": 1}).json()["hits"][0]["id"]
    moved = client.post("/v1/search", json={"text": "red", "k": 6, "liked": [blue]}).json()["hits"]
    assert any("blue" in hit["uri"] for hit in moved)
    once = client.post("/v1/search", json={"text": "red", "k": 20, "collapse": {"cosine": 0.9}}).json()
    assert once["collapsed"] == 12 - len(once["hits"]) > 0


def test_feedback_is_kept_beside_the_archive(client: TestClient, archive: Archive) -> None:
    hits = client.post("/v1/search", json={"text": "red", "k": 2}).json()["hits"]
    body = {"text": "red", "right": [hits[0]["id"]], "wrong": [hits[1]["id"]]}
    assert client.post("/v1/search/feedback", json=body).json() == {"kept": 2}
    kept = Feedback(archive.path / "feedback.sqlite").read()
    assert [(one.id, one.relevant) for one in kept] == sorted([(hits[0]["id"], True), (hits[1]["id"], False)])
    error(client.post("/v1/search/feedback", json={"text": "red", "right": ["ffff"]}), 404)


def test_a_deleted_item_is_gone_from_the_next_search(pictures: Path, tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "few", ColourEncoder())
    archive.add(pictures, ColourEncoder())
    with TestClient(create_app(archive=archive, encoder=ColourEncoder())) as client:
        first = client.post("/v1/search", json={"text": "red", "k": 1}).json()["hits"][0]["id"]
        assert client.delete(f"/v1/items/{first}").status_code == 204
        left = client.post("/v1/search", json={"text": "red", "k": 20}).json()["hits"]
        assert (len(left), first in {hit["id"] for hit in left}) == (11, False)
        error(client.delete(f"/v1/items/{first}"), 404)


def test_thumbnails_are_jpeg_in_the_answer_and_by_address(client: TestClient) -> None:
    hit = client.post("/v1/search", json={"text": "red", "k": 1, "thumbnails": 32}).json()["hits"][0]
    inline = Image.open(io.BytesIO(base64.b64decode(hit["thumbnail"])))
    assert (inline.format, max(inline.size)) == ("JPEG", 32)
    response = client.get(hit["image_url"], params={"size": 48})
    assert response.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(response.content)).size) == 48
    again = client.get(hit["image_url"], params={"size": 48}, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"text": ""}, 422),
        ({"text": "red", "k": 0}, 422),
        ({"text": "red", "k": 21}, 422),
        ({"text": "red", "filter": "colour ="}, 422),
        ({"text": "red", "filter": "1=1; DROP TABLE x"}, 422),
        ({"text": "red", "archive": "other"}, 404),
        ({"text": "red", "typo": 1}, 422),
        ({"text": "red", "thumbnails": 5000}, 422),
        ({"image": "https://example.com/a.png"}, 400),
        ({"image": "file:///etc/passwd"}, 400),
        ({"image": "not base64!"}, 400),
        ({"image": base64.b64encode(b"not an image").decode()}, 422),
        ({"image": "aGk=", "image_id": "ab"}, 400),
        ({"parts": [{"text": "red", "image_id": "ab"}]}, 404),
        ({"parts": [{"text": "red", "image": "aGk=", "image_id": "ab"}]}, 400),
        ({"parts": [{"text": "red", "box": [0, 0, 9, 9]}]}, 422),
        ({"parts": [{"text": "red", "weight": -1}]}, 422),
        ({"text": "red", "cursor": "nonsense"}, 422),
        ({"text": "red", "diversity": 1}, 422),
        ({"image_id": "ffff"}, 404),
        ({"image_id": "../../etc/passwd"}, 404),
        ({"image_id": "x' OR '1'='1"}, 404),
    ],
)
def test_bad_searches_are_explained(client: TestClient, body: dict[str, Any], status: int) -> None:
    assert error(client.post("/v1/search", json=body), status)["message"]


def test_a_search_that_names_an_unknown_column_lists_the_columns(client: TestClient) -> None:
    found = error(client.post("/v1/search", json={"text": "red", "filter": "kamera = 'north'"}), 422)
    assert "camera" in json.dumps(found)


# Items.


def test_items_serve_only_what_is_in_the_archive(client: TestClient) -> None:
    for id in ("00", "..%2F..%2Fetc%2Fpasswd", "' OR 1=1 --", "%00", "a" * 500):
        error(client.get(f"/v1/items/{id}/image"), 404)
    error(client.get("/v1/items/00/image", params={"size": 99999}), 422)


def test_an_item_whose_file_is_gone_is_shown_but_not_judged(tmp_path: Path) -> None:
    draw(("red", (0, 0, 20, 20))).save(tmp_path / "a.png")
    encoder = ColourEncoder()
    archive = Archive.create(tmp_path / "archive", encoder)
    archive.add(tmp_path / "a.png", encoder)
    archive.add_vectors(["gone.png"], encoder.encode_texts(["blue"]), fingerprint=encoder.fingerprint)
    with TestClient(create_app(archive=archive, encoder=encoder, detector=ColourDetector())) as client:
        hit = client.post("/v1/search", json={"text": "red"}).json()["hits"][0]
        assert client.get(f"/v1/items/{hit['id']}").json()["width"] == 64
        (tmp_path / "a.png").unlink()
        assert client.get(hit["image_url"]).headers["content-type"] == "image/jpeg"
        assert "no longer" in error(client.post("/v1/detect", json={"image_id": hit["id"]}), 404)["message"]
        bare = client.post("/v1/search", json={"text": "blue"}).json()["hits"][0]
        assert "no longer" in error(client.get(bare["image_url"]), 404)["message"]


# Detect.


def test_detect_by_upload_by_base64_and_by_item_agree(client: TestClient) -> None:
    scene = draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)))
    expected = {("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40))}
    upload = client.post("/v1/detect", files={"image": ("a.png", png(scene))}, data={"threshold": "0.5"}).json()
    inline = client.post("/v1/detect", json={"image": b64(scene), "threshold": 0.5}).json()
    assert upload == inline
    assert (upload["width"], upload["height"], upload["model"]) == (64, 48, "detector")
    assert {(found["label"], tuple(found["box"])) for found in upload["detections"]} == expected
    assert all(found["score"] == pytest.approx(1) for found in upload["detections"])
    id = client.post("/v1/search", json={"text": "green", "k": 1}).json()["hits"][0]["id"]
    found = client.post("/v1/detect", json={"image_id": id}).json()["detections"]
    assert [each["label"] for each in found] == ["green"]


def test_detect_with_prompts_uses_the_open_detector(client: TestClient) -> None:
    scene = draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)))
    answer = client.post("/v1/detect", json={"image": b64(scene), "prompts": ["a blue box"]}).json()
    assert (answer["model"], [found["label"] for found in answer["detections"]]) == ("open-detector", ["a blue box"])
    form = {"prompts": ["a blue box", "a red box"], "threshold": "0.2"}
    answer = client.post("/v1/detect", files={"image": ("a.png", png(scene))}, data=form).json()
    assert {found["label"] for found in answer["detections"]} == {"a blue box", "a red box"}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"json": {}}, 400),
        ({"json": {"image": "aGk="}}, 422),
        ({"json": {"image_id": "00"}}, 404),
        ({"json": {"image": "aGk=", "threshold": 2}}, 422),
        ({"json": {"image": "aGk=", "model": 5}}, 422),
        ({"json": [1]}, 422),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"\xff\xfe{}", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 400),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400),
        ({"files": {"image": ("a.png", b"")}}, 422),
        ({"files": {"other": ("a.png", b"x")}}, 422),
    ],
)
def test_bad_detections_are_explained(client: TestClient, request_: dict[str, Any], status: int) -> None:
    assert error(client.post("/v1/detect", **request_), status)["message"]


@pytest.mark.parametrize("prompts", [[], [""], ["a", "a"], ["a", "b", "c", "d", "e"], ["x" * 300]])
def test_bad_prompts_are_explained(client: TestClient, prompts: list[str]) -> None:
    error(client.post("/v1/detect", json={"image": b64(draw()), "prompts": prompts}), 422)


def test_unknown_model_lists_the_choices(client: TestClient) -> None:
    found = error(client.post("/v1/detect", json={"image": b64(draw()), "model": "other"}), 404)
    assert "detector" in found["expected"]


# Limits.


def test_too_large_is_413_declared_or_streamed(client: TestClient) -> None:
    big = b"x" * 300_000
    error(client.post("/v1/detect", content=big), 413)
    error(client.post("/v1/detect", content=(big[i : i + 9999] for i in range(0, len(big), 9999))), 413)
    error(client.post("/v1/search", content=(big[i : i + 9999] for i in range(0, len(big), 9999))), 413)


@pytest.mark.parametrize("side", [1500, 20_000, 2_000_000])
def test_a_pixel_bomb_is_refused_by_its_header(client: TestClient, side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND")
    )
    bomb = b"\x89PNG\r\n\x1a\n" + chunks
    assert "pixels" in error(client.post("/v1/detect", files={"image": ("a.png", bomb)}), 413)["message"]


# Embeddings.


def test_embeddings_in_both_encodings_are_the_same_numbers(client: TestClient) -> None:
    texts = ["red", "a blue box"]
    plain = client.post("/v1/embeddings", json={"input": texts, "model": "encoder"}).json()
    packed = client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}).json()
    for number in range(2):
        vector = np.array(plain["data"][number]["embedding"], dtype=np.float32)
        unpacked = np.frombuffer(base64.b64decode(packed["data"][number]["embedding"]), dtype="<f4")
        assert np.array_equal(vector, unpacked)
        assert vector == pytest.approx(ColourEncoder().encode_texts([texts[number]])[0])
        assert plain["data"][number]["index"] == number
    assert plain["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (plain["object"], plain["model"], plain["data"][0]["object"]) == ("list", "encoder", "embedding")
    single = client.post("/v1/embeddings", json={"input": "red"}).json()
    assert single["data"] == plain["data"][:1]


def test_an_image_is_embedded_through_messages(client: TestClient) -> None:
    scene = draw(("red", (0, 0, 40, 40)))
    url = {"url": f"data:image/png;base64,{b64(scene)}"}
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]
    vector = client.post("/v1/embeddings", json={"messages": messages}).json()["data"][0]["embedding"]
    assert vector == pytest.approx(ColourEncoder().encode_images([scene])[0].tolist())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"input": "a", "messages": []}, 400),
        ({"input": []}, 422),
        ({"input": [""]}, 422),
        ({"input": [1, 2]}, 422),
        ({"input": ["a"] * 9}, 422),
        ({"input": "a", "model": "other"}, 404),
        ({"input": "a", "dimensions": 2}, 422),
        ({"input": "a", "encoding_format": "hex"}, 422),
        ({"messages": []}, 422),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}]}]}, 400),
        ({"messages": [{"content": [{"type": "image_url"}]}]}, 422),
    ],
)
def test_bad_embeddings_are_explained(client: TestClient, body: dict[str, Any], status: int) -> None:
    error(client.post("/v1/embeddings", json=body), status)


# About, health, metrics.


def test_models_and_archives_say_what_is_loaded(client: TestClient) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {name: model["kind"] for name, model in models.items()} == {
        "encoder": "encoder",
        "detector": "detector",
        "open-detector": "open-detector",
    }
    assert models["detector"]["classes"] == ["red", "green", "blue", "yellow"]
    assert models["encoder"]["fingerprint"] == ColourEncoder.fingerprint
    archives = client.get("/v1/archives").json()["archives"]
    assert (archives[0]["name"], archives[0]["images"]) == ("depot", 12)
    assert archives[0]["columns"]["camera"] == "text"


def test_health_and_metrics(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "live"}
    deadline = time.monotonic() + 10
    while client.get("/readyz").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.get("/readyz").json() == {"status": "ready"}
    client.post("/v1/search", json={"text": "red"})
    text = client.get("/metrics").text
    assert 'foveal_requests_total{method="POST",route="/v1/search",status="200"}' in text
    assert 'foveal_archive_items{archive="depot"} 12.0' in text
    assert 'foveal_stage_seconds_count{stage="encode"}' in text
    assert f'fingerprint="{ColourEncoder.fingerprint}"' in text


def test_unknown_routes_and_methods_have_the_error_shape(client: TestClient) -> None:
    error(client.get("/v1/nothing"), 404)
    error(client.get("/nothing"), 404)
    error(client.get("/v1/search"), 404)
    error(client.post("/livez"), 405)


def test_request_ids_are_kept_when_sane(client: TestClient) -> None:
    assert client.get("/livez", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/livez", headers={"X-Request-ID": "a b\t"}).headers["x-request-id"] != "a b\t"


def test_openapi_document_lists_the_routes(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/search",
        "/v1/search/feedback",
        "/v1/verify",
        "/v1/detect",
        "/v1/prelabel",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/archives",
        "/v1/ask",
        "/v1/classify",
        "/v1/versions",
        "/v1/chat/completions",
        "/v1/jobs",
        "/v1/jobs/{id}",
        "/v1/items",
        "/v1/items/{id}",
        "/v1/items/{id}/image",
        "/livez",
        "/readyz",
        "/metrics",
        "/label-studio/health",
        "/label-studio/setup",
        "/label-studio/predict",
        "/label-studio/corrections",
        "/label-studio/webhook",
        "/api/functions",
        "/api/functions/{name}",
        "/api/function_invocations",
        "/x-anylabeling/health",
        "/x-anylabeling/v1/models",
        "/x-anylabeling/v1/predict",
        "/indices-list",
        "/knn-service",
        "/metadata",
    }


# What the application refuses, and how it behaves under load.


def test_an_archive_needs_the_encoder_that_made_it(archive: Archive) -> None:
    with pytest.raises(FingerprintMismatch, match="no encoder"):
        create_app(archive=archive, detector=ColourDetector())
    with pytest.raises(BadInput, match="nothing to serve"):
        create_app()
    with pytest.raises(BadInput, match="two models"):
        create_app(encoder=ColourEncoder(), models={"encoder": ColourDetector()})


def test_what_is_not_served_says_how_to_serve_it() -> None:
    with TestClient(create_app(models={"eyes": ColourOpenDetector()})) as client:
        assert "--archive" in error(client.post("/v1/search", json={"text": "red"}), 404)["remedy"]
        assert "--encoder" in error(client.post("/v1/embeddings", json={"input": "red"}), 404)["remedy"]
        assert "prompts" in error(client.post("/v1/detect", json={"image": b64(draw())}), 422)["expected"]
        ok = client.post("/v1/detect", json={"image": b64(draw()), "prompts": ["red"], "model": "colour:open-detector"})
        assert ok.json()["model"] == "eyes"


class HeldDetector(ColourDetector):
    """Answers once it is let go, and notices when two calls overlap."""

    def __init__(self) -> None:
        self.release, self.entered = threading.Event(), threading.Event()
        self.busy, self.overlapped = 0, False

    def detect(self, images: Any, threshold: float = 0.05) -> Any:
        self.busy += 1
        self.overlapped |= self.busy > 1
        self.entered.set()
        self.release.wait(30)
        time.sleep(0.01)
        self.busy -= 1
        return super().detect(images, threshold)


def test_a_busy_model_does_not_block_the_rest() -> None:
    detector = HeldDetector()
    with TestClient(create_app(detector=detector)) as client, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(client.post, "/v1/detect", json={"image": b64(draw())}) for _ in range(4)]
        assert detector.entered.wait(30)
        assert client.get("/livez").status_code == 200
        assert not any(job.done() for job in jobs)
        detector.release.set()
        assert {job.result().status_code for job in jobs} == {200}
    assert not detector.overlapped


class BrokenDetector(ColourDetector):
    def detect(self, images: Any, threshold: float = 0.05) -> Any:
        raise RuntimeError("the secret path /etc/x")


def test_a_failing_model_is_a_500_without_its_traceback() -> None:
    with TestClient(create_app(detector=BrokenDetector()), raise_server_exceptions=False) as client:
        response = client.post("/v1/detect", json={"image": b64(draw())})
        assert "secret" not in response.text
        assert response.headers["x-request-id"] in error(response, 500)["remedy"]
        assert "warming up" in error(client.get("/readyz"), 503)["message"]
