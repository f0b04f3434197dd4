"""`foveal eval ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.errors import BadInput
from foveal.options import DEFAULT_ENCODER, EncoderRef, live_progress
from foveal.printing import Json, emit
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir

if TYPE_CHECKING:
    from foveal.detections import Detections

eval_app = typer.Typer(no_args_is_help=True, help="Measure a model.")


@eval_app.command("detection")
def eval_detection(
    truth: Annotated[Path, typer.Option(metavar="FILE", help="COCO instances.")],
    predictions: Annotated[Path | None, typer.Option(metavar="FILE", help="COCO results list.")] = None,
    detector: Annotated[str | None, typer.Option(metavar="REF", help="Detector to run on the truth's images.")] = None,
    size: Annotated[int | None, typer.Option(metavar="PX", help="Side that the detector sees.")] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """COCO average precision of a predictions file, or of a detector.

    Example: foveal eval detection --truth truth.json --predictions predictions.json
    """
    from evals.detection import evaluate

    if (predictions is None) == (detector is None):
        raise BadInput("there must be one thing to measure", expected="--predictions FILE or --detector REF")
    found = _detected(truth, detector, registry, size) if detector is not None else predictions
    assert found is not None  # one of the two was given
    emit(dict(evaluate(truth, found)), json_)


def _detected(truth: Path, detector: str, registry: Path, size: int | None) -> list[Detections]:
    from foveal.dataset import Dataset
    from foveal.models import load_detector
    from foveal.progress import track

    model = load_detector(detector, registry, size=size)
    return [model.detect([s.image()], 0.001)[0] for s in track(live_progress(), Dataset.open(truth), f"run {detector}")]


@eval_app.command("retrieval")
def eval_retrieval(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with captions.")],
    encoder: EncoderRef = DEFAULT_ENCODER,
    json_: Json = False,
) -> None:
    """Recall of text-to-image and image-to-text search.

    Example: foveal eval retrieval --data runs/site --encoder bundled:clip
    """
    from evals.retrieval import evaluate
    from foveal.dataset import Dataset
    from foveal.models import load_encoder

    dataset = Dataset.open(data)
    emit(evaluate(load_encoder(encoder), dataset, progress=live_progress()), json_)


@eval_app.command("zero-shot")
def eval_zero_shot(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with class labels or boxes.")],
    encoder: EncoderRef = DEFAULT_ENCODER,
    json_: Json = False,
) -> None:
    """Accuracy of naming images, or the crops of labelled boxes, by their class names.

    Example: foveal eval zero-shot --data runs/site --encoder bundled:clip
    """
    from evals.zero_shot import evaluate_dataset
    from foveal.dataset import Dataset
    from foveal.models import load_encoder

    dataset = Dataset.open(data)
    emit(evaluate_dataset(load_encoder(encoder), dataset), json_)


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
