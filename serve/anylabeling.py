"""X-AnyLabeling's remote server: set `http://HOST:PORT/x-anylabeling` as the address of its model *Remote-Server*.

An open-vocabulary detector takes its classes from the text field, divided by dots or commas. What the program sends
along for other kinds of models (overlap, fineness of masks, points and boxes drawn by hand) is not used, and no control
for it is shown.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from foveal import schemas
from foveal.errors import BadInput
from foveal.formats.attributes import as_text
from serve.calls import kind_of
from serve.drawing import FLOOR, Drawn, answering, drawing, drawn, find
from serve.engine import Engine
from serve.strict_json import StrictRoute
from serve.wire import unpack

PREFIX = "/x-anylabeling"


class Params(BaseModel):
    """What is used of the program's settings."""

    model_config = ConfigDict(extra="ignore")

    conf_threshold: float | None = Field(default=None, ge=0, le=1)
    text_prompt: str | None = Field(default=None, max_length=10_000)
    filter_classes: list[str] = Field(default=[], description="the classes to show; all of them when empty")


class PredictRequest(BaseModel):
    """X-AnyLabeling's request for shapes."""

    model_config = ConfigDict(extra="ignore")

    model: str
    image: schemas.Base64Image
    params: Params = Params()


def remote(engine: Engine) -> APIRouter:
    """The routes that X-AnyLabeling calls."""
    router = APIRouter(prefix=PREFIX, tags=["x-anylabeling"], responses=schemas.ERRORS, route_class=StrictRoute)

    @router.get("/health", summary="Whether the server is up")
    async def health() -> dict[str, Any]:
        return {"status": "healthy", "models_loaded": len(drawing(engine))}

    @router.get("/v1/models", summary="The models that draw, and the controls they need")
    async def models() -> dict[str, Any]:
        return {"success": True, "data": {name: _card(engine, name) for name in drawing(engine)}}

    @router.post("/v1/predict", summary="Shapes of an image")
    async def predict(asked: PredictRequest) -> dict[str, Any]:
        name, params = answering(engine, asked.model), asked.params
        prompts = list(dict.fromkeys(filter(None, map(str.strip, re.split("[.,]", params.text_prompt or "")))))
        if kind_of(engine.models[name]) == "open-detector" and not prompts:
            raise BadInput(f"{name} is not told what to find", expected="a text such as: red crate. forklift")
        image = await engine.decode(unpack(asked.image))
        found = await find(engine, name, image, labels=prompts, threshold=params.conf_threshold)
        shown = set(params.filter_classes or found.names)
        return {"success": True, "data": {"shapes": [_shape(o) for o in drawn(found, image) if o.label in shown]}}

    return router


def _card(engine: Engine, name: str) -> dict[str, Any]:
    """A model with the program's controls that apply to it; a labeller has a threshold of its own."""
    model, kind = engine.models[name], kind_of(engine.models[name])
    classes = list(getattr(model, "classes", ()))
    shown: dict[str, Any] = (
        {"edit_text": None, "button_send": None} if kind == "open-detector" else {"button_run": None}
    )
    shown |= {"input_conf": None, "edit_conf": 0.0 if kind == "labeller" else FLOOR}
    shown |= {"button_classes_filter": None} if classes else {}
    shown |= {"toggle_preserve_existing_annotations": False}
    return {
        "display_name": f"{name} ({model.name})",
        "widgets": [{"name": widget, "value": value} for widget, value in shown.items()],
        "batch_processing_mode": "text_prompt" if kind == "open-detector" else "default",
        "classes": classes,
    }


def _shape(one: Drawn) -> dict[str, Any]:
    if one.outline is None:
        x1, y1, x2, y2 = one.box
        kind, points = "rectangle", [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    else:
        corners = one.outline.tolist()
        kind, points = "polygon", [*corners, corners[0]]  # the first again, as that program closes outlines
    return {
        "label": one.label,
        "shape_type": kind,
        "points": points,
        "score": one.confidence,
        "attributes": {name: as_text(value) for name, value in one.attributes.items()},
    }
