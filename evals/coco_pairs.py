"""Truth and predictions, in whatever form they come, joined into one pair that can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.box_formats import check_format
from evals.coco_boxes import Boxes, Doubles
from evals.coco_masks import encoded
from evals.coco_predictions import PredictionLike, read_predictions
from evals.coco_truth import TruthLike, read_truth
from foveal.errors import BadInput

__all__ = ["Pairs", "PredictionLike", "TruthLike", "pair_up"]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Both sides of one comparison, over the same images and classes."""

    ids: list[str]  # of the images, in the order in which equal scores rank
    classes: list[str]
    sizes: Doubles  # (I, 2) width and height of the images, NaN where they are not known
    truth: Boxes
    predictions: Boxes


def pair_up(truth: TruthLike, predictions: PredictionLike, *, masks: bool = False) -> Pairs:
    """Both sides under the truth's images and classes; raises `BadInput` as `evals.detection.evaluate` says."""
    known, index = read_truth(truth, masks=masks)
    found = read_predictions(predictions, index, masks=masks)
    source = str(predictions) if isinstance(predictions, str | Path) else "predictions"
    _check_values(known, "the truth")
    _check_values(found, source)
    if masks:
        known = encoded(known, index.sizes, "the truth", measured=False)
        found = encoded(found, index.sizes, source, measured=True)
    else:
        check_format(found, known, index.sizes, source)
    return Pairs(index.ids, index.classes, index.sizes, known, found)


def _check_values(found: Boxes, source: str) -> None:
    if not len(found):
        return
    if not np.isfinite(found.boxes).all() or not np.isfinite(found.score).all():
        raise BadInput(f"{source} holds NaN, infinite or incomplete boxes or scores", expected="finite numbers")
    low, high = float(found.score.min()), float(found.score.max())
    if low < 0 or high > 1:
        worst = high if high > 1 else low
        raise BadInput(f"{source} has a score outside its range", expected="[0, 1]", received=f"{worst:g}")
    if found.boxes[:, 2:].min() < 0:
        raise BadInput(f"{source} has a box of negative width or height", expected="bbox [x, y, width, height]")
