"""Asks a running Foveal server, from Python.

    from foveal.client import Client, picture
    from foveal.schemas import DetectRequest, SearchRequest

    with Client("http://127.0.0.1:8000") as client:
        for hit in client.send(SearchRequest(text="a red crate", k=5)).hits:
            print(hit.similarity, hit.uri)
        found = client.send(DetectRequest(image=picture("photo.jpg"), threshold=0.4))

Each request of `foveal.schemas` knows where it goes and how it is answered. `AsyncClient` is the same with `await`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx
from pydantic import BaseModel, ValidationError

from foveal.chat import ChatAnswer, ChatRequest
from foveal.errors import BadInput, FingerprintMismatch, FovealError, Unavailable
from foveal.schemas import ANSWERS, ArchiveCard, ArchiveList, Item, ItemsAnswer, ModelCard, ModelList, Request

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


class _Calls:
    """What both clients share: where to go, what an answer means, whether to try again."""

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
        try:
            return kind.model_validate_json(self.read(answer).content)
        except ValidationError as error:
            raise Unavailable(
                f"{self.url} does not answer as a Foveal server does", received=str(error)[:200]
            ) from None


def _sent(request: Request[A]) -> tuple[str, bytes, type[A]]:
    """Where a request goes, its body, and the kind of its answer."""
    kind = cast(type[A], KINDS[type(request)])
    return request.path, request.model_dump_json(exclude_unset=True).encode(), kind


def _item(id: str, archive: str | None, **asked: Any) -> tuple[str, dict[str, Any]]:
    return f"/v1/items/{id}", {**asked, **({} if archive is None else {"archive": archive})}


class Client:
    """A server, asked call by call.

    Args:
        key: see `foveal keys`.

    Raises (every method):
        Unavailable: nobody answers, the key may not do this, or there is too much going on even after some tries.
        BadInput: the request cannot be used, or names something that is not there.
        FingerprintMismatch: vectors of another encoder.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", key: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._calls = _Calls(url, key)
        self._http = httpx.Client(base_url=self._calls.url, timeout=timeout, headers=self._calls.headers)

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._calls.url

    def send(self, request: Request[A]) -> A:
        """What the server answers."""
        path, body, kind = _sent(request)
        return self._calls.parsed(self._call("POST", path, content=body), kind)

    def models(self) -> list[ModelCard]:
        """What is loaded."""
        return self._calls.parsed(self._call("GET", "/v1/models"), ModelList).data

    def archives(self) -> list[ArchiveCard]:
        """What can be searched."""
        return self._calls.parsed(self._call("GET", "/v1/archives"), ArchiveList).archives

    def item(self, id: str, archive: str | None = None) -> Item:
        """What is known of an image."""
        path, asked = _item(id, archive)
        return self._calls.parsed(self._call("GET", path, params=asked), Item)

    def image(self, id: str, size: int = 320, archive: str | None = None) -> bytes:
        """An image as JPEG, its longer side at most `size` pixels."""
        path, asked = _item(id, archive, size=size)
        return self._calls.read(self._call("GET", f"{path}/image", params=asked)).content

    def add(
        self, *images: Path | str, metadata: Mapping[str, str | int | float] | None = None, archive: str | None = None
    ) -> ItemsAnswer:
        """Adds image files to an archive, all with this metadata; they are kept once this returns."""
        return self._calls.parsed(self._call("POST", "/v1/items", **_form(images, metadata, archive)), ItemsAnswer)

    def delete(self, id: str, archive: str | None = None) -> None:
        """Takes an image out of an archive."""
        path, asked = _item(id, archive)
        self._calls.read(self._call("DELETE", path, params=asked))

    def close(self) -> None:
        """Lets the connections go."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, method: str, path: str, **sent: Any) -> httpx.Response | httpx.TransportError:
        turn = 0
        while True:
            try:
                answer: httpx.Response | httpx.TransportError = self._http.request(method, path, **_json(sent))
            except httpx.TransportError as error:
                answer = error
            if (seconds := self._calls.wait(turn, answer)) is None:
                return answer
            time.sleep(seconds)
            turn += 1


class AsyncClient:
    """`Client` for event loops; see there."""

    def __init__(self, url: str = "http://127.0.0.1:8000", key: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._calls = _Calls(url, key)
        self._http = httpx.AsyncClient(base_url=self._calls.url, timeout=timeout, headers=self._calls.headers)

    async def send(self, request: Request[A]) -> A:
        """See `Client.send`."""
        path, body, kind = _sent(request)
        return self._calls.parsed(await self._call("POST", path, content=body), kind)

    async def models(self) -> list[ModelCard]:
        """See `Client.models`."""
        return self._calls.parsed(await self._call("GET", "/v1/models"), ModelList).data

    async def archives(self) -> list[ArchiveCard]:
        """See `Client.archives`."""
        return self._calls.parsed(await self._call("GET", "/v1/archives"), ArchiveList).archives

    async def item(self, id: str, archive: str | None = None) -> Item:
        """See `Client.item`."""
        path, asked = _item(id, archive)
        return self._calls.parsed(await self._call("GET", path, params=asked), Item)

    async def image(self, id: str, size: int = 320, archive: str | None = None) -> bytes:
        """See `Client.image`."""
        path, asked = _item(id, archive, size=size)
        return self._calls.read(await self._call("GET", f"{path}/image", params=asked)).content

    async def add(
        self, *images: Path | str, metadata: Mapping[str, str | int | float] | None = None, archive: str | None = None
    ) -> ItemsAnswer:
        """See `Client.add`."""
        sent = _form(images, metadata, archive)
        return self._calls.parsed(await self._call("POST", "/v1/items", **sent), ItemsAnswer)

    async def delete(self, id: str, archive: str | None = None) -> None:
        """See `Client.delete`."""
        path, asked = _item(id, archive)
        self._calls.read(await self._call("DELETE", path, params=asked))

    async def close(self) -> None:
        """See `Client.close`."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: str, path: str, **sent: Any) -> httpx.Response | httpx.TransportError:
        turn = 0
        while True:
            try:
                answer: httpx.Response | httpx.TransportError = await self._http.request(method, path, **_json(sent))
            except httpx.TransportError as error:
                answer = error
            if (seconds := self._calls.wait(turn, answer)) is None:
                return answer
            await asyncio.sleep(seconds)
            turn += 1


def _form(
    images: Sequence[Path | str], metadata: Mapping[str, str | int | float] | None, archive: str | None
) -> dict[str, Any]:
    files = [("image", (Path(image).name, Path(image).read_bytes())) for image in images]
    said = {"metadata": json.dumps(dict(metadata or {}))} | ({} if archive is None else {"archive": archive})
    return {"files": files, "data": said}


def _json(sent: dict[str, Any]) -> dict[str, Any]:
    return {**sent, "headers": {"Content-Type": "application/json"}} if "content" in sent else sent
