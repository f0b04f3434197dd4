"""The HTTP API under /v1/jobs: pictures from the web into an archive, while nobody waits."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import anyio.to_thread
from fastapi import APIRouter

from foveal import schemas
from foveal.errors import BadInput
from retrieval.sources_web import Web
from serve.engine import Engine
from serve.job_runner import Runner
from serve.jobs import Told
from serve.keys import caller
from serve.limits import NotFound
from serve.strict_json import StrictRoute


def job_api(engine: Engine, runner: Runner, web: Web) -> APIRouter:
    """The routes over what does the jobs."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=schemas.ERRORS, route_class=StrictRoute)
    jobs = runner.jobs

    async def visible(id: str) -> Told:
        job = await anyio.to_thread.run_sync(jobs.get, id)
        allowed = _allowed()
        if job is None or (allowed is not None and job.archive not in allowed):
            raise NotFound(f"there is no job {id[:80]!r}")
        return job

    @router.post("", summary="Fetch pictures from the web into an archive", status_code=202)
    async def add(asked: schemas.JobRequest) -> schemas.Job:
        name, _ = engine.archives.folder(asked.archive)
        await anyio.to_thread.run_sync(_check, web, asked.urls)
        key = caller.get()
        key = caller.get()
        job = await anyio.to_thread.run_sync(partial(jobs.add, name, asked.urls, asked.metadata, key and key.name))
        runner.wake()
        return _shown(job)

    @router.get("", summary="The newest jobs")
    async def listed() -> schemas.JobList:
        found = await anyio.to_thread.run_sync(jobs.list, _allowed())
        return schemas.JobList(jobs=[_shown(job) for job in found])

    @router.get("/{id}", summary="How far a job is")
    async def one(id: str) -> schemas.Job:
        return _shown(await visible(id))

    @router.delete("/{id}", summary="Cancel a job; what it added stays")
    async def cancel(id: str) -> schemas.Job:
        await visible(id)
        await anyio.to_thread.run_sync(jobs.cancel, id)
        return _shown(await visible(id))

    return router


def _allowed() -> frozenset[str] | None:
    key = caller.get()
    return None if key is None else key.archives


def _check(web: Web, urls: list[str]) -> None:
    """BadInput when one of the addresses may not be fetched; nothing is fetched then."""
    for place, url in enumerate(urls):
        try:
            web.check(url)
        except BadInput as error:
            raise BadInput(
                f"urls.{place}: {error.message}", expected=error.expected, received=error.received, remedy=error.remedy
            ) from None


def _shown(job: Told) -> schemas.Job:
    done = job.added + job.updated + job.unchanged + job.rejected
    return schemas.Job(
        id=job.id,
        archive=job.archive,
        state=job.state,
        total=job.total,
        added=job.added,
        updated=job.updated,
        unchanged=job.unchanged,
        rejected=job.rejected,
        progress=done / job.total,
        reasons=[schemas.RejectedItem(name=url, reason=reason) for url, reason in job.reasons],
        error=job.error,
        created=datetime.fromtimestamp(job.created, UTC),
        started=None if job.started is None else datetime.fromtimestamp(job.started, UTC),
        ended=None if job.ended is None else datetime.fromtimestamp(job.ended, UTC),
    )
