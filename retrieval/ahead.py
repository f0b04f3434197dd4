"""Running an iterator in a thread of its own, a few values ahead of whoever takes them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")


def ahead(values: Generator[T], depth: int) -> Generator[T]:
    """The values in order, up to `depth` of them made before they are asked for.

    What `values` raises is raised here, after the values before it. Closing this closes `values` in its own thread,
    and waits for that.
    """
    made: Queue[T | _End] = Queue(depth)
    stop = threading.Event()

    def put(value: T | _End) -> None:
        while not stop.is_set():
            try:
                return made.put(value, timeout=0.1)
            except Full:
                continue

    def run() -> None:
        try:
            with closing(values):
                for value in values:
                    put(value)
                    if stop.is_set():
                        return
            put(_End())
        except BaseException as error:  # whatever it is, it belongs to the one who asked
            put(_End(error))

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        yield from _until_end(made)
    finally:
        stop.set()
        thread.join()


class _End:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _until_end(made: Queue[T | _End]) -> Iterator[T]:
    while True:
        try:
            value = made.get(timeout=1.0)  # a wait without end would not notice Ctrl-C everywhere
        except Empty:
            continue
        if not isinstance(value, _End):
            yield value
        elif value.error is not None:
            raise value.error
        else:
            return
