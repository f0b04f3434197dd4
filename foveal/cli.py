"""The `foveal` command: thin calls into the rooms, which are imported inside the commands that need them."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal import (
    __version__,
    eval_calibration_cli,
    eval_detection_cli,
    eval_prelabel_cli,
    eval_search_cli,
    eval_speed_cli,
    eval_vqa_cli,
    precision_cli,
    robustness_cli,
)
from foveal.adapt_cli import adapt_app
from foveal.archive_cli import archive_app
from foveal.card_cli import card_app
from foveal.compare_cli import eval_compare
from foveal.distill_cli import distill, export, prelabel_app
from foveal.errors import FovealError
from foveal.eval_cli import eval_app
from foveal.gate_cli import gate
from foveal.memory_cli import memory_app
from foveal.options import Config, OutDir, Overrides, live_progress
from foveal.printing import Json, emit
from foveal.registry_cli import registry_app
from foveal.scenario_cli import scenarios_app
from foveal.serve_cli import keys_app, serve

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="foveal",
    help="Adapt, distil, serve and search with vision foundation models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(adapt_app, name="adapt")
app.add_typer(archive_app, name="archive")
for command in (robustness_cli.robustness, robustness_cli.shift, robustness_cli.slices):
    eval_app.command()(command)
app.add_typer(card_app, name="card")
eval_app.command()(eval_calibration_cli.calibration)
eval_app.command()(eval_speed_cli.speed)
eval_app.command("compare")(eval_compare)
eval_app.command("detection")(eval_detection_cli.detection)
eval_app.command("prelabel")(eval_prelabel_cli.prelabel)
eval_app.command("search")(eval_search_cli.search)
eval_app.command("vqa")(eval_vqa_cli.vqa)
app.add_typer(eval_app, name="eval")
app.add_typer(keys_app, name="keys")
app.add_typer(memory_app, name="memory")
for command in (precision_cli.sample, precision_cli.audit, precision_cli.suspects):
    prelabel_app.command()(command)
app.add_typer(prelabel_app, name="prelabel")
app.add_typer(registry_app, name="registry")
app.add_typer(scenarios_app, name="scenarios")
app.command()(distill)
app.command()(export)
app.command()(gate)
app.command()(serve)


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
    # transformers warns of names that it and peft still use among themselves.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Pillow warns of pictures that `foveal.images` refuses with a reason right after.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=RuntimeWarning)
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
