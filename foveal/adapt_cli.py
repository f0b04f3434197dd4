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


@adapt_app.command("detector")
def adapt_detector(
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Open-vocabulary detector to adapt.")],
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images with boxes.")],
    out: OutDir,
    validation: Annotated[str | None, typer.Option(metavar="SOURCE", help="Boxes for AP before and after.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    json_: Json = False,
) -> None:
    """Train a LoRA adapter for OWLv2, OWL-ViT, Grounding DINO or MM-Grounding-DINO on images with boxes.

    Example: foveal adapt detector --base bundled:owl --data runs/site --out runs/owl-adapter --set max_seconds=60
    """
    from adapt.detector import DetectorSettings, adapt
    from foveal.config import load
    from foveal.dataset import Dataset

    report = adapt(
        base,
        Dataset.open(data),
        out,
        load(DetectorSettings, config, overrides or ()),
        live_progress(),
        validation=Dataset.open(validation) if validation else None,
        fresh=fresh,
    )
    emit(report.model_dump(mode="json", exclude={"losses"}), json_)
