"""Running the application: in the foreground until a signal, or in the background of a test or script."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foveal.errors import BadInput, Unavailable

DRAIN_SECONDS = 5  # that open requests get to finish after a signal
START_SECONDS = 60.0
HEADER_SECONDS = 10.0  # from connecting, or a request's first byte, to the end of its header


def serve(
    app: FastAPI, host: str = "127.0.0.1", port: int = 8000, *, on_ready: Callable[[str], object] | None = None
) -> None:
    """Serves until SIGINT or SIGTERM, then lets open requests finish and returns.

    Args:
        on_ready: called with the base URL once requests are answered.

    Raises:
        Unavailable: the port is in use or not allowed, or the application does not start.
        BadInput: the host is not an address of this machine, or others could reach it and there are no keys.
    """
    listener = listen(host, port)
    try:
        serve_on(listener, app, on_ready=on_ready)
    finally:
        listener.close()


def serve_on(listener: socket.socket, app: FastAPI, *, on_ready: Callable[[str], object] | None = None) -> None:
    """As `serve`, on a socket that listens already and may be shared with other processes."""
    if getattr(app.state, "keys", None) is None:
        host = listener.getsockname()[0]
        if not ip_address(host).is_loopback:
            raise BadInput(
                f"{host} can be reached by others, who could see and change everything here",
                expected="keys, or an address of this machine only",
                remedy="foveal keys add NAME --verb search, then foveal serve --keys runs/keys.sqlite.",
            )
        app.state.local_only = True
    server = _Server(_config(app, logging.INFO), on_started=lambda: on_ready and on_ready(url_of(listener)))
    # uvicorn raises the signal again when it is done; by then all is shut down, so it has nothing left to say.
    previous = {each: signal.signal(each, _ignore) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with suppress(KeyboardInterrupt):
            _run(server, listener)
        if not server.started:
            raise Unavailable("the server did not start", remedy="Its log says why.")
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


@contextmanager
def running(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> Generator[str]:
    """The app on a background thread; yields its base URL once the models are warm, and stops it at the end.

    Raises:
        Unavailable: the port is in use, or the app does not start within a minute.
    """
    listener = listen(host, port)
    server = _Server(_config(app, logging.WARNING))
    thread = threading.Thread(target=_run, args=(server, listener), name="foveal-serve", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (server.started and _warm(app)):
            failure = getattr(getattr(app.state, "engine", None), "failure", None)
            if not thread.is_alive() or failure or time.monotonic() > deadline:
                raise Unavailable("the server did not start", received=failure, remedy="Its log says why.")
            time.sleep(0.01)
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(DRAIN_SECONDS + 5)
        listener.close()


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with suppress(SystemExit):  # how uvicorn says that the application's startup failed; `started` says so too
        server.run([listener])


def _ignore(number: int, frame: object) -> None:
    """A handler that does nothing."""


class _Server(uvicorn.Server):
    """uvicorn's server, with a word when it has started."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], object] | None = None) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started()


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for the rest of a header for ever; bodies have a deadline."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(False)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect()

    def on_headers_complete(self) -> None:
        self._expect(False)
        super().on_headers_complete()

    def _expect(self, header: bool = True) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(HEADER_SECONDS, self.transport.close) if header else None


def _config(app: FastAPI, level: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level=level,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        lifespan="on",
        ws="none",
        http=_Protocol,
    )


def _warm(app: FastAPI) -> bool:
    engine = getattr(app.state, "engine", None)
    return engine is None or bool(engine.warm)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises as `serve`."""
    if not 0 <= port <= 65535:
        raise BadInput(f"{port} is not a port", expected="0 to 65535 (0 picks a free one)", remedy="Change --port.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise BadInput(f"cannot listen on {host!r}: {error.strerror}", remedy="Use --host 127.0.0.1.") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Unavailable(
                f"port {port} on {host} is in use", remedy="Stop what listens there, or pass another --port."
            ) from None
        if error.errno == errno.EACCES:
            raise Unavailable(f"port {port} needs privileges", remedy="Pass a --port of 1024 or above.") from None
        raise BadInput(f"cannot listen on {host}:{port}: {error.strerror}", remedy="Use --host 127.0.0.1.") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
