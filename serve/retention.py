"""A server's rules on how long its archives keep what, applied daily, counted, and written to the audit log."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import anyio
from filelock import FileLock, Timeout

from foveal.errors import FovealError
from retrieval.retention import DAY, Rule
from serve.audit import Audit, NotAudited
from serve.engine import Engine
from serve.metrics import Metrics

log = logging.getLogger("foveal.serve")
LOCK = ".retention-lock"  # in the archive: held by who applies the rules
HELD = 60.0  # seconds before asking again for what another process holds


async def keep_to(engine: Engine, rules: Sequence[Rule], metrics: Metrics, audit: Audit | None) -> None:
    """Applies the rules to every archive in a folder, now and daily, for ever; what fails is tried again the next day.

    Of several processes that serve an archive one does; another goes on once that one has ended.
    """
    for name in engine.archives.folders:
        metrics.retained.labels(name)  # from zero on, so that the first one is a rise
        for outcome in ("done", "failed"):
            metrics.retention_runs.labels(name, outcome)
    async with anyio.create_task_group() as tasks:
        for name, store in engine.archives.folders.items():
            tasks.start_soon(_keep, engine, name, FileLock(store.path / LOCK), rules, metrics, audit)


async def _keep(
    engine: Engine, name: str, lock: FileLock, rules: Sequence[Rule], metrics: Metrics, audit: Audit | None
) -> None:
    while not _held(name, lock):
        await anyio.sleep(HELD)
    try:
        while True:
            for rule in rules:
                await apply(engine, name, rule, metrics, audit)
            await anyio.sleep(DAY)
    finally:
        lock.release()


def _held(name: str, lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError as error:
        log.error("nothing of %s is removed: %s", name, error)
        return False
    return True


async def apply(engine: Engine, name: str, rule: Rule, metrics: Metrics, audit: Audit | None) -> None:
    """Applies one rule to one archive; nothing goes that could not be written down before."""
    outcome = "failed"
    try:
        gone = await engine.retain(name, rule, functools.partial(_tell, audit, name, rule))
        metrics.retained.labels(name).inc(gone.deleted)
        log.info("%d images of %s were kept for %s days and are gone", gone.deleted, name, rule)
        outcome = "done"
    except NotAudited as error:
        log.error("nothing of %s is removed: %s", name, error)
    except (FovealError, OSError) as error:
        log.error("what %s keeps too long is not all removed: %s", name, error)
    finally:
        metrics.retention_runs.labels(name, outcome).inc()


def _tell(audit: Audit | None, name: str, rule: Rule, ids: Sequence[str]) -> None:
    if audit is not None:
        audit.write([(name, id) for id in ids], event="retention", rule=str(rule))
