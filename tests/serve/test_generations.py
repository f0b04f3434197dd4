"""An archive that is embedded anew moves to its next generation under load, and nothing fails or is lost."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from foveal.detections import FloatArray
from foveal.errors import UnknownName
from foveal.progress import SilentProgress
from retrieval.archive import Archive
from retrieval.reembed import reembed
from serve import generations
from serve.app import create_app
from serve.server import running
from tests.serve.conftest import ColourEncoder, draw
from tests.serve.test_app import png


class Turned(ColourEncoder):
    """The colour encoder with its axes in another order: right by itself, wrong beside the other's vectors."""

    name = "colour:turned"
    fingerprint = hashlib.sha256(b"turned colour encoder").hexdigest()

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        return np.roll(super().encode_images(images), 2, axis=1)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.roll(super().encode_texts(texts), 2, axis=1)


@pytest.fixture
def moving(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.setattr(generations, "FOLLOW_SECONDS", 0.02)
    archive = Archive.create(tmp_path / "moving", ColourEncoder())
    archive.add(pictures, ColourEncoder())
    return archive


def served(url: str) -> str:
    return httpx.get(f"{url}/v1/archives").json()["archives"][0]["fingerprint"]


def until(url: str, fingerprint: str) -> None:
    deadline = time.monotonic() + 20
    while served(url) != fingerprint:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_searches_go_on_and_what_is_sent_meanwhile_is_kept(moving: Archive) -> None:
    loading = threading.Event()

    def load(reference: str) -> Turned:
        assert reference == "colour:turned"
        loading.set()
        time.sleep(0.3)
        return Turned()

    stop, wrong, sent = threading.Event(), list[str](), list[str]()

    def search() -> None:
        with httpx.Client(base_url=url, timeout=20) as client:
            while not stop.is_set():
                answer = client.post("/v1/search", json={"text": "red", "k": 3})
                names = [hit["uri"] for hit in answer.json().get("hits", ())] if answer.status_code == 200 else []
                if len(names) != 3 or not all("red" in name or "uploads" in name for name in names):
                    wrong.append(f"{answer.status_code} {names} {answer.text[:200]}")

    def send() -> None:
        with httpx.Client(base_url=url, timeout=20) as client:
            number = 0
            while not stop.is_set():
                picture = png(draw(("blue", (8, 8, 20 + number % 30, 30 + number // 30))))
                answer = client.post("/v1/items", files={"image": picture})
                assert answer.status_code in (201, 503), answer.text
                if answer.status_code == 201:
                    sent.extend(item["id"] for item in answer.json()["items"])
                    number += 1

    with (
        running(create_app(archive=moving, encoder=ColourEncoder(), encoders=load)) as url,
        ThreadPoolExecutor(3) as pool,
    ):
        work = [pool.submit(search), pool.submit(search), pool.submit(send)]
        time.sleep(0.3)
        reembed(Archive.open(moving.path), Turned(), "colour:turned", SilentProgress())
        until(url, Turned.fingerprint)
        time.sleep(0.3)
        stop.set()
        for each in work:
            each.result()
        assert loading.is_set()
        assert not wrong
        assert len(set(sent)) > 3
        now = Archive.open(moving.path)
        assert now.fingerprint == Turned.fingerprint
        assert set(now.items(sent, ("uri",))) == set(sent), "what was acknowledged is in the new generation"
        cards = httpx.get(f"{url}/v1/models").json()["data"]
        assert [(card["id"], card["fingerprint"]) for card in cards] == [("encoder", Turned.fingerprint)]
        embedded = httpx.post(f"{url}/v1/embeddings", json={"input": "red"}).json()["data"][0]["embedding"]
        assert np.argmax(embedded) == 2


def test_a_model_that_cannot_be_loaded_leaves_the_old_generation(
    moving: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[str] = []

    def load(reference: str) -> Turned:
        tried.append(reference)
        raise UnknownName("encoder", reference, ["colour:encoder"])

    with running(create_app(archive=moving, encoder=ColourEncoder(), encoders=load)) as url:
        reembed(Archive.open(moving.path), Turned(), "colour:turned", SilentProgress())
        deadline = time.monotonic() + 10
        while not tried:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        assert served(url) == ColourEncoder.fingerprint
        hits = httpx.post(f"{url}/v1/search", json={"text": "red", "k": 3}).json()["hits"]
        assert all("red" in hit["uri"] for hit in hits)
        refused = httpx.post(f"{url}/v1/items", files={"image": png(draw(("blue", (1, 1, 9, 9))))})
        assert refused.status_code == 503
        assert "moving to another encoder" in refused.json()["error"]["message"]
        gone = httpx.delete(f"{url}/v1/items/{hits[0]['id']}")
        assert gone.status_code == 503
    assert tried == ["colour:turned"], "it is not tried again and again"
    assert "stays with its generation" in caplog.text


def test_another_encoder_under_the_same_name_is_not_believed(moving: Archive) -> None:
    def load(reference: str) -> ColourEncoder:
        return ColourEncoder()

    with running(create_app(archive=moving, encoder=ColourEncoder(), encoders=load)) as url:
        reembed(Archive.open(moving.path), Turned(), "colour:turned", SilentProgress())
        time.sleep(0.3)
        assert served(url) == ColourEncoder.fingerprint
        hits = httpx.post(f"{url}/v1/search", json={"text": "green", "k": 3}).json()["hits"]
        assert all("green" in hit["uri"] for hit in hits)
