"""The `foveal` command: thin calls into the rooms, which are imported inside the commands that need them."""

from __future__ import annotations

import errno
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal import __version__
from foveal.adapt_cli import adapt_app
from foveal.errors import BadInput, FovealError
from foveal.options import Config, EncoderRef, OutDir, Overrides, live_progress
from foveal.printing import Json, emit, emit_rows
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir, registry_app

if TYPE_CHECKING:
    from foveal.detections import Detections

DEFAULT_ENCODER, DEFAULT_TEACHER = "bundled:clip", "bundled:owl"
app = typer.Typer(
    name="foveal",
    help="Adapt, distil, serve and search with vision foundation models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
archive_app = typer.Typer(no_args_is_help=True, help="Embed, keep and search images.")
eval_app = typer.Typer(no_args_is_help=True, help="Measure a model.")
app.add_typer(adapt_app, name="adapt")
app.add_typer(archive_app, name="archive")
app.add_typer(eval_app, name="eval")
app.add_typer(registry_app, name="registry")


def _show_version(value: bool) -> None:
    if value:
        print(f"foveal {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    """Adapt, distil, serve and search with vision foundation models."""


@app.command()
def quickstart(
    out: OutDir = Path("runs/quickstart"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Leave the server with its pages running at the end.")] = False,
    config: Config = None,
    overrides: Overrides = None,
    json_: Json = False,
) -> None:
    """Run the whole loop on the sample world: adapt, index, prelabel, distil, gate, serve.

    Example: foveal quickstart --out runs/quickstart
    """
    from foveal.config import load
    from serve.quickstart import QuickstartSettings, run

    report = run(
        out, load(QuickstartSettings, config, overrides or ()), fresh=fresh, demo=demo, progress=live_progress()
    )
    if json_:
        emit(report, True)
    if not report["gate"]["passed"]:
        raise typer.Exit(1)


@app.command()
def world(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    domain: Annotated[Literal["base", "site"], typer.Option(help="Which of the two domains.")] = "site",
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Different seeds never share a scene.")] = 0,
    size: Annotated[int, typer.Option(min=64, max=1024, help="Side in pixels.")] = 224,
    labels: Annotated[bool, typer.Option(help="Write boxes, captions and questions too.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Rendering processes.")] = 2,
    json_: Json = False,
) -> None:
    """Render scenes of the sample world with exact truth.

    Example: foveal world runs/site --domain site --count 200 --seed 3
    """
    from foveal.world import write

    progress = live_progress()
    progress.start(f"render {domain}", count)
    write(out, domain, count, seed, size, labels, lambda _: progress.advance(), workers)
    progress.finish()
    emit({"out": str(out), "images": count}, json_)


@archive_app.command("add")
def archive_add(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Folders, files or globs of images.")],
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive; made when new.")],
    encoder: Annotated[str | None, typer.Option(metavar="REF", help="Encoder of a new archive.")] = None,
    json_: Json = False,
) -> None:
    """Embed images into an archive; what is there and unchanged is passed over.

    Example: foveal archive add runs/site/images --archive runs/archive --encoder bundled:clip
    """
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.sources import Sources

    if (archive / "archive.json").is_file():
        opened = Archive.open(archive)
        model = load_encoder(encoder or opened.encoder)
    else:
        Sources.resolve(sources)  # a wrong path leaves no empty archive behind
        reference = encoder or DEFAULT_ENCODER
        model = load_encoder(reference)
        opened = Archive.create(archive, model, reference=reference)
    report = opened.add(sources, model, live_progress())
    emit(
        {
            "archive": str(archive),
            "encoder": opened.encoder,
            "added": report.added,
            "updated": report.updated,
            "unchanged": report.unchanged,
            "quarantined": len(report.quarantined),
            "reasons": [{"path": path, "reason": reason} for path, reason in report.quarantined],
            "notes": report.notes,
            "images": len(opened),
        },
        json_,
    )


@archive_app.command("search")
def archive_search(
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive.")],
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image to look like.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from, in words.")] = None,
    filter: Annotated[
        str | None, typer.Option(metavar="EXPR", help="SQL over metadata, e.g. \"camera = 'cam-11'\".")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    json_: Json = False,
) -> None:
    """Find images by text, by image or by both, among those a filter keeps.

    Example: foveal archive search --archive runs/archive --text "a rusty valve" --filter "light = 'dim light'" -k 5
    """
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.query import SearchQuery

    opened = Archive.open(archive)
    query = SearchQuery(text=text, image=image, negative=negative, filter=filter, k=k)
    hits = opened.search(query, load_encoder(opened.encoder))
    rows = [{"similarity": round(h.similarity, 4), "id": h.id, "uri": h.uri, **h.metadata} for h in hits]
    if json_:
        emit({"hits": [asdict(h) for h in hits]}, True)
    else:
        emit_rows(rows)


@archive_app.command("check")
def archive_check(
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive.")],
    repair: Annotated[bool, typer.Option(help="Rebuild what is derived where it is wrong.")] = True,
    json_: Json = False,
) -> None:
    """Verify table, index and files.

    Example: foveal archive check --archive runs/archive
    """
    from retrieval.archive import Archive

    report = Archive.open(archive).check(live_progress(), repair=repair)
    emit(asdict(report), json_)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def prelabel(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Images to label.")],
    ontology: Annotated[Path, typer.Option(metavar="FILE", help="YAML: class names, prompts, targets.")],
    gold: Annotated[str, typer.Option(metavar="FILE", help="A small labelled set to calibrate on.")],
    out: OutDir,
    teacher: Annotated[str, typer.Option(metavar="REF", help="Open-vocabulary detector.")] = DEFAULT_TEACHER,
    encoder: EncoderRef = DEFAULT_ENCODER,
    config: Config = None,
    overrides: Overrides = None,
    json_: Json = False,
) -> None:
    """Label images with a teacher, verify by memory, and route each box to accept, review or reject.

    Example: foveal prelabel images/ --ontology ontology.yaml --gold gold/instances.json --out runs/prelabels
    """
    from distill.ontology import Ontology
    from distill.prelabel import PrelabelSettings
    from distill.prelabel import prelabel as label
    from foveal.config import load
    from foveal.dataset import Dataset
    from foveal.models import load_encoder, load_open_detector
    from retrieval.memory import ExemplarMemory

    settings = load(PrelabelSettings, config, overrides or ())
    classes, gold_set = Ontology.load(ontology), Dataset.open(gold)
    found, model, progress = load_open_detector(teacher), load_encoder(encoder), live_progress()
    memory = ExemplarMemory.build(model, gold_set, progress=progress)
    report = label(source, classes, found, gold_set, memory, out, settings, progress)
    emit(report.to_json(), json_)


@app.command()
def distill(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Pre-labels, or any labelled dataset.")],
    out: OutDir,
    student: Annotated[
        str, typer.Option(metavar="NAME", help="Student architecture, or hf:org/model.")
    ] = "fcos-mobilenet",
    gold: Annotated[str | None, typer.Option(metavar="SOURCE", help="Labelled set to stop early on.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    json_: Json = False,
) -> None:
    """Train a compact student detector.

    Example: foveal distill runs/prelabels --student fcos-mobilenet --out runs/student --set max_seconds=120
    """
    from distill.train import TrainSettings, train, training_set
    from foveal.config import load
    from foveal.dataset import Dataset

    report = train(
        training_set(dataset),
        student,
        out,
        load(TrainSettings, config, overrides or ()),
        live_progress(),
        gold=Dataset.open(gold) if gold else None,
        fresh=fresh,
    )
    emit(report, json_)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `foveal distill` wrote.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write; else beside MODEL.")] = None,
    to: Annotated[Literal["onnx", "openvino"], typer.Option(help="Runtime to export for.")] = "onnx",
    int8: Annotated[str | None, typer.Option(metavar="DATA", help="Quantise, calibrating on these images.")] = None,
    json_: Json = False,
) -> None:
    """Export a student, check it against its source, and quantise it when asked.

    Example: foveal export runs/student --to onnx --int8 runs/site/images --out runs/student-int8
    """
    from distill.export import export as run
    from foveal.dataset import Dataset

    out = out or model.with_name(f"{model.name}-{'int8-' if int8 else ''}{to}")
    emit(run(model, out, to, int8=Dataset.open(int8) if int8 else None, progress=live_progress()), json_)


@eval_app.command("detection")
def eval_detection(
    truth: Annotated[Path, typer.Option(metavar="FILE", help="COCO instances.")],
    predictions: Annotated[Path | None, typer.Option(metavar="FILE", help="COCO results list.")] = None,
    detector: Annotated[str | None, typer.Option(metavar="REF", help="Detector to run on the truth's images.")] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """COCO average precision of a predictions file, or of a detector.

    Example: foveal eval detection --truth truth.json --predictions predictions.json
    """
    from evals.detection import evaluate

    if (predictions is None) == (detector is None):
        raise BadInput("there must be one thing to measure", expected="--predictions FILE or --detector REF")
    found = _detected(truth, detector, registry) if detector is not None else predictions
    assert found is not None  # one of the two was given
    emit(dict(evaluate(truth, found)), json_)


def _detected(truth: Path, detector: str, registry: Path) -> list[Detections]:
    from foveal.dataset import Dataset
    from foveal.models import load_detector
    from foveal.progress import track

    model = load_detector(detector, registry)
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


@app.command()
def gate(
    gates: Annotated[Path, typer.Argument(metavar="FILE", help="YAML list of gates.")],
    results: Annotated[Path, typer.Option(metavar="FILE", help="JSON report that holds the metrics.")] = Path(
        "runs/quickstart/report.json"
    ),
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.")] = None,
    json_: Json = False,
) -> None:
    """Check results against release gates; the exit code says yes (0) or no (1).

    Example: foveal gate gates.yaml --results runs/quickstart/report.json
    """
    from rich.console import Console

    from evals.coco_pairs import read_json
    from evals.gates import check

    report = check(gates, read_json(results))
    if junit is not None:
        report.write_junit(junit)
    if json_:
        emit(report.as_dict(), True)
    else:
        Console().print(report.table())
    if not report.passed:
        raise typer.Exit(report.exit_code)


@app.command()
def serve(
    archive: Annotated[Path | None, typer.Option("--archive", metavar="DIR", help="Archive to search.")] = None,
    detector: Annotated[str | None, typer.Option(metavar="REF", help="Detector to serve.")] = None,
    open_detector: Annotated[
        str | None, typer.Option(metavar="REF", help="Detector that takes classes as text.")
    ] = None,
    vlm: Annotated[str | None, typer.Option(metavar="REF", help="Model that answers questions.")] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    demo: Annotated[bool, typer.Option(help="Mount the Search, Detect and Ask pages.")] = True,
    json_: Json = False,
) -> None:
    """Serve search, detection and embeddings over HTTP.

    Example: foveal serve --archive runs/archive --detector artifact:depot@production
    """
    from foveal.models import load_detector, load_encoder, load_open_detector, load_vlm
    from retrieval.archive import Archive
    from serve.app import create_app
    from serve.server import serve as run

    opened = Archive.open(archive) if archive else None
    served = create_app(
        archive=opened,
        encoder=load_encoder(opened.encoder) if opened else None,
        detector=load_detector(detector, registry) if detector else None,
        open_detector=load_open_detector(open_detector) if open_detector else None,
        vlm=load_vlm(vlm) if vlm else None,
        demo=demo,
    )
    run(served, host, port, on_ready=lambda url: emit({"url": url}, json_))


def main() -> None:
    """Run the command line: one line for what goes wrong, a traceback only under `--debug`, wherever that stands."""
    debug = "--debug" in sys.argv
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("GRADIO_ANALYTICS_ENABLED", "False"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ):
        os.environ.setdefault(name, value)
    # peft imports bitsandbytes, which then complains that it could not download faster code from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from foveal.runtime import check_rooms

        check_rooms()
        app([word for word in sys.argv[1:] if word != "--debug"])
    except FovealError as error:
        _fail(str(error), debug)
    except SystemExit as stop:
        if stop.code == 130:
            print("interrupted; the same command continues where it stopped", file=sys.stderr)
        raise
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        remedy = " Free some space and run the same command again." if error.errno == errno.ENOSPC else ""
        _fail(f"{named}{error.strerror or error}.{remedy}", debug)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}. This is a defect; --debug shows the traceback to report.", debug)


def _fail(line: str, debug: bool) -> None:
    if debug:
        raise
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(1)
