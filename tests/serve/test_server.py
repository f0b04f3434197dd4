from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from foveal.errors import BadInput, Unavailable
from serve.server import running, serve

ROOT = Path(__file__).parents[2]
# A child that serves the colour detector, prints its address, and says when it has ended cleanly.
CHILD = """
import sys
from serve.app import create_app
from serve.server import serve
from tests.serve.conftest import ColourDetector
serve(create_app(detector=ColourDetector()), port=int(sys.argv[1]), on_ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


def test_running_serves_over_http_and_stops(app: FastAPI) -> None:
    with running(app) as url:
        assert httpx.get(f"{url}/readyz").status_code == 200
        hits = httpx.post(f"{url}/v1/search", json={"text": "red", "k": 2}).json()["hits"]
        assert all("red" in hit["uri"] for hit in hits)
        assert len(httpx.get(url + hits[0]["image_url"]).content) > 100
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez")


def test_a_port_in_use_is_one_line_with_a_remedy(app: FastAPI) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for start in (lambda: serve(app, port=port), lambda: running(app, port=port).__enter__()):
            with pytest.raises(Unavailable, match=rf"port {port} on 127.0.0.1 is in use\. .*--port") as caught:
                start()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("192.0.2.7", 0), ("127.0.0.1", 70_000)])
def test_an_address_that_is_not_here_is_refused(app: FastAPI, host: str, port: int) -> None:
    with pytest.raises(BadInput):
        serve(app, host, port)


@asynccontextmanager
async def failing(_: FastAPI) -> AsyncGenerator[None]:
    raise RuntimeError("no")
    yield


def test_an_app_that_cannot_start_is_reported() -> None:
    with pytest.raises(Unavailable, match="did not start"), running(FastAPI(lifespan=failing)):
        pass
    with pytest.raises(Unavailable, match="did not start"):
        serve(FastAPI(lifespan=failing), port=0)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "0"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert httpx.get(f"{url}/livez").status_code == 200
        began = time.monotonic()
        child.send_signal(number)
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out.strip()) == (0, "ended")
        assert "Traceback" not in err
        assert time.monotonic() - began < 10
    finally:
        child.kill()
