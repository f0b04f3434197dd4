"""The machine learning backend of Label Studio: add `http://HOST:PORT/label-studio` as a project's model.

A labelling job's labeller answers where one is served, with its probabilities and without what it rejects; else a
detector; else an open-vocabulary detector, asked for the project's own labels. `predicted_values` of a project's labels
name the classes of a model that are called otherwise.

Pictures come with a task as data URLs, from Label Studio itself (`--label-studio URL`, its key in the environment as
LABEL_STUDIO_API_KEY), or from allowed hosts. The host name and token that a request brings along are not used: whoever
can send one could have the server fetch anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import anyio.to_thread
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from foveal import schemas
from foveal.errors import BadInput, FovealError
from foveal.formats.attributes import controls
from foveal.formats.label_studio_config import LabellingConfig
from foveal.formats.regions import NO_CONTROLS, Controls, regions
from retrieval.sources_web import Web
from serve.calls import kind_of
from serve.corrections import KEPT, Corrections, Event
from serve.drawing import answering, find
from serve.engine import Engine
from serve.limits import NotFound
from serve.strict_json import StrictRoute
from serve.wire import unpack

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("foveal.serve")
PREFIX = "/label-studio"
config_of: Callable[[str], LabellingConfig] = lru_cache(maxsize=64)(LabellingConfig.parse)


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of tasks may be fetched from.

    Args:
        studio: the address of Label Studio itself, which may be inside the network.
        key: its API key.
        web: other hosts.
    """

    studio: str | None = None
    key: str | None = None
    web: Web | None = None

    def read(self, address: str) -> bytes:
        """The image file at the address that a task holds.

        Raises:
            BadInput: it may not be fetched, or nothing usable lies there.
            OSError: the host does not answer.
        """
        if address.startswith("data:"):
            return unpack(address)
        if self.studio is not None:
            full = urljoin(self.studio.rstrip("/") + "/", address)
            if _origin(full) == _origin(self.studio):
                return self._from_studio.read(full)
        elif "://" not in address:
            raise BadInput(
                f"{address[:80]} lies in Label Studio, whose address this server was not told",
                remedy="foveal serve --label-studio http://HOST:8080, and its API key as LABEL_STUDIO_API_KEY.",
            )
        return (self.web or Web(())).read(address)

    @cached_property
    def _from_studio(self) -> Web:
        assert self.studio is not None
        host = urlsplit(self.studio).hostname or ""
        sent = {"Authorization": f"Token {self.key}"} if self.key else {}
        # The operator named this host: it may well be a private address.
        return Web((host,), public=lambda _: True, headers=sent)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


class Task(BaseModel):
    """What is used of a task."""

    model_config = ConfigDict(extra="ignore")

    id: int | str | None = None
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """Label Studio's request for predictions."""

    model_config = ConfigDict(extra="ignore")

    tasks: list[Task] = Field(min_length=1, max_length=1000)
    label_config: str = Field(max_length=200_000)


class SetupRequest(BaseModel):
    """What Label Studio sends when a project is connected; its token is not looked at."""

    model_config = ConfigDict(extra="ignore")

    label_config: str = Field("", alias="schema", max_length=200_000)


