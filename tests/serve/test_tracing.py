"""Traces of requests: through decoding, waiting, the model and the archive, to a collector."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from foveal.detections import FloatArray
from foveal.errors import BadInput, ConfigError
from foveal.models import load_encoder
from retrieval.archive import Archive
from serve import logs
from serve.app import create_app
from serve.server import running
from serve.tracing import exporting
from tests.command import foveal, shell
from tests.serve.conftest import ColourEncoder, draw
from tests.serve.gathering import Waiting, together, warm

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ASKED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Quoting(ColourEncoder):
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        if "fail" in texts[0]:
            raise ValueError(f"cannot encode {texts[0]}")
        return super().encode_texts(texts)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(spans: InMemorySpanExporter, archive: Archive) -> Iterator[TestClient]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = create_app(archive=archive, encoder=Quoting(), detector=Waiting(), traces=provider)
    with TestClient(app, raise_server_exceptions=False) as client:
        warm(client)
        yield client


def _png() -> bytes:
    file = io.BytesIO()
    draw(("red", (4, 4, 30, 30))).save(file, "png")
    return file.getvalue()


def _named(spans: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def _id(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return format(span.context.trace_id, "032x"), format(span.context.span_id, "016x")


def test_a_detection_is_traced_from_the_caller_to_the_model(client: TestClient, spans: InMemorySpanExporter) -> None:
    client.get("/metrics")
    assert spans.get_finished_spans() == (), "warming up and probes are nobody's requests"
    assert client.post("/v1/detect", files={"image": _png()}, headers=ASKED).status_code == 200
    named = {name: one for name, (one,) in _named(spans).items()}
    assert named.keys() == {"POST /v1/detect", "decode", "queue", "detect", "batch"}
    request = named["POST /v1/detect"]
    assert request.parent is not None
    assert (_id(request)[0], format(request.parent.span_id, "016x")) == (TRACE, PARENT)
    for name in ("decode", "queue", "detect"):
        parent = named[name].parent
        assert _id(named[name])[0] == TRACE
        assert parent is not None
        assert format(parent.span_id, "016x") == _id(request)[1]
    facts = {"foveal.model": "detector", "foveal.stage": "detect", "foveal.batch.size": 1}
    assert dict(named["detect"].attributes or {}) == facts
    assert dict(named["queue"].attributes or {}) == {"foveal.model": "detector"}
    order = [named[name] for name in ("decode", "queue", "detect")]
    assert all((before.end_time or 0) <= (after.start_time or 0) for before, after in itertools.pairwise(order))
    assert [link.context for link in named["detect"].links] == [named["batch"].context]


def test_a_batch_is_linked_to_all_of_its_requests(client: TestClient, spans: InMemorySpanExporter) -> None:
    engine: Any = client.app.state.engine  # type: ignore[attr-defined]
    together(
        engine.lanes["detector"], engine.models["detector"],
        lambda: client.post("/v1/detect", files={"image": _png()}), 3,
    )  # fmt: skip
    named = _named(spans)
    requests = {_id(span) for span in named["POST /v1/detect"]}
    assert len({trace for trace, _ in requests}) == 4
    first, second = sorted(named["batch"], key=lambda span: len(span.links))
    assert [len(first.links), len(second.links)] == [1, 3]
    linked = [(format(link.context.trace_id, "032x"), format(link.context.span_id, "016x"))
              for batch in (first, second) for link in batch.links]  # fmt: skip
    assert set(linked) == requests
    assert _id(second)[0] not in {trace for trace, _ in requests}
    sizes = sorted(str((span.attributes or {})["foveal.batch.size"]) for span in named["detect"])
    assert sizes == ["1", "3", "3", "3"]
    assert sum(link.context == second.context for span in named["detect"] for link in span.links) == 3


def test_a_search_and_a_failure_tell_nothing_of_the_text(client: TestClient, spans: InMemorySpanExporter) -> None:
    assert client.post("/v1/search?note=umbrella", json={"text": "red umbrella"}).status_code == 200
    assert {"POST /v1/search", "queue", "encode", "search", "batch"} == _named(spans).keys()
    assert client.post("/v1/search", json={"text": "fail umbrella"}).status_code == 500
    failed = [span for span in spans.get_finished_spans() if span.status.status_code == StatusCode.ERROR]
    assert sorted(span.name for span in failed) == ["POST /v1/search", "batch", "encode"]
    assert all(dict(span.attributes or {})["error.type"] for span in failed)
    text = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "builtins.ValueError" in text
    assert "umbrella" not in text


def test_the_log_names_the_trace(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    with logs.writing("json"):
        client.post("/v1/search", json={"text": "red"}, headers=ASKED)
    (line,) = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert line["trace"] == TRACE


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, as a collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names: list[str] = []
        self.services: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf":
            for told in ExportTraceServiceRequest.FromString(body).resource_spans:
                said = {fact.key: fact.value.string_value for fact in told.resource.attributes}
                self.server.services.add(said["service.name"])
                self.server.names += [span.name for scope in told.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_spans_reach_a_collector_by_the_end(collector: Collector, archive: Archive) -> None:
    with exporting(collector.url) as provider:
        app = create_app(archive=archive, encoder=ColourEncoder(), traces=provider)
        with running(app) as url:
            assert httpx.post(f"{url}/v1/search", json={"text": "red"}, headers=ASKED).status_code == 200
    assert sorted(collector.names) == ["POST /v1/search", "batch", "encode", "queue", "search"]
    assert collector.services == {"foveal"}


@pytest.mark.slow
def test_a_collector_that_is_away_stops_nobody(archive: Archive) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    began = time.monotonic()
    with exporting(address) as provider:
        app = create_app(archive=archive, encoder=ColourEncoder(), traces=provider)
        with running(app) as url:
            assert httpx.post(f"{url}/v1/search", json={"text": "red"}, timeout=2).status_code == 200
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("address", ["collector:4318", "grpc://127.0.0.1:4317", "http://"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match="--otlp"), exporting(address):
        pass
    assert "--otlp" in foveal("serve", "--archive", "not/here", "--otlp", address).error  # before models are loaded


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigError, match=r"pip install 'foveal\[tracing\]'"), exporting("http://127.0.0.1:4318"):
        pass


@pytest.mark.slow
def test_foveal_serve_sends_its_traces(collector: Collector, pictures: Path, tmp_path: Path) -> None:
    encoder = load_encoder("bundled:clip")
    Archive.create(tmp_path / "depot", encoder).add(pictures, encoder)
    words = ["serve", "--archive", str(tmp_path / "depot"), "--port", "0", "--json", "--otlp", collector.url]
    process = subprocess.Popen(shell(*words), stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert httpx.post(f"{url}/v1/search", json={"text": "red"}, timeout=60).status_code == 200
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 0
    assert {"POST /v1/search", "batch", "encode", "queue", "search"} <= set(collector.names)
