"""`foveal eval calibration`: how far the confidences of a result can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.printing import Json, emit


def calibration(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What `foveal eval ... --out` wrote.")],
    precision: Annotated[
        list[float] | None, typer.Option(min=0.01, max=0.999, help="Target of a threshold; repeatable.")
    ] = None,
    recall: Annotated[
        list[float] | None, typer.Option(min=0.01, max=0.999, help="Target of a threshold; repeatable.")
    ] = None,
    criterion: Annotated[Literal["nll", "brier"], typer.Option(help="What chooses the calibrator, out of fold.")] = (
        "nll"
    ),
    folds: Annotated[int, typer.Option(min=2, max=50, help="Of the cross-validation, by image.")] = 5,
    iou: Annotated[float, typer.Option(help="Overlap from which a detected box is right.")] = 0.5,
    floor: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least confidence that counts; 0.05 for detections, 0 for others by default."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Keep the result, and a page to look at beside it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What gates call the result; calibration by default.")] = None,
    json_: Json = False,
) -> None:
    """Calibration of a result's confidences, before and after temperature, Platt and isotonic maps, and thresholds.

    Example: foveal eval calibration runs/eval/zero-shot.json --precision 0.9 --out runs/eval/calibration.json
    """
    from evals.calibrate import DETECTED, TARGETS, measure, outcomes
    from evals.results import Stopwatch, read, result_path

    path = None if out is None else result_path(out)
    watch, source = Stopwatch(), read(result)
    found = outcomes(source, iou=iou, floor=floor)
    measured = measure(
        found, criterion=criterion, folds=folds, precision=precision or TARGETS, recall=recall or TARGETS
    )
    if path is not None:
        from evals.pages import write

        boxes = "hits" in source.items
        settings = {
            "of": source.name, "task": source.task, "criterion": criterion, "folds": folds,
            **({"iou": iou} if boxes else {}), "floor": floor if floor is not None else DETECTED if boxes else 0.0,
        }  # fmt: skip
        kept = watch.result("calibration", measured, source.subject, source.data, name=name, settings=settings)
        typer.echo(f"kept in {path}; look at {write(kept, path)}", err=True)
    figures = measured.figures if json_ else {k: v for k, v in measured.figures.items() if k not in LONG}
    emit(figures, json_)
    if not json_:
        _thresholds(measured.figures["thresholds"])


LONG = ("per_class", "calibrator", "thresholds", "after")


def _thresholds(told: list[dict[str, object]]) -> None:
    from foveal.printing import emit_rows

    emit_rows(
        [
            {
                "target": f"{one['target']} {one['at_least']:g}",
                "threshold": one["threshold"],
                "precision": one.get("precision"),
                "recall": one.get("recall"),
                "proven": one["proven"],
            }
            for one in told
        ]
    )
