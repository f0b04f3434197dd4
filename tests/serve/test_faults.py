"""What may go wrong around a server: slow clients, full disks, killed writers, damaged models."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from foveal.models import load_encoder
from retrieval.archive import Archive
from serve import server
from serve.app import create_app
from serve.audit import Audit
from serve.limits import Limits
from serve.server import running
from tests.command import foveal
from tests.serve.conftest import ColourDetector, ColourEncoder
from tests.serve.processes import full, png, program, served

ROOT = Path(__file__).parents[2]
WRITER = """
import sys, time
from pathlib import Path
from retrieval import ingest
from retrieval.archive import Archive
from tests.serve.conftest import ColourEncoder
ingest.BATCH, ingest.HAND_ON_SECONDS = 2, 0.0  # a commit every two pictures
class Slow(ColourEncoder):
    def encode_images(self, images):
        print("working", flush=True)
        time.sleep(0.05)
        return super().encode_images(images)
Archive.open(Path(sys.argv[1])).add(Path(sys.argv[2]), Slow())
"""


@pytest.fixture
def depot(archive: Archive, tmp_path: Path) -> Path:
    """An archive of one's own: its pictures stay where they are."""
    return Path(shutil.copytree(archive.path, tmp_path / "depot"))


def _slowly(stack: ExitStack, url: str, text: bytes) -> socket.socket:
    """A connection that has sent this much of a request and no more."""
    host, port = url.removeprefix("http://").split(":")
    connection = stack.enter_context(socket.create_connection((host, int(port))))
    connection.sendall(text)
    return connection


@pytest.mark.slow
def test_slow_clients_keep_nobody_else_waiting() -> None:
    body = (
        b"POST /v1/detect HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{"
    )
    app = create_app(detector=ColourDetector(), limits=Limits(at_once=8, seconds=2))
    with running(app) as url, ExitStack() as stack:
        for _ in range(100):
            _slowly(stack, url, b"POST /v1/detect HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: ")
        waiting = [_slowly(stack, url, body) for _ in range(20)]  # more than may be worked on at once
        time.sleep(0.2)
        took: list[float] = []
        for _ in range(20):
            began = time.monotonic()
            assert httpx.post(f"{url}/v1/detect", files={"image": png()}).status_code == 200
            took.append(time.monotonic() - began)
        assert max(took) < 1
        for connection in waiting:  # and nobody stays for ever
            connection.settimeout(10)
            assert connection.recv(100).startswith(b"HTTP/1.1 503")
        assert "foveal_requests_in_flight 1.0" in httpx.get(f"{url}/metrics").text


def test_slow_clients_are_not_endless_either() -> None:
    body = b"POST /v1/detect HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 900\r\n\r\n{"
    with (
        running(create_app(detector=ColourDetector(), limits=Limits(at_once=2, seconds=5))) as url,
        ExitStack() as stack,
    ):
        connections = [_slowly(stack, url, body) for _ in range(9)]
        connections[-1].settimeout(3)
        assert connections[-1].recv(100).startswith(b"HTTP/1.1 503")


def test_a_header_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    begun = b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    with running(create_app(detector=ColourDetector())) as url, ExitStack() as stack:
        kept = _slowly(stack, url, begun + b"\r\n")
        kept.settimeout(5)
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)
        kept.sendall(begun + b"\r\n")  # a connection that waits for its next request is none of these
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        kept.sendall(begun)
        for connection in (_slowly(stack, url, b""), _slowly(stack, url, begun), kept):
            connection.settimeout(5)
            assert connection.recv(100) == b"", "it was not closed"


@pytest.mark.slow
def test_a_full_disk_loses_no_correction_that_was_confirmed(depot: Path, tmp_path: Path) -> None:
    confirmed: list[int] = []

    def told(url: str, number: int) -> httpx.Response:
        annotation = {"id": number, "result": [{"text": "x" * 500}], "updated_at": "2026-01-01"}
        event = {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "annotation": annotation}
        answer = httpx.post(f"{url}/label-studio/webhook", json={**event, "task": {"id": number, "data": {}}})
        if answer.status_code == 201:
            confirmed.append(number)
        return answer

    with served(depot, tmp_path) as (process, url):
        assert told(url, 0).status_code == 201
        with full(process, (tmp_path / "corrections.sqlite").stat().st_size + 8192):
            answers = [told(url, number) for number in range(1, 60)]
        refused = [answer for answer in answers if answer.status_code != 201]
        assert refused
        assert {answer.status_code for answer in refused} == {503}
        assert "corrections cannot be kept in" in refused[0].json()["error"]["message"]
        assert told(url, 99).status_code == 201  # there is room again
        process.kill()
        process.wait()
    with served(depot, tmp_path) as (_, url):
        kept = httpx.get(f"{url}/label-studio/corrections").json()
    assert {task["id"] for task in kept} == set(confirmed)


