"""`foveal memory ...`: thin calls into the exemplar memory of `retrieval`, imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.options import DEFAULT_ENCODER, EncoderRef, OutDir, live_progress
from foveal.printing import Json, emit, emit_rows

if TYPE_CHECKING:
    from retrieval.memory import ExemplarMemory

ROWS = 50  # shown to people; programs get all
SHOWN = ("image", "given", "suggested", "probability", "suggested_probability", "vote")

memory_app = typer.Typer(no_args_is_help=True, help="Remember labelled crops; classify, verify and correct by them.")

MemoryDir = Annotated[Path, typer.Option("--memory", metavar="DIR", help="Folder that `foveal memory build` wrote.")]
Data = Annotated[str, typer.Argument(metavar="DATASET", help="Labelled boxes, or a folder a class.")]
MaybeEncoder = Annotated[
    str | None, typer.Option("--encoder", metavar="REF", help="The memory's encoder, if it is no longer where it was.")
]
MaybeOut = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write all rows: .csv or .json.")]


@memory_app.command()
def build(dataset: Data, out: OutDir, encoder: EncoderRef = DEFAULT_ENCODER, json_: Json = False) -> None:
    """Remember the crops of every labelled box, or of every image of a class, and background.

    Example: foveal memory build runs/site/instances.json --encoder bundled:clip --out runs/memory
    """
    from foveal.dataset import Dataset
    from foveal.models import load_encoder
    from retrieval.memory import ExemplarMemory

    labelled = Dataset.open(dataset)
    memory = ExemplarMemory.build(load_encoder(encoder), labelled, progress=live_progress())
    memory.save(out)
    emit({"out": str(out), **_summary(memory), "skipped": memory.skipped}, json_)


@memory_app.command()
def correct(
    memory: MemoryDir,
    approved: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Boxes that a reviewer found right, with right labels.")
    ] = None,
    rejected: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Boxes that show no object, whatever their label.")
    ] = None,
    encoder: MaybeEncoder = None,
    json_: Json = False,
) -> None:
    """Learn at once from reviewed boxes; they take the place of what was remembered there.

    Example: foveal memory correct --memory runs/memory --approved reviewed.json --rejected wrong.json
    """
    from foveal.dataset import Dataset
    from foveal.errors import BadInput
    from foveal.models import load_encoder
    from retrieval.corrections import corrections
    from retrieval.memory_files import Stored
    from retrieval.reviewing import correct as run

    if approved is None and rejected is None:
        raise BadInput("there is nothing to learn", expected="--approved DATASET, --rejected DATASET, or both")
    said = corrections(Dataset.open(approved) if approved else None, Dataset.open(rejected) if rejected else None)
    learnt = run(memory, load_encoder(encoder or Stored.read(memory).encoder), said)
    emit(
        {
            "memory": str(memory),
            "learnt": learnt.boxes,
            "replaced": learnt.replaced,
            "retuned": learnt.retuned,
            **_summary(learnt.memory),
        },
        json_,
    )


@memory_app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, or crops of objects.")],
    memory: MemoryDir,
    encoder: MaybeEncoder = None,
    json_: Json = False,
) -> None:
    """Say which class each image shows as a whole, by the remembered crops most like it.

    Example: foveal memory classify crate.png drum.png --memory runs/memory
    """
    import numpy as np

    from foveal.errors import BadImage
    from foveal.images import decode
    from retrieval.memory import BACKGROUND

    known = _load(memory, encoder)
    names, rows, skipped = (*known.classes, BACKGROUND), list[dict[str, Any]](), dict[str, str]()
    for path in images:
        try:
            image = decode(path)
        except BadImage as error:
            skipped[str(path)] = str(error)
            continue
        box = np.array([[0, 0, *image.size]], dtype=np.float32)
        votes = known.classify(image, box)[0]
        best = np.argsort(-votes, kind="stable")[:2].tolist()
        near = known.nearest(known.embed(image, box), 1)[0][0]
        rows.append(
            {
                "image": str(path),
                "label": names[best[0]],
                "vote": round(float(votes[best[0]]), 4),
                "next": names[best[1]],
                "next_vote": round(float(votes[best[1]]), 4),
                "nearest": near[0].id,
                "similarity": round(near[1], 4),
            }
        )
    _show({"memory": str(memory), "images": len(rows), "skipped": skipped}, "rows", rows, json_)
    if not rows:
        raise typer.Exit(1)


@memory_app.command()
def verify(
    dataset: Data, memory: MemoryDir, out: MaybeOut = None, encoder: MaybeEncoder = None, json_: Json = False
) -> None:
    """Say how far the memory supports each proposed box and label, least supported first.

    Example: foveal memory verify runs/prelabels/accepted.coco.json --memory runs/memory --out support.csv
    """
    from foveal.dataset import Dataset
    from foveal.errors import BadImage
    from foveal.progress import track
    from retrieval.memory import BACKGROUND

    _writable(out)
    proposed, known = Dataset.open(dataset), _load(memory, encoder)
    names, rows, skipped = (*known.classes, BACKGROUND), list[dict[str, Any]](), dict[str, str]()
    for sample in track(live_progress(), proposed, "verify", len(proposed)):
        if sample.truth is None or not len(sample.truth):
            continue
        try:
            image = sample.image()
        except BadImage as error:
            skipped[sample.id] = str(error)
            continue
        votes = known.classify(image, sample.truth.boxes, exclude_image=sample.id)
        for box, label, vote in zip(sample.truth.boxes.tolist(), sample.truth.label_names, votes, strict=True):
            support = float(vote[known.classes.index(label)]) if label in known.classes else 0.0
            rows.append(
                {
                    "image": sample.id,
                    "file": str(sample.path),
                    "label": label,
                    "support": round(support, 4),
                    "best": names[int(vote.argmax())],
                    "best_vote": round(float(vote.max()), 4),
                    **dict(zip(("x1", "y1", "x2", "y2"), (round(edge, 2) for edge in box), strict=True)),
                }
            )
    rows.sort(key=lambda row: row["support"])
    _write(out, rows)
    agreed = sum(row["label"] == row["best"] for row in rows)
    summary = {"memory": str(memory), "boxes": len(rows), "agreed": agreed, "skipped": skipped}
    _show(summary, "rows", rows, json_, ("image", "label", "support", "best", "best_vote"))


@memory_app.command()
def errors(
    dataset: Data,
    encoder: EncoderRef = DEFAULT_ENCODER,
    out: MaybeOut = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with pictures.")] = None,
    json_: Json = False,
) -> None:
    """Find the labels of a set that its own other images contradict, most doubtful first.

    Example: foveal memory errors runs/site/instances.json --out errors.csv --html errors.html
    """
    from foveal.dataset import Dataset
    from foveal.models import load_encoder
    from retrieval.label_errors import find_label_errors, page
    from retrieval.memory import ExemplarMemory

    _writable(out)
    labelled = Dataset.open(dataset)
    memory = ExemplarMemory.build(load_encoder(encoder), labelled, progress=live_progress())
    found = find_label_errors(memory)
    files = {sample.id: str(sample.path) for sample in labelled}
    rows = [{**row, "file": files[row["image"]]} for row in found.rows()]
    _write(out, rows)
    if html is not None:
        page(found, memory, labelled, [("data", dataset), ("encoder", encoder)]).write(html)
    summary = {
        "labels": found.labels,
        "suspects": len(found.suspects),
        "estimated": found.estimated,
        "accuracy": round(found.accuracy, 4),
        "skipped": memory.skipped,
    }
    _show(summary, "rows", rows, json_, SHOWN)


def _load(folder: Path, encoder: str | None) -> ExemplarMemory:
    from foveal.models import load_encoder
    from retrieval.memory import ExemplarMemory
    from retrieval.memory_files import Stored

    return ExemplarMemory.load(folder, load_encoder(encoder or Stored.read(folder).encoder))


def _summary(memory: ExemplarMemory) -> dict[str, Any]:
    return {
        "encoder": memory.encoder.name,
        "boxes": memory.counts,
        "accuracy": None if memory.fit is None else round(memory.fit.accuracy, 4),
        "untuned": memory.untuned,
    }


def _writable(out: Path | None) -> None:
    """Refuses a file that could not be written, before the work is done."""
    from retrieval.curate.listing import check_suffix

    if out is not None:
        check_suffix(out)


def _write(out: Path | None, rows: list[dict[str, Any]]) -> None:
    from retrieval.curate.listing import write_rows

    if out is not None:
        write_rows(out, rows, line="image")


def _show(
    summary: dict[str, Any], name: str, rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...] = ()
) -> None:
    if as_json:
        emit({**summary, name: rows}, True)
        return
    emit(summary, False)
    print()
    emit_rows([{key: row[key] for key in columns or row} for row in rows[:ROWS]])
    if len(rows) > ROWS:
        print(f"and {len(rows) - ROWS:,} more; --json has all")
