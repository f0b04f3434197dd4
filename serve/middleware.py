"""What surrounds every request: who may ask, an id, its time, limits on its body and seconds, errors in one shape.

Every error is `{"error": {"type", "message", "expected", "received", "remedy"}}`, with the status that fits:
400 a request that cannot be read, 401 no key, 403 a key that may not, 404 something that is not here, 409 vectors of
another encoder, 413 too large, 422 a readable request whose content cannot be used, 429 a key that asks too often,
503 something that is not ready or not there at the moment.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.cookies import SimpleCookie
from typing import Any, cast
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foveal.errors import BadInput, ConfigError, FingerprintMismatch, FovealError, Unavailable
from serve import logs
from serve.audit import Audit, NotAudited, showing
from serve.keys import VERBS, Key, Keys, Refused, TooOften, caller, verb_of, within
from serve.lanes import Overloaded
from serve.limits import Limits, NotFound, TooLarge
from serve.metrics import Metrics
from serve.tracing import current

log = logging.getLogger("foveal.serve")
# What has limits on its body, its time and how much of it goes on at once; pages of the demo have their own.
LIMITED = ("/v1", *(path for verb in ("search", "detect") for path in VERBS[verb] if not path.startswith("/v1/")))
LOCAL = ("127.0.0.1", "localhost", "::1")
COOKIE = "foveal_key"
ARRIVING = 4  # times as many requests as are worked on at once may be open while their bodies arrive
EVENTS = b"text/event-stream"
REQUEST_ID = re.compile(r"[\w.-]{1,64}")


class BadRequest(BadInput):
    """A request that cannot even be read."""


# The first class that an error is an instance of decides its status.
STATUS: tuple[tuple[type[FovealError], int], ...] = (
    (BadRequest, 400),
    (TooOften, 429),
    (NotFound, 404),
    (TooLarge, 413),
    (FingerprintMismatch, 409),
    (Unavailable, 503),
    (BadInput, 422),
    (ConfigError, 422),
    (FovealError, 500),
)


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


def install(
    app: FastAPI, metrics: Metrics, limits: Limits, keys: Keys | None = None, audit: Audit | None = None
) -> None:
    """Adds the middleware and the error handlers to `app`."""
    app.add_middleware(_Surroundings, metrics=metrics, limits=limits, keys=keys, audit=audit)
    app.add_exception_handler(FovealError, _foveal_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)


def foveal_response(error: FovealError) -> JSONResponse:
    """The answer to an error that says what was wrong."""
    if isinstance(error, Refused):
        status = error.status
    else:
        status = next(code for kind, code in STATUS if isinstance(error, kind))
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if status in (429, 503):
        headers = {"Retry-After": str(error.retry_after if isinstance(error, (Overloaded, TooOften)) else 1)}
    return error_response(
        status, type(error).__name__, error.message, expected=error.expected, received=error.received,
        remedy=error.remedy, headers=headers,
    )  # fmt: skip


async def _foveal_error(request: Request, error: Exception) -> JSONResponse:
    response = foveal_response(cast(FovealError, error))
    if response.status_code >= 500:
        log.error("%s %s failed: %s", request.method, _route(request.scope), error)
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

    def __init__(self, app: ASGIApp, metrics: Metrics, limits: Limits, keys: Keys | None, audit: Audit | None) -> None:
        self.app, self.metrics, self.limits, self.keys, self.audit = app, metrics, limits, keys, audit
        self.at_once = 0  # of the API
        self.arriving = 0  # of those, whose body is still on its way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        api = within(scope["path"], LIMITED)
        status, began, seen, whole = 500, time.perf_counter(), 0, False

        async def counted() -> Message:
            nonlocal seen, whole
            waits = api and not whole
            self.arriving += waits
            try:
                message = await receive()
            finally:
                self.arriving -= waits
            whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if api and seen > self.limits.body_bytes:
                raise _BodyTooLarge(self.limits.body_bytes)
            return message

        started = audited = False

        def audit() -> None:
            nonlocal audited
            if self.audit is None or audited or _route(scope) in logs.PROBES:
                return
            audited = True  # tried once: the answer that it failed is not another one
            self.audit.write(
                shown,
                request=request_id,
                key=key and key.name,
                client=(scope.get("client") or ("",))[0],
                method=scope["method"],
                path=scope["path"],
                status=status,
            )

        deadline: asyncio.Timeout | None = None

        async def answered(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status = message["status"]
                audit()  # first: nothing is shown or confirmed that is not written down
                started = True
                if deadline is not None and (b"content-type", EVENTS) in _lower(message["headers"]):
                    deadline.reschedule(None)  # it has begun to answer, and says more as it goes
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        async def reply(response: Response) -> None:
            try:
                await response(scope, receive, answered)
            except NotAudited as error:
                await self._unaudited(error)(scope, receive, answered)

        self.metrics.in_flight.inc()
        self.at_once += api
        shown, asked, key = showing(), logs.begin(request_id), None
        asked.trace = current(scope)
        try:
            _trust(scope, headers)
            key = self._admit(scope, headers)
            caller.set(key)
            # For pages, whose work goes on outside of this request's context.
            scope["foveal.key"], scope["foveal.audit"] = key, self.audit
            if api and self._crowded():
                self.metrics.refused.labels("at once").inc()
                raise Overloaded(f"{self.at_once - 1} requests are being worked on", 1.0)
            declared = headers.get(b"content-length", b"")
            if api and declared.isdigit() and int(declared) > self.limits.body_bytes:
                raise _BodyTooLarge(self.limits.body_bytes)
            async with asyncio.timeout(self.limits.seconds if api else None) as deadline:
                await self.app(scope, counted, answered)
        except (Overloaded, Refused, TooOften, BadRequest, TimeoutError) as error:
            if started:
                raise
            if isinstance(error, TimeoutError):
                self.metrics.refused.labels("deadline").inc()
                error = Overloaded(f"no answer within {self.limits.seconds:g} s", 1.0)
            if isinstance(error, Refused) and scope["method"] == "GET" and b"text/html" in headers.get(b"accept", b""):
                response: Response = RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
            else:
                response = foveal_response(error)
            await reply(response)
        except _BodyTooLarge as error:
            if started:
                raise
            await reply(error.response())
        except NotAudited as error:
            await self._unaudited(error)(scope, receive, answered)
        except Exception:
            log.exception("%s %s failed", scope["method"], _route(scope))
            if started:
                raise
            failure = error_response(
                500, "InternalError", "the server failed on this request",
                remedy=f"Its log has the cause under request id {request_id}.",
            )  # fmt: skip
            await reply(failure)
        finally:
            self.at_once -= api
            self.metrics.in_flight.dec()
            route, seconds = _route(scope), time.perf_counter() - began
            self.metrics.requests.labels(route, scope["method"], str(status)).inc()
            self.metrics.latency.labels(route).observe(seconds)
            logs.answered(asked, scope["method"], route, status, seconds, key and key.name)
            with suppress(NotAudited):
                audit()  # of a client that went away before the answer

    def _crowded(self) -> bool:
        """Whether too much is being worked on; what slow clients are still sending is little work, within reason."""
        return self.at_once - self.arriving > self.limits.at_once or self.at_once > ARRIVING * self.limits.at_once

    def _unaudited(self, error: NotAudited) -> JSONResponse:
        self.metrics.refused.labels("audit").inc()
        log.error("a request was not answered because it could not be audited: %s", error)
        return error_response(
            503, "Unavailable", "the server cannot write down who saw what, and shows nothing meanwhile",
            remedy="Its log says why; try again later.", headers={"Retry-After": "10"},
        )  # fmt: skip

    def _admit(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Key | None:
        """The key of a request; None where none is needed."""
        verb = verb_of(scope["method"], scope["path"])
        if self.keys is None or verb is None:
            return None
        return self.keys.admit(_secret(headers), verb)


def _route(scope: Scope) -> str:
    """The pattern of a request's path: few of them, and nothing of what was asked."""
    found = getattr(scope.get("route"), "path", None)
    return found or ("other" if within(scope["path"], LIMITED) else "pages")


def _lower(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Names, and values without parameters, in lower case."""
    return [(name.lower(), value.partition(b";")[0].strip().lower()) for name, value in headers]


def _secret(headers: Mapping[bytes, bytes]) -> str | None:
    """The key that a request brings: as bearer token, as password, as `Token`, or in the cookie of the pages."""
    kind, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    if b"token" in headers:  # X-AnyLabeling's way
        return headers[b"token"].decode("latin-1")
    cookie = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
    return None if cookie is None else cookie.value


def _trust(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Refuses names of this machine that a web page may have been given, where nothing else tells who asks.

    Raises:
        BadRequest: the server is for this machine only, and is called by another name.
    """
    if not getattr(scope["app"].state, "local_only", False):
        return
    host = headers.get(b"host", b"").decode("latin-1").rpartition(":")
    name = (host[0] or host[2]).strip("[]") if host[1] else host[2]
    if name not in LOCAL:
        raise BadRequest(
            "this server answers on this machine only", expected=f"the host {' or '.join(LOCAL)}", received=name[:80],
            remedy="To be called by other names it needs keys: foveal serve --keys FILE.",
        )  # fmt: skip