@pytest.mark.slow
def test_a_full_disk_under_the_audit_log_hides_nothing(depot: Path, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"

    def search(url: str, number: int) -> httpx.Response:
        return httpx.post(f"{url}/v1/search", json={"text": "red"}, headers={"x-request-id": f"search-{number}"})

    with served(depot, tmp_path) as (process, url):
        assert search(url, 0).status_code == 200
        with full(process, log.stat().st_size + 1000):
            answers = {number: search(url, number) for number in range(1, 10)}
            assert httpx.get(f"{url}/readyz").status_code == 200
        statuses = [answer.status_code for answer in answers.values()]
        assert statuses == sorted(statuses)
        assert set(statuses) == {200, 503}
        assert "hits" not in answers[9].json()
        assert "cannot write down who saw what" in answers[9].json()["error"]["message"]
        assert search(url, 10).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert "could not be audited" in err
    assert "Traceback" not in err
    seen: set[str] = set()
    for line in log.read_text().splitlines():
        try:
            told: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line for which there was not room enough
        assert told["status"] == 200
        seen.add(told["request"])
    assert seen == {"search-0", "search-10"} | {f"search-{n}" for n, one in answers.items() if one.status_code == 200}


def test_what_cannot_be_audited_is_not_shown(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(archive=archive, encoder=ColourEncoder(), audit=Audit(Path("/dev/full")))
    with running(app) as url:
        for answer in (
            httpx.post(f"{url}/v1/search", json={"text": "red"}),
            httpx.post(f"{url}/v1/search", content=b"{"),  # an error is an answer too
            httpx.get(f"{url}/v1/items/abc"),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            assert set(answer.json()) == {"error"}
        assert httpx.get(f"{url}/livez").status_code == 200
        assert 'foveal_refused_total{reason="audit"} 3.0' in httpx.get(f"{url}/metrics").text
    assert "No space left on device" in caplog.text


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_server_that_reads_and_writes(depot: Path, tmp_path: Path) -> None:
    def folder(turn: int) -> Path:
        made = tmp_path / f"more-{turn}"
        made.mkdir()
        for number in range(200):
            (made / f"{number}.png").write_bytes(png(8 + number % 50))
        return made

    def reds(url: str) -> int:
        answer = httpx.post(f"{url}/v1/search", json={"text": "red", "k": 100}, timeout=20)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["hits"])

    def add(url: str, width: int) -> list[str]:
        answer = httpx.post(f"{url}/v1/items", files={"image": png(width)}, timeout=60)
        assert answer.status_code == 201, answer.text
        return [item["id"] for item in answer.json()["items"]]

    with served(depot, tmp_path) as (_, url), ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        before, stop, counts = reds(url), threading.Event(), list[int]()
        confirmed: list[str] = []
        reader = threading.Thread(target=lambda: [counts.append(reds(url)) for _ in iter(stop.is_set, True)])
        reader.start()
        stack.callback(reader.join)
        stack.callback(stop.set)
        for turn in range(5):
            writer = program(WRITER, depot, folder(turn))
            assert writer.stdout is not None
            for _ in range(3):
                assert writer.stdout.readline() == "working\n", writer.stderr and writer.stderr.read()
            waiting = pool.submit(add, url, 58 + turn)  # until the other has written
            time.sleep(0.2 + 0.013 * turn)  # anywhere between two commits, or in one
            assert writer.poll() is None
            assert not waiting.done()
            writer.kill()
            writer.communicate()
            confirmed += waiting.result()
        stop.set()
        reader.join()
        assert min(counts) >= before, "items were gone for a while"
        confirmed += add(url, 63)
        for id in confirmed:
            assert httpx.get(f"{url}/v1/items/{id}").status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 200
    shown = foveal("archive", "check", "--archive", str(depot), "--json")
    assert shown.json["ok"] is True, shown.out


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "one byte"])
def test_a_damaged_model_is_refused_at_the_start(damage: str, pictures: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(ROOT / "foveal" / "backbones" / "clip", tmp_path / "model"))
    encoder = load_encoder(f"open_clip:{model}")
    Archive.create(tmp_path / "depot", encoder).add(pictures, encoder)
    (weights,) = model.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 0x55
    changed = {"cut": data[: len(data) // 3], "garbage": b"\xff" * 1000, "empty": b"", "one byte": bytes(data)}
    weights.write_bytes(changed[damage])
    shown = foveal("serve", "--archive", str(tmp_path / "depot"), "--port", "0")
    assert shown.code == 1
    said = "with another encoder" if damage == "one byte" else f"cannot read {model}"
    assert said in shown.error
