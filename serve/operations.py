"""What operators ask of a server: is it alive, is it ready, its figures, and which versions of a model answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict

import anyio.to_thread
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from foveal import artifacts, schemas
from serve.bars import Version
from serve.engine import Engine
from serve.metrics import Metrics
from serve.middleware import error_response
from serve.versions import Rollout

EVENTS = 20  # of the registry, that are shown


def operations(engine: Engine, metrics: Metrics, figures: Callable[[], Awaitable[bytes]] | None = None) -> APIRouter:
    """The routes over an engine and its figures; `figures` are those of all, where several processes serve."""
    router = APIRouter(tags=["operations"])

    @router.get("/livez", summary="The process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/readyz", summary="Every model has run once", responses={503: {}})
    async def ready() -> JSONResponse:
        if engine.warm:
            return JSONResponse({"status": "ready"})
        return error_response(
            503, "Unavailable", engine.failure or "the models are warming up", headers={"Retry-After": "1"}
        )

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=schemas.ERRORS)
    async def prometheus() -> Response:
        data = await (figures() if figures is not None else anyio.to_thread.run_sync(engine.figures))
        return Response(data, media_type=CONTENT_TYPE_LATEST)

    @router.get(
        "/v1/versions",
        summary="Which versions of registered models answer, and how they compare",
        responses=schemas.ERRORS,
    )
    async def versions() -> schemas.VersionsAnswer:
        cards = [await anyio.to_thread.run_sync(card, name, rollout) for name, rollout in engine.rollouts.items()]
        return schemas.VersionsAnswer(rollouts=cards)

    return router


def card(name: str, rollout: Rollout) -> schemas.RolloutCard:
    """How a rollout stands."""
    events = rollout.registry.history(rollout.registered)[-EVENTS:]
    return schemas.RolloutCard(
        name=name,
        model=rollout.registered,
        alias=rollout.alias,
        share=rollout.share,
        bars=asdict(rollout.bars),
        versions=[_version(rollout, version) for version in rollout.versions],
        refused=dict(rollout.refused),
        events=[schemas.AliasEvent(**event.model_dump()) for event in reversed(events)],
    )


def _version(rollout: Rollout, version: Version) -> schemas.VersionCard:
    folder = rollout.registry.resolve(f"{rollout.registered}@{version.number}")
    seconds = [version.percentile(q) for q in (50, 95)]
    p50, p95 = [None if each is None else round(1000 * each, 2) for each in seconds]
    return schemas.VersionCard(
        version=version.number,
        role=version.role,
        fingerprint=version.model.fingerprint,
        gate_passed=artifacts.read(folder, verify=False).metrics.get("gate_passed"),
        asked=version.asked,
        errors=version.errors,
        p50_ms=p50,
        p95_ms=p95,
        compared=len(version.disagreements),
        disagreement=version.disagreement,
    )
