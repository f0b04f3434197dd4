"""The application: models and archives are handed in, routes and pages come out.

app = create_app(archive=open_archive("archive"), encoder=load_encoder("bundled:clip"))
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.to_thread
from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from distill.labeller import Labeller
from foveal import __version__
from foveal.errors import BadInput, FovealError
from foveal.models import Detector, Encoder, OpenDetector, VisionLanguageModel, load_encoder
from retrieval.blur import Blur
from retrieval.memory import ExemplarMemory
from retrieval.retention import Rule
from retrieval.sources_web import Web
from retrieval.stores import AnyArchive
from serve import generations, middleware
from serve.anylabeling import remote
from serve.archive_routes import archive_api
from serve.audit import Audit
from serve.calls import Model, kind_of
from serve.chat_routes import chat_api
from serve.corrections import Corrections
from serve.cvat import nuclio
from serve.engine import Engine
from serve.job_routes import job_api
from serve.job_runner import Runner
from serve.jobs import Jobs
from serve.judgement_routes import judgement_api
from serve.keys import Keys
from serve.knn_service import knn_service
from serve.label_studio import Pictures, backend
from serve.limits import Limits
from serve.login import login
from serve.metrics import Metrics
from serve.operations import operations
from serve.retention import keep_to
from serve.reviewing import ReviewJob
from serve.routes import api
from serve.tracing import Traces, telemetry

log = logging.getLogger("foveal.serve")
FETCH_SECONDS = 10.0  # until a picture that a request names by its address must be here
COUNT_SECONDS = 5.0  # between writes of how often keys were used


def create_app(
    *,
    archive: AnyArchive | Mapping[str, AnyArchive] | None = None,
    encoder: Encoder | None = None,
    encoders: Callable[[str], Encoder] = load_encoder,
    detector: Detector | None = None,
    open_detector: OpenDetector | None = None,
    vlm: VisionLanguageModel | None = None,
    labeller: Labeller | None = None,
    memory: ExemplarMemory | None = None,
    models: Mapping[str, Model] | None = None,
    limits: Limits | None = None,
    pictures: Pictures | None = None,
    corrections: Corrections | None = None,
    review: ReviewJob | None = None,
    jobs: Jobs | None = None,
    keys: Keys | None = None,
    audit: Audit | None = None,
    blur: Blur | None = None,
    retain: Sequence[Rule] = (),
    cache_bytes: int = 0,
    origins: Sequence[str] = (),
    traces: TracerProvider | None = None,
    figures: Callable[[], Awaitable[bytes]] | None = None,
    demo: bool = False,
) -> FastAPI:
    """A server over the given models.

    Args:
        archive: one archive (served under its folder's or collection's name) or several by name; its encoder must be
            among the models.
        encoder, detector, open_detector, vlm, labeller, memory: served as `encoder`, `detector`, `open-detector`,
            `vlm`, `labeller` and `memory`, the default of its kind; a detector may be a `serve.versions.Rollout`.
        encoders: loads the encoder of an archive's next generation.
        models: further models of any kind, by the name that requests use.
        pictures: where pictures that requests name by address may be fetched from; None: nowhere.
        corrections: where it is kept what annotators do in Label Studio; None: nowhere.
        review: a labelling job whose doubtful boxes the page *Review* shows.
        jobs: where it is kept which pictures are to be fetched into archives; None: in the first folder.
        keys: who may ask what; None: everyone everything.
        audit: where it is written who saw or changed what.
        blur: what is done to each picture that is taken in; None: nothing.
        retain: how long archives in folders keep what; applied at the start and daily.
        cache_bytes: of answers of detectors that are given again, see `serve.result_cache`; 0: none.
        origins: web pages that may call the API from a browser, e.g. `https://tools.example.com`.
        traces: where spans go, see `serve.tracing`; None: nowhere.
        figures: what `/metrics` tells where several processes serve together; None: what this one knows.
        demo: also mount the pages *Search*, *Detect*, *Ask*, *Review*, *Curate* and *Models*, those that can work.

    Raises:
        BadInput: a name is taken twice, there is nothing to serve, or rules for an archive that cannot keep to them.
        FingerprintMismatch: an archive was built with an encoder that is not here.
    """
    named: dict[str, Model] = {}
    given = (
        ("encoder", encoder),
        ("detector", detector),
        ("open-detector", open_detector),
        ("vlm", vlm),
        ("labeller", labeller),
        ("memory", memory),
    )
    for name, model in given:
        if model is not None:
            named[name] = model
    twice = sorted(set(named) & set(models or {}))
    if twice:
        raise BadInput(f"two models are named {twice[0]!r}", remedy="Give the one in `models` another name.")
    named |= models or {}
    archives = dict(archive or {}) if archive is None or isinstance(archive, Mapping) else {archive.name: archive}
    if not named and review is None:
        raise BadInput("there is nothing to serve", remedy="Give an archive with its encoder, or a detector.")
    limits = limits or Limits()
    metrics = Metrics()
    engine = Engine(named, archives, limits, metrics, Traces(traces), blur, cache_bytes)
    if retain and (elsewhere := sorted(archives.keys() - engine.archives.folders.keys())):
        raise BadInput(
            f"archive {elsewhere[0]!r} lies in a database, from which nothing is removed by its age",
            remedy="Remove such images there, and leave --retain out.",
        )
    for name, model in named.items():
        if name not in engine.rollouts:  # their versions come and go
            metrics.model.labels(name, kind_of(model), model.fingerprint).set(1)

    pictures = pictures or Pictures()
    engine.web = replace(
        pictures.web or Web(()), most=limits.body_bytes, seconds=min(FETCH_SECONDS, limits.seconds / 2)
    )
    if jobs is None and engine.archives.folders:
        jobs = Jobs(next(iter(engine.archives.folders.values())).path / "jobs.sqlite")
    runner = None if jobs is None else Runner(engine, jobs, engine.web, audit)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_warm, engine)
            if keys is not None:
                tasks.start_soon(_count, keys)
            if runner is not None:
                tasks.start_soon(runner.run)
            if retain:
                tasks.start_soon(keep_to, engine, retain, metrics, audit)
            for rollout in engine.rollouts.values():
                tasks.start_soon(rollout.follow)
            if engine.archives.folders:
                tasks.start_soon(generations.follow, engine, encoders)
            yield
            tasks.cancel_scope.cancel()
        if keys is not None:
            _save_counts(keys)
        engine.close()

    app = FastAPI(
        title="Foveal",
        version=__version__,
        summary="Search, detection and embeddings over your own models.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=telemetry(traces),
    )
    app.state.engine, app.state.keys = engine, keys
    middleware.install(app, metrics, limits, keys, audit)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    app.include_router(archive_api(engine))
    app.include_router(judgement_api(engine))
    app.include_router(chat_api(engine))
    app.include_router(api(engine))
    if runner is not None:
        app.include_router(job_api(engine, runner, engine.web))
    for router in (
        backend(engine, pictures, corrections),
        nuclio(engine),
        remote(engine),
        knn_service(engine, pictures),
    ):
        app.include_router(router)
    if keys is not None:
        app.include_router(login(keys))
    app.include_router(operations(engine, metrics, figures))

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing(rest: str) -> None:  # before the pages, which would answer with one of theirs
        raise HTTPException(404, "there is no such route")

    if demo:
        from serve.demo import mount

        mount(app, engine, review)
    else:

        @app.get("/", include_in_schema=False)
        async def about() -> dict[str, str]:
            return {"name": "foveal", "version": __version__, "openapi": "/openapi.json", "models": "/v1/models"}

    return app


async def _count(keys: Keys) -> None:
    while True:
        await anyio.sleep(COUNT_SECONDS)
        await anyio.to_thread.run_sync(_save_counts, keys)


def _save_counts(keys: Keys) -> None:
    try:
        keys.save_counts()
    except (FovealError, sqlite3.Error, OSError) as error:  # a full disk must not end the server
        log.error("how often keys were used is not written: %s", error)


async def _warm(engine: Engine) -> None:
    try:
        await engine.warm_up()
    except Exception as error:
        log.exception("a model failed while warming up")
        engine.failure = f"{type(error).__name__} while warming up; see the server's log"
