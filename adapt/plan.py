"""What a run will need, before it starts: parameters, memory and time from a few measured steps, and what would fit.

Steps are measured in a process of their own: its peak memory is the run's, and the system may kill it when it takes
too much without harm to anybody else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from adapt.job import ENDLESS, Job, Order
from adapt.settings import Settings
from foveal.dataset import Dataset
from foveal.errors import BadInput, FovealError, UnknownName
from foveal.progress import Progress

MEASURED_SECONDS = 5.0
HEADROOM = 0.9  # share of what is free that a run may take
MARK = "measured: "


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of adaptation makes its job; modules are imported on first use."""

    settings: str  # module:class
    job: Callable[[str, Sequence[str], Any, str | None], Job]  # base, sources, settings, device


def _clip(base: str, sources: Sequence[str], settings: Any, device: str | None) -> Job:
    from adapt.clip import adaptable, make_job

    return make_job(base, adaptable(base, device), _dataset(sources), settings)


def _detector(base: str, sources: Sequence[str], settings: Any, device: str | None) -> Job:
    from adapt.detector import adaptable, make_job

    return make_job(base, adaptable(base, device), _dataset(sources), settings)


def _vlm(base: str, sources: Sequence[str], settings: Any, device: str | None) -> Job:
    from adapt.dialogues import open_dialogues
    from adapt.vlm import adaptable, make_job

    return make_job(base, adaptable(base, device), open_dialogues(sources), settings)


def _dataset(sources: Sequence[str]) -> Dataset:
    if len(sources) != 1:
        raise BadInput("the run learns from one dataset", expected="one source", received=", ".join(sources) or "none")
    return Dataset.open(sources[0])


KINDS: dict[str, Kind] = {
    "clip": Kind("adapt.clip:ClipSettings", _clip),
    "detector": Kind("adapt.detector:DetectorSettings", _detector),
    "vlm": Kind("adapt.vlm:VlmSettings", _vlm),
}


class Measured(BaseModel):
    """A few steps of a run."""

    model_config = ConfigDict(frozen=True)

    trainable_params: int
    total_params: int
    examples: int
    batch: int
    steps_an_epoch: int
    seconds_a_step: float
    peak_mb: float  # of the process on a CPU, of the card's memory on a GPU
    available_mb: float  # when it began
    device: str


class Plan(BaseModel):
    """What a run needs, written for a person to decide by."""

    base: str
    fits: bool
    reason: str
    set: list[str]  # the --set words of the run that was measured
    available_mb: float | None = None
    peak_mb: float | None = None
    trainable_params: int | None = None
    total_params: int | None = None
    examples: int | None = None
    batch: int | None = None
    steps: int | None = None  # of the whole run; None where the clock ends it
    seconds_a_step: float | None = None
    seconds: float | None = None  # of training, the whole run
    tried: list[str] = []  # what `fit` tried, in words


def settings_class(kind: str) -> type[Settings]:
    """The settings of a kind of adaptation.

    Raises:
        UnknownName: no such kind.
    """
    if kind not in KINDS:
        raise UnknownName("adaptation", kind, KINDS)
    module, name = KINDS[kind].settings.split(":")
    return getattr(import_module(module), name)


def plan(
    kind: str,
    base: str,
    sources: Sequence[str],
    settings: Settings,
    progress: Progress | None = None,
    *,
    memory_mb: float | None = None,
    fit: bool = False,
    device: str | None = None,
) -> Plan:
    """Measure a run; with `fit` look for the fastest settings that fit, leaving the batch as it is.

    Args:
        sources: what the run would learn from: a dataset, or the dialogues of a VLM in one or more files.
        memory_mb: plan for a machine with this much free instead of what is free here.

    Raises:
        BadInput, FovealError: the run itself would refuse, with its own message.
    """
    if memory_mb is not None and memory_mb <= 0:
        raise BadInput("no memory to plan for", expected="a size above 0 MB", received=f"{memory_mb:g}")
    asked = settings_class(kind).model_validate(settings.model_dump())
    first = _judge(kind, base, sources, asked, [], memory_mb, device)
    if first.fits or not fit:
        return first
    tried, found = [_outcome(first)], [first]
    for words in _smaller(asked):
        changed = settings_class(kind).model_validate({**asked.model_dump(), **words})
        if progress is not None:
            progress.note(f"{tried[-1]}; trying {' '.join(_words(words))}")
        found.append(_judge(kind, base, sources, changed, _words(words), memory_mb, device))
        tried.append(_outcome(found[-1]))
    fitting = [one for one in found if one.fits and one.seconds_a_step is not None]
    best = min(fitting, key=lambda one: one.seconds_a_step or 0.0) if fitting else found[-1]
    return best.model_copy(update={"tried": tried})


