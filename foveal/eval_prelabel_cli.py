"""`foveal eval prelabel`: what a labelling job is worth, once gold labels say what was there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveal.eval_cli import ResultFile, ResultName, keep
from foveal.printing import Json, emit

PREDICTIONS = "predictions.coco.json"  # of the folder that `foveal prelabel` writes


def prelabel(
    prelabels: Annotated[Path, typer.Argument(help="Folder that `foveal prelabel` wrote, or its predictions file.")],
    gold: Annotated[str, typer.Option(metavar="SOURCE", help="The same images, or some of them, with true boxes.")],
    iou: Annotated[float, typer.Option(min=0.1, max=1, help="Overlap from which a box needs no correction.")] = 0.5,
    out: ResultFile = None,
    name: ResultName = None,
    json_: Json = False,
) -> None:
    """Precision of accepted boxes, share to review, corrections saved and calibration, against a gold set.

    Example: foveal eval prelabel runs/prelabels --gold gold
    """
    from evals.prelabels import measure
    from evals.results import Stopwatch
    from foveal.dataset import Dataset

    file = prelabels / PREDICTIONS
    found, known, watch = Dataset.open(file if file.is_file() else prelabels), Dataset.open(gold), Stopwatch()
    measured = measure(found, known, iou)
    keep("prelabel", watch, measured, str(prelabels), None, gold, known, out, name, {"iou": iou})
    emit(measured.figures, json_)
