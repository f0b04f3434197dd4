"""What both clients of a server share: where to go, what to send, what an answer means, whether to try again."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
from pydantic import BaseModel, ValidationError

from foveal.chat import ChatAnswer, ChatRequest
from foveal.errors import BadInput, FingerprintMismatch, FovealError, Unavailable
from foveal.schemas import ANSWERS, JobRequest, Request

if TYPE_CHECKING:
    from PIL.Image import Image

A = TypeVar("A", bound=BaseModel)
TIMEOUT = 60.0  # seconds
KINDS: dict[type[Request[Any]], type[BaseModel]] = {**ANSWERS, ChatRequest: ChatAnswer}
TRIES = 4  # of a request that found nobody, or too much going on
WAIT = 0.5  # seconds before the second try, doubling, where the server names none
LONGEST = 30.0  # seconds that the server's wish is waited for


def picture(source: Image | Path | str | bytes) -> str:
    """An image for a request: pixels (sent as PNG), the bytes of an image file, or the path to one."""
    if isinstance(source, (str, Path)):
        source = Path(source).read_bytes()
    if not isinstance(source, bytes):
        data = io.BytesIO()
        source.save(data, "PNG")
        source = data.getvalue()
    return base64.b64encode(source).decode()


class Calls:
    """A server's address, and how its answers are read."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def wait(self, turn: int, answer: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds before another try; None when it is over."""
        lost = isinstance(answer, httpx.TransportError)
        if turn + 1 >= TRIES or not (lost or answer.status_code in (429, 502, 503, 504)):
            return None
        asked = "" if lost else answer.headers.get("retry-after", "")
        seconds = float(asked) if asked.isdigit() else WAIT * 2**turn
        return seconds if seconds <= LONGEST else None

    def read(self, answer: httpx.Response | httpx.TransportError) -> httpx.Response:
        """The answer, or the error that it is."""
        if isinstance(answer, httpx.TransportError):
            why = str(answer) or type(answer).__name__
            raise Unavailable(f"{self.url} does not answer: {why}", remedy="Check that the server is up.")
        if answer.status_code < 400:
            return answer
        try:
            said: Mapping[str, Any] = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            said = {"message": f"{self.url} answered {answer.status_code}: {answer.text[:200]}"}
        kind: type[FovealError] = FovealError
        if answer.status_code in (401, 403, 429, 502, 503, 504):
            kind = Unavailable
        elif answer.status_code == 409:
            kind = FingerprintMismatch
        elif answer.status_code < 500:
            kind = BadInput
        told = {name: said.get(name) for name in ("expected", "received", "remedy")}
        raise kind(str(said.get("message", answer.status_code)), **told)

    def parsed(self, answer: httpx.Response | httpx.TransportError, kind: type[A]) -> A:
        """The answer as what it should be."""
        try:
            return kind.model_validate_json(self.read(answer).content)
        except ValidationError as error:
            raise Unavailable(
                f"{self.url} does not answer as a Foveal server does", received=str(error)[:200]
            ) from None


def sent_to(request: Request[A]) -> tuple[str, bytes, type[A]]:
    """Where a request goes, its body, and the kind of its answer."""
    kind = cast(type[A], KINDS[type(request)])
    return request.path, request.model_dump_json(exclude_unset=True).encode(), kind


def job_request(
    urls: Sequence[str], metadata: Mapping[str, str | int | float] | None, archive: str | None
) -> JobRequest:
    """The request to fetch pictures; BadInput when it cannot be one."""
    try:
        return JobRequest(urls=list(urls), metadata=dict(metadata or {}), archive=archive)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{place}: {first['msg']}", expected="1 to 10,000 addresses, and flat metadata") from None


def item_path(id: str, archive: str | None, **asked: Any) -> tuple[str, dict[str, Any]]:
    """Where an item is, and the query that goes with it."""
    return f"/v1/items/{id}", {**asked, **({} if archive is None else {"archive": archive})}


def form(
    images: Sequence[Path | str], metadata: Mapping[str, str | int | float] | None, archive: str | None
) -> dict[str, Any]:
    """The form that sends picture files."""
    files = [("image", (Path(image).name, Path(image).read_bytes())) for image in images]
    said = {"metadata": json.dumps(dict(metadata or {}))} | ({} if archive is None else {"archive": archive})
    return {"files": files, "data": said}


def as_json(sent: dict[str, Any]) -> dict[str, Any]:
    """What is sent, said to be JSON where it has a body of its own."""
    return {**sent, "headers": {"Content-Type": "application/json"}} if "content" in sent else sent
