"""`foveal eval speed`: latency, throughput, memory, energy and cost of a model or a running server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.options import EncoderRuntime
from foveal.printing import Json, emit
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir

MOST_IMAGES = 50  # decoded and held while a model is timed


def speed(
    model: Annotated[str, typer.Argument(metavar="REF", help="Model, or http://HOST:PORT of a running server.")],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Pictures to ask about, in turn; the first 50 are used.")],
    as_: Annotated[
        Literal["encoder", "detector", "open-detector", "vlm"] | None,
        typer.Option("--as", help="What it is, where its reference leaves that open."),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=4096, help="Batch size for throughput, callers at once for a server; repeatable."),
    ] = None,
    calls: Annotated[int, typer.Option(min=1, help="Single calls timed; p99 wants 100 or more.")] = 100,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before the first that counts.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="At least so long at each batch size.")] = 3.0,
    prompts: Annotated[str, typer.Option(help="Classes for an open-vocabulary detector, comma separated.")] = "object",
    question: Annotated[str, typer.Option(help="For a vision-language model.")] = "What is in the picture?",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens its answer may have.")] = 16,
    size: Annotated[int | None, typer.Option(metavar="PX", help="Side that a detector sees.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of an exported detector.")] = None,
    runtime: EncoderRuntime = "torch",
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML table of prices.")] = None,
    machine: Annotated[str | None, typer.Option(help="Which machine of the table this is.")] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Keep the result, and a page to look at beside it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What gates call the result; speed by default.")] = None,
    json_: Json = False,
) -> None:
    """Time a model, warm, in a process of its own: latency, throughput, peak memory, energy, cost of 1,000 pictures.

    Example: foveal eval speed bundled:clip --data runs/site --batch 1 --batch 16 --prices examples/prices.yaml
    """
    from evals import prices as tables
    from evals.results import Data, Stopwatch, Subject, result_path
    from evals.speed import kind_of, measure, time_model
    from evals.speed_probe import Request
    from foveal.dataset import Dataset
    from foveal.errors import BadInput
    from foveal.runtime import usable_cores
    from foveal.served import is_server

    path = None if out is None else result_path(out)
    if runtime != "torch" and (is_server(model) or (as_ or kind_of(model)) != "encoder"):
        raise BadInput("--runtime is for encoders that are timed here", received=model)
    if machine is not None and prices is None:
        raise BadInput(f"--machine {machine} needs a table", expected="--prices FILE")
    table = None if prices is None else tables.read(prices)
    charged, price = (None, None) if table is None else table.machine(machine)
    watch, dataset = Stopwatch(), Dataset.open(data)
    if not len(dataset):
        raise BadInput(f"{data} holds no picture", expected="at least one")
    shown = dataset.subset(range(min(len(dataset), MOST_IMAGES)))
    request = Request.model_validate(
        {
            "reference": model, "kind": as_ or ("detector" if is_server(model) else kind_of(model)),
            "images": [str(sample.path) for sample in shown], "batches": batch or [1, 8], "calls": calls,
            "warmup": warmup, "seconds": seconds, "prompts": [word.strip() for word in prompts.split(",")],
            "question": question, "max_tokens": max_tokens, "registry": str(registry), "size": size,
            "threads": threads, "runtime": runtime,
        }
    )  # fmt: skip
    busy = os.getloadavg()[0] / usable_cores() if hasattr(os, "getloadavg") else None
    timed = time_model(request)
    measured = measure(timed, price, None if table is None else table.currency)
    if path is not None:
        from evals.pages import write

        subject = Subject(reference=model, fingerprint=timed.fingerprint)
        if not is_server(model):
            subject = Subject.of(model, timed)
        about = Data(source=data, fingerprint=shown.fingerprint, images=len(shown))
        settings = {
            "as": request.kind, "batches": request.batches, "calls": calls, "warmup": warmup, "seconds": seconds,
            "load_per_core": busy, "machine": charged, "price": None if price is None else price.model_dump(),
            **({"prompts": request.prompts} if request.kind == "open-detector" else {}),
            **({"question": question, "max_tokens": max_tokens} if request.kind == "vlm" else {}),
            **({"runtime": runtime} if request.kind == "encoder" and not is_server(model) else {}),
            **({"size": size} if size else {}), **({"threads": threads} if threads else {}),
        }  # fmt: skip
        kept = watch.result("speed", measured, subject, about, name=name, settings=settings)
        typer.echo(f"kept in {path}; look at {write(kept, path)}", err=True)
    emit(measured.figures, json_)
