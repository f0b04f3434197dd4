"""clip-retrieval's service over the archives: `ClipClient(url="http://HOST:PORT/knn-service", indice_name=ARCHIVE)`.

Its ids are whole numbers: here an image's sequence number, which no other image ever gets, and which changes only where
the image itself is embedded anew. `item_id` beside the metadata is the id that the rest of this server knows it by.

Its models beside the encoder (safety, violence, aesthetics, other languages) do not exist here; what a request says of
them is not looked at. An image's address is fetched from allowed hosts only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from foveal import schemas
from foveal.detections import FloatArray
from foveal.errors import BadInput
from retrieval.archive import Archive
from retrieval.query import Collapse, EncodedQuery, SearchQuery
from retrieval.sources_web import Web
from serve.audit import note
from serve.engine import Engine
from serve.label_studio import Pictures
from serve.middleware import BadRequest
from serve.wire import json_request, unpack

COLUMNS = ("id", "seq", "uri", "metadata")
LARGEST = 2**63  # a sequence number is a signed 64-bit integer
SIDE = 1024  # pixels of the pictures that `url` leads to
WAYS = ("text", "image", "image_url", "embedding_input")


class KnnRequest(BaseModel):
    """What to look for, in one of four ways; clients send the other three as null."""

    model_config = ConfigDict(extra="ignore")

    text: str | None = None
    image: str | None = Field(None, description="an image file in base64")
    image_url: str | None = None
    embedding_input: list[float] | None = None
    modality: Literal["image"] = Field("image", description="an archive holds images only")
    num_images: int = Field(ge=1, description="how many come with their metadata")
    num_result_ids: int | None = Field(None, ge=1, description="how many come at all, up to the server's limit")
    indice_name: str | None = Field(None, description="the archive; the first one if null")
    deduplicate: bool = False


class MetadataRequest(BaseModel):
    """Whose metadata is wanted."""

    model_config = ConfigDict(extra="ignore")

    ids: list[int] = Field(max_length=10_000)
    indice_name: str | None = None


def knn_service(engine: Engine, pictures: Pictures) -> APIRouter:
    """The routes that clip-retrieval's clients call; they send JSON without saying so."""
    router = APIRouter(tags=["clip-retrieval"], responses=schemas.ERRORS)
    web = pictures.web or Web(())

    @router.get("/indices-list", summary="The archives in folders")
    async def indices() -> list[str]:
        return [name for name in engine.archives.visible() if name in engine.archives.folders]

    @router.post(
        "/knn-service",
        summary="The images nearest to a text, an image or an embedding",
        openapi_extra=_body(KnnRequest),
    )
    async def knn(request: Request) -> list[dict[str, Any]]:
        asked = await json_request(request, KnnRequest)
        engine.archives.folder(asked.indice_name)  # numbers of images are a folder's
        k = max(asked.num_images, min(asked.num_result_ids or 0, engine.limits.k))
        query = partial(SearchQuery, k=k, collapse=Collapse() if asked.deduplicate else None, anyway=True)
        name, hits = await engine.search(await _query(engine, web, asked, query), asked.indice_name)
        known = await engine.looked_up(partial(_by_id, ids=[hit.id for hit in hits]), name)
        found = [(known[hit.id], hit.similarity) for hit in hits if hit.id in known]  # not deleted a moment ago
        base = str(request.base_url)
        return [
            {
                **(_metadata(record, name, base) if place < asked.num_images else {}),
                "id": record["seq"],
                "similarity": similarity,
            }
            for place, (record, similarity) in enumerate(found)
        ]

    @router.post("/metadata", summary="Metadata of images by their numbers", openapi_extra=_body(MetadataRequest))
    async def metadata(request: Request) -> list[dict[str, Any]]:
        asked = await json_request(request, MetadataRequest)
        name, _ = engine.archives.named(asked.indice_name)
        records = await engine.looked_up(partial(_by_seq, seqs=asked.ids), name)
        note(name, [record["id"] for record in records])
        base = str(request.base_url)
        return [{"id": record["seq"], "metadata": _metadata(record, name, base)} for record in records]

    return router


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}


async def _query(
    engine: Engine, web: Web, asked: KnnRequest, query: partial[SearchQuery]
) -> SearchQuery | EncodedQuery:
    given = [way for way in WAYS if getattr(asked, way)]
    if len(given) != 1:
        raise BadRequest("there must be one thing to look for", expected=", ".join(WAYS), received=" and ".join(given))
    if asked.embedding_input:
        _, archive = engine.archives.folder(asked.indice_name)
        # What it stands for nobody knows: as a text it has a name in whatever explains the hits.
        made = query(text="an embedding")
        return EncodedQuery(made, made.all_parts, (_unit(asked.embedding_input, archive),), archive.fingerprint, "")
    if asked.text:
        return query(text=asked.text)
    data = unpack(asked.image) if asked.image else await _fetched(web, asked.image_url or "")
    return query(image=await engine.decode(data))


def _unit(values: Sequence[float], archive: Archive) -> FloatArray:
    vector = np.array(values, np.float64)
    length = float(np.linalg.norm(vector))
    if len(vector) != archive.settings.dimension or not np.isfinite(length) or length == 0:
        raise BadInput(
            "the embedding cannot be searched for",
            expected=f"{archive.settings.dimension} finite numbers of {archive.encoder}, not all 0",
            received=f"{len(vector)} numbers",
        )
    return (vector / length).astype(np.float32)


async def _fetched(web: Web, address: str) -> bytes:
    try:
        return await anyio.to_thread.run_sync(web.read, address)
    except OSError as error:
        raise BadInput(f"the image cannot be fetched: {error}") from error


def _by_id(archive: Archive, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {id: {"id": id, **record} for id, record in archive.items(ids, COLUMNS[1:]).items()}


def _by_seq(archive: Archive, seqs: Sequence[int]) -> list[dict[str, Any]]:
    """Records of those numbers that are here, in the order asked for."""
    view = archive.snapshot()
    wanted = np.array([seq for seq in seqs if 0 <= seq < LARGEST], np.int64)
    wanted = wanted[np.isin(wanted, view.seqs)]
    return view.table.take(view.rows[np.searchsorted(view.seqs, wanted)], COLUMNS).to_pylist()


def _metadata(record: dict[str, Any], archive: str, base: str) -> dict[str, Any]:
    url = f"{base}v1/items/{record['id']}/image?archive={quote(archive)}&size={SIDE}"
    return {"url": url, "image_path": record["uri"], **json.loads(record["metadata"]), "item_id": record["id"]}
