"""Options that several commands share, the lines of files they name, and the progress they show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from foveal.progress import Progress

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
DEFAULT_ENCODER, DEFAULT_TEACHER = "bundled:clip", "bundled:owl"
EncoderRef = Annotated[str, typer.Option("--encoder", metavar="REF", help="Image-text encoder, optionally +adapter.")]
EncoderRuntime = Annotated[
    Literal["torch", "bf16", "onnx", "openvino"],
    typer.Option(
        "--runtime",
        help="What encoders compute in: PyTorch, PyTorch in bfloat16, or another that is converted to; all are "
        "compared with the first.",
    ),
]
DeviceName = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps; the best there by default.")
]
ArchiveDir = Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive.")]
ArchiveUri = Annotated[str, typer.Option("--archive", metavar="DIR|URI", help="The archive, or milvus://HOST/NAME.")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")]
BlurRef = Annotated[
    str | None,
    typer.Option(
        "--blur",
        metavar="REF[:CLASS,CLASS]",
        help="Make what this detector finds unrecognisable in all that is stored of a picture; a folder's own files "
        "are never changed.",
    ),
]
BlurPrompts = Annotated[
    str | None,
    typer.Option("--blur-prompts", metavar="TEXTS", help='What it looks for if it takes texts: "a face,a plate".'),
]
BlurThreshold = Annotated[float, typer.Option(min=0, max=1, help="Score from which --blur blurs.")]


def live_progress() -> Progress:
    """Progress on standard error; of several processes that train together only the first one shows it."""
    from foveal.progress import RichProgress, SilentProgress

    return RichProgress() if os.environ.get("RANK", "0") == "0" else SilentProgress()


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without the empty ones and the space around each.

    Raises:
        BadInput: it cannot be read, or is no text.
    """
    from foveal.errors import BadInput

    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadInput(f"{file} cannot be read: {reason}", expected="a text file, one entry a line") from error
    return [line.strip() for line in lines if line.strip()]
