"""Pictures as they travel: base64 and data URLs in, multipart forms in, JPEG thumbnails out."""

from __future__ import annotations

import base64
import binascii
import io
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile

from foveal.errors import BadInput
from foveal.schemas import ImageRequest
from retrieval.blur import mark
from serve.engine import Engine
from serve.items import Item
from serve.middleware import BadRequest
from serve.strict_json import parse

if TYPE_CHECKING:
    from PIL.Image import Image

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound=ImageRequest)
THUMBNAIL_SIDES = (16, 1024)
CACHE_BYTES = 64 * 2**20
MAX_FILES = 256  # of one upload
METADATA: TypeAdapter[dict[str, str | int | float]] = TypeAdapter(
    dict[str, str | int | float], config=ConfigDict(allow_inf_nan=False, strict=True)
)


def unpack(text: str) -> bytes:
    """The bytes of an image given in base64, alone or as a data URL.

    Raises:
        BadRequest: a web address (see `sent` for where those are fetched), or not base64.
    """
    head, comma, payload = text.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        text = payload
    elif "://" in text[:32]:
        raise BadRequest(
            "this server fetches no addresses",
            expected="the image itself in base64, or as a data:image/...;base64 URL",
            received=text[:60],
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("the image is not base64", expected="an image file in base64", received=str(error)) from None


async def sent(engine: Engine, image: str) -> bytes:
    """The bytes of an image given in base64, or by its address on a host that the operator allowed.

    Raises:
        BadRequest: as `unpack`, or another host.
        BadInput: nothing usable lies there.
    """
    if not (engine.web.allow and image[:8].lower().startswith(("http://", "https://"))):
        return unpack(image)
    try:
        engine.web.check(image)
    except BadInput as error:
        raise BadRequest(error.message[:300], expected=error.expected, remedy=error.remedy) from None
    try:
        return await anyio.to_thread.run_sync(engine.web.read, image, limiter=engine.fetching, abandon_on_cancel=True)
    except OSError as error:
        raise BadInput(f"the image cannot be fetched: {error}") from error


async def image_request(engine: Engine, request: Request, kind_of_request: type[R]) -> tuple[R, bytes | None]:
    """A request about one image from JSON or from a multipart form, with the uploaded or unpacked image bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    upload: bytes | None = None
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=128) as form:
            fields: dict[str, Any] = {key: value for key, value in form.items() if key not in ("image", "prompts")}
            prompts = form.getlist("prompts")
            image = form.get("image")
            if isinstance(image, UploadFile):
                upload = await image.read()
            elif image is not None:
                fields["image"] = image
        if prompts:
            fields["prompts"] = prompts
        asked = _validated(fields, kind_of_request)
    elif kind in ("application/json", ""):
        asked = await json_request(request, kind_of_request)
    else:
        raise BadRequest(
            "the body has a type that is not understood",
            expected="multipart/form-data or application/json",
            received=kind[:60],
        )
    if asked.image is not None:
        upload = await sent(engine, asked.image)
    if (upload is None) == (asked.image_id is None):
        raise BadRequest("there must be exactly one image", expected="an upload, `image` or `image_id`")
    return asked, upload


async def json_request(request: Request, kind: type[M]) -> M:
    """A request in JSON, whatever it says its type is."""
    try:
        data = parse(await request.body())
    except ValueError as error:
        raise BadRequest("the body is not valid JSON", expected="a JSON object", received=str(error)[:80]) from None
    return _validated(data, kind)


async def uploads(request: Request) -> tuple[str | None, list[tuple[str, bytes]], dict[str, str | int | float]]:
    """(archive, files by name, metadata about all of them) of a multipart form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise BadRequest("pictures are sent as a form", expected="multipart/form-data", received=kind[:60])
    async with request.form(max_files=MAX_FILES, max_fields=8) as form:
        files = [one for one in form.getlist("image") if isinstance(one, UploadFile)]
        files_sent = [((one.filename or "image")[:200], await one.read()) for one in files]
        archive, said = form.get("archive"), form.get("metadata")
    if not files_sent:
        raise BadRequest("there is no picture", expected="files in the field `image`")
    if isinstance(archive, UploadFile) or isinstance(said, UploadFile):
        raise BadRequest("a file was sent where a text is expected", expected="texts as `archive` and `metadata`")
    try:
        metadata = METADATA.validate_python(parse((said or "{}").encode()))
    except ValueError as error:
        raise BadRequest(
            "the metadata cannot be used", expected="a flat JSON object of texts and numbers", received=str(said)[:80]
        ) from error
    return archive or None, files_sent, metadata


def _validated(data: Any, kind: type[M]) -> M:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


class Thumbnails:
    """JPEG thumbnails of archive items, the recent ones kept in memory."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self._bytes = 0

    async def of(self, item: Item, side: int) -> bytes:
        """The item as JPEG, its longer side at most `side` pixels; NotFound when its file is gone."""
        key = (item.uri, item.content_hash + mark(item.metadata), side)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        image = await self._engine.picture(item, min_side=side)
        data = await anyio.to_thread.run_sync(jpeg, image, side)
        self._kept[key] = data
        self._bytes += len(data)
        while self._bytes > CACHE_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return data


def jpeg(image: Image, side: int) -> bytes:
    """The image as JPEG, shrunk to at most `side` pixels on its longer side."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=86)
    return buffer.getvalue()
