"""What a quickstart tries beside averages on the student that it is about to release: calibration, worse pictures,
cases that must not fail, time and memory. Each is kept as a result that the gate and the report read.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml

from evals import calibrate, robustness, scenarios, speed
from evals.results import Measured, Result, Stopwatch
from evals.scenario_judging import Subjects
from evals.scenario_suite import load
from evals.speed_probe import Request
from foveal.artifacts import write_text
from foveal.dataset import Dataset
from foveal.detections import pairwise_iou
from foveal.errors import BadInput
from foveal.models import Detector
from serve.quickstart_results import folder, keep
from serve.quickstart_settings import Run

CORRUPTIONS = ("gaussian_noise", "motion_blur", "fog", "jpeg_compression")
SEVERITY = 3
PICTURES = 60  # that are corrupted
TRIALS = ("calibration", "robustness", "scenarios", "speed")
EVERYTHING = 0.001  # score threshold below which average precision no longer changes
REPEATS = 2  # of each case, to see whether it is flaky
SHOWN = 0.3  # score from which a case counts a box
APART = 0.2  # overlap with other objects up to which an object stands alone


def tried(run: Run, detection: Result, model: Detector, reference: str) -> None:
    """All of them, each kept under its task's name; what cannot be measured on so little is told and left out."""
    test = run.truth("test")
    some = test.subset(range(min(PICTURES, len(test))))
    asked = _request(test, reference)
    trials: dict[str, tuple[Dataset, Callable[[], Measured], dict[str, Any]]] = {
        "calibration": (test, lambda: calibrate.measure(calibrate.outcomes(detection)), {}),
        "robustness": (some, lambda: _worse(run, some, model), {"corruption": CORRUPTIONS, "severity": [SEVERITY]}),
        "scenarios": (test, lambda: _cases(run, test, model), {"repeats": REPEATS}),
        "speed": (
            test,
            lambda: speed.measure(speed.time_model(asked)),
            asked.model_dump(exclude={"images", "reference"}),
        ),
    }
    for task in TRIALS:
        data, measure, settings = trials[task]
        (folder(run, "candidate") / f"{task}.json").unlink(missing_ok=True)
        watch = Stopwatch()
        try:
            measured = measure()
        except BadInput as error:
            run.progress.note(f"no {task}: {error}")
            continue
        keep(run, "candidate", task, measured, reference, model, ("test", data), watch, settings)


def _worse(run: Run, some: Dataset, model: Detector) -> Measured:
    chosen = robustness.conditions(CORRUPTIONS, (SEVERITY,), sweeps=False)
    work = robustness.detecting(lambda images: model.detect(images, EVERYTHING))
    return robustness.measure(work, some, chosen, progress=run.progress)


def _request(test: Dataset, reference: str) -> Request:
    files = [str(sample.path) for sample in test.subset(range(min(20, len(test))))]
    return Request(reference=reference, kind="detector", images=files, batches=[1, 8], calls=60, seconds=1.0)


def _cases(run: Run, test: Dataset, model: Detector) -> Measured:
    """The largest object of each kind that stands alone in the test set has to be found."""
    path = run.out / "scenarios.yaml"
    cases = [_case(kind, sample, box) for kind, (sample, box) in sorted(_largest(test).items())]
    told: dict[str, Any] = {"suite": "depot", "data": str(run.world("test").relative_to(run.out)), "cases": cases}
    write_text(path, yaml.safe_dump(told, sort_keys=False))
    suite = load(path)
    suite.write_lock()
    subjects = Subjects(detect=model.detect, classes=tuple(model.classes))
    return scenarios.measure(suite, subjects, repeats=REPEATS, progress=run.progress)


def _case(kind: str, sample: str, box: list[float]) -> dict[str, Any]:
    return {
        "name": f"a large {kind} is found",
        "images": [sample],
        "expect": {"detect": {"boxes": [{"class": kind, "box": box, "iou": 0.5}], "score": SHOWN}},
        "severity": "major",
        "owner": "quickstart",
        "why": "who misses the largest one of a kind in plain sight will not be trusted with the rest",
        "added": datetime.now(UTC).date(),
    }


def _largest(test: Dataset) -> dict[str, tuple[str, list[float]]]:
    """Kind -> (image, xyxy box) of its largest object that lies whole in the picture and touches no other."""
    best: dict[str, tuple[float, str, list[float]]] = {}
    for sample in test:
        if sample.truth is None or not len(sample.truth):
            continue
        boxes = sample.truth.boxes
        overlap = pairwise_iou(boxes, boxes) - np.eye(len(boxes))
        inside = (boxes[:, :2] > 1).all(axis=1) & (boxes[:, 2:] < np.array([sample.width, sample.height]) - 1).all(1)
        for i in np.flatnonzero(inside & (overlap.max(axis=1) <= APART)).tolist():
            x1, y1, x2, y2 = (round(float(edge), 1) for edge in boxes[i])
            area, kind = (x2 - x1) * (y2 - y1), sample.truth.label_names[i]
            if area > best.get(kind, (0.0,))[0]:
                best[kind] = area, sample.id, [x1, y1, x2, y2]
    return {kind: (id, box) for kind, (_, id, box) in best.items()}
