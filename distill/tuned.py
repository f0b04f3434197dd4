"""What an exported detector's scores mean, learnt from gold images and carried in its file.

Shape letters: N detections.
"""

from __future__ import annotations

import numpy as np

from evals.calibration import Calibrator, threshold_for_precision
from evals.detection import assign
from foveal.dataset import Dataset
from foveal.detectors import Calibration, DetectorCard
from foveal.errors import BadImage, BadInput
from foveal.models import Detector
from foveal.progress import Progress, track

KNOTS = 33  # of the calibration that a file carries
LEAST = 0.01  # lower scores are never shown
CONFIDENCE = 0.95


def on_gold(
    card: DetectorCard, detector: Detector, gold: Dataset, target: float, progress: Progress | None = None
) -> DetectorCard:
    """The card with a calibration of each class, and the score from which precision reaches `target`.

    Raises:
        BadInput: the gold images are not labelled with the detector's classes, or it finds nothing in them.
    """
    scores: list[float] = []
    names: list[str] = []
    right: list[bool] = []
    images: list[int] = []
    for place, sample in enumerate(track(progress, gold, "calibrate on gold", len(gold))):
        if sample.truth is None:
            continue
        try:
            (found,) = detector.detect([sample.image()], LEAST)
        except BadImage:
            continue
        scores += found.scores.tolist()
        names += found.label_names
        right += (assign(found, sample.truth) >= 0).tolist()
        images += [place] * len(found)
    if not any(right):
        raise BadInput(
            "the gold images cannot calibrate this detector",
            expected=f"boxes of {', '.join(card.classes)} that it finds",
            received=f"{len(scores)} detections, none of them right",
        )
    calibrator = Calibrator.fit(np.array(scores), np.array(right), names, shrinkage=4.0)
    knots = np.linspace(0, 1, KNOTS)
    told = Calibration(
        scores=tuple(np.round(knots, 6).tolist()),
        probabilities={name: tuple(np.round(calibrator(knots, [name] * KNOTS), 6).tolist()) for name in card.classes},
    )
    choice = threshold_for_precision(scores, right, target, CONFIDENCE, groups=images)
    return card.model_copy(
        update={
            "threshold": choice.threshold,
            "target_precision": target,
            "proven": choice.proven,
            "calibration": told,
        }
    )
