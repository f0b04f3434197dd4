"""A vision-language model behind somebody else's OpenAI-compatible server: vLLM, another Foveal, a gateway."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from foveal.detections import FloatArray
from foveal.errors import BadInput, FovealError, Unavailable
from foveal.vlm_boxes import box_format

if TYPE_CHECKING:
    from PIL.Image import Image

SECONDS = 100.0  # for an answer
AT_ONCE = 8  # questions sent together: a server that batches is faster that way
EXACT = 1_000_000  # pixels up to which a picture is sent as it is; a larger one goes as JPEG
QUALITY = 95


class RemoteVLM:
    """A `VisionLanguageModel` over HTTP.

    Args:
        url: of the API, e.g. `http://127.0.0.1:8001/v1`.
        model: as that server calls it.
        key: bearer token, where the server asks for one.
        family: how the model writes boxes, see `foveal.vlm_boxes`; None: it cannot be asked where things are.
    """

    def __init__(
        self, url: str, model: str, *, root: str = "", key: str | None = None, family: str | None = None
    ) -> None:
        self.url, self.model, self.family = url.rstrip("/"), model, family
        self.name = f"{self.url}#{model}"
        # What that server loaded cannot be seen from here: its own word for it stands in.
        self.fingerprint = hashlib.sha256(f"{self.url} {model} {root}".encode()).hexdigest()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def answer(self, image: Image, question: str, max_tokens: int = 64) -> str:
        """As `VisionLanguageModel.answer`; raises Unavailable where that server does not answer."""
        return self.replies([(image, (), question)], max_tokens)[0]

    def replies(self, asked: Sequence[tuple[Image, Sequence[tuple[str, str]], str]], max_tokens: int = 64) -> list[str]:
        """The answer to each (image, earlier turns, question), sent side by side."""
        threads = min(AT_ONCE, max(1, len(asked)))
        with httpx.Client(headers=self._headers, timeout=SECONDS) as client, ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda one: self._said(client, *one, max_tokens=max_tokens), asked))

    def locate(self, image: Image, phrase: str, max_tokens: int = 128) -> FloatArray:
        """As `VisionLanguageModel.locate`; BadInput where nobody said how this model writes boxes."""
        if self.family is None:
            raise BadInput(
                f"it is not known how {self.model} writes boxes", remedy="Name its family: --vlm-family qwen2_5_vl."
            )
        form = box_format(self.family)
        shares = form.read(self.answer(image, form.ask(phrase), max_tokens), image.size)
        return shares * np.array([*image.size, *image.size], dtype=np.float32)

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a chat request, as that server gives it."""
        async with httpx.AsyncClient(headers=self._headers, timeout=SECONDS) as client:
            try:
                answer = await client.post(self._path, json={**body, "model": self.model})
            except httpx.HTTPError as error:
                raise self._away(error) from error
            return self._checked(answer)

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[bytes]:
        """The events of a streamed answer; an error before the first is raised from here."""
        client = httpx.AsyncClient(headers=self._headers, timeout=SECONDS)
        try:
            request = client.build_request("POST", self._path, json={**body, "model": self.model})
            answer = await client.send(request, stream=True)
            if answer.status_code != 200:
                await answer.aread()
                self._checked(answer)
        except httpx.HTTPError as error:
            await client.aclose()
            raise self._away(error) from error
        except FovealError:
            await client.aclose()
            raise

        async def events() -> AsyncGenerator[bytes]:
            try:
                async for part in answer.aiter_bytes():
                    yield part
            finally:
                await answer.aclose()
                await client.aclose()

        return events()

    def data_url(self, image: Image) -> str:
        """The picture as it is sent."""
        buffer, kind = io.BytesIO(), "png" if image.width * image.height <= EXACT else "jpeg"
        image.save(buffer, kind, **({"compress_level": 1} if kind == "png" else {"quality": QUALITY}))
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    @property
    def _path(self) -> str:
        return f"{self.url}/chat/completions"

    def _said(
        self, client: httpx.Client, image: Image, history: Sequence[tuple[str, str]], question: str, *, max_tokens: int
    ) -> str:
        picture = {"type": "image_url", "image_url": {"url": self.data_url(image)}}
        messages: list[dict[str, Any]] = []
        for asked, said in (*history, (question, None)):
            text: list[dict[str, Any]] = [{"type": "text", "text": asked}]
            messages.append({"role": "user", "content": text if messages else [picture, *text]})
            if said is not None:
                messages.append({"role": "assistant", "content": said})
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        try:
            answer = self._checked(client.post(self._path, json=body))
        except httpx.HTTPError as error:
            raise self._away(error) from error
        return str(answer["choices"][0]["message"]["content"]).strip()

    def _checked(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.status_code != 200:
            try:
                told = str(answer.json()["error"]["message"])[:300]
            except (ValueError, KeyError, TypeError):
                told = answer.text[:300]
            if answer.status_code in (400, 404, 413, 422):
                raise BadInput(f"{self.model} cannot answer that: {told}")
            raise Unavailable(f"the server of {self.model} refused with {answer.status_code}: {told}")
        return answer.json()

    def _away(self, error: httpx.HTTPError) -> Unavailable:
        return Unavailable(
            f"the server of {self.model} does not answer", received=f"{type(error).__name__} from {self.url}",
            remedy="See whether it runs.",
        )  # fmt: skip


def remote_vlms(url: str, *, key: str | None = None, family: str | None = None) -> list[RemoteVLM]:
    """A model for each that a server lists, adapters among them.

    Raises:
        BadInput: the address is none.
        Unavailable: no OpenAI-compatible server answers there.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise BadInput(f"{url!r} is no address", expected="http://HOST:PORT/v1")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", headers=headers, timeout=10)
        listed = [one for one in answer.raise_for_status().json()["data"] if one.get("kind") in (None, "vlm")]
        models = [RemoteVLM(url, one["id"], root=str(one.get("root")), key=key, family=family) for one in listed]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            f"no OpenAI-compatible server answers at {url}", received=str(error)[:120], remedy="See whether it runs."
        ) from error
    if not models:
        raise Unavailable(f"the server at {url} has no model")
    return models
