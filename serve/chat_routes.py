"""OpenAI's chat completions over the vision-language models: whole or as a stream, free or held to a JSON schema."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from foveal import schemas
from foveal.chat import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatMessage,
    ChatRequest,
    ChatUsage,
    ChunkChoice,
)
from foveal.errors import BadInput, FovealError
from foveal.generation import Asking, Heard, Reply, Style, anything
from serve.engine import Engine
from serve.middleware import BadRequest, foveal_response
from serve.strict_json import StrictRoute
from serve.vlm_http import RemoteVLM
from serve.wire import sent

if TYPE_CHECKING:
    from PIL.Image import Image

TOKENS = 256  # of an answer, where the request does not say
STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request's messages say."""

    image: str  # as the request names it
    history: tuple[tuple[str, str], ...]
    question: str

    @classmethod
    def of(cls, messages: list[ChatMessage]) -> Conversation:
        """Turns and the one picture; what the system says stands before the first question.

        Raises:
            BadRequest: not one picture, or the turns are not those of a conversation.
        """
        images: list[str] = []
        turns: list[tuple[str, str]] = []
        said: list[str] = []  # by others than the assistant, since it last answered
        for message in messages:
            parts = message.content
            words = parts if isinstance(parts, str) else " ".join(p.text for p in parts if p.text is not None)
            if not isinstance(parts, str):
                images += [part.image_url.url for part in parts if part.image_url is not None]
            if message.role == "assistant":
                if not any(said):
                    raise BadRequest("an answer stands where nothing was asked", expected="user, assistant, user, ...")
                turns.append(("\n".join(filter(None, said)), words))
                said = []
            else:
                said.append(words.strip())
        if not any(said):
            raise BadRequest("the last message asks nothing", expected="a message of the role user, with text")
        if len(images) != 1:
            raise BadRequest(
                "a conversation here is about one picture",
                expected="one part of the type image_url",
                received=f"{len(images)} of them",
            )
        return cls(images[0], tuple(turns), "\n".join(filter(None, said)))


def chat_api(engine: Engine) -> APIRouter:
    """The route over an engine's vision-language models."""
    router = APIRouter(prefix="/v1", responses=schemas.ERRORS, tags=["ask"], route_class=StrictRoute)

    @router.post(
        "/chat/completions", summary="OpenAI-compatible chat about a picture", response_model=ChatAnswer,
        responses={200: {"content": {STREAM: {"schema": ChatChunk.model_json_schema()}}}},
    )  # fmt: skip
    async def chat(asked: ChatRequest) -> Any:
        name, vlm = engine.model("vlm", asked.model)
        if isinstance(vlm, RemoteVLM):
            return await _passed_on(engine, vlm, asked)
        conversation = Conversation.of(asked.messages)
        image = await _pictured(engine, conversation.image)
        style = _style(asked, engine.limits.tokens)
        stops = tuple(asked.stop if isinstance(asked.stop, list) else filter(None, [asked.stop]))
        told = _Told(asked, name)

        async def answered(heard: Heard | None = None) -> Reply:
            asking = Asking(image, conversation.question, conversation.history, heard, stops)
            return (await engine.chat(asking, style, model=name))[1]

        if not asked.stream:
            return told.whole(await answered())
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        loop, listening = asyncio.get_running_loop(), [True]

        def heard(text: str) -> bool:  # on the model's thread
            loop.call_soon_threadsafe(queue.put_nowait, text)
            return listening[0]

        work = asyncio.create_task(answered(heard))
        work.add_done_callback(lambda _: queue.put_nowait(None))
        first = await queue.get()  # until then an error can still have a status of its own
        if first is None:
            work.result()
        return StreamingResponse(_events(told, first, queue, work, listening), media_type=STREAM)

    return router


@dataclass(frozen=True, slots=True)
class _Told:
    """What is the same in all parts of an answer."""

    asked: ChatRequest
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, reply: Reply) -> ChatAnswer:
        """The answer at once."""
        message = ChatMessage(role="assistant", content=reply.text)
        choice = ChatChoice(message=message, finish_reason=_reason(reply))
        return ChatAnswer(
            id=self.id, created=self.created, model=self.model, choices=[choice], usage=_usage(reply)
        )  # fmt: skip

    def chunk(self, delta: ChatDelta, reply: Reply | None = None) -> str:
        """An event with a part of it; the last has the whole reply."""
        choice = ChunkChoice(delta=delta, finish_reason=_reason(reply) if reply else None)
        return self._event([choice])

    def usage(self, reply: Reply) -> str:
        """The event that comes last where it was asked for."""
        return self._event([], _usage(reply))

    def _event(self, choices: list[ChunkChoice], usage: ChatUsage | None = None) -> str:
        chunk = ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
        return f"data: {chunk.model_dump_json(exclude_none=True)}\n\n"


async def _events(
    told: _Told, first: str | None, queue: asyncio.Queue[str | None], work: asyncio.Task[Reply], listening: list[bool]
) -> AsyncGenerator[str]:
    """The answer as it grows; whoever goes away ends it."""
    try:
        yield told.chunk(ChatDelta(role="assistant", content=""))
        sent, said = "", first
        while said is not None:
            if len(said) > len(sent):
                yield told.chunk(ChatDelta(content=said[len(sent) :]))
                sent = said
            said = await queue.get()
        try:
            reply = work.result()
        except FovealError as error:
            yield f"data: {bytes(foveal_response(error).body).decode()}\n\n"
            return
        if len(reply.text) > len(sent):
            yield told.chunk(ChatDelta(content=reply.text[len(sent) :]))
        yield told.chunk(ChatDelta(), reply)
        if told.asked.stream_options is not None and told.asked.stream_options.include_usage:
            yield told.usage(reply)
        yield "data: [DONE]\n\n"
    finally:
        listening[0] = False
        work.cancel()


async def _passed_on(engine: Engine, vlm: RemoteVLM, asked: ChatRequest) -> Any:
    """The upstream server's own answer; pictures of archives go along as data."""
    body = asked.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if "image_url" in part:
                image = await _pictured(engine, part["image_url"]["url"])  # with the limits that hold here
                part["image_url"]["url"] = await asyncio.to_thread(vlm.data_url, image)
    if not asked.stream:
        return await vlm.complete(body)
    return StreamingResponse(await vlm.stream(body), media_type=STREAM)


async def _pictured(engine: Engine, url: str) -> Image:
    kind, _, rest = url.partition(":")
    if kind != "item":
        return await engine.decode(await sent(engine, url))
    archive, _, id = rest.rpartition("/")
    return await engine.picture(await engine.item(id, archive or None))


def _style(asked: ChatRequest, most: int) -> Style:
    wanted = asked.max_completion_tokens or asked.max_tokens or min(TOKENS, most)
    if wanted > most:
        raise BadInput("the answer may not be that long", expected=f"at most {most} tokens", received=str(wanted))
    form, schema = asked.response_format, None
    if form is not None and form.type == "json_object":
        schema = anything()
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise BadRequest("response_format has no json_schema", expected='{"name": ..., "schema": {...}}')
        schema = json.dumps(form.json_schema.schema_)
    return Style(wanted, asked.temperature, asked.top_p, asked.seed, schema)


def _reason(reply: Reply) -> Any:
    return "stop" if reply.whole else "length"


def _usage(reply: Reply) -> ChatUsage:
    return ChatUsage(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        total_tokens=reply.prompt_tokens + reply.completion_tokens,
    )
