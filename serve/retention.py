"""A server's rules on how long its archives keep what, applied daily, counted, and written to the audit log."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import anyio

from foveal.errors import FovealError
from retrieval.retention import DAY, Rule
from serve.audit import Audit, NotAudited
from serve.engine import Engine
from serve.metrics import Metrics

log = logging.getLogger("foveal.serve")


async def keep_to(engine: Engine, rules: Sequence[Rule], metrics: Metrics, audit: Audit | None) -> None:
    """Applies the rules to every archive, now and every day, for ever; what fails is tried again the next day."""
    for name in engine.archives:
        metrics.retained.labels(name)  # from zero on, so that the first one is a rise
        for outcome in ("done", "failed"):
            metrics.retention_runs.labels(name, outcome)
    while True:
        for name in engine.archives:
            for rule in rules:
                await apply(engine, name, rule, metrics, audit)
        await anyio.sleep(DAY)


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
