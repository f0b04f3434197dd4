"""The HTTP API under /v1, models: detect, prelabel, embeddings, and what there is to ask."""

from __future__ import annotations

import base64
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request

from foveal import schemas
from foveal.detections import Detections
from foveal.errors import BadInput
from serve.calls import Model, kind_of
from serve.engine import Engine
from serve.limits import NotFound
from serve.middleware import BadRequest
from serve.result_cache import Seen
from serve.strict_json import StrictRoute
from serve.wire import image_request, sent

if TYPE_CHECKING:
    from PIL.Image import Image


def body(kind: type[schemas.ImageRequest], **form: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a request about one image, as JSON or as a form with these further fields."""
    fields = {
        "image": {"type": "string", "format": "binary"},
        "image_id": {"type": "string"},
        "archive": {"type": "string"},
        "model": {"type": "string"},
    }
    content = {
        "application/json": {"schema": kind.model_json_schema()},
        "multipart/form-data": {"schema": {"type": "object", "properties": {**fields, **form}}},
    }
    return {"requestBody": {"required": True, "content": content}}


DETECT_BODY = body(
    schemas.DetectRequest,
    prompts={"type": "array", "items": {"type": "string"}},
    threshold={"type": "number", "minimum": 0, "maximum": 1, "default": 0.3},
)


def api(engine: Engine) -> APIRouter:
    """The routes over an engine."""
    router = APIRouter(prefix="/v1", responses=schemas.ERRORS, route_class=StrictRoute)
    started = int(time.time())

    @router.post("/detect", tags=["detect"], summary="Find objects in an image", openapi_extra=DETECT_BODY)
    async def detect(request: Request) -> schemas.DetectAnswer:
        asked, upload = await image_request(engine, request, schemas.DetectRequest)
        if upload is not None:
            seen = await engine.detect_file(upload, model=asked.model, prompts=asked.prompts, threshold=asked.threshold)
        else:
            image = await _pictured(engine, asked, upload)
            told = await engine.detect(image, model=asked.model, prompts=asked.prompts, threshold=asked.threshold)
            seen = Seen(*told, image.size)
        made, found, (width, height) = seen.made, seen.found, seen.size
        chance = [None] * len(found) if found.probabilities is None else found.probabilities.tolist()
        detections = [
            schemas.Detected(box=tuple(box), label=label, score=score, probability=probability)
            for box, label, score, probability in zip(
                found.boxes.tolist(), found.label_names, found.scores.tolist(), chance, strict=True
            )
        ]
        return schemas.DetectAnswer(
            model=made.name,
            fingerprint=made.fingerprint,
            version=made.version,
            width=width,
            height=height,
            detections=detections,
        )

    @router.post(
        "/prelabel", tags=["prelabel"], summary="Label an image as a labelling job does",
        openapi_extra=body(schemas.PrelabelRequest),
    )  # fmt: skip
    async def prelabel(request: Request) -> schemas.PrelabelAnswer:
        asked, upload = await image_request(engine, request, schemas.PrelabelRequest)
        image = await _pictured(engine, asked, upload)
        name, labelled = await engine.prelabel(image, model=asked.model)
        (_, labeller), found = engine.model("labeller", name), labelled.detections
        return schemas.PrelabelAnswer(
            model=name,
            fingerprint=labeller.fingerprint,
            width=image.width,
            height=image.height,
            target_precision=labeller.settings.target_precision,
            proven=labeller.routing.proven,
            boxes=[_prelabelled(found, row, value) for row, value in enumerate(labelled.values.tolist())],
        )

    @router.post("/embeddings", tags=["embeddings"], summary="OpenAI-compatible embeddings of texts and images")
    async def embeddings(asked: schemas.EmbeddingRequest) -> schemas.EmbeddingAnswer:
        texts, given = _inputs(asked, engine.limits.texts)
        images = [await engine.decode(await sent(engine, one)) for one in given]
        name, vectors = await engine.embed(texts, images, model=asked.model)
        if asked.dimensions is not None and asked.dimensions != vectors.shape[1]:
            raise BadInput(
                f"{name} has embeddings of one length only",
                expected=f"dimensions = {vectors.shape[1]}",
                received=str(asked.dimensions),
            )
        tokens = await engine.count_tokens(texts, name)
        return schemas.EmbeddingAnswer(
            data=[
                schemas.Embedding(
                    index=number, embedding=_packed(vector) if asked.encoding_format == "base64" else vector.tolist()
                )
                for number, vector in enumerate(vectors)
            ],
            model=name,
            usage=schemas.Usage(prompt_tokens=tokens, total_tokens=tokens),
        )

    @router.get("/models", tags=["about"], summary="What is loaded")
    async def models() -> schemas.ModelList:
        return schemas.ModelList(data=[_card(name, model, started) for name, model in engine.models.items()])

    @router.get("/models/{name}", tags=["about"], summary="One of the loaded models")
    async def model(name: str) -> schemas.ModelCard:
        if name not in engine.models:
            raise NotFound(f"no model {name[:80]!r}", expected=f"one of {', '.join(engine.models)}")
        return _card(name, engine.models[name], started)

    return router


def _card(name: str, model: Model, started: int) -> schemas.ModelCard:
    return schemas.ModelCard(
        id=name,
        created=started,
        root=model.name,
        parent=model.name.partition("+")[0] if "+" in model.name else None,
        kind=kind_of(model),
        fingerprint=model.fingerprint,
        classes=list(getattr(model, "classes", ())) or None,
        dimension=getattr(model, "dimension", None),
        logit_scale=getattr(model, "logit_scale", None),
    )


async def _pictured(engine: Engine, asked: schemas.ImageRequest, upload: bytes | None) -> Image:
    if upload is not None:
        return await engine.decode(upload)
    return await engine.picture(await engine.item(asked.image_id or "", asked.archive))


def _prelabelled(found: Detections, row: int, value: float) -> schemas.Prelabelled:
    assert found.provenance is not None
    assert found.probabilities is not None
    origin = found.provenance[row]
    return schemas.Prelabelled(
        box=tuple(found.boxes[row].tolist()),
        label=found.label_names[row],
        score=float(found.scores[row]),
        probability=float(found.probabilities[row]),
        route=origin.route or "review",
        value=value,
        teachers=list(origin.teachers),
        neighbours=[schemas.NeighbourOf(**asdict(near)) for near in origin.neighbours],
        attributes=dict(found.attributes[row]) if found.attributes is not None else {},
        mask=(found.masks[row] or None) if found.masks is not None else None,
    )


def _inputs(asked: schemas.EmbeddingRequest, most: int) -> tuple[list[str], list[str]]:
    """The texts and the images, in base64 or by address, that a request wants embedded."""
    if (asked.input is None) == (asked.messages is None):
        raise BadRequest("there must be one kind of input", expected="`input` or `messages`")
    if asked.input is not None:
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not 1 <= len(texts) <= most or not all(text.strip() for text in texts):
            raise BadInput("the input cannot be embedded", expected=f"1 to {most} texts, none of them empty")
        return texts, []
    parts: list[tuple[str, str | None]] = []
    for message in asked.messages or ():
        if isinstance(message.content, str):
            parts.append(("text", message.content))
        else:
            parts += [
                ("text", part.text) if part.type == "text" else ("image", part.image_url and part.image_url.url)
                for part in message.content
            ]
    if len(parts) != 1 or not parts[0][1]:
        raise BadInput(
            "the messages cannot be embedded", expected="one text or one image", received=f"{len(parts)} parts"
        )
    kind, value = parts[0][0], parts[0][1]
    return ([value], []) if kind == "text" else ([], [value])


def _packed(vector: np.ndarray[tuple[int], np.dtype[np.float32]]) -> str:
    """OpenAI's base64 form: float32, little endian."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
