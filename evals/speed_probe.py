"""A model timed in a process of its own, so that what it takes in memory is its own.

The process is started anew, loads the model, answers on its standard output and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from foveal.errors import BadInput, FovealError
from foveal.models import Runtime

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = Literal["encoder", "detector", "open-detector", "vlm"]
KINDS: tuple[Kind, ...] = ("encoder", "detector", "open-detector", "vlm")
MARK = "speed: "
LEAST_BATCHES = 3  # of a size, however slow


class Request(BaseModel):
    """What is to be timed, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: str
    kind: Kind
    images: list[str]  # files
    batches: list[int] = [1]
    calls: int = 100  # single ones, for latency
    warmup: int = 5
    seconds: float = 3.0  # at each batch size, for throughput
    prompts: list[str] = []
    question: str = ""
    max_tokens: int = 16
    registry: str | None = None
    size: int | None = None
    threads: int | None = None
    runtime: Runtime = "torch"  # of an encoder


class Timed(BaseModel):
    """What was timed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ms: list[float]  # of each call with one picture, in order
    images: list[str]  # which picture each was
    images_per_second: dict[int, float]  # batch size (or callers at once) -> throughput
    joules_per_image: dict[int, float]
    peak_mb: dict[int, float]  # resident memory at its highest once that batch size was done; empty: not this process's
    before_mb: float | None = None  # before the model was loaded: the interpreter and its libraries
    gpu_peak_mb: float | None = None
    load_seconds: float | None = None
    energy: str | None = None  # what was counted
    energy_why_not: str | None = None
    name: str
    fingerprint: str | None = None


def probe(request: Request) -> Timed:
    """The model timed in a new process.

    Raises:
        FovealError: it cannot be loaded or asked; as the process says.
    """
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "evals.speed_probe"],
        input=request.model_dump_json(),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    said = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not said:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        killed = done.returncode == -9
        raise FovealError(
            f"timing {request.reference} failed: {'the system ended it, memory ran out' if killed else last}",
            received=f"exit code {done.returncode}",
            remedy="Try smaller batches." if killed else None,
        )
    answer = json.loads(said[-1])
    if "error" in answer:
        raise BadInput(answer["error"])
    return Timed.model_validate(answer)


def time_here(request: Request) -> Timed:
    """The model loaded and timed in this process."""
    from foveal.images import decode

    before = resident_mb()
    began = time.perf_counter()
    model, ask = loaded(request)
    load_seconds = time.perf_counter() - began
    pictures = [decode(Path(file)) for file in request.images]
    timed = run(request, pictures, ask)
    return timed.model_copy(
        update={
            "before_mb": before,
            "load_seconds": load_seconds,
            "gpu_peak_mb": _gpu_peak_mb(),
            "name": str(model.name),
            "fingerprint": getattr(model, "fingerprint", None),
        }
    )


def loaded(request: Request) -> tuple[Any, Callable[[Sequence[Image]], Any]]:
    """The model, and how it is given a batch of pictures."""
    from foveal import models

    registry = None if request.registry is None else Path(request.registry)
    if request.kind == "encoder":
        encoder = models.load_encoder(request.reference, runtime=request.runtime)
        return encoder, encoder.encode_images
    if request.kind == "detector":
        detector = models.load_detector(request.reference, registry, threads=request.threads, size=request.size)
        return detector, detector.detect
    if request.kind == "open-detector":
        finder = models.load_open_detector(request.reference)
        return finder, lambda images: finder.detect(images, request.prompts)
    vlm: Any = models.load_vlm(request.reference)
    if hasattr(vlm, "replies"):  # several questions in one pass
        asked, most = request.question, request.max_tokens
        return vlm, lambda images: vlm.replies([(image, (), asked) for image in images], most)
    return vlm, lambda images: [vlm.answer(image, request.question, request.max_tokens) for image in images]


def run(request: Request, pictures: Sequence[Image], ask: Callable[[Sequence[Image]], Any]) -> Timed:
    """Single calls for latency, then each batch size, the smallest first, for throughput and memory."""
    from evals.energy import Meter

    for turn in range(request.warmup):
        ask([pictures[turn % len(pictures)]])
    ms: list[float] = []
    for turn in range(request.calls):
        began = time.perf_counter()
        ask([pictures[turn % len(pictures)]])
        ms.append((time.perf_counter() - began) * 1000)
    meter = Meter.of_machine()
    rates: dict[int, float] = {}
    joules: dict[int, float] = {}
    peaks: dict[int, float] = {}
    for batch in sorted(set(request.batches)):
        piles = [[pictures[(start + i) % len(pictures)] for i in range(batch)] for start in range(len(pictures))]
        ask(piles[0])  # not counted: the first batch of a size allocates
        meter.start()
        count, began = 0, time.perf_counter()
        while count < LEAST_BATCHES or time.perf_counter() - began < request.seconds:
            ask(piles[count % len(piles)])
            count += 1
        rates[batch] = count * batch / (time.perf_counter() - began)
        used = meter.joules()
        if used is not None:
            joules[batch] = used / (count * batch)
        peaks[batch] = peak_resident_mb()
    return Timed(
        ms=ms,
        images=[Path(request.images[turn % len(pictures)]).name for turn in range(request.calls)],
        images_per_second=rates,
        joules_per_image=joules,
        peak_mb=peaks,
        energy=meter.source,
        energy_why_not=meter.why_not,
        name=request.reference,
    )


def resident_mb() -> float:
    """Memory that this process holds now, MB."""
    return _status("VmRSS:")


def peak_resident_mb() -> float:
    """The most that this process has held since it began, MB; unlike `ru_maxrss` never what its parent held."""
    return _status("VmHWM:")


def _status(field: str) -> float:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    from foveal.runtime import peak_memory_mb

    return peak_memory_mb()


def _gpu_peak_mb() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / 2**20


if __name__ == "__main__":
    try:
        result = time_here(Request.model_validate_json(sys.stdin.read())).model_dump(mode="json")
    except FovealError as error:
        result = {"error": str(error)}
    print(MARK + json.dumps(result), flush=True)
