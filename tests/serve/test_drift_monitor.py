"""What comes in is held beside what a model was measured on, and an alert's figure moves when it changes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from foveal.detections import Detections
from foveal.profile import Profile
from retrieval.archive import Archive
from serve import drift
from serve.app import create_app
from tests.serve.conftest import COLOURS, ColourDetector, ColourEncoder, draw
from tests.serve.test_app import b64, png

RNG = np.random.default_rng(3)


class Scoring(ColourDetector):
    """Finds one box whose score is the picture's red, and remembers how it was measured."""

    def __init__(self, profile: Profile | None) -> None:
        self.card = SimpleNamespace(profile=profile)

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        scores = [np.asarray(image)[0, 0, 0] / 255 for image in images]
        box = [[1.0, 1.0, 9.0, 9.0]]
        return [
            Detections.build(box, [score], [0], self.classes) if score >= threshold else Detections.empty(self.classes)
            for score in scores
        ]


def reds(low: int, high: int, count: int) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), (int(red), 0, 0)) for red in RNG.integers(low, high, count)]


def told(client: TestClient, name: str = "foveal_drift") -> dict[tuple[str, ...], float]:
    families = {one.name: one for one in text_string_to_metric_families(client.get("/metrics").text)}
    return {tuple(one.labels.values()): one.value for one in families[name].samples} if name in families else {}


def ask(client: TestClient, images: list[Image.Image], **fields: object) -> None:
    for image in images:
        data = {key: str(value) for key, value in fields.items()}
        assert client.post("/v1/detect", files={"image": png(image)}, data=data).status_code == 200


def test_scores_that_fall_are_a_shift() -> None:
    measured = Profile.of([np.array([value / 255]) for value in RNG.integers(150, 255, 200)])
    with TestClient(create_app(detector=Scoring(measured))) as client:
        ask(client, reds(150, 255, 99))
        assert not told(client), "too few to tell"
        ask(client, reds(150, 255, 60))
        usual = told(client)
        assert usual["detector", "score"] < 0.1
        assert usual["detector", "boxes"] < 0.1
        assert told(client, "foveal_drift_samples")["detector",] == 159
        ask(client, reds(60, 120, 300))
        shifted = told(client)
        assert shifted["detector", "score"] > 0.25, shifted
        assert shifted["detector", "boxes"] > 0.25


def test_requests_that_leave_low_scores_out_are_not_compared() -> None:
    measured = Profile.of([np.array([value / 255]) for value in RNG.integers(80, 255, 200)])
    with TestClient(create_app(detector=Scoring(measured))) as client:
        ask(client, reds(80, 255, 120), threshold=0.8)
        assert not told(client)
        assert ("detector",) not in told(client, "foveal_drift_samples")
        ask(client, reds(80, 255, 120), threshold=0.05)
        assert told(client)["detector", "score"] < 0.2


def test_without_a_profile_the_first_pictures_are_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "FIRST", 150)
    with TestClient(create_app(detector=Scoring(None))) as client:
        ask(client, reds(150, 255, 150))
        assert not told(client)
        ask(client, reds(150, 255, 120))
        assert told(client)["detector", "score"] < 0.1
        ask(client, reds(90, 140, 250))
        assert told(client)["detector", "score"] > 0.25


def test_pictures_unlike_the_archives_are_a_shift(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    for number in range(120):
        colour = list(COLOURS)[number % 2]  # red and green only
        draw((colour, (4, 4, 30 + int(RNG.integers(20)), 40))).save(tmp_path / f"{number}.png")
    archive = Archive.create(tmp_path / "archive", encoder)
    archive.add(tmp_path, encoder)

    for colours, shifted in ((["red", "green"], False), (["blue"], True)):
        with TestClient(create_app(archive=archive, encoder=encoder, detector=ColourDetector())) as client:
            for number in range(110):
                picture = draw((colours[number % len(colours)], (4, 4, 30 + int(RNG.integers(20)), 40)))
                address = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(picture)}"}}
                sent = {"messages": [{"role": "user", "content": [address]}]}
                assert client.post("/v1/embeddings", json=sent).status_code == 200
            assert (told(client)["encoder", "embedding"] > 0.25) == shifted


def test_pictures_that_are_detected_in_are_embedded_now_and_then(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "EVERY", 3)
    with TestClient(create_app(archive=archive, encoder=ColourEncoder(), detector=ColourDetector())) as client:
        ask(client, reds(100, 255, 30))
        deadline = time.monotonic() + 10
        while not (seen := told(client, "foveal_drift_samples")["encoder",]):
            assert time.monotonic() < deadline
        assert seen <= 10


def test_a_version_that_is_let_go_has_no_figures() -> None:
    from serve.metrics import Metrics

    metrics = Metrics()
    watched = drift.Drift({}, metrics)
    for _ in range(150):
        watched.answered("depot@1", Scoring(Profile.of([np.array([0.5])] * 200)), found := _one(), 0.1)
    watched.collect()
    assert metrics.registry.get_sample_value("foveal_drift", {"model": "depot@1", "signal": "score"}) is not None
    watched.forget("depot@1")
    assert metrics.registry.get_sample_value("foveal_drift", {"model": "depot@1", "signal": "score"}) is None
    assert len(found) == 1


def _one() -> Detections:
    return Detections.build([[1, 1, 9, 9]], [0.5], [0], ["red"])
