"""A web server of pictures on this machine, and a `Web` that may fetch from it as if it were public."""

from __future__ import annotations

import http.server
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from retrieval.sources_web import Web
from tests.serve.processes import png


class Shelf(http.server.ThreadingHTTPServer):
    """Counts what it is asked for; `gate` holds its answers back."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.failing: set[str] = set()  # paths whose next answer is cut off

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://localhost:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self) -> None:
        """`/N.png` is a picture that is N wide; anything else a page, an error, or endless."""
        self.server.asked[self.path] += 1
        self.server.gate.wait(30)
        name = self.path.partition("?")[0].strip("/")
        if self.path in self.server.failing:
            self.server.failing.discard(self.path)
            self.connection.close()
            return
        if name == "moved":
            self.send_response(302)
            self.send_header("location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
            return
        if name == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if name == "slow":
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
            return
        if name == "large":
            self.wfile.write(bytes(3_000_000))
            return
        number = name.removesuffix(".png")
        self.wfile.write(png(5 + int(number)) if number.isdigit() else b"<!doctype html>")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def shelf() -> Generator[Shelf]:
    """A running one."""
    server = Shelf()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def web() -> Web:
    """May fetch from this machine."""
    return Web(("localhost",), public=lambda address: True)
