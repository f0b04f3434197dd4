"""`foveal eval search`: the index of an archive, its hits against judgements, and when it says that nothing matches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveal.eval_cli import ResultFile, ResultName
from foveal.options import live_progress
from foveal.printing import Json, emit


def search(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Folder of the archive.")],
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='A text a line, or {"text": ..., "relevant": [URI]}; an empty list: nothing answers it.',
        ),
    ] = None,
    present: Annotated[
        str | None, typer.Option(metavar="TEXTS", help='What the archive shows: "a red crate,a drum".')
    ] = None,
    absent: Annotated[
        str | None, typer.Option(metavar="TEXTS", help='What it does not show: "an elephant,a wedding".')
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many hits count.")] = 10,
    sample: Annotated[int, typer.Option(min=0, help="Stored images that are asked of the index.")] = 200,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """Recall of an archive's index, precision and recall of its hits, and how often "nothing matches" is right.

    Relevant images come from --queries, and from what people judged with `foveal archive judge`.

    Example: foveal eval search runs/archive --queries queries.jsonl --absent "an elephant,a wedding"
    """
    from evals.pages import write
    from evals.results import Stopwatch, Subject, result_path
    from foveal.models import load_encoder
    from retrieval import search_quality
    from retrieval.archive import Archive
    from retrieval.compare import read_questions

    path = None if out is None else result_path(out)
    opened, watch = Archive.open(archive), Stopwatch()
    questions = [] if queries is None else read_questions(queries)
    asked = search_quality.queries(opened, questions, _texts(present), _texts(absent))
    encoder = load_encoder(opened.encoder)
    measured = search_quality.measure(opened, encoder, asked, k, sample, live_progress())
    if any(query.something is False for query in asked) and not search_quality.refuses(opened):
        typer.echo("it never says that nothing matches: `foveal archive calibrate` learns that from captions", err=True)
    if path is not None:
        subject, data = Subject.of(opened.encoder, encoder), search_quality.data(opened, asked)
        result = watch.result("search", measured, subject, data, name=name, settings={"k": k, "sample": sample})
        with search_quality.pictures(opened, measured) as dataset:
            typer.echo(f"kept in {path}; look at {write(result, path, dataset)}", err=True)
    emit(measured.figures, json_)


def _texts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