def _smaller(settings: Settings) -> Iterator[dict[str, Any]]:
    """Settings that need less memory and give the same result."""
    pieces = [settings.batch // part for part in (4, 16) if settings.batch % part == 0 and settings.batch > part]
    if not settings.checkpointing:
        yield {"checkpointing": True}
    for piece in pieces:
        yield {"micro_batch": piece}
    if pieces and not settings.checkpointing:
        yield {"micro_batch": pieces[-1], "checkpointing": True}


def _words(values: dict[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def _outcome(one: Plan) -> str:
    return f"{' '.join(one.set) or 'as asked'}: {one.reason}"


def _judge(
    kind: str,
    base: str,
    sources: Sequence[str],
    settings: Settings,
    words: list[str],
    memory_mb: float | None,
    device: str | None,
) -> Plan:
    measured = measure(kind, base, sources, settings, device)
    if measured is None:
        return Plan(base=base, fits=False, reason="memory ran out", set=words)
    free = memory_mb if memory_mb is not None else measured.available_mb * HEADROOM
    fits = measured.peak_mb <= free
    epochs = settings.epochs or (None if settings.max_seconds else 20)
    steps = epochs * measured.steps_an_epoch if epochs else None
    by_steps = steps * measured.seconds_a_step if steps is not None else None
    seconds = min(x for x in (by_steps, settings.max_seconds) if x is not None)
    return Plan(
        base=base,
        fits=fits,
        reason=f"{measured.peak_mb:.0f} MB of {free:.0f} MB, {measured.seconds_a_step:.3g} s a step",
        set=words,
        available_mb=free,
        peak_mb=measured.peak_mb,
        trainable_params=measured.trainable_params,
        total_params=measured.total_params,
        examples=measured.examples,
        batch=measured.batch,
        steps=steps,
        seconds_a_step=measured.seconds_a_step,
        seconds=seconds,
    )


def measure(
    kind: str, base: str, sources: Sequence[str], settings: Settings, device: str | None = None
) -> Measured | None:
    """A few steps in a process of their own; None when memory ran out.

    Raises:
        FovealError: the run refuses, with its own message.
    """
    request = {
        "kind": kind,
        "base": base,
        "sources": list(sources),
        "settings": settings.model_dump(mode="json"),
        "device": device,
    }
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "adapt.plan"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode == -9:  # the system's out-of-memory killer
        return None
    said = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not said:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FovealError(f"the measured steps failed: {last}", received=f"exit code {done.returncode}")
    answer = json.loads(said[-1])
    if "error" in answer:
        if answer["memory"]:
            return None
        raise FovealError(answer["error"])
    return Measured.model_validate(answer)


def _measure_here(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from adapt.run import train
    from foveal.runtime import peak_memory_mb, pick_device

    kind = KINDS[request["kind"]]
    settings = settings_class(request["kind"]).model_validate(request["settings"])
    quiet = {"trackers": (), "epochs": None, "checkpoint_seconds": 1e9, "validate_every": None}
    device = pick_device(request["device"])
    available = _available_mb(device)
    job = kind.job(request["base"], request["sources"], settings, request["device"])
    trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    for seconds in (1e-3, MEASURED_SECONDS):  # the first step fills caches and is not counted
        limited = settings.model_copy(update={**quiet, "max_seconds": seconds})
        with tempfile.TemporaryDirectory() as work:
            history = train(job, limited, Path(work), None, None)
    on_card = device.startswith("cuda")
    order = Order(job.count, settings.batch, ENDLESS, settings.seed)
    return Measured(
        trainable_params=trained,
        total_params=job.total_params,
        examples=job.count,
        batch=order.batch,
        steps_an_epoch=order.per_epoch // order.batch,
        seconds_a_step=history.seconds / history.steps,
        peak_mb=torch.cuda.max_memory_reserved() / 2**20 if on_card else peak_memory_mb(),
        available_mb=available,
        device=device,
    ).model_dump()


def _available_mb(device: str) -> float:
    """Free memory of the card, or of this machine within a container's limit, MB."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0] / 2**20
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        pages = float(fields["MemAvailable"].split()[0]) / 2**10
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            pages = min(pages, (int(limit) - used) / 2**20)
    except (OSError, KeyError, ValueError):
        pass
    return pages


if __name__ == "__main__":
    try:
        answer = _measure_here(json.loads(sys.stdin.read()))
    except FovealError as error:
        answer = {"error": str(error), "memory": error.message.startswith("memory ran out")}
    print(MARK + json.dumps(answer), flush=True)
