"""Models of a running server, asked as if they were loaded here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI

from evals.speed import measure, time_model
from evals.speed_probe import Request
from foveal.errors import BadInput, Unavailable
from foveal.served import (
    ServedDetector,
    ServedEncoder,
    ServedOpenDetector,
    ServedVLM,
    connect,
    is_server,
)
from serve.app import create_app
from serve.server import running
from tests.command import foveal
from tests.serve.conftest import ColourDetector, ColourEncoder, ColourTalker, draw

SCENE = draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)))


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with running(app) as address:
        yield address


def test_a_served_detector_says_what_the_model_says(url: str) -> None:
    served = connect(url, ["detector", "open-detector"])
    assert isinstance(served, ServedDetector)
    assert served.classes == ColourDetector.classes
    assert served.fingerprint == ColourDetector.fingerprint
    for there, here in zip(served.detect([SCENE, SCENE]), ColourDetector().detect([SCENE, SCENE]), strict=True):
        np.testing.assert_allclose(there.boxes, here.boxes, atol=0.01)
        np.testing.assert_allclose(there.scores, here.scores, atol=1e-4)
        assert there.label_names == here.label_names


def test_a_served_open_detector_takes_the_prompts(url: str) -> None:
    served = connect(url, ["open-detector"])
    assert isinstance(served, ServedOpenDetector)
    assert served.detect([SCENE], ["blue", "green"])[0].label_names == ["blue"]


def test_a_served_encoder_gives_the_same_vectors(url: str) -> None:
    served = connect(url, ["encoder"])
    assert isinstance(served, ServedEncoder)
    np.testing.assert_allclose(
        served.encode_images([SCENE, SCENE]), ColourEncoder().encode_images([SCENE] * 2), atol=1e-5
    )


def test_a_served_vlm_answers() -> None:
    with running(create_app(vlm=ColourTalker())) as address:
        served = connect(address, ["vlm"])
        assert isinstance(served, ServedVLM)
        assert served.answer(SCENE, "is there anything red") == "yes"
        with pytest.raises(BadInput, match="not asked of a server"):
            served.locate(SCENE, "red")


def test_a_model_that_is_not_there_is_refused_with_those_that_are(url: str) -> None:
    with pytest.raises(BadInput, match=r"serves no vlm; received .*\(detector\)"):
        connect(url, ["vlm"])
    with pytest.raises(BadInput, match="called 'yeti'"):
        connect(f"{url}#yeti", ["detector"])
    assert is_server(url)
    assert not is_server("onnx:./folder")


def test_a_server_that_is_down_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.client_calls.WAIT", 0.0)
    with pytest.raises(Unavailable, match="does not answer"):
        connect("http://127.0.0.1:9", ["detector"])


@pytest.mark.parametrize("kind", ["detector", "open-detector", "encoder"])
def test_a_server_is_timed_by_several_callers_at_once(url: str, pictures: Path, kind: str) -> None:
    files = sorted(str(file) for file in pictures.glob("*.png"))[:3]
    asked = {"reference": url, "kind": kind, "images": files, "batches": [1, 3], "calls": 4, "seconds": 0}
    timed = time_model(Request.model_validate({**asked, "prompts": ["red"]}))
    assert (len(timed.ms), timed.images[3]) == (4, Path(files[0]).name)
    assert list(timed.images_per_second) == [1, 3]
    figures = measure(timed).figures
    assert figures["peak_memory_mb"] is None
    assert "server's machine" in figures["energy"]


SUITE = """
cases:
  - name: red is seen
    images: [red-0.png]
    expect: {detect: {present: [red], absent: [blue], score: 0.5}}
    severity: blocker
    owner: me
    why: it was missed
    added: 2026-01-02
  - name: red is found
    images: [red-0.png]
    expect: {search: {text: red, within: 3}}
    severity: major
    owner: me
    why: it was not
    added: 2026-01-02
  - name: red is not among the blue
    images: [red-0.png]
    expect: {search: {text: blue, within: 3}}
    severity: minor
    owner: me
    why: to see it fail
    added: 2026-01-02
"""


@pytest.mark.parametrize("name", ["detector", "open-detector"])
def test_a_server_runs_a_scenario_suite(url: str, pictures: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(pictures / "red-0.png", tmp_path)
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    assert foveal("scenarios", "lock", str(suite)).code == 0
    ran = foveal("scenarios", "run", str(suite), "--detector", f"{url}#{name}", "--archive", url, "--json")
    assert ran.code == 0, ran.err
    assert [row["verdict"] for row in ran.json["verdicts"]] == ["holds", "holds", "FAILS"]
    assert "found at rank" in ran.json["verdicts"][1]["seen"]
