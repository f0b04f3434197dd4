"""The HTTP API under /v1, archives: search them, look at their items, say what was right, take items out."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Query, Request, Response

from foveal import schemas
from foveal.errors import BadInput
from retrieval.blur import mark
from retrieval.query import Collapse, Part, SearchQuery
from retrieval.results import Hit
from serve.engine import Engine
from serve.items import Item
from serve.middleware import BadRequest
from serve.strict_json import StrictRoute
from serve.uploads import Upload
from serve.wire import THUMBNAIL_SIDES, Thumbnails, sent, uploads

if TYPE_CHECKING:
    from PIL.Image import Image

ADD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "metadata": {"type": "string", "description": "a flat JSON object about all of them"},
                        "archive": {"type": "string"},
                    },
                }
            }
        },
    }
}


def archive_api(engine: Engine) -> APIRouter:
    """The routes over an engine's archives."""
    router = APIRouter(prefix="/v1", responses=schemas.ERRORS, route_class=StrictRoute)
    thumbnails = Thumbnails(engine)

    @router.post("/search", tags=["search"], summary="Find images by text, by image, or by any mixture of both")
    async def search(asked: schemas.SearchRequest) -> schemas.SearchAnswer:
        name, found = await engine.search(await _query(engine, asked), asked.archive)
        _, archive = engine.archives.named(name)
        hits = [_hit(hit, name, asked.explain) for hit in found]
        if asked.thumbnails is not None:
            for hit in hits:
                data = await thumbnails.of(await engine.item(hit.id, name), asked.thumbnails)
                hit.thumbnail = base64.b64encode(data).decode()
        return schemas.SearchAnswer(
            archive=name,
            encoder=archive.encoder,
            fingerprint=archive.fingerprint,
            hits=hits,
            kept=found.kept,
            collapsed=found.collapsed,
            cursor=found.cursor,
            reason=found.reason,
            notes=list(found.notes),
        )

    @router.post("/search/feedback", tags=["search"], summary="Keep what people said of hits")
    async def feedback(asked: schemas.FeedbackRequest) -> schemas.Kept:
        return schemas.Kept(kept=await engine.judge(asked.text, asked.right, asked.wrong, asked.archive))

    @router.get("/archives", tags=["items"], summary="What can be searched")
    async def archives() -> schemas.ArchiveList:
        seen = engine.archives.visible()

        def look() -> list[schemas.ArchiveCard]:
            return [
                schemas.ArchiveCard(
                    name=name,
                    images=len(store),
                    encoder=store.encoder,
                    fingerprint=store.fingerprint,
                    columns=store.columns,
                )
                for name, store in seen.items()
            ]

        return schemas.ArchiveList(archives=await anyio.to_thread.run_sync(look))

    @router.post(
        "/items", tags=["items"], summary="Add pictures to an archive", status_code=201, openapi_extra=ADD_BODY
    )
    async def add(request: Request) -> schemas.ItemsAnswer:
        archive, files, metadata = await uploads(request)
        taken: list[Upload] = []
        rejected: list[schemas.RejectedItem] = []
        for name, data in files:
            try:
                taken.append(await engine.received(Upload(name, data, metadata)))
            except BadInput as error:
                if len(files) == 1:
                    raise
                rejected.append(schemas.RejectedItem(name=name, reason=str(error)))
        name, kept, notes = await engine.add(taken, archive) if taken else (engine.archives.named(archive)[0], [], [])
        items = [schemas.AddedItem(name=one.name, id=one.id, status=one.status) for one in kept]
        return schemas.ItemsAnswer(archive=name, items=items, rejected=rejected, notes=notes)

    @router.get("/items/{id}", tags=["items"], summary="One image of an archive: what is known about it")
    async def item(id: str, archive: str | None = None) -> Item:
        return await engine.item(id, archive)

    @router.delete("/items/{id}", tags=["items"], summary="Take an image out of an archive", status_code=204)
    async def delete(id: str, archive: str | None = None) -> None:
        await engine.delete(id, archive)

    @router.get(
        "/items/{id}/image", tags=["items"], summary="One image of an archive, as JPEG", response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
    )  # fmt: skip
    async def picture(
        request: Request,
        id: str,
        size: Annotated[int, Query(ge=THUMBNAIL_SIDES[0], le=THUMBNAIL_SIDES[1])] = 320,
        archive: str | None = None,
    ) -> Response:
        found = await engine.item(id, archive)
        tag = f'"{found.content_hash[:32] or found.id}{mark(found.metadata)}-{size}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=300"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(await thumbnails.of(found, size), media_type="image/jpeg", headers=headers)

    return router


async def _query(engine: Engine, asked: schemas.SearchRequest) -> SearchQuery:
    """The query that a request means; raises as `SearchQuery` does."""
    if asked.image is not None and asked.image_id is not None:
        raise BadRequest("two images were given", expected="`image` or `image_id`, not both")
    wanted = list(asked.parts)
    share = 1.0 if asked.text is None else asked.image_weight
    if asked.image_id is not None and share > 0:
        wanted.append(schemas.QueryPart(image_id=asked.image_id, weight=share))
    if asked.text is not None and asked.image_id is not None:  # the item takes the image's place beside the text
        wanted.append(schemas.QueryPart(text=asked.text, weight=1 - share))
    query = SearchQuery(
        text=asked.text if asked.image_id is None else None,
        image=None if asked.image is None else await engine.decode(await sent(engine, asked.image)),
        negative=asked.negative,
        filter=asked.filter or None,
        k=asked.k,
        image_weight=asked.image_weight,
        negative_weight=asked.negative_weight,
        parts=tuple([await _part(engine, part, asked.archive) for part in wanted if part.weight != 0]),
        words=asked.words,
        templates=tuple(asked.templates),
        collapse=None if asked.collapse is None else Collapse(asked.collapse.cosine, asked.collapse.bits),
        diversity=asked.diversity,
        cursor=asked.cursor,
        anyway=asked.anyway,
    )
    return replace(query.refined(asked.liked, asked.disliked), cursor=asked.cursor)


async def _part(engine: Engine, part: schemas.QueryPart, archive: str | None) -> Part:
    image: Image | None = None
    if part.image is not None and part.image_id is not None:
        raise BadRequest("a part of the query is one thing", expected="text, image or image_id")
    if part.image is not None:
        image = await engine.decode(await sent(engine, part.image))
    elif part.image_id is not None:
        item = await engine.item(part.image_id, archive)
        if part.box is None:
            return Part(text=part.text, id=item.id, weight=part.weight)
        image = await engine.picture(item)
    return Part(text=part.text, image=image, box=part.box, weight=part.weight)


def _hit(hit: Hit, archive: str, explain: bool) -> schemas.SearchHit:
    parts = [schemas.PartOfHit(part=one.part, weight=one.weight, amount=one.amount) for one in hit.parts]
    return schemas.SearchHit(
        id=hit.id,
        uri=hit.uri,
        similarity=hit.similarity,
        probability=hit.probability,
        metadata=dict(hit.metadata),
        keywords=list(hit.keywords),
        collapsed=hit.collapsed,
        parts=parts if explain else None,
        image_url=f"/v1/items/{hit.id}/image?archive={quote(archive)}",
    )
