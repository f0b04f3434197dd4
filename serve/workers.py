"""Several processes behind one port: for more cores than one Python can use, and so that one of them may die.

All of them listen on one socket, so that a connection goes to whoever is free, and none is lost with a process that has
not taken it. What a request changes lies in files that processes share: archives (memory-mapped, so that their pages
are in memory once), jobs, corrections, keys and how often they were used. Models are loaded in each. A process that
ends is started again; requests that it was working on are lost with it, as their clients see.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead

from foveal.errors import BadInput, FovealError, Unavailable
from foveal.runtime import usable_cores
from serve import logs
from serve.server import DRAIN_SECONDS, listen, serve_on, url_of

log = logging.getLogger("foveal.serve")
Build = Callable[[], AbstractContextManager[FastAPI]]
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a process that ended is started again, doubling
SETTLED = 60.0  # seconds after which an end is no longer held against the start


@dataclass(slots=True)
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection  # it says "ready" or why it is not; each side sees by its end that the other has gone
    started: float = field(default_factory=time.monotonic)
    pause: float = FIRST_PAUSE


def serve_many(
    build: Build,
    count: int,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    together: Path,
    log_format: logs.Format = "text",
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Serves from `count` processes until SIGINT or SIGTERM, then lets open requests finish and returns.

    Args:
        build: makes the application of a process; what it holds is let go at the end. It is sent to the processes, so
            it must be something that can be imported by its name.
        together: empty folder in which the processes keep what they count together.
        on_ready: called with the base URL once every process answers.

    Raises:
        BadInput: fewer than two processes, or as `serve.server.serve`.
        Unavailable: the port is in use.
        FovealError: a process does not start, for the reason that it gives.
    """
    if count < 2:
        raise BadInput("these are not several processes", expected="2 or more", received=str(count))
    listener = listen(host, port)
    woken, wake = multiprocessing.Pipe(duplex=False)
    previous = {each: signal.signal(each, lambda *_: wake.send(None)) for each in (signal.SIGINT, signal.SIGTERM)}
    crew = _Crew(build, listener, log_format)
    try:
        with _environment(together, max(1, usable_cores() // count)):
            for number in range(count):
                crew.start(number)
            if crew.all_ready(woken):
                if on_ready is not None:
                    on_ready(url_of(listener))
                crew.watch(woken)
    finally:
        crew.end()
        for each, handler in previous.items():
            signal.signal(each, handler)
        listener.close()


@dataclass(slots=True)
class _Crew:
    build: Build
    listener: socket.socket
    log_format: logs.Format
    workers: dict[Connection, _Worker] = field(default_factory=dict[Connection, _Worker])

    def start(self, number: int, pause: float = FIRST_PAUSE) -> None:
        context = multiprocessing.get_context("spawn")  # models and threads do not survive a fork
        pipe, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(self.build, self.listener, theirs, self.log_format), name=f"foveal-{number}"
        )
        process.start()
        theirs.close()
        self.workers[pipe] = _Worker(number, process, pipe, pause=pause)

    def all_ready(self, woken: Connection) -> bool:
        """Waits until each answers; False when there was a signal meanwhile."""
        waiting = set(self.workers)
        while waiting:
            for pipe in wait([*waiting, woken]):
                if pipe is woken:
                    return False
                assert isinstance(pipe, Connection)
                worker = self.workers[pipe]
                try:
                    said: str | None = pipe.recv()
                except (EOFError, OSError):
                    raise Unavailable(f"process {worker.number} did not start", remedy="Its log says why.") from None
                if said is not None:
                    raise FovealError(said)
                waiting.discard(pipe)
        return True

    def watch(self, woken: Connection) -> None:
        """Starts again whoever ends, until there is a signal."""
        due: dict[int, tuple[float, float]] = {}  # number -> (when, the pause after that)
        while True:
            soonest = min((when for when, _ in due.values()), default=None)
            timeout = None if soonest is None else max(0.0, soonest - time.monotonic())
            for pipe in wait([*self.workers, woken], timeout):
                if pipe is woken:
                    return
                assert isinstance(pipe, Connection)
                worker = self.workers[pipe]
                try:
                    if (said := pipe.recv()) is not None:
                        log.error("process %d cannot start: %s", worker.number, said)
                except (EOFError, OSError):
                    self._gone(worker)
                    pause = FIRST_PAUSE if time.monotonic() - worker.started > SETTLED else worker.pause
                    due[worker.number] = time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE)
            for number, (when, pause) in list(due.items()):
                if when <= time.monotonic():
                    del due[number]
                    self.start(number, pause)

    def _gone(self, worker: _Worker) -> None:
        del self.workers[worker.pipe]
        worker.pipe.close()
        worker.process.join()
        mark_process_dead(worker.process.pid)
        log.error("process %d ended with code %s; it is started again", worker.number, worker.process.exitcode)

    def end(self) -> None:
        """Lets all finish what they are at, within reason."""
        for worker in self.workers.values():
            worker.process.terminate()
        until = time.monotonic() + DRAIN_SECONDS + 5
        for worker in self.workers.values():
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                log.error("process %d did not end and is stopped", worker.number)
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


@contextmanager
def _environment(together: Path, threads: int) -> Generator[None]:
    """What the processes find in their environment: where figures are shared, and how many cores are theirs."""
    figures = together / "metrics"
    figures.mkdir()
    set_here = {"PROMETHEUS_MULTIPROC_DIR": str(figures), "OMP_NUM_THREADS": str(threads)}
    before = {name: os.environ.get(name) for name in set_here}
    os.environ.update(set_here)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _work(build: Build, listener: socket.socket, pipe: Connection, log_format: logs.Format) -> None:
    """The whole life of a process."""
    threading.Thread(target=_follow, args=(pipe,), name="parent", daemon=True).start()
    try:
        with logs.writing(log_format) as gather, build() as app:
            gather()  # of libraries that came with the models
            serve_on(listener, app, on_ready=lambda _: pipe.send(None))
    except FovealError as error:
        pipe.send(str(error))
        sys.exit(1)


def _follow(pipe: Connection) -> None:
    """Ends this process once its parent has gone."""
    with suppress(OSError):
        with suppress(EOFError):
            pipe.recv()
        os.kill(os.getpid(), signal.SIGTERM)
