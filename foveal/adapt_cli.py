"""`foveal adapt ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from foveal.options import Config, OutDir, Overrides, live_progress
from foveal.printing import Json, emit

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
    emit(report.model_dump(mode="json", exclude={"losses"}), json_)


plan_app = typer.Typer(no_args_is_help=True, help="Say before a run what it will need.")
adapt_app.add_typer(plan_app, name="plan")


@plan_app.command("clip")
def plan_clip(
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Encoder to adapt.")],
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with captions or labels.")],
    config: Config = None,
    overrides: Overrides = None,
    fit: Annotated[bool, typer.Option("--fit", help="Look for the fastest settings that fit; batch stays.")] = False,
    memory: Annotated[float | None, typer.Option(metavar="MB", help="Plan for this much free memory.")] = None,
    json_: Json = False,
) -> None:
    """Measure a few steps: parameters trained, peak memory, time, and whether it fits this machine.

    Example: foveal adapt plan clip --base bundled:clip --data runs/site --set batch=256 --fit
    """
    from adapt.plan import plan, settings_class
    from foveal.config import load

    settings = load(settings_class("clip"), config, overrides or ())
    found = plan("clip", base, data, settings, live_progress(), memory_mb=memory, fit=fit)
    emit(found, json_)
