"""`foveal eval ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.errors import BadInput
from foveal.options import DEFAULT_ENCODER, live_progress
from foveal.printing import Json, emit

if TYPE_CHECKING:
    from evals.results import Measured, Stopwatch
    from foveal.dataset import Dataset
    from foveal.models import Encoder

ResultFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.json", help="Keep the result, item by item, and a page to look at beside it."),
]
EncoderOrServer = Annotated[
    str,
    typer.Option(
        "--encoder", metavar="REF", help="Image-text encoder, optionally +adapter, or the http address of a server."
    ),
]
ResultName = Annotated[
    str | None, typer.Option("--name", help="What gates and comparisons call the result; the task's name by default.")
]

eval_app = typer.Typer(no_args_is_help=True, help="Measure a model.")


def keep(
    task: str,
    watch: Stopwatch,
    measured: Measured,
    reference: str,
    model: object,
    source: str,
    dataset: Dataset,
    out: Path | None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
) -> None:
    """Write a result and its page where `--out` asks for it, and say where they are.

    Args:
        fingerprint: of the data, where the truth is not in `dataset`.
    """
    if out is None:
        return
    from evals.pages import write
    from evals.results import Data, Subject, result_path

    path = result_path(out)
    subject = Subject.of(reference, model)
    data = Data(source=source, fingerprint=fingerprint or dataset.fingerprint, images=len(dataset))
    page = write(watch.result(task, measured, subject, data, name=name, settings=settings), path, dataset)
    typer.echo(f"kept in {path}; look at {page}", err=True)


def encoder_of(reference: str) -> Encoder:
    """What a reference names as an encoder; a server is asked with the key in FOVEAL_API_KEY.

    Raises:
        BadInput: a server that does not tell how its encoder scales similarities.
    """
    from foveal.models import load_encoder
    from foveal.served import ServedEncoder, connect, is_server

    if not is_server(reference):
        return load_encoder(reference)
    served = connect(reference, ["encoder"], os.environ.get("FOVEAL_API_KEY"))
    assert isinstance(served, ServedEncoder)  # what `connect` was asked for
    if math.isnan(served.logit_scale):
        raise BadInput(f"{reference} does not tell the scale of its encoder", remedy="Update Foveal there.")
    return served


@eval_app.command("retrieval")
def eval_retrieval(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with captions.")],
    encoder: EncoderOrServer = DEFAULT_ENCODER,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """Recall of text-to-image and image-to-text search.

    Example: foveal eval retrieval --data runs/site --encoder bundled:clip --out runs/eval/retrieval.json
    """
    from evals.results import Stopwatch
    from evals.retrieval import measure
    from foveal.dataset import Dataset

    dataset, watch, model = Dataset.open(data), Stopwatch(), encoder_of(encoder)
    measured = measure(model, dataset, progress=live_progress())
    keep("retrieval", watch, measured, encoder, model, data, dataset, out, name)
    emit(measured.figures, json_)


@eval_app.command("zero-shot")
def eval_zero_shot(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with class labels or boxes.")],
    encoder: EncoderOrServer = DEFAULT_ENCODER,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """Accuracy of naming images, or the crops of labelled boxes, by their class names.

    Example: foveal eval zero-shot --data runs/site --encoder bundled:clip
    """
    from evals.results import Stopwatch
    from evals.zero_shot import measure
    from foveal.dataset import Dataset

    dataset, watch, model = Dataset.open(data), Stopwatch(), encoder_of(encoder)
    measured = measure(model, dataset, progress=live_progress())
    keep("zero-shot", watch, measured, encoder, model, data, dataset, out, name)
    emit(measured.figures, json_)


@eval_app.command("few-shot")
def eval_few_shot(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with class labels or boxes.")],
    test: Annotated[
        str | None, typer.Option("--test", metavar="SOURCE", help="Images to ask; without it, half of --data.")
    ] = None,
    encoder: EncoderOrServer = DEFAULT_ENCODER,
    shots: Annotated[str, typer.Option(metavar="N,N", help="Examples a class.")] = "1,4,16",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the examples.")] = 3,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """Accuracy from a handful of examples: zero-shot, Tip-Adapter and a linear probe, over several draws.

    Example: foveal eval few-shot --data runs/site --shots 1,4,16 --seeds 3 --out runs/eval/few-shot.json
    """
    import hashlib

    from evals.results import Stopwatch
    from evals.shots import measure
    from foveal.dataset import Dataset

    numbers, dataset, asked = _numbers(shots), Dataset.open(data), None if test is None else Dataset.open(test)
    watch, model = Stopwatch(), encoder_of(encoder)
    measured = measure(model, dataset, asked, numbers, seeds, progress=live_progress())
    settings, both, source = {"shots": numbers, "seeds": seeds}, None, data
    if asked is not None and out is not None:
        both = hashlib.sha256(f"{dataset.fingerprint}{asked.fingerprint}".encode()).hexdigest()
        source = f"{test}, with examples of {data}"
    keep("few-shot", watch, measured, encoder, model, source, asked or dataset, out, name, settings, both)
    emit(measured.figures, json_)


def _numbers(text: str) -> list[int]:
    """Numbers of examples from `1,4,16`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise BadInput(f"--shots {text!r} cannot be used", expected="whole numbers above 0, as in 1,4,16")
    return [int(part) for part in parts]
