"""`foveal eval ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.options import DEFAULT_ENCODER, EncoderRef, live_progress
from foveal.printing import Json, emit

if TYPE_CHECKING:
    from evals.results import Measured, Stopwatch
    from foveal.dataset import Dataset

ResultFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.json", help="Keep the result, item by item, and a page to look at beside it."),
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
) -> None:
    """Write a result and its page where `--out` asks for it, and say where they are."""
    if out is None:
        return
    from evals.pages import write
    from evals.results import Data, Subject, result_path

    path = result_path(out)
    subject = Subject.of(reference, model)
    data = Data(source=source, fingerprint=dataset.fingerprint, images=len(dataset))
    page = write(watch.result(task, measured, subject, data, name=name, settings=settings), path, dataset)
    typer.echo(f"kept in {path}; look at {page}", err=True)


@eval_app.command("retrieval")
def eval_retrieval(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with captions.")],
    encoder: EncoderRef = DEFAULT_ENCODER,
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
    from foveal.models import load_encoder

    dataset, watch, model = Dataset.open(data), Stopwatch(), load_encoder(encoder)
    measured = measure(model, dataset, progress=live_progress())
    keep("retrieval", watch, measured, encoder, model, data, dataset, out, name)
    emit(measured.figures, json_)


@eval_app.command("zero-shot")
def eval_zero_shot(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with class labels or boxes.")],
    encoder: EncoderRef = DEFAULT_ENCODER,
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
    from foveal.models import load_encoder

    dataset, watch, model = Dataset.open(data), Stopwatch(), load_encoder(encoder)
    measured = measure(model, dataset, progress=live_progress())
    keep("zero-shot", watch, measured, encoder, model, data, dataset, out, name)
    emit(measured.figures, json_)


@eval_app.command("vqa")
def eval_vqa(
    data: Annotated[
        list[str], typer.Option("--data", metavar="SOURCE", help="Dialogues, questions or boxes; repeatable.")
    ],
    vlm: Annotated[str, typer.Option("--vlm", metavar="REF", help="Vision-language model, optionally +adapter.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may have.")] = 64,
    json_: Json = False,
) -> None:
    """Exact match and ANLS of answers, and IoU of answered boxes.

    Example: foveal eval vqa --data runs/site --vlm hf:Qwen/Qwen2.5-VL-3B-Instruct
    """
    from adapt.vlm_score import evaluate

    emit(evaluate(vlm, data, max_tokens, live_progress()).figures, json_)
