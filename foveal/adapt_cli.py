"""`foveal adapt ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.errors import BadInput
from foveal.options import Config, OutDir, Overrides, live_progress
from foveal.printing import Json, emit, emit_rows

if TYPE_CHECKING:
    from adapt.run import AdaptReport

RunDir = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write.")]
ListModules = Annotated[bool, typer.Option("--list-modules", help="Print what LoRA attaches to, and train nothing.")]

adapt_app = typer.Typer(no_args_is_help=True, help="Fine-tune a backbone with LoRA.")


@adapt_app.command("clip")
def adapt_clip(
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Encoder to adapt.")],
    data: Annotated[str | None, typer.Option("--data", metavar="SOURCE", help="Images with captions.")] = None,
    out: RunDir = None,
    validation: Annotated[str | None, typer.Option(metavar="SOURCE", help="Pairs for recall before and after.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    list_modules: ListModules = False,
    json_: Json = False,
) -> None:
    """Train a LoRA adapter for a CLIP-style encoder on image-caption pairs.

    Example: foveal adapt clip --base bundled:clip --data runs/site --out runs/adapter --set max_seconds=60
    """
    from adapt import targets
    from adapt.clip import ClipSettings, adapt, adaptable
    from foveal.config import load
    from foveal.dataset import Dataset

    settings = load(ClipSettings, config, overrides or ())
    if list_modules:
        model = adaptable(base)
        rows = targets.attachments(model.model, targets.choose(model.model, settings.towers, settings.target_modules))
        emit({"modules": rows}, True) if json_ else emit_rows(rows)
        return
    source, folder = _both(data, out)
    report = adapt(
        base,
        Dataset.open(source),
        folder,
        settings,
        live_progress(),
        validation=Dataset.open(validation) if validation else None,
        fresh=fresh,
    )
    _show(report, json_)


@adapt_app.command("detector")
def adapt_detector(
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Open-vocabulary detector to adapt.")],
    data: Annotated[str | None, typer.Option("--data", metavar="SOURCE", help="Images with boxes.")] = None,
    out: RunDir = None,
    validation: Annotated[str | None, typer.Option(metavar="SOURCE", help="Boxes for AP before and after.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    list_modules: ListModules = False,
    json_: Json = False,
) -> None:
    """Train a LoRA adapter for OWLv2, OWL-ViT, Grounding DINO or MM-Grounding-DINO on images with boxes.

    Example: foveal adapt detector --base bundled:owl --data runs/site --out runs/owl-adapter --set max_seconds=60
    """
    from adapt import detector_targets, targets
    from adapt.detector import DetectorSettings, adapt, adaptable
    from foveal.config import load
    from foveal.dataset import Dataset

    settings = load(DetectorSettings, config, overrides or ())
    if list_modules:
        model = adaptable(base)
        rows = targets.attachments(
            model.model, detector_targets.choose(model.model, settings.towers, settings.target_modules)
        )
        emit({"modules": rows}, True) if json_ else emit_rows(rows)
        return
    source, folder = _both(data, out)
    report = adapt(
        base,
        Dataset.open(source),
        folder,
        settings,
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

    Example: foveal adapt vlm --base hf:Qwen/Qwen2.5-VL-3B-Instruct --data runs/site --out runs/vlm --set quantise=true
    """
    from adapt.vlm import VlmSettings, adapt
    from foveal.config import load

    settings = load(VlmSettings, config, overrides or ())
    report = adapt(base, data, out, settings, live_progress(), validation=validation, fresh=fresh)
    _show(report, json_)


@adapt_app.command("plan")
def adapt_plan(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="clip, detector or vlm.")],
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Model to adapt.")],
    data: Annotated[list[str], typer.Option("--data", metavar="SOURCE", help="What the run would learn from.")],
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

    settings = load(settings_class(kind), config, overrides or ())
    found = plan(kind, base, data, settings, live_progress(), memory_mb=memory, fit=fit)
    emit(found, json_)


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


@adapt_app.command("curve")
def adapt_curve(
    model: Annotated[str, typer.Argument(metavar="BASE+ADAPTER", help="Encoder and its adapter.")],
    new: Annotated[str, typer.Option(metavar="SOURCE", help="Data of the domain adapted to.")],
    old: Annotated[str, typer.Option(metavar="SOURCE", help="Data of the domain not to forget.")],
    out: OutDir,
    json_: Json = False,
) -> None:
    """Measure how much of the base to keep: new domain against old one, in eleven mixtures.

    Example: foveal adapt curve bundled:clip+runs/adapter --new runs/site --old runs/base --out runs/curve
    """
    from adapt.curve import curve
    from foveal.dataset import Dataset

    found = curve(model, Dataset.open(new), Dataset.open(old), out, live_progress())
    if json_:
        emit(found, True)
        return
    emit_rows([{**asdict(point), "mean": point.mean} for point in found.points])
    emit({"best_keep": found.best, "out": str(out)}, False)


def _both(data: str | None, out: Path | None) -> tuple[str, Path]:
    """What training needs and `--list-modules` does not."""
    if data is None or out is None:
        missing = " and ".join(name for name, value in (("--data", data), ("--out", out)) if value is None)
        raise BadInput(f"{missing} missing", expected="data to learn from and a folder to write")
    return data, out


def _show(report: AdaptReport, json_: bool) -> None:
    from adapt.run import is_main

    if is_main():
        emit(report.model_dump(mode="json", exclude={"losses"}), json_)
