"""Options that several commands share, and the progress they show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.progress import RichProgress

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
EncoderRef = Annotated[str, typer.Option("--encoder", metavar="REF", help="Image-text encoder, optionally +adapter.")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")]


def live_progress() -> RichProgress:
    """Progress on standard error."""
    from foveal.progress import RichProgress

    return RichProgress()
