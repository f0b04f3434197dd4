"""What surrounds every request: an id, its time, a limit on its body, and errors in one shape.

Every error is `{"error": {"type", "message", "expected", "received", "remedy"}}`, with the status that fits:
400 a request that cannot be read, 404 something that is not here, 409 vectors of another encoder, 413 too large,
422 a readable request whose content cannot be used, 503 something that is not ready or not there at the moment.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foveal.errors import BadInput, ConfigError, FingerprintMismatch, FovealError, Unavailable
from serve.engine import NotFound, TooLarge
from serve.metrics import Metrics

log = logging.getLogger("foveal.serve")
LIMITED = (
    "/v1/",
    "/label-studio/",
    "/x-anylabeling/",
    "/api/",
    "/knn-service",
    "/metadata",
)  # what has a limit on its body; pages of the demo have their own
REQUEST_ID = re.compile(r"[\w.-]{1,64}")
# The first class that an error is an instance of decides its status.
STATUS: tuple[tuple[type[FovealError], int], ...] = (
    (NotFound, 404),
    (TooLarge, 413),
    (FingerprintMismatch, 409),
    (Unavailable, 503),
    (BadInput, 422),
    (ConfigError, 422),
    (FovealError, 500),
)


class BadRequest(BadInput):
    """A request that cannot even be read."""


def error_response(
    status: int,
    kind: str,
    message: str,
    *,
    expected: str | None = None,
    received: str | None = None,
    remedy: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An answer in the one error shape."""
    body = {"type": kind, "message": message, "expected": expected, "received": received, "remedy": remedy}
    return JSONResponse({"error": body}, status, dict(headers or {}))


def install(app: FastAPI, metrics: Metrics, body_bytes: int) -> None:
    """Adds the middleware and the error handlers to `app`."""
    app.add_middleware(_Surroundings, metrics=metrics, body_bytes=body_bytes)
    app.add_exception_handler(FovealError, _foveal_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)


def foveal_response(error: FovealError) -> JSONResponse:
    """The answer to an error that says what was wrong."""
    status = 400 if isinstance(error, BadRequest) else next(code for kind, code in STATUS if isinstance(error, kind))
    headers = {"Retry-After": "1"} if status == 503 else {}
    return error_response(
        status, type(error).__name__, error.message, expected=error.expected, received=error.received,
        remedy=error.remedy, headers=headers,
    )  # fmt: skip


async def _foveal_error(request: Request, error: Exception) -> JSONResponse:
    response = foveal_response(cast(FovealError, error))
    if response.status_code >= 500:
        log.error("%s %s failed: %s", request.method, request.url.path, error)
    return response


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    first: dict[str, Any] = dict(cast(RequestValidationError, error).errors()[0])
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    if first["type"] == "json_invalid":
        return error_response(
            400,
            "BadRequest",
            "the body is not valid JSON",
            expected="a JSON object",
            received=str(first["ctx"]["error"]),
        )
    value = first.get("input")
    received = None if first["type"] == "missing" else f"{type(value).__name__} {str(value)[:80]!r}"
    return error_response(422, "BadRequest", f"{place}: {first['msg']}", received=received)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, _BodyTooLarge):
        return error.response()
    found = cast(HTTPException, error)
    remedy = "See /openapi.json for what this server answers." if found.status_code in (404, 405) else None
    return error_response(
        found.status_code, "HTTPError", f"{request.method} {request.url.path}: {found.detail}", remedy=remedy,
        headers=found.headers,
    )  # fmt: skip


class _BodyTooLarge(HTTPException):
    """An HTTPException because FastAPI turns any other error while reading a body into a 400."""

    def __init__(self, most: int) -> None:
        super().__init__(413)
        self.most = most

    def response(self) -> JSONResponse:
        return error_response(
            413,
            "TooLarge",
            "the request body is too large",
            expected=f"at most {self.most:,} bytes",
            remedy="Send a smaller image.",
            headers={"Connection": "close"},
        )


class _Surroundings:
    """Pure ASGI, so that bodies stream through; pages of the demo pass untouched but for their id."""

    def __init__(self, app: ASGIApp, metrics: Metrics, body_bytes: int) -> None:
        self.app, self.metrics, self.body_bytes = app, metrics, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        api = scope["path"].startswith(LIMITED)
        status, began, seen = 500, time.perf_counter(), 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if api and seen > self.body_bytes:
                raise _BodyTooLarge(self.body_bytes)
            return message

        started = False

        async def answered(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            declared = headers.get(b"content-length", b"")
            if api and declared.isdigit() and int(declared) > self.body_bytes:
                raise _BodyTooLarge(self.body_bytes)
            await self.app(scope, counted, answered)
        except _BodyTooLarge as error:
            if started:
                raise
            await error.response()(scope, receive, answered)
        except Exception:
            log.exception("request %s to %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise
            response = error_response(
                500, "InternalError", "the server failed on this request",
                remedy=f"Its log has the cause under request id {request_id}.",
            )  # fmt: skip
            await response(scope, receive, answered)
        finally:
            self.metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", None) or ("other" if api else "pages")
            self.metrics.requests.labels(route, scope["method"], str(status)).inc()
            self.metrics.latency.labels(route).observe(time.perf_counter() - began)
