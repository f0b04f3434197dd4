"""`foveal prelabel sample|audit|suspects`: what to label first, and how good the labels turned out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.options import DEFAULT_ENCODER, DEFAULT_TEACHER, EncoderRef, OutDir, live_progress
from foveal.printing import Json, emit, emit_rows

if TYPE_CHECKING:
    from foveal.dataset import Dataset

Prelabels = Annotated[Path, typer.Argument(metavar="PRELABELS", help="Folder that `foveal prelabel` wrote.")]
SHOWN = 20  # rows in a terminal


def sample(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The images that are to be labelled later.")],
    ontology: Annotated[Path, typer.Option(metavar="FILE", help="YAML: class names, prompts, targets.")],
    out: OutDir,
    count: Annotated[int, typer.Option(min=1, help="Images of the gold set; 30 to 200.")] = 40,
    teacher: Annotated[str, typer.Option(metavar="REF", help="Open-vocabulary detector.")] = DEFAULT_TEACHER,
    encoder: EncoderRef = DEFAULT_ENCODER,
    target: Annotated[float, typer.Option(help="Precision that pre-labels shall keep.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Another seed, another sample.")] = 0,
    json_: Json = False,
) -> None:
    """Choose the images to label by hand first: the gold set, and some for the memory.

    Example: foveal prelabel sample images/ --ontology ontology.yaml --out runs/gold --count 40
    """
    from distill.ontology import Ontology
    from distill.sample import sample as choose
    from distill.sample import write
    from foveal.dataset import Dataset
    from foveal.models import load_encoder, load_open_detector

    classes, images = Ontology.load(ontology), Dataset.open(source)
    found = choose(
        images,
        classes,
        load_open_detector(teacher),
        load_encoder(encoder),
        count,
        target=target,
        seed=seed,
        progress=live_progress(),
    )
    write(found, images, classes, out)
    emit(
        {
            "out": str(out),
            "gold": len(found.gold),
            "exemplars": len(found.exemplars),
            "looked_at": found.looked_at,
            "skipped": len(found.skipped),
            "warnings": found.warnings,
        },
        json_,
    )


def audit(
    prelabels: Prelabels,
    count: Annotated[int, typer.Option(min=1, help="Accepted boxes to draw.")] = 100,
    labels: Annotated[str | None, typer.Option(metavar="FILE", help="The tasks as annotators gave them back.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    json_: Json = False,
) -> None:
    """Draw accepted boxes at random for a look, and, with --labels, say what their precision is.

    Example: foveal prelabel audit runs/prelabels --count 100
    """
    from distill import spot_check
    from distill.prelabel import load_report
    from foveal.dataset import Dataset

    target = load_report(prelabels).target_precision
    if labels is None:
        drawn = spot_check.draw(prelabels, _images(prelabels), count, seed=seed)
        emit({"drawn": drawn, "tasks": str(prelabels / spot_check.TASKS)}, json_)
        return
    found = spot_check.read(prelabels, Dataset.open(labels), target)
    emit(spot_check.to_json(found), json_)
    if found.kept is False:
        raise typer.Exit(1)


def suspects(
    prelabels: Prelabels,
    student: Annotated[
        str | None, typer.Option(metavar="REF", help="A student trained on these labels: its folder, or onnx:DIR.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write them: .json, .csv or .txt.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with pictures.")] = None,
    json_: Json = False,
) -> None:
    """List the labels that look wrong, most suspicious first.

    Example: foveal prelabel suspects runs/prelabels --html suspects.html
    """
    from distill import suspects as module
    from distill.teachers import closed_detector
    from retrieval.curate.listing import check_suffix, write_rows

    if out is not None:
        check_suffix(out)
    images = _images(prelabels)
    found = module.suspects(prelabels, images, closed_detector(student) if student else None, progress=live_progress())
    rows = module.to_json(found)
    if out is not None:
        write_rows(out, rows, line="image")
    if html is not None:
        module.page(found, images, [("pre-labels", str(prelabels)), ("student", student or "none")]).write(html)
    if json_:
        emit({"suspects": rows}, True)
        return
    shown = [{**row, "against": "; ".join(row["against"])} for row in rows[:SHOWN]]
    emit_rows([{k: row[k] for k in ("image", "label", "instead", "suspicion", "against")} for row in shown])
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN:,} more; --json has all")


def _images(prelabels: Path) -> Dataset:
    from distill.prelabels import PREDICTIONS
    from foveal.dataset import Dataset
    from foveal.errors import BadInput

    if not (prelabels / PREDICTIONS).is_file():
        raise BadInput(f"{prelabels} holds no pre-labels", expected="a folder that `foveal prelabel` wrote")
    return Dataset.open(prelabels / PREDICTIONS)