def backend(engine: Engine, pictures: Pictures, corrections: Corrections | None = None) -> APIRouter:
    """The routes that Label Studio calls."""
    router = APIRouter(prefix=PREFIX, tags=["label studio"], responses=schemas.ERRORS, route_class=StrictRoute)

    @router.get("/health", summary="Label Studio asks whether the backend is up")
    @router.get("/", include_in_schema=False)
    async def health() -> dict[str, str]:
        name = answering(engine)
        return {"status": "UP", "model_class": name, "model_version": _version(engine, name)}

    @router.post("/setup", summary="A project is connected")
    async def setup(asked: SetupRequest) -> dict[str, str]:
        name = answering(engine)
        if asked.label_config.strip():
            _common(engine, name, config_of(asked.label_config))
        return {"model_version": _version(engine, name)}

    @router.post("/predict", summary="Boxes and outlines for tasks")
    async def predict(asked: PredictRequest) -> JSONResponse:
        config, name = config_of(asked.label_config), answering(engine)
        _common(engine, name, config)
        version, results, failed = _version(engine, name), list[dict[str, Any]](), list[FovealError]()
        for task in asked.tasks:
            began = time.perf_counter()
            try:
                image = await engine.decode(await _fetched(pictures, task, config))
            except BadInput as error:
                failed.append(error)
                log.warning("task %s has no prediction: %s", task.id, error)
                results.append({"result": [], "score": 0.0, "model_version": version})
                continue
            made = await _regions(engine, name, image, config)
            scores = [region["score"] for region in made if "score" in region]
            results.append({"result": made, "score": min(scores, default=0.0), "model_version": version})
            log.debug("task %s: %d regions in %.0f ms", task.id, len(made), 1000 * (time.perf_counter() - began))
        if len(failed) == len(asked.tasks):
            raise failed[0]  # an empty answer would look as if there were nothing in the pictures
        return JSONResponse({"results": results})

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> dict[str, Any]:
        return {}  # Label Studio's own kind; ours are at /metrics

    @router.post("/webhook", summary="What people did, kept as corrections", responses={201: {"description": "Kept."}})
    async def webhook(event: Event) -> JSONResponse:
        if corrections is None or event.action not in KEPT:
            return JSONResponse({"status": "Unknown event"})
        count = await anyio.to_thread.run_sync(corrections.take, event)
        return JSONResponse({"result": {"kept": count}, "status": "ok"}, 201)

    @router.get("/corrections", summary="What people did, as Label Studio exports it")
    async def corrected(project: str | None = None) -> list[dict[str, Any]]:
        if corrections is None:
            raise NotFound("this server keeps no corrections", remedy="foveal serve --corrections FILE.")
        return await anyio.to_thread.run_sync(corrections.tasks, project)

    return router


def _version(engine: Engine, name: str) -> str:
    return f"{name}@{engine.models[name].fingerprint[:12]}"


def _common(engine: Engine, name: str, config: LabellingConfig) -> list[str]:
    """The classes that model and project share; all labels of the project where the model takes any."""
    classes: Sequence[str] | None = getattr(engine.models[name], "classes", None)
    if classes is None:
        return list(config.labels)
    common = [one for one in classes if one in config.labels]
    if not common:
        raise BadInput(
            f"the project has none of the classes of {name}",
            expected=", ".join(classes),
            received=", ".join(config.names) or "no labels",
            remedy='Name them in the labels: <Label value="Hat" predicted_values="hard hat"/>.',
        )
    return common


async def _fetched(pictures: Pictures, task: Task, config: LabellingConfig) -> bytes:
    address = task.data.get(config.value)
    if not isinstance(address, str) or not address:
        raise BadInput(
            f"task {task.id} has no image", expected=f"data.{config.value}", received=", ".join(list(task.data)[:8])
        )
    try:
        return await anyio.to_thread.run_sync(pictures.read, address)
    except OSError as error:
        raise BadInput(f"the picture of task {task.id} cannot be fetched: {error}") from error


async def _regions(engine: Engine, name: str, image: Image, config: LabellingConfig) -> list[dict[str, Any]]:
    found = await find(engine, name, image, labels=_common(engine, name, config))
    asked: Controls = NO_CONTROLS
    if kind_of(engine.models[name]) == "labeller":
        asked = controls(engine.model("labeller", name)[1].ontology.schema_of_attributes)
    made = regions(found, *image.size, prefix="foveal", controls=asked)
    # A box with a score of 1 would pass for one that a person drew.
    return config.adopt([one if one["type"] == "choices" else {"score": 1.0, **one} for one in made])
