"""`foveal eval robustness | shift | slices`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.errors import BadInput
from foveal.eval_cli import EncoderOrServer, ResultFile, ResultName, encoder_of, keep
from foveal.options import DEFAULT_ENCODER, EncoderRef, live_progress
from foveal.printing import Json, emit, emit_rows
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir

if TYPE_CHECKING:
    from evals.robustness import Task
    from foveal.dataset import Dataset


def robustness(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with labels, boxes or captions.")],
    encoder: EncoderOrServer = DEFAULT_ENCODER,
    task: Annotated[
        Literal["zero-shot", "retrieval"], typer.Option(help="What an encoder is measured on.")
    ] = "zero-shot",
    detector: Annotated[
        str | None, typer.Option(metavar="REF", help="Measure this detector's AP50 instead of an encoder.")
    ] = None,
    open_detector: Annotated[
        str | None, typer.Option(metavar="REF", help="Or this one's, which takes the class names as text.")
    ] = None,
    size: Annotated[int | None, typer.Option(metavar="PX", help="Side that the detector sees.")] = None,
    corruption: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this corruption; repeatable. All 15 by default.")
    ] = None,
    severity: Annotated[
        list[int] | None, typer.Option(min=1, max=5, help="Only this severity; repeatable. 1 to 5 by default.")
    ] = None,
    sweeps: Annotated[bool, typer.Option(help="Resolution and compression too.")] = True,
    registry: RegistryDir = DEFAULT_REGISTRY,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """What is left of a model's figure when pictures are noisy, blurred, snowed on, small or compressed.

    With --out, finished parts are kept beside it: the same command goes on where it was interrupted.

    Example: foveal eval robustness --data runs/site --encoder bundled:clip --out runs/eval/robustness.json
    """
    from evals.results import Stopwatch, result_path
    from evals.robustness import conditions, measure
    from foveal.dataset import Dataset

    chosen = conditions(corruption, severity or (1, 2, 3, 4, 5), sweeps)
    kept = None if out is None else result_path(out).with_suffix(".cells.jsonl")
    dataset, watch = Dataset.open(data), Stopwatch()
    reference, model, work = _task(dataset, encoder, task, detector, open_detector, size, registry)
    about = {"model": model.fingerprint, "data": dataset.fingerprint, "size": size}
    measured = measure(work, dataset, chosen, kept, about, live_progress())
    settings = {"figure": work.figure, "corruption": corruption, "severity": severity, "sweeps": sweeps, "size": size}
    keep("robustness", watch, measured, reference, model, data, dataset, out, name, settings)
    if kept is not None:
        kept.unlink(missing_ok=True)  # all of it is in the result
    if json_:
        emit(measured.figures, True)
        return
    emit({key: value for key, value in measured.figures.items() if not isinstance(value, dict)}, False)
    for table in ("corruptions", "sweeps"):
        rows: dict[str, dict[str, float]] = measured.figures[table]
        for heading in {tuple(row): None for row in rows.values()}:
            print()
            named = {key: row for key, row in rows.items() if tuple(row) == heading}
            emit_rows([{table[:-1]: key, **row} for key, row in named.items()])


def _task(
    dataset: Dataset,
    encoder: str,
    task: str,
    detector: str | None,
    open_detector: str | None,
    size: int | None,
    registry: Path,
) -> tuple[str, Any, Task]:
    """(reference, model, what is measured of it)"""
    from evals.robustness import detecting, naming, searching
    from foveal.models import load_detector, load_open_detector

    if detector is not None and open_detector is not None:
        raise BadInput("there must be one thing to measure", expected="--detector or --open-detector, not both")
    if detector is not None:
        closed = load_detector(detector, registry, size=size)
        return detector, closed, detecting(lambda images: closed.detect(images, 0.001))
    if open_detector is not None:
        opened, prompts = load_open_detector(open_detector), list(dataset.classes)
        return open_detector, opened, detecting(lambda images: opened.detect(images, prompts, 0.001))
    model = encoder_of(encoder)
    return encoder, model, naming(model) if task == "zero-shot" else searching(model)


def shift(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="Images as they were.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Images as they are now.")],
    encoder: EncoderOrServer = DEFAULT_ENCODER,
    detector: Annotated[
        str | None, typer.Option(metavar="REF", help="Compare this detector's answers on both too.")
    ] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """Whether images differ from those before: two tests in embedding space, which images moved, what else changed.

    Example: foveal eval shift runs/base runs/site --out runs/eval/shift.json
    """
    from evals.results import Stopwatch, result_path
    from evals.shift import measure, pair
    from foveal.dataset import Dataset
    from foveal.models import load_detector

    if out is not None:
        result_path(out)
    watch, model = Stopwatch(), encoder_of(encoder)
    images = pair(Dataset.open(reference), Dataset.open(data))
    answers = None if detector is None else load_detector(detector, registry).detect
    measured = measure(model, images, answers, progress=live_progress())
    source = f"{data} against {reference}"
    settings = {"reference": reference, "data": data, "detector": detector}
    keep("shift", watch, measured, encoder, model, source, images.both, out, name, settings)
    fields: dict[str, dict[str, Any]] = measured.figures["fields"]
    if json_:
        emit(measured.figures, True)
        return
    emit({key: value for key, value in measured.figures.items() if key != "fields"}, False)
    if fields:
        print()
        emit_rows([{"field": field, "psi": told["psi"]} for field, told in fields.items()])


def slices(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="A result that says which items are wrong.")],
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="What it was measured on.")],
    encoder: EncoderRef = DEFAULT_ENCODER,
    seed: Annotated[int, typer.Option(min=0, help="Which half of the pictures is searched.")] = 1,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """Find what a model is bad at: groups of similar mistakes that err more than the rest on pictures held out.

    Example: foveal eval slices runs/eval/zero-shot.json --data runs/site --out runs/eval/slices.json
    """
    from evals.blind_spots import measure
    from evals.results import Stopwatch, read, result_path
    from foveal.dataset import Dataset
    from foveal.models import load_encoder

    if out is not None:
        result_path(out)
    measured_before, dataset, watch = read(result), Dataset.open(data), Stopwatch()
    measured = measure(measured_before, dataset, load_encoder(encoder), live_progress(), seed)
    settings = {"result": str(result), "encoder": encoder, "seed": seed}
    keep("slices", watch, measured, measured_before.subject.reference, None, data, dataset, out, name, settings)
    if json_:
        emit(measured.figures, True)
        return
    emit({key: value for key, value in measured.figures.items() if key != "slices"}, False)
    found: dict[str, dict[str, Any]] = measured.figures["slices"]
    print()
    if found:
        emit_rows([{"slice": key, **one, "described": "; ".join(one["described"])} for key, one in found.items()])
    else:
        print("no slice stands out")
