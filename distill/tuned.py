"""What an exported detector's scores mean, learnt from gold images and carried in its file.

Shape letters: N detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.calibration import Calibrator
from evals.detection import assign
from evals.thresholds import threshold_for_precision
from foveal.dataset import Dataset
from foveal.detections import FloatArray
from foveal.detectors import Calibration, DetectorCard
from foveal.errors import BadImage, BadInput
from foveal.models import Detector
from foveal.profile import Profile
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
    seen = _seen(detector, gold, progress)
    calibrator = seen.calibrator()
    knots = np.linspace(0, 1, KNOTS)
    told = Calibration(
        scores=tuple(np.round(knots, 6).tolist()),
        probabilities={name: tuple(np.round(calibrator(knots, [name] * KNOTS), 6).tolist()) for name in card.classes},
    )
    choice = threshold_for_precision(seen.scores, seen.right, target, CONFIDENCE, groups=seen.images)
    return card.model_copy(
        update={
            "threshold": choice.threshold,
            "target_precision": target,
            "proven": choice.proven,
            "calibration": told,
            "profile": Profile.of(seen.each),
        }
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """A detector's detections in the gold images, N in all."""

    scores: list[float]
    names: list[str]
    right: list[bool]
    images: list[int]
    each: list[FloatArray]  # the scores of every image

    def calibrator(self) -> Calibrator:
        return Calibrator.fit(np.array(self.scores), np.array(self.right), self.names, shrinkage=4.0)


def _seen(detector: Detector, gold: Dataset, progress: Progress | None) -> _Seen:
    found = _Seen([], [], [], [], [])
    for place, sample in enumerate(track(progress, gold, "calibrate on gold", len(gold))):
        if sample.truth is None:
            continue
        try:
            (boxes,) = detector.detect([sample.image()], LEAST)
        except BadImage:
            continue
        found.scores.extend(boxes.scores.tolist())
        found.names.extend(boxes.label_names)
        found.right.extend((assign(boxes, sample.truth) >= 0).tolist())
        found.images.extend([place] * len(boxes))
        found.each.append(boxes.scores)
    if not any(found.right):
        raise BadInput(
            "the gold images cannot calibrate this detector",
            expected=f"boxes of {', '.join(detector.classes)} that it finds",
            received=f"{len(found.scores)} detections, none of them right",
        )
    return found
