"""The HTTP API under /v1, judgements: what a memory's crops say of boxes, and what a model answers about pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import APIRouter

from foveal import schemas
from foveal.detections import Detections
from serve.engine import Engine
from serve.middleware import BadRequest
from serve.strict_json import StrictRoute
from serve.wire import sent

if TYPE_CHECKING:
    from PIL.Image import Image


def judgement_api(engine: Engine) -> APIRouter:
    """The routes over an engine's memory and vision-language model."""
    router = APIRouter(prefix="/v1", responses=schemas.ERRORS, route_class=StrictRoute)

    @router.post("/classify", tags=["memory"], summary="What boxes show, by labelled crops like them")
    async def classify(asked: schemas.ClassifyRequest) -> schemas.ClassifyAnswer:
        image = await _one(engine, asked.image, asked.image_id, asked.archive)
        boxes = asked.boxes or [(0.0, 0.0, float(image.width), float(image.height))]
        name, classes, chances = await engine.classify(image, boxes, model=asked.model)
        labels: list[str | None] = [*classes, None]
        results = [
            schemas.Classified(
                box=box,
                label=labels[int(row.argmax())],
                probability=float(row.max()),
                probabilities=dict(zip(classes, row.tolist(), strict=False)),
            )
            for box, row in zip(boxes, chances, strict=True)
        ]
        fingerprint = engine.models[name].fingerprint
        return schemas.ClassifyAnswer(model=name, fingerprint=fingerprint, results=results)

    @router.post("/verify", tags=["memory"], summary="Whether labelled crops bear out proposed labels")
    async def verify(asked: schemas.VerifyRequest) -> schemas.VerifyAnswer:
        image = await _one(engine, asked.image, asked.image_id, asked.archive)
        boxes, labels = [one.box for one in asked.proposals], [one.label for one in asked.proposals]
        name, found, support = await engine.verify(image, boxes, labels, model=asked.model)
        results = [
            schemas.Verified(
                box=one.box,
                label=one.label,
                support=value,
                neighbours=[schemas.NeighbourOf(**asdict(near)) for near in origin.neighbours],
            )
            for one, value, origin in zip(asked.proposals, support.tolist(), found.provenance or (), strict=True)
        ]
        return schemas.VerifyAnswer(model=name, fingerprint=engine.models[name].fingerprint, results=results)

    @router.post("/ask", tags=["ask"], summary="A question answered from an archive with citations, or about a picture")
    async def ask(asked: schemas.AskRequest) -> schemas.AskAnswer:
        if asked.image is not None or asked.image_id is not None:
            if asked.about is not None or asked.filter is not None:
                raise BadRequest(
                    "nothing is searched for where a picture is given", remedy="Leave out about and filter."
                )
            image = await _one(engine, asked.image, asked.image_id, asked.archive)
            said = await engine.ask(image, asked.question, model=asked.model)
            return schemas.AskAnswer(
                model=said.model,
                text=said.text,
                places=None if said.places is None else _places(said.places),
            )
        name, archive, answer = await engine.ask_archive(
            asked.question, k=asked.k, about=asked.about, filter=asked.filter, archive=asked.archive, model=asked.model
        )
        citations = [
            schemas.CitedImage(**asdict(one), image_url=f"/v1/items/{one.id}/image?archive={quote(archive)}")
            for one in answer.citations
        ]
        return schemas.AskAnswer(
            model=name,
            text=answer.text,
            searched=answer.searched,
            citations=citations,
            agreement=answer.agreement,
            nothing=answer.nothing,
            reason=answer.reason,
            notes=list(answer.notes),
        )

    return router


async def _one(engine: Engine, image: str | None, image_id: str | None, archive: str | None) -> Image:
    """The picture that a request is about."""
    if (image is None) == (image_id is None):
        raise BadRequest("there must be exactly one image", expected="`image` or `image_id`")
    if image is not None:
        return await engine.decode(await sent(engine, image))
    return await engine.picture(await engine.item(image_id or "", archive))


def _places(found: Detections) -> list[schemas.Detected]:
    return [
        schemas.Detected(box=tuple(box), label=label, score=score)
        for box, label, score in zip(found.boxes.tolist(), found.label_names, found.scores.tolist(), strict=True)
    ]
