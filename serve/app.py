"""The application: models and archives are handed in, routes and pages come out.

app = create_app(archive=Archive.open("archive"), encoder=load_encoder("bundled:clip"))
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from distill.labeller import Labeller
from foveal import __version__
from foveal.errors import BadInput
from foveal.models import Detector, Encoder, OpenDetector, VisionLanguageModel
from retrieval.archive import Archive
from serve import middleware
from serve.anylabeling import remote
from serve.cvat import nuclio
from serve.engine import Engine, Limits, Model, kind_of
from serve.knn_service import knn_service
from serve.label_studio import Pictures, backend
from serve.metrics import Metrics
from serve.routes import api

log = logging.getLogger("foveal.serve")


def create_app(
    *,
    archive: Archive | Mapping[str, Archive] | None = None,
    encoder: Encoder | None = None,
    detector: Detector | None = None,
    open_detector: OpenDetector | None = None,
    vlm: VisionLanguageModel | None = None,
    labeller: Labeller | None = None,
    models: Mapping[str, Model] | None = None,
    limits: Limits | None = None,
    pictures: Pictures | None = None,
    demo: bool = False,
) -> FastAPI:
    """A server over the given models.

    Args:
        archive: one archive (served under its folder's name) or several by name; its encoder must be among the models.
        encoder, detector, open_detector, vlm, labeller: served as `encoder`, `detector`, `open-detector`, `vlm` and
            `labeller`, the default of its kind.
        models: further models of any kind, by the name that requests use.
        pictures: where pictures that requests name by address may be fetched from; None: nowhere.
        demo: also mount the pages *Search*, *Detect* and *Ask* at `/`, those of them that can work.

    Raises:
        BadInput: a name is taken twice, or there is nothing to serve.
        FingerprintMismatch: an archive was built with an encoder that is not here.
    """
    named: dict[str, Model] = {}
    given = (
        ("encoder", encoder),
        ("detector", detector),
        ("open-detector", open_detector),
        ("vlm", vlm),
        ("labeller", labeller),
    )
    for name, model in given:
        if model is not None:
            named[name] = model
    twice = sorted(set(named) & set(models or {}))
    if twice:
        raise BadInput(f"two models are named {twice[0]!r}", remedy="Give the one in `models` another name.")
    named |= models or {}
    archives = {archive.path.name: archive} if isinstance(archive, Archive) else dict(archive or {})
    if not named:
        raise BadInput("there is nothing to serve", remedy="Give an archive with its encoder, or a detector.")
    limits = limits or Limits()
    metrics = Metrics()
    engine = Engine(named, archives, limits, metrics)
    for name, model in named.items():
        metrics.model.labels(name, kind_of(model), model.fingerprint).set(1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_warm, engine)
            yield
            tasks.cancel_scope.cancel()

    app = FastAPI(
        title="Foveal",
        version=__version__,
        summary="Search, detection and embeddings over your own models.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.engine = engine
    middleware.install(app, metrics, limits.body_bytes)
    app.include_router(api(engine))
    pictures = pictures or Pictures()
    for router in (backend(engine, pictures), nuclio(engine), remote(engine), knn_service(engine, pictures)):
        app.include_router(router)
    _operations(app, engine, metrics)
    if demo:
        from serve.demo import mount

        mount(app, engine)
    else:

        @app.get("/", include_in_schema=False)
        async def about() -> dict[str, str]:
            return {"name": "foveal", "version": __version__, "openapi": "/openapi.json", "models": "/v1/models"}

    return app


async def _warm(engine: Engine) -> None:
    try:
        await engine.warm_up()
    except Exception as error:
        log.exception("a model failed while warming up")
        engine.failure = f"{type(error).__name__} while warming up; see the server's log"


def _operations(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/health/live", tags=["operations"], summary="The process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready", tags=["operations"], summary="Every model has run once", responses={503: {}})
    async def ready() -> JSONResponse:
        if engine.warm:
            return JSONResponse({"status": "ready"})
        return middleware.error_response(
            503, "Unavailable", engine.failure or "the models are warming up", headers={"Retry-After": "1"}
        )

    @app.get("/metrics", tags=["operations"], summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        def collect() -> bytes:
            for name, archive in engine.archives.items():
                metrics.items.labels(name).set(len(archive))
            metrics.ready.set(float(engine.warm))
            return generate_latest(metrics.registry)

        data: Any = await anyio.to_thread.run_sync(collect)
        return Response(data, media_type=CONTENT_TYPE_LATEST)
