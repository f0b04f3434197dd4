"""`foveal card ...`: model cards and data sheets in Hugging Face's card format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveal.options import live_progress
from foveal.printing import Json, emit

AboutFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML of what only people can say; without it that is unknown.")
]

card_app = typer.Typer(no_args_is_help=True, help="Model cards and data sheets.")


@card_app.command("model")
def card_model(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A sealed model folder.")],
    results: Annotated[
        list[Path] | None, typer.Option(metavar="FILE.json", help="What `foveal eval ... --out` wrote; repeatable.")
    ] = None,
    about: AboutFile = None,
    out: Annotated[Path, typer.Option(metavar="FILE.md", help="Where to write it; never into the sealed folder.")] = (
        Path("model-card.md")
    ),
    json_: Json = False,
) -> None:
    """Write a model's card from its manifest and results: use, limits, slices, licence, lineage, and what is unknown.

    Example: foveal card model runs/student-int8 --results runs/eval/detection.json --out card.md
    """
    from evals.cards import About, card_of
    from evals.results import read
    from foveal.config import load

    kept = [read(path) for path in results or ()]
    text = card_of(folder, kept, load(About, about))
    _write(out, text, folder, json_, results=len(kept))


@card_app.command("data")
def card_data(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A data set in any format that Foveal reads.")],
    about: AboutFile = None,
    out: Annotated[Path, typer.Option(metavar="FILE.md", help="Where to write it.")] = Path("data-sheet.md"),
    json_: Json = False,
) -> None:
    """Write a data set's sheet: what it holds, counted; the questions a sheet asks, answered or said to be open.

    Example: foveal card data runs/site --about about.yaml --out sheet.md
    """
    from evals.data_cards import About, data_sheet
    from foveal.config import load
    from foveal.dataset import Dataset

    dataset = Dataset.open(source)
    text = data_sheet(dataset, source, load(About, about), live_progress())
    _write(out, text, None, json_, images=len(dataset))


def _write(out: Path, text: str, sealed: Path | None, json_: bool, **told: int) -> None:
    from foveal.artifacts import write_text
    from foveal.errors import BadInput

    if out.suffix.lower() != ".md":
        raise BadInput(f"--out {out} is not a Markdown file", expected="a name that ends in .md")
    if sealed is not None and sealed.resolve() in out.resolve().parents:
        raise BadInput(
            f"{sealed} is sealed: a file put into it is not in its manifest", remedy="Write the card beside it."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    unknown = text.split("## What is not known")[-1].split("\n## ")[0].count("\n- ") if "## What is not" in text else 0
    emit({"out": str(out), **told, "unknown": unknown}, json_)
