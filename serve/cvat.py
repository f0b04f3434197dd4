"""CVAT's automatic annotation: to CVAT this server is a nuclio dashboard, and its models are functions.

CVAT's server and its annotation worker are told so in their environment: CVAT_SERVERLESS=1, CVAT_NUCLIO_HOST=HOST,
CVAT_NUCLIO_PORT=8000, CVAT_NUCLIO_INVOKE_METHOD=dashboard. The paths are nuclio's, for CVAT knows no others. Where a
nuclio runs already and is to stay, `serve.cvat_function` labels a task from the command line.

An open-vocabulary detector is no function: CVAT sends no labels along, and wants to know them beforehand.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field

from foveal import schemas
from foveal.formats.attributes import UNSET, as_text
from foveal.masks import decode
from serve.calls import kind_of
from serve.drawing import CLOSED, Drawn, answering, drawing, drawn, find
from serve.engine import Engine
from serve.strict_json import StrictRoute
from serve.wire import unpack

if TYPE_CHECKING:
    from PIL.Image import Image


class Invocation(BaseModel):
    """What CVAT sends to a detector."""

    model_config = ConfigDict(extra="ignore")

    image: schemas.Base64Image
    threshold: float | None = Field(None, ge=0, le=1)


def nuclio(engine: Engine) -> APIRouter:
    """The routes that CVAT calls."""
    router = APIRouter(prefix="/api", tags=["cvat"], responses=schemas.ERRORS, route_class=StrictRoute)

    @router.get("/functions", summary="The models, as nuclio lists functions")
    async def functions() -> dict[str, Any]:
        return {name: _function(engine, name) for name in drawing(engine, CLOSED)}

    @router.get("/functions/{name}", summary="One model, as nuclio describes a function")
    async def function(name: str) -> dict[str, Any]:
        return _function(engine, answering(engine, name, CLOSED))

    @router.post("/function_invocations", summary="Boxes and masks of an image")
    async def invoke(
        asked: Invocation, function: Annotated[str | None, Header(alias="x-nuclio-function-name")] = None
    ) -> list[dict[str, Any]]:
        name = answering(engine, function, CLOSED)
        image = await engine.decode(unpack(asked.image))
        found = await find(engine, name, image, threshold=asked.threshold)
        return [_shape(one, image) for one in drawn(found, image)]

    return router


def _function(engine: Engine, name: str) -> dict[str, Any]:
    model: Any = engine.models[name]
    schema = model.ontology.schema_of_attributes if kind_of(model) == "labeller" else {}
    # No type of label: then CVAT lets boxes and masks go to labels of any type.
    labels = [
        {
            "id": number,
            "name": label,
            "attributes": [
                {"name": attribute, "input_type": "select", "values": [UNSET, *values]}
                for attribute, values in schema.get(label, {}).items()
            ],
        }
        for number, label in enumerate(model.classes)
    ]
    annotations = {"name": f"Foveal {name}", "type": "detector", "spec": json.dumps(labels)}
    return {
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"description": f"{model.name}, {model.fingerprint[:12]}"},
        "status": {"state": "ready"},
    }


def _shape(one: Drawn, image: Image) -> dict[str, Any]:
    """A box, or a mask with its outline beside it: CVAT takes the outline where a user wants polygons."""
    attributes = [{"name": name, "value": as_text(value)} for name, value in one.attributes.items()]
    shape = {"confidence": f"{one.confidence:.4f}", "label": one.label, "attributes": attributes}
    if one.outline is None or not (whole := decode(one.mask, image.height, image.width)).any():
        return {**shape, "type": "rectangle", "points": list(one.box)}
    (top, bottom), (left, right) = (np.flatnonzero(whole.any(axis))[[0, -1]].tolist() for axis in (1, 0))
    bits = whole[top : bottom + 1, left : right + 1].astype(int).ravel().tolist()
    outline = one.outline.ravel().tolist()
    return {**shape, "type": "mask", "points": outline, "mask": [*bits, left, top, right, bottom]}
