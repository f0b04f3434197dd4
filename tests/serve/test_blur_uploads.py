"""Pictures sent to a server that blurs: of what was found no colour is left, in no file and in no picture shown."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from foveal.detections import Detections
from foveal.errors import BadInput, UnknownName
from foveal.images import decode
from retrieval.archive import Archive
from retrieval.blur import BY, FILE, PLACES, WHERE, Blur, NotBlurred, load_blur
from serve.app import create_app
from serve.uploads import Upload, take
from tests.serve.conftest import ColourDetector, ColourEncoder, ColourOpenDetector, draw, nearest_colour
from tests.serve.test_app import error, png
from tests.serve.test_uploads import found, send

SCENE = draw(("red", (20, 10, 40, 30)), ("blue", (50, 0, 60, 8)))
AROUND = (19, 9, 41, 31)  # the red box, larger by a tenth


class Broken:
    """A detector that fails on pictures with green in them."""

    name, fingerprint, classes = "broken", "0" * 64, ("red",)

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        if any((nearest_colour(image) == 1).any() for image in images):
            raise RuntimeError("out of memory")
        return ColourDetector().detect(images, threshold)


def serving(store: Archive, blur: Blur | None) -> FastAPI:
    return create_app(
        archive=store, encoder=ColourEncoder(), detector=ColourDetector(), open_detector=ColourOpenDetector(), blur=blur
    )


@pytest.fixture
def store(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "depot", ColourEncoder())


def red(image: Image.Image) -> int:
    """Pixels that have anything of red, however dark or pale."""
    pixels = np.asarray(image.convert("RGB"), dtype=int)
    return int((pixels[..., 0] - pixels[..., 1] > 24).sum())


def stored(store: Archive) -> list[Path]:
    return [path for path in (store.path / "uploads").rglob("*") if path.is_file() and path.suffix != ".json"]


def check_gone(store: Archive, id: str) -> None:
    """The red is gone from file and thumbnail, and what lies outside is as it was."""
    (file,) = stored(store)
    kept = decode(file)
    assert red(SCENE) > 300
    assert red(kept) == 0
    row = store.items([id], ["thumbnail", "metadata"])[id]
    assert red(decode(row["thumbnail"])) == 0
    before, after = np.asarray(SCENE).copy(), np.asarray(kept).copy()
    left, top, right, bottom = AROUND
    inside = after[top:bottom, left:right]
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) <= 4
    assert (inside[..., 0] == inside[..., 1]).all()
    before[top:bottom, left:right] = after[top:bottom, left:right] = 0
    assert (before == after).all()
    told = json.loads(row["metadata"])
    assert (told[PLACES], told[BY], told[WHERE]) == (1, ColourDetector.fingerprint, FILE)


def test_what_is_found_is_gone_from_all_that_is_stored(store: Archive) -> None:
    with TestClient(serving(store, Blur(ColourDetector(), classes=["red"]))) as client:
        id = send(client, ("a.png", png(SCENE)))["items"][0]["id"]
        check_gone(store, id)
        assert all(png(SCENE) != path.read_bytes() for path in store.path.rglob("*") if path.is_file())
        shown = client.get(f"/v1/items/{id}/image", params={"size": 64})
        assert red(decode(shown.content)) == 0
        near = store.nearest(ColourEncoder().encode_images([decode(stored(store)[0])]), 1)[0][0]
        assert near.similarity == pytest.approx(1, abs=1e-3)  # the vector is that of the blurred picture
        assert client.post("/v1/detect", json={"image_id": id}).json()["detections"][0]["label"] == "blue"
        again = send(client, ("a.png", png(SCENE)))["items"][0]
        assert (again["id"], again["status"]) == (id, "unchanged")


def test_without_blur_the_same_checks_fail(store: Archive) -> None:
    """What is checked above can be seen to be missing."""
    with TestClient(serving(store, None)) as client:
        id = send(client, ("a.png", png(SCENE)))["items"][0]["id"]
    with pytest.raises(AssertionError):
        check_gone(store, id)


def test_prompts_name_what_is_blurred(store: Archive) -> None:
    blur = Blur(ColourOpenDetector(), prompts=["a red box", "a green box"])
    with TestClient(serving(store, blur)) as client:
        id = send(client, ("a.png", png(SCENE)))["items"][0]["id"]
    told = json.loads(store.items([id], ["metadata"])[id]["metadata"])
    assert told[BY] == ColourOpenDetector.fingerprint
    assert told["blurred_what"] == "a red box; a green box from 0.2"
    assert red(decode(stored(store)[0])) == 0


def test_a_picture_that_the_detector_fails_on_leaves_nothing(store: Archive) -> None:
    bad, good = draw(("green", (4, 4, 30, 30)), ("red", (40, 8, 60, 30))), SCENE
    with TestClient(serving(store, Blur(Broken())), raise_server_exceptions=False) as client:
        said = error(client.post("/v1/items", files={"image": ("a.png", png(bad))}), 422)
        assert "blurred" in said["message"]
        assert (len(store), stored(store)) == (0, [])
        answer = send(client, ("a.png", png(bad)), ("b.png", png(good)))
        assert [one["name"] for one in answer["items"]] == ["b.png"]
        assert [one["name"] for one in answer["rejected"]] == ["a.png"]
        assert len(stored(store)) == len(store) == 1
        assert found(client, "green")[0]["metadata"]["name"] != "a.png"


def test_whoever_adds_past_the_route_is_blurred_too(store: Archive) -> None:
    blur = Blur(Broken())
    kept, _ = take(store, ColourEncoder(), [Upload("a.png", png(SCENE), {})], blur)
    check_gone_file = decode(stored(store)[0])
    assert (kept[0].status, red(check_gone_file)) == ("added", 0)
    with pytest.raises(NotBlurred):
        take(store, ColourEncoder(), [Upload("b.png", png(draw(("green", (0, 0, 20, 20)))), {})], blur)
    assert len(stored(store)) == 1


def test_where_and_with_what_it_was_taken_is_not_stored(store: Archive) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker of cameras", 6
    exif.get_ifd(0x8769)[0x9003] = "2026:11:02 10:30:00"
    exif.get_ifd(0x8825).update({1: "N", 2: (59.0, 20.0, 0.0), 3: "E", 4: (18.0, 0.0, 0.0)})
    buffer = io.BytesIO()
    SCENE.save(buffer, "JPEG", quality=95, exif=exif)
    with TestClient(serving(store, Blur(ColourDetector(), classes=["red"]))) as client:
        id = send(client, ("a.jpg", buffer.getvalue()), metadata={"blurred": 99})["items"][0]["id"]
    told = json.loads(store.items([id], ["metadata"])[id]["metadata"])
    assert told.keys().isdisjoint({"gps_lat", "gps_lon", "camera_make"})
    assert (told["taken_at"], told[PLACES]) == ("2026-11-02T10:30:00Z", 1)
    (file,) = stored(store)
    with Image.open(file) as image:
        assert (image.format, dict(image.getexif()), image.size) == ("JPEG", {}, (48, 64))  # upright
    assert b"Maker of cameras" not in file.read_bytes()
    assert red(decode(file)) == 0


def test_a_picture_of_a_folder_is_shown_blurred_or_not_at_all(store: Archive, tmp_path: Path) -> None:
    from functools import partial

    from retrieval.ingest import embed

    big = SCENE.resize((640, 480), Image.Resampling.NEAREST)
    big.save(tmp_path / "a.png")
    blur = Blur(ColourDetector(), classes=["red"])
    store.add(tmp_path / "a.png", ColourEncoder(), through=partial(embed, blur=blur))
    for here, size in ((blur, 480), (None, 256), (Blur(ColourDetector(), classes=["blue"]), 256)):
        with TestClient(serving(store, here)) as client:
            id = found(client)[0]["id"]
            shown = decode(client.get(f"/v1/items/{id}/image", params={"size": 480}).content)
            assert (max(shown.size), red(shown)) == (size, 0)
            answer: Any = client.post("/v1/detect", json={"image_id": id})
            if here is blur:
                assert {one["label"] for one in answer.json()["detections"]} == {"blue"}
            else:
                assert "blurred" in error(answer, 404)["message"]
    assert red(decode(tmp_path / "a.png")) > 300


def test_what_is_blurred_later_is_shown_unblurred_no_more(store: Archive, tmp_path: Path) -> None:
    from functools import partial

    from retrieval.ingest import embed

    SCENE.save(tmp_path / "a.png")
    store.add(tmp_path / "a.png", ColourEncoder())
    with TestClient(serving(store, None)) as client:
        id = found(client)[0]["id"]
        before = client.get(f"/v1/items/{id}/image", params={"size": 64})
        assert red(decode(before.content)) > 300
        store.add(tmp_path / "a.png", ColourEncoder(), through=partial(embed, blur=Blur(ColourDetector())))
        tag = {"If-None-Match": before.headers["etag"]}
        after = client.get(f"/v1/items/{id}/image", params={"size": 64}, headers=tag)
        assert (after.status_code, red(decode(after.content))) == (200, 0)


def test_what_cannot_be_blurred_with_is_refused_at_the_start() -> None:
    with pytest.raises(UnknownName, match="purple"):
        Blur(ColourDetector(), classes=["purple"])
    with pytest.raises(BadInput):
        Blur(ColourDetector(), prompts=["a face"])
    with pytest.raises(BadInput):
        Blur(ColourOpenDetector())
    with pytest.raises(BadInput):
        Blur(ColourDetector(), threshold=2)
    with pytest.raises(BadInput, match="--blur-prompts"):
        load_blur("bundled:owl")
    with pytest.raises(BadInput, match="--blur REF"):
        load_blur(None, "a face")
    with pytest.raises(NotBlurred):
        load_blur("bundled:owl", "a face,a face")
