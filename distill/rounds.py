"""Rounds of self-training: the student looks at the pre-labelled images again, and what it agrees with is kept.

    foveal distill PRELABELS --student fcos-resnet --gold gold/ --rounds 3 --out runs/student

Each round's labels are made from the job's own boxes and the last student's, whose scores are calibrated on the gold
set (it learns from none of it). A box that both see is accepted, and one under review when the student is sure of it;
an accepted one that the student surely sees as something else is set aside (back to review, less probable); what only
the student sees, and surely, is added. That it sees nothing in a place is no reason: a student of one round is
weak, and setting such boxes aside halved them and cost ten points of mAP (docs/results/distill.md). The next student
starts from the last one's weights. (Noisy Student, arXiv 1911.04252, for teaching by the former student; here it may
teach only what a second witness supports.)

Shape letters: N boxes of one image.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.students import StudentDetector, load_student
from distill.train import TrainReport, TrainSettings, train
from distill.tuned import calibrator_of
from evals.calibration import Calibrator
from evals.detection import evaluate
from foveal.artifacts import write_text
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, Provenance, pairwise_iou
from foveal.errors import BadImage, BadInput
from foveal.formats import coco
from foveal.progress import Progress, track

SAME = 0.5  # IoU from which two boxes speak of one object
AGREES, SURE = 0.3, 0.8  # calibrated probability from which the student agrees, and is sure by itself
SEEN = 0.02  # score below which the student is taken to see nothing
BATCH = 16
REPORT = "rounds.json"


@dataclass(frozen=True, slots=True)
class Round:
    """What one round learned from, and how good it became."""

    number: int
    out: str
    changes: dict[str, int]  # kept, promoted, set aside, added boxes; empty in the first round
    boxes: int
    gold_ap50: float
    gold_ap: float


def rounds(
    dataset: Dataset,
    student: str,
    out: Path,
    gold: Dataset,
    settings: TrainSettings | None = None,
    *,
    count: int = 2,
    progress: Progress | None = None,
) -> list[Round]:
    """Train up to `count` rounds; `out` is the best one's student.

    They end early when the gold AP50 no longer rises, or the student contradicts most of the accepted boxes.

    Every round stays in the folder `out` with `-round-N` at its end, so that an interrupted call goes on where it was.

    Raises:
        BadInput: fewer than one round, or a gold set that cannot calibrate; and as `train`.
    """
    if count < 1:
        raise BadInput("there is nothing to do", expected="one round or more", received=str(count))
    settings, out = settings or TrainSettings(), Path(out)
    done: list[Round] = []
    data, changes, start = dataset, Counter[str](), student
    for number in range(1, count + 1):
        folder = out.with_name(f"{out.name}-round-{number}")
        report = train(data, start, folder, settings, progress, gold=gold)
        done.append(_measured(number, folder, report, changes, gold))
        if progress is not None:
            progress.note(f"round {number}: gold AP50 {done[-1].gold_ap50:.3f}, AP {done[-1].gold_ap:.3f}")
        if number == count or (number > 1 and done[-1].gold_ap50 <= done[-2].gold_ap50):
            break
        written = out.with_name(f"{out.name}-round-{number + 1}.coco.json")
        data, changes = _next_labels(dataset, folder, gold, written, progress)
        if changes["set aside"] > changes["kept"]:
            if progress is not None:
                progress.note("the student contradicts most accepted boxes: it is too weak to teach, and rounds end")
            break
        start = str(folder)
    best = max(done, key=lambda one: (one.gold_ap50, -one.number))
    if out.exists():
        shutil.rmtree(out)
    shutil.copytree(best.out, out)
    write_text(out.with_name(f"{out.name}-{REPORT}"), json.dumps([asdict(one) for one in done], indent=1) + "\n")
    return done


def _measured(number: int, folder: Path, report: TrainReport, changes: Counter[str], gold: Dataset) -> Round:
    model = load_student(folder)
    pairs = [(sample.truth, model.detect([sample.image()], 0.001)[0]) for sample in gold if sample.truth is not None]
    scores = evaluate([truth for truth, _ in pairs], [found for _, found in pairs])
    return Round(number, str(folder), dict(changes), report.boxes, scores["AP50"] or 0.0, scores["AP"] or 0.0)


def _next_labels(
    dataset: Dataset, folder: Path, gold: Dataset, written: Path, progress: Progress | None
) -> tuple[Dataset, Counter[str]]:
    """The labels that the last student's second look makes of `dataset`'s, and what it changed; written once."""
    told = written.with_suffix(".changes.json")
    if written.is_file() and told.is_file():
        return coco.read(written), Counter(json.loads(told.read_text(encoding="utf-8")))
    model = load_student(folder)
    calibrator = calibrator_of(model, gold)
    changes = Counter[str]()
    relabelled = Dataset.build(_relabelled(dataset, model, calibrator, changes, progress), dataset.classes)
    coco.write(relabelled, written)
    write_text(told, json.dumps(changes) + "\n")
    return coco.read(written), changes


def _relabelled(
    dataset: Dataset, model: StudentDetector, calibrator: Calibrator, changes: Counter[str], progress: Progress | None
) -> Iterator[Sample]:
    waiting: list[tuple[Sample, Any]] = []

    def looked() -> Iterator[Sample]:
        found = model.detect([image for _, image in waiting], SEEN)
        for (sample, _), seen in zip(waiting, found, strict=True):
            sure = calibrator(seen.scores, seen.label_names).astype(np.float32)
            yield replace(sample, truth=agreed(sample.truth, replace(seen, probabilities=sure), changes))

    for sample in track(progress, dataset, "look again", len(dataset)):
        if sample.truth is None:
            continue
        try:
            waiting.append((sample, sample.image()))
        except BadImage:
            continue
        if len(waiting) == BATCH:
            yield from looked()
            waiting.clear()
    if waiting:
        yield from looked()


def agreed(before: Detections | None, seen: Detections, changes: Counter[str]) -> Detections:
    """The labels of one image after the student's look: its boxes `seen` (N) have calibrated probabilities.

    Boxes that people drew (without a route) stand whatever the student says.
    """
    assert before is not None
    assert seen.probabilities is not None
    overlap = pairwise_iou(before.boxes, seen.boxes) >= SAME
    same = np.array(before.label_names)[:, None] == np.array(seen.label_names)[None, :]
    chance = seen.probabilities[None, :]
    support = np.where(overlap & same, chance, 0.0).max(axis=1, initial=0.0)
    rival = np.where(overlap & ~same, chance, 0.0).max(axis=1, initial=0.0)
    told = before.provenance or (Provenance("people"),) * len(before)
    own = np.ones(len(before), np.float32) if before.probabilities is None else before.probabilities
    routes: list[Provenance] = []
    probabilities: list[float] = []
    for row, origin in enumerate(told):
        route, sure = origin.route, float(own[row])
        if route == "accept":
            stands = rival[row] < SURE or support[row] >= rival[row]
            changes["kept" if stands else "set aside"] += 1
            if not stands:
                route, sure = "review", sure * (1 - float(rival[row]))
        elif route == "review" and support[row] >= SURE and sure >= AGREES:
            changes["promoted"] += 1
            route, sure = "accept", max(sure, float(support[row]))
        routes.append(replace(origin, route=route))
        probabilities.append(sure)
    alone = np.flatnonzero((seen.probabilities >= SURE) & ~overlap.any(axis=0))
    changes["added"] += len(alone)
    return Detections.build(
        np.concatenate([before.boxes, seen.boxes[alone]]),
        np.concatenate([before.scores, seen.scores[alone]]),
        [*before.label_names, *(seen.label_names[i] for i in alone)],
        before.names,
        probabilities=np.array([*probabilities, *seen.probabilities[alone].tolist()], dtype=np.float32),
        provenance=(*routes, *(Provenance("student", route="accept") for _ in alone)),
    )
