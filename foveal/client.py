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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from foveal.client_calls import TIMEOUT, A, Calls, as_json, form, item_path, job_request, picture, sent_to
from foveal.schemas import ArchiveCard, ArchiveList, Item, ItemsAnswer, Job, JobList, ModelCard, ModelList, Request

__all__ = ["AsyncClient", "Client", "picture"]


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
        self._calls = Calls(url, key)
        self._http = httpx.Client(base_url=self._calls.url, timeout=timeout, headers=self._calls.headers)

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._calls.url

    def send(self, request: Request[A]) -> A:
        """What the server answers."""
        path, body, kind = sent_to(request)
        return self._calls.parsed(self._call("POST", path, content=body), kind)

    def models(self) -> list[ModelCard]:
        """What is loaded."""
        return self._calls.parsed(self._call("GET", "/v1/models"), ModelList).data

    def archives(self) -> list[ArchiveCard]:
        """What can be searched."""
        return self._calls.parsed(self._call("GET", "/v1/archives"), ArchiveList).archives

    def item(self, id: str, archive: str | None = None) -> Item:
        """What is known of an image."""
        path, asked = item_path(id, archive)
        return self._calls.parsed(self._call("GET", path, params=asked), Item)

    def image(self, id: str, size: int = 320, archive: str | None = None) -> bytes:
        """An image as JPEG, its longer side at most `size` pixels."""
        path, asked = item_path(id, archive, size=size)
        return self._calls.read(self._call("GET", f"{path}/image", params=asked)).content

    def add(
        self, *images: Path | str, metadata: Mapping[str, str | int | float] | None = None, archive: str | None = None
    ) -> ItemsAnswer:
        """Adds image files to an archive, all with this metadata; they are kept once this returns."""
        return self._calls.parsed(self._call("POST", "/v1/items", **form(images, metadata, archive)), ItemsAnswer)

    def delete(self, id: str, archive: str | None = None) -> None:
        """Takes an image out of an archive."""
        path, asked = item_path(id, archive)
        self._calls.read(self._call("DELETE", path, params=asked))

    def add_urls(
        self,
        urls: Sequence[str],
        *,
        metadata: Mapping[str, str | int | float] | None = None,
        archive: str | None = None,
    ) -> Job:
        """Has the server fetch pictures into an archive, all with this metadata; `job` tells how far it is."""
        return self.send(job_request(urls, metadata, archive))

    def job(self, id: str) -> Job:
        """How far a job is."""
        return self._calls.parsed(self._call("GET", f"/v1/jobs/{id}"), Job)

    def jobs(self) -> list[Job]:
        """The newest jobs."""
        return self._calls.parsed(self._call("GET", "/v1/jobs"), JobList).jobs

    def cancel(self, id: str) -> Job:
        """Ends a job; what it added stays."""
        return self._calls.parsed(self._call("DELETE", f"/v1/jobs/{id}"), Job)

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
                answer: httpx.Response | httpx.TransportError = self._http.request(method, path, **as_json(sent))
            except httpx.TransportError as error:
                answer = error
            if (seconds := self._calls.wait(turn, answer)) is None:
                return answer
            time.sleep(seconds)
            turn += 1


class AsyncClient:
    """`Client` for event loops; see there."""

    def __init__(self, url: str = "http://127.0.0.1:8000", key: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._calls = Calls(url, key)
        self._http = httpx.AsyncClient(base_url=self._calls.url, timeout=timeout, headers=self._calls.headers)

    async def send(self, request: Request[A]) -> A:
        """See `Client.send`."""
        path, body, kind = sent_to(request)
        return self._calls.parsed(await self._call("POST", path, content=body), kind)

    async def models(self) -> list[ModelCard]:
        """See `Client.models`."""
        return self._calls.parsed(await self._call("GET", "/v1/models"), ModelList).data

    async def archives(self) -> list[ArchiveCard]:
        """See `Client.archives`."""
        return self._calls.parsed(await self._call("GET", "/v1/archives"), ArchiveList).archives

    async def item(self, id: str, archive: str | None = None) -> Item:
        """See `Client.item`."""
        path, asked = item_path(id, archive)
        return self._calls.parsed(await self._call("GET", path, params=asked), Item)

    async def image(self, id: str, size: int = 320, archive: str | None = None) -> bytes:
        """See `Client.image`."""
        path, asked = item_path(id, archive, size=size)
        return self._calls.read(await self._call("GET", f"{path}/image", params=asked)).content

    async def add(
        self, *images: Path | str, metadata: Mapping[str, str | int | float] | None = None, archive: str | None = None
    ) -> ItemsAnswer:
        """See `Client.add`."""
        sent = form(images, metadata, archive)
        return self._calls.parsed(await self._call("POST", "/v1/items", **sent), ItemsAnswer)

    async def delete(self, id: str, archive: str | None = None) -> None:
        """See `Client.delete`."""
        path, asked = item_path(id, archive)
        self._calls.read(await self._call("DELETE", path, params=asked))

    async def add_urls(
        self,
        urls: Sequence[str],
        *,
        metadata: Mapping[str, str | int | float] | None = None,
        archive: str | None = None,
    ) -> Job:
        """See `Client.add_urls`."""
        return await self.send(job_request(urls, metadata, archive))

    async def job(self, id: str) -> Job:
        """See `Client.job`."""
        return self._calls.parsed(await self._call("GET", f"/v1/jobs/{id}"), Job)

    async def jobs(self) -> list[Job]:
        """See `Client.jobs`."""
        return self._calls.parsed(await self._call("GET", "/v1/jobs"), JobList).jobs

    async def cancel(self, id: str) -> Job:
        """See `Client.cancel`."""
        return self._calls.parsed(await self._call("DELETE", f"/v1/jobs/{id}"), Job)

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
                answer: httpx.Response | httpx.TransportError = await self._http.request(method, path, **as_json(sent))
            except httpx.TransportError as error:
                answer = error
            if (seconds := self._calls.wait(turn, answer)) is None:
                return answer
            await asyncio.sleep(seconds)
            turn += 1
