"""What a quickstart measured, kept item by item: of what it releases, and of what that would replace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from evals.results import Data, Measured, Result, Stopwatch, Subject, read
from foveal.dataset import Dataset
from serve.quickstart_settings import Run

Side = Literal["candidate", "incumbent"]


def folder(run: Run, side: Side) -> Path:
    """Where the results of one side lie."""
    return run.out / "results" / side


def keep(
    run: Run,
    side: Side,
    task: str,
    measured: Measured,
    reference: str,
    model: Any,
    data: tuple[str, Dataset],
    watch: Stopwatch,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Writes a result under its task's name; `data` is a split and what was read of it."""
    split, dataset = data
    told = Data(source=str(run.world(split)), fingerprint=dataset.fingerprint, images=len(dataset))
    result = watch.result(task, measured, Subject.of(reference, model), told, settings=settings)
    result.write(folder(run, side) / f"{task}.json")
    return result


def kept(run: Run, side: Side, task: str) -> Result | None:
    """A result that an earlier stage wrote; None where it could not measure that."""
    path = folder(run, side) / f"{task}.json"
    return read(path) if path.is_file() else None
