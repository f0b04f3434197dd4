"""Rounds: the student becomes a teacher beside those it learnt from, and all label the images again for the next one.

    foveal distill PRELABELS --student fcos-resnet --gold gold/ --rounds 3 --out runs/student

A student averages over many images what its teachers got wrong in each; fused with them (`distill.fusion`) it finds
what they missed and steadies their boxes. Whether to believe it is not for it to say: the gold set, of which it learns
nothing, calibrates all of them together, so that agreement counts for what it is worth there. (Noisy Student, arXiv
1911.04252, for teaching by the former student.) Letting the student alone correct the labels made them worse; see
docs/results/distill.md. Each student starts from the last one's weights.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from distill.parts import Parts
from distill.prelabel import PrelabelReport, load_report, prelabel, settings_of
from distill.prelabels import PREDICTIONS
from distill.reviewed import carry_over
from distill.students import load_student
from distill.train import TrainReport, TrainSettings, train, training_set
from evals.detection import evaluate
from foveal import artifacts
from foveal.dataset import Dataset
from foveal.errors import BadInput
from foveal.progress import Progress

REPORT = "rounds.json"


@dataclass(frozen=True, slots=True)
class Round:
    """What one round's student learnt from, and how good it became."""

    number: int
    out: str
    labels: str  # folder of the labelling job
    accepted: int  # boxes
    labels_ap: float  # average precision of the job's probabilities, on gold out of fold
    gold_ap50: float  # of the student
    gold_ap: float


def rounds(
    job: str | Path,
    student: str,
    out: str | Path,
    gold: Dataset,
    settings: TrainSettings | None = None,
    *,
    count: int = 2,
    registry: Path | None = None,
    progress: Progress | None = None,
) -> list[Round]:
    """Train up to `count` rounds on the labels of `job`; `out` becomes the best one's student.

    They end early when the student adds nothing to its teachers on gold, or its own gold AP50 no longer rises. Every
    round stays beside `out` (`-round-N`, and the labels that it learnt from, `-labels-N`), so that an interrupted call
    goes on where it was. What people have corrected in `job` stands in every round.

    Args:
        job: folder of a labelling job that was given its parts by reference, as the command line does.
        gold: the labelled images that calibrated the job; no student learns from them.

    Raises:
        BadInput: fewer than one round, not such a job; and as `prelabel` and `train`.
    """
    if count < 1:
        raise BadInput("there is nothing to do", expected="one round or more", received=str(count))
    labels, out = Path(job), Path(out)
    parts, how = Parts.of(labels, registry), settings_of(artifacts.read(labels))
    listed = Dataset.open(labels / PREDICTIONS)
    images = listed.with_truth([None] * len(listed))
    made, start, done = load_report(labels), student, list[Round]()
    for number in range(1, count + 1):
        folder = out.with_name(f"{out.name}-round-{number}")
        report = train(training_set(labels), start, folder, settings, progress, gold=gold)
        done.append(_measured(number, report, made, gold))
        if progress is not None:
            progress.note(f"round {number}: gold AP50 {done[-1].gold_ap50:.3f}, AP {done[-1].gold_ap:.3f}")
        if number == count or (number > 1 and done[-1].gold_ap50 <= done[-2].gold_ap50):
            break
        both = replace(parts, teachers=(*parts.teachers, f"detector:{folder}"))
        again = out.with_name(f"{out.name}-labels-{number + 1}")
        teacher, memory, segmenter = both()
        made = prelabel(
            images, parts.ontology, teacher, gold, memory, again, how, progress, parts=both, segmenter=segmenter
        )
        carry_over(Path(job), again)
        if _ap(made) <= done[-1].labels_ap:
            if progress is not None:
                progress.note("the student adds nothing to its teachers on the gold set: rounds end")
            break
        labels, start = again, str(folder)
    best = max(done, key=lambda one: (one.gold_ap50, -one.number))
    _put(Path(best.out), out)
    told = json.dumps([asdict(one) for one in done], indent=1)
    artifacts.write_text(out.with_name(f"{out.name}-{REPORT}"), told + "\n")
    return done


def _put(best: Path, out: Path) -> None:
    if not out.exists():
        with artifacts.staged(out) as folder:
            shutil.copytree(best, folder, dirs_exist_ok=True)
    elif artifacts.read(out).fingerprint != artifacts.read(best).fingerprint:
        raise BadInput(f"{out} holds another run; the best of these rounds is {best}", remedy="Choose another --out.")


def _measured(number: int, report: TrainReport, made: PrelabelReport, gold: Dataset) -> Round:
    model = load_student(report.out)
    pairs = [(sample.truth, model.detect([sample.image()], 0.001)[0]) for sample in gold if sample.truth is not None]
    scores = evaluate([truth for truth, _ in pairs], [found for _, found in pairs])
    ap50, ap = scores["AP50"] or 0.0, scores["AP"] or 0.0
    return Round(number, report.out, made.out, made.boxes["accept"], _ap(made), ap50, ap)


def _ap(made: PrelabelReport) -> float:
    return made.gold["with_memory"]["average_precision"]
