"""What the server says while it runs: a line for each request and for each record of a log, as JSON or for people.

`foveal serve --log-format` turns it on; importing this does nothing. No line has pictures, questions, search texts or
keys in it. The message of an error that nobody foresaw may quote any of these, so the JSON form gives its type and the
place where it was raised instead; the text form, for one's own machine, has the whole traceback.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from foveal.errors import FovealError

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = ("text", "json")
PROBES = ("/livez", "/readyz", "/metrics")  # asked every few seconds: said at DEBUG
TELLING = (FovealError, OSError, MemoryError)  # errors whose messages name things of the server, not of the request
requests = logging.getLogger("foveal.serve.request")


@dataclass(slots=True)
class Asked:
    """The request that is being worked on."""

    id: str
    batches: list[dict[str, Any]] = field(default_factory=list)  # what models did for it
    trace: str | None = None  # the id of its trace, where there is one


_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


def begin(id: str) -> Asked:
    """Starts a request: from here on its id is in every record."""
    asked = Asked(id)
    _asked.set(asked)
    return asked


def batched(model: str, stage: str, size: int, waited: float) -> None:
    """Notes that a model worked on the request at hand, together with others, after `waited` seconds."""
    if (asked := _asked.get()) is not None:
        asked.batches.append({"model": model, "stage": stage, "batch": size, "queue_ms": round(1000 * waited, 2)})


def answered(asked: Asked, method: str, route: str, status: int, seconds: float, key: str | None) -> None:
    """The line of a request."""
    level = logging.DEBUG if route in PROBES and status in (200, 503) else logging.INFO
    if requests.isEnabledFor(level):
        facts = {"method": method, "route": route, "status": status, "ms": round(1000 * seconds, 2), "key": key}
        text = f"{method} {route} {status} {1000 * seconds:.1f} ms"
        requests.log(level, text, extra={"facts": {**facts, "batches": asked.batches}})


@contextmanager
def writing(form: Format) -> Generator[Callable[[], None]]:
    """Sends the records of this process to stderr until the context ends: ours and uvicorn's from INFO on, others' from
    WARNING on. Yields what takes their own handlers from libraries that were imported meanwhile.
    """
    handler = logging.StreamHandler(sys.stderr)
    lines = JsonLines() if form == "json" else TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(lines)
    before = {name: _state(name) for name in ("", "foveal", "uvicorn")}

    def gather() -> None:
        for name, logger in list(logging.root.manager.loggerDict.items()):
            if isinstance(logger, logging.Logger) and logger.handlers:
                before.setdefault(name, _state(name))
                logger.handlers[:], logger.propagate = [], True

    logging.root.handlers[:] = [handler]
    for name in before:
        logging.getLogger(name).setLevel(logging.INFO if name else logging.WARNING)
    logging.captureWarnings(True)
    gather()
    try:
        yield gather
    finally:
        logging.captureWarnings(False)
        for name, (handlers, level, propagate) in before.items():
            logger = logging.getLogger(name)
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def _state(name: str) -> tuple[list[logging.Handler], int, bool]:
    logger = logging.getLogger(name)
    return logger.handlers[:], logger.level, logger.propagate


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == "asyncio":  # further lines show tasks, with the messages of their errors
            message = message.partition("\n")[0]
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        if (asked := _asked.get()) is not None:
            line["request"] = asked.id
            if asked.trace is not None:
                line["trace"] = asked.trace
        line |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _error(record.exc_info[1])
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """A record for people, on one line but for a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        asked = _asked.get()
        text = super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")
        return text if asked is None else f"{text} request={asked.id}"


def _error(error: BaseException) -> dict[str, Any]:
    """Type, place and cause of an error; its message only where that cannot quote a request."""
    frames = traceback.extract_tb(error.__traceback__)
    told: dict[str, Any] = {"type": f"{type(error).__module__}.{type(error).__qualname__}"}
    if isinstance(error, TELLING):
        told["message"] = str(error)
    told["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        told["cause"] = _error(cause)
    return told
