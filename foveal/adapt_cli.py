"""`foveal adapt ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from foveal.options import Config, OutDir, Overrides, live_progress
from foveal.printing import Json, emit

if TYPE_CHECKING:
    from adapt.run import AdaptReport

adapt_app = typer.Typer(no_args_is_help=True, help="Fine-tune a backbone with LoRA.")


@adapt_app.command("clip")
def adapt_clip(
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Encoder to adapt.")],
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with captions.")],
    out: OutDir,
    validation: Annotated[str | None, typer.Option(metavar="SOURCE", help="Pairs for recall before and after.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    json_: Json = False,
) -> None:
    """Train a LoRA adapter for a CLIP-style encoder on image-caption pairs.

    Example: foveal adapt clip --base bundled:clip --data runs/site --out runs/adapter --set max_seconds=60
    """
    from adapt.clip import ClipSettings, adapt
    from foveal.config import load
    from foveal.dataset import Dataset

    report = adapt(
        base,
        Dataset.open(data),
        out,
        load(ClipSettings, config, overrides or ()),
        live_progress(),
        validation=Dataset.open(validation) if validation else None,
        fresh=fresh,
    )
    _show(report, json_)


@adapt_app.command("vlm")
def adapt_vlm(
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Vision-language model to adapt.")],
    data: Annotated[
        list[str], typer.Option("--data", metavar="SOURCE", help="Dialogues, questions or boxes; repeatable.")
    ],
    out: OutDir,
    validation: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="What to ask before and after; repeatable.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    json_: Json = False,
) -> None:
    """Train a LoRA or QLoRA adapter for a vision-language model on questions and answers about images.

    Example: foveal adapt vlm --base bundled:vlm --data runs/site --out runs/vlm-adapter --set max_seconds=60
    """
    from adapt.vlm import VlmSettings, adapt
    from foveal.config import load

    settings = load(VlmSettings, config, overrides or ())
    report = adapt(base, data, out, settings, live_progress(), validation=validation, fresh=fresh)
    _show(report, json_)


def _show(report: AdaptReport, json_: bool) -> None:
    from adapt.run import is_main

    if is_main():
        emit(report.model_dump(mode="json", exclude={"losses"}), json_)
