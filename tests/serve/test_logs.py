"""What the server says: one line a request, as JSON or for people, and nothing of what was asked or shown."""

from __future__ import annotations

import base64
import io
import json
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from foveal.detections import FloatArray
from retrieval.archive import Archive
from serve import logs
from serve.app import create_app
from serve.keys import Keys
from tests.command import shell
from tests.serve.conftest import ColourDetector, ColourEncoder, draw
from tests.serve.gathering import Waiting, together, warm

TEXT = "a red umbrella that nobody may read about"


class Quoting(ColourEncoder):
    """Fails on one word, and quotes the whole text as it does so."""

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        if any("fail" in text for text in texts):
            try:
                raise KeyError(texts[0])
            except KeyError as error:
                raise ValueError(f"cannot encode {texts[0]}") from error
        return super().encode_texts(texts)


def _png() -> bytes:
    file = io.BytesIO()
    draw(("red", (4, 4, 30, 30))).save(file, "png")
    return file.getvalue()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.sqlite")


@pytest.fixture
def said(keys: Keys, archive: Archive, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Serves a search, a detection, a failure, a refusal, a feedback and probes; gives the lines of the log."""
    secret = keys.add("tester", ["search", "detect", "write", "metrics"])
    app = create_app(archive=archive, encoder=Quoting(), detector=ColourDetector(), keys=keys)
    image, mine = _png(), {"Authorization": f"Bearer {secret}", "x-request-id": "mine"}
    with logs.writing("json"), TestClient(app, raise_server_exceptions=False) as client:
        calls = [
            client.post("/v1/search", json={"text": TEXT}, headers=mine),
            client.post("/v1/detect", files={"image": image}, headers=mine),
            client.post("/v1/detect", json={"image": base64.b64encode(image).decode()}, headers=mine),
            client.post("/v1/search", json={"text": f"fail {TEXT}"}, headers=mine),
            client.post("/v1/search", json={"text": TEXT, "k": TEXT}, headers=mine),
            client.post("/v1/search", json={"text": TEXT}),
            client.post("/v1/search/feedback", json={"text": TEXT, "right": ["0" * 16], "wrong": []}, headers=mine),
            client.get(f"/metadata?ids={TEXT}", headers=mine),
            client.get("/livez"),
            client.get("/metrics", headers=mine),
        ]
    assert [call.status_code for call in calls] == [200, 200, 200, 500, 422, 401, 404, 405, 200, 200]
    text = capsys.readouterr().err
    for asked in ("umbrella", "nobody", secret, base64.b64encode(image).decode()[:60], image[:20].hex(), "PNG"):
        assert asked not in text, asked
    return [json.loads(line) for line in text.splitlines()]


def test_a_request_is_a_line_of_json(said: list[dict[str, Any]]) -> None:
    requests = [line for line in said if line["logger"] == "foveal.serve.request"]
    assert [line["route"] for line in requests] == [
        "/v1/search", "/v1/detect", "/v1/detect", "/v1/search", "/v1/search", "other",
        "/v1/search/feedback", "/metadata",
    ]  # fmt: skip
    search, detect, _, failed, wrong, refused, *_ = requests
    assert (search["level"], search["status"], search["method"], search["request"]) == ("INFO", 200, "POST", "mine")
    assert search["key"] == detect["key"] == "tester"
    assert 0 < search["ms"] < 60_000
    (batch,) = search["batches"]
    assert (batch["model"], batch["stage"], batch["batch"]) == ("encoder", "encode", 1)
    assert 0 <= batch["queue_ms"] < 60_000
    assert [failed["status"], wrong["status"], refused["status"]] == [500, 422, 401]
    assert refused["key"] is None
    assert refused["request"] != "mine"
    assert all(line["time"].endswith("+00:00") for line in said)


def test_an_unforeseen_error_says_where_and_not_what(said: list[dict[str, Any]]) -> None:
    (line,) = (line for line in said if line["level"] == "ERROR")
    assert line["message"] == "POST /v1/search failed"
    assert line["request"] == "mine"
    assert line["error"]["type"] == "builtins.ValueError"
    assert "message" not in line["error"]
    assert line["error"]["at"][-1].endswith("encode_texts")
    assert line["error"]["cause"]["type"] == "builtins.KeyError"


def test_errors_of_the_server_itself_keep_their_message(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.writing("json"):
        try:
            Path("/nowhere/at/all").read_bytes()
        except OSError:
            logging.getLogger("foveal.serve").exception("not written")
        warnings.warn("something is old", stacklevel=1)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["error"]["message"] == "[Errno 2] No such file or directory: '/nowhere/at/all'"
    assert "something is old" in second["message"]
    assert "request" not in first


def test_requests_of_one_batch_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    detector = Waiting()
    app = create_app(detector=detector)
    with logs.writing("json"), TestClient(app) as client:
        warm(client)
        lane = app.state.engine.lanes["detector"]
        together(lane, detector, lambda: client.post("/v1/detect", files={"image": _png()}), 3)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    batches = [line["batches"][0] for line in lines if line.get("route") == "/v1/detect"]
    assert sorted(batch["batch"] for batch in batches) == [1, 3, 3, 3]
    assert len({line["request"] for line in lines if "batches" in line}) == 4


def test_text_is_for_people_and_one_line_each(app: FastAPI, capsys: pytest.CaptureFixture[str]) -> None:
    with logs.writing("text"), TestClient(app) as client:
        client.post("/v1/search", json={"text": "red"}, headers={"x-request-id": "mine"})
        client.get("/livez")
        logging.getLogger("foveal.serve").warning("a path/\nwith a second line")
    lines = capsys.readouterr().err.splitlines()
    (line,) = (line for line in lines if "/v1/search" in line)
    assert " INFO foveal.serve.request: POST /v1/search 200 " in line
    assert line.endswith(" ms request=mine")
    assert lines[-1].endswith("foveal.serve: a path/\\nwith a second line")


def test_it_ends_as_it_began_and_takes_libraries_along(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("foveal-test-library")
    library.propagate = False
    before = logging.root.handlers[:], logging.root.level
    with logs.writing("json") as gather:
        own = logging.StreamHandler(sys.stderr)  # as libraries do that are imported now
        library.addHandler(own)
        gather()
        library.warning("hello")
        library.info("nobody wants to know")
    assert json.loads(capsys.readouterr().err)["message"] == "hello"
    assert (logging.root.handlers, logging.root.level) == before
    assert (library.handlers, library.propagate) == ([own], False)
    library.removeHandler(own)


def test_importing_sets_nothing_up() -> None:
    program = "import logging, serve.logs; assert not logging.root.handlers and logging.root.level == logging.WARNING"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_foveal_serve_writes_nothing_but_json(pictures: Path, tmp_path: Path) -> None:
    from foveal.models import load_encoder

    encoder = load_encoder("bundled:clip")
    Archive.create(tmp_path / "depot", encoder).add(pictures, encoder)
    words = ["serve", "--archive", str(tmp_path / "depot"), "--port", "0", "--json", "--log-format", "json"]
    process = subprocess.Popen(
        shell(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        while httpx.get(f"{url}/readyz").status_code != 200:
            time.sleep(0.05)
        assert httpx.post(f"{url}/v1/search", json={"text": TEXT}, timeout=60).status_code == 200
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert {"uvicorn.error", "foveal.serve", "foveal.serve.request"} <= {line["logger"] for line in lines}
    assert TEXT not in err
