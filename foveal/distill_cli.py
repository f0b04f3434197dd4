"""`foveal prelabel`, `foveal distill` and `foveal export`: from unlabelled images to a compact detector."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from foveal.options import DEFAULT_ENCODER, DEFAULT_TEACHER, Config, EncoderRef, OutDir, Overrides, live_progress
from foveal.printing import Json, emit, emit_rows
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir

if TYPE_CHECKING:
    from foveal.dataset import Dataset

Prelabels = Annotated[Path, typer.Argument(metavar="PRELABELS", help="Folder that `foveal prelabel` wrote.")]


class _RunByDefault(TyperGroup):
    """`foveal prelabel SOURCE ...` is `foveal prelabel run SOURCE ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


prelabel_app = typer.Typer(
    cls=_RunByDefault, no_args_is_help=True, help="Label images with a teacher; `foveal prelabel SOURCE` starts a job."
)


@prelabel_app.command("run")
def prelabel_run(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Images to label, or an archive.")],
    ontology: Annotated[Path, typer.Option(metavar="FILE", help="YAML: class names, prompts, targets.")],
    gold: Annotated[str, typer.Option(metavar="FILE", help="A small labelled set to calibrate on.")],
    out: OutDir,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help=f"What proposes boxes; several are fused. {DEFAULT_TEACHER} by default."),
    ] = None,
    encoder: EncoderRef = DEFAULT_ENCODER,
    memory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Exemplar memory; else one of the gold crops.")
    ] = None,
    tile: Annotated[int | None, typer.Option(metavar="PX", help="Also look at tiles of this side.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Also look at the mirrored images.")] = False,
    masks: Annotated[
        str | None, typer.Option(metavar="REF", help="Draw masks with this model: hf:facebook/sam2.1-hiera-tiny.")
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", metavar="EXPR", help="Of an archive, which images.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that label.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Label on a Ray cluster (RAY_ADDRESS, or this machine).")] = False,
    price: Annotated[
        float | None, typer.Option("--cost-per-hour", min=0, help="Of the machines; shows what the job costs.")
    ] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    config: Config = None,
    overrides: Overrides = None,
    json_: Json = False,
) -> None:
    """Label images with a teacher, verify by memory, and route each box to accept, review or reject.

    Example: foveal prelabel images/ --ontology ontology.yaml --gold gold/instances.json --out runs/prelabels
    """
    from distill.archive_source import open_source
    from distill.ontology import Ontology
    from distill.parts import Parts, remember_gold
    from distill.prelabel import PrelabelSettings
    from distill.prelabel import prelabel as label
    from distill.workers import Processes, RayActors, in_turn
    from foveal.config import load
    from foveal.dataset import Dataset

    settings = load(PrelabelSettings, config, overrides or ())
    classes, gold_set, progress = Ontology.load(ontology), Dataset.open(gold), live_progress()
    images = open_source(source, filter_)
    kept = out.with_name(f".{out.name}.work") / "memory"
    parts = Parts(tuple(teacher or [DEFAULT_TEACHER]), classes, memory or kept, tile, flip, masks, registry)
    through = RayActors() if ray else Processes(workers) if workers > 1 else in_turn
    found = parts.teacher()
    if memory is None:
        remember_gold(gold_set, encoder, kept, progress)
    report = label(
        images, classes, found, gold_set, parts.remembered(), out, settings, progress,
        through=through, parts=parts, segmenter=parts.segmenter(), price=price,
    )  # fmt: skip
    emit(report.to_json(), json_)


@prelabel_app.command("write")
def prelabel_write(
    prelabels: Prelabels,
    out: OutDir,
    to: Annotated[
        Literal["coco", "yolo", "voc", "cvat", "label_studio"], typer.Option("--for", help="The tool's format.")
    ],
    routes: Annotated[str, typer.Option(help="Which boxes: some of accept,review,reject.")] = "accept,review",
    json_: Json = False,
) -> None:
    """Write finished pre-labels, with their images, for another annotation tool or trainer.

    Example: foveal prelabel write runs/prelabels --for cvat --out runs/for-cvat
    """
    from distill.prelabel import ontology_of
    from distill.prelabels import as_dataset
    from foveal import artifacts
    from foveal.formats import cvat, label_studio

    images = as_dataset(prelabels, [route.strip() for route in routes.split(",") if route.strip()])
    asked = ontology_of(artifacts.read(prelabels)).schema_of_attributes
    if to == "label_studio":  # there, what a model says is a prediction beside the annotation
        bare = images.with_truth([None] * len(images), images.classes)
        label_studio.write(bare, out, predictions=[s.truth for s in images if s.truth is not None], attributes=asked)
    elif to == "cvat":
        cvat.write(images, out, attributes=asked)
    else:
        images.write(out, to)
    emit({"out": str(out), "images": len(images), "boxes": sum(len(s.truth or ()) for s in images)}, json_)


@prelabel_app.command("import")
def prelabel_import(
    prelabels: Prelabels,
    corrected: Annotated[Path, typer.Argument(metavar="CORRECTED", help="What annotators gave back.")],
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="A class that has another name there; repeatable.")
    ] = None,
    memory: Annotated[Path | None, typer.Option(metavar="DIR", help="Exemplar memory that learns from it.")] = None,
    seconds_a_box: Annotated[
        float | None, typer.Option(min=0, help="What drawing one box takes, to tell the time saved.")
    ] = None,
    json_: Json = False,
) -> None:
    """Take corrections back: Label Studio, CVAT, COCO, YOLO or Pascal VOC; tells what was changed.

    Example: foveal prelabel import runs/prelabels export.json --rename "fork lift=forklift"
    """
    from distill import reviewed
    from foveal.errors import BadInput

    names: dict[str, str] = {}
    for item in rename or ():
        old, _, new = item.partition("=")
        names[old] = new
    if not all(names) or not all(names.values()):
        raise BadInput("--rename needs two names", expected="old=new", received=", ".join(rename or ()))
    found = reviewed.read_corrected(corrected, prelabels)
    report = reviewed.take_back(prelabels, found, rename=names, seconds_a_box=seconds_a_box)
    answer = report.to_json()
    if memory is not None:
        from foveal.models import load_encoder
        from retrieval.memory_files import Stored
        from retrieval.reviewing import correct

        learnt = correct(memory, load_encoder(Stored.read(memory).encoder), reviewed.corrections(prelabels))
        answer["memory"] = {"learnt": learnt.boxes, "replaced": learnt.replaced}
    emit(answer, json_)


def distill(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Pre-labels, or any labelled dataset.")],
    out: OutDir,
    student: Annotated[
        str, typer.Option(metavar="NAME", help="Architecture, hf:org/model, or an earlier student's folder.")
    ] = "fcos-resnet",
    gold: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labelled set to stop early on.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each student helps to label for the next; needs --gold.")] = 1,
    config: Config = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Train a compact student detector.

    Example: foveal distill runs/prelabels --out runs/student --set max_seconds=120 --gold gold/
    """
    from distill.train import TrainSettings, train, training_set
    from foveal.config import load
    from foveal.dataset import Dataset
    from foveal.errors import BadInput

    settings, progress = load(TrainSettings, config, overrides or ()), live_progress()
    watched = Dataset.open(gold) if gold else None
    if rounds > 1:
        from distill.rounds import rounds as train_rounds

        if watched is None:
            raise BadInput("--rounds needs --gold", expected="the labelled images that calibrated the pre-labels")
        found = train_rounds(
            dataset, student, out, watched, settings, count=rounds, registry=registry, progress=progress
        )
        emit({"out": str(out), "rounds": [asdict(one) for one in found]}, json_)
        return
    emit(train(training_set(dataset), student, out, settings, progress, gold=watched, fresh=fresh), json_)


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `foveal distill` wrote.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write; else beside MODEL.")] = None,
    to: Annotated[Literal["onnx", "openvino", "tensorrt"], typer.Option(help="Runtime to export for.")] = "onnx",
    int8: Annotated[str | None, typer.Option(metavar="DATA", help="Quantise, calibrating on these images.")] = None,
    check: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images to compare on; else those kept with the student.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights in half the bytes (openvino, tensorrt).")] = False,
    gold: Annotated[
        str | None, typer.Option(metavar="DATA", help="Labelled images that set threshold and calibration.")
    ] = None,
    target: Annotated[float, typer.Option(help="Precision above that threshold.")] = 0.9,
    classes: Annotated[str | None, typer.Option(help="Only these, comma separated; the rest is cut off.")] = None,
    size: Annotated[int | None, typer.Option(metavar="PX", help="Another input side.")] = None,
    curve: Annotated[
        str | None, typer.Option(metavar="DATA", help="Measure sizes and precisions on these labelled images instead.")
    ] = None,
    json_: Json = False,
) -> None:
    """Export a student, check it against its source, and quantise it when asked.

    Example: foveal export runs/student --to onnx --int8 runs/site/images --out runs/student-int8
    """
    from distill.export import export as run
    from foveal.dataset import Dataset

    named = [name.strip() for name in classes.split(",")] if classes else None
    quantise, progress = Dataset.open(int8) if int8 else None, live_progress()
    if curve is not None:
        _curve(model, out or model.with_name(f"{model.name}-curve"), Dataset.open(curve), named, quantise, json_)
        return
    out = out or model.with_name(f"{model.name}-{'int8-' if int8 else ''}{to}")
    form = "openvino" if to == "openvino" else "onnx"
    folder = out.with_name(f"{out.name}-onnx") if to == "tensorrt" else out
    report = run(
        model, folder, form, int8=quantise, fp16=fp16 and to == "openvino",
        check=Dataset.open(check) if check else None, gold=Dataset.open(gold) if gold else None,
        target_precision=target, classes=named, size=size, progress=progress,
    )  # fmt: skip
    if to == "tensorrt":
        from distill.tensorrt import build_engine

        emit({"out": str(out), "fingerprint": build_engine(folder, out, fp16=fp16).fingerprint}, json_)
        return
    emit(report, json_)


def _curve(model: Path, out: Path, data: Dataset, classes: list[str] | None, int8: Dataset | None, json_: bool) -> None:
    from distill import curve as module
    from foveal.artifacts import write_text

    points = module.curve(model, data, classes=classes, int8=int8, progress=live_progress())
    rows = module.to_json(points)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "curve.json", json.dumps(rows, indent=1) + "\n")
    module.draw(points, out / "curve.png")
    if json_:
        emit({"out": str(out), "points": rows}, True)
    else:
        emit_rows(rows)
