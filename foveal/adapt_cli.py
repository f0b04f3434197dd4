"""`foveal adapt ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from foveal.options import Config, OutDir, Overrides, live_progress
from foveal.printing import Json, emit, emit_rows

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


@adapt_app.command("merge")
def adapt_merge(
    model: Annotated[str, typer.Argument(metavar="BASE+ADAPTER", help="What to fold into one model.")],
    out: OutDir,
    keep: Annotated[float, typer.Option(min=0, max=1, help="Share of the base's weights to keep (WiSE-FT).")] = 0.0,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="Images to compare on; else rendered.")] = None,
    json_: Json = False,
) -> None:
    """Write base and adapter as one model folder, checked against both on real images.

    Example: foveal adapt merge bundled:clip+runs/adapter --out runs/merged --keep 0.2
    """
    from adapt.merge import merge
    from foveal.dataset import Dataset

    emit(merge(model, out, keep, Dataset.open(data) if data else None), json_)


@adapt_app.command("inspect")
def adapt_inspect(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter folder.")],
    base: Annotated[str | None, typer.Option(metavar="REF", help="Its base, for relative sizes.")] = None,
    json_: Json = False,
) -> None:
    """Show what an adapter changes, module by module.

    Example: foveal adapt inspect runs/adapter --base bundled:clip
    """
    from adapt.inspect_adapter import inspect

    found = asdict(inspect(adapter, base))
    if json_:
        emit(found, True)
        return
    rows: list[dict[str, Any]] = found.pop("modules")
    emit(found, False)
    emit_rows(rows)
