"""From a few labelled images of real boards to a detector: what pre-labels and a student from them are worth.

    python -m benchmarks.bench_boards --train BOARDS/train.json --test BOARDS/test.json --gold 60 --work runs/boards

`--gold` of the training images keep their labels, the labels of all others are only looked at to measure. Half of the
gold trains a small detector that proposes boxes, half calibrates; the crops of all gold images are the exemplar memory.
Pre-labels of all other images, with the proposer's own opinion and without it (boxes and memory alone), then train a
student, beside the same student on the gold images alone and on all human labels. Last come rounds, in which
the students help to label; there the proposer's own images stand as people labelled them. Every step resumes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.audit import compare_verification, measure
from distill.ontology import Ontology
from distill.parts import Parts, remember_gold
from distill.prelabel import PrelabelSettings, prelabel
from distill.reviewed import take_back
from distill.rounds import rounds
from distill.students import load_student
from distill.train import TrainSettings, train, training_set
from evals.detection import evaluate
from foveal.dataset import Dataset
from foveal.formats import coco
from foveal.progress import RichProgress, track
from foveal.runtime import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--gold", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path("runs/boards"))
    parser.add_argument("--encoder", default="bundled:clip")
    parser.add_argument("--student", default="fcos-resnet")
    parser.add_argument("--size", type=int, default=320, help="side that students see, pixels")
    parser.add_argument("--views", type=int, default=40_000, help="images that each student learns from, with repeats")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work, progress = options.work, RichProgress()
    everything, test = Dataset.open(options.train), Dataset.open(options.test)
    gold_rows = np.linspace(0, len(everything) - 1, options.gold).round().astype(int).tolist()
    gold = everything.subset(gold_rows)
    rest = everything.subset([row for row in range(len(everything)) if row not in set(gold_rows)])
    learn, judge = gold.subset(range(0, len(gold), 2)), gold.subset(range(1, len(gold), 2))
    report: dict[str, Any] = {"machine": describe_machine(), "settings": {k: str(v) for k, v in vars(options).items()}}

    def settings_for(images: int, **more: Any) -> TrainSettings:
        return TrainSettings(size=options.size, epochs=max(1, options.views // images), **more)

    def student(name: str, data: Dataset, **more: Any) -> None:
        made = train(data, options.student, work / name, settings_for(len(data), **more), progress)
        report[name] = {
            "images": len(data), "boxes": made.boxes, "ignored": made.ignored, "seconds": made.seconds,
            **tested(work / name, test, progress),
        }  # fmt: skip
        _write(work, report)

    work.mkdir(parents=True, exist_ok=True)
    student("human", everything)
    student("gold alone", gold)
    student("proposer", learn)
    ontology, hidden = Ontology.of(everything.classes), rest
    bare = rest.with_truth([None] * len(rest), rest.classes)
    memory = remember_gold(gold, options.encoder, work / "memory", progress)
    settings = PrelabelSettings(target_precision=options.target)
    for name, reference in (
        ("detector and memory", f"detector:{work / 'proposer'}"),
        ("proposals and memory", f"proposals:detector:{work / 'proposer'}"),
    ):
        parts = Parts((reference,), ontology, memory)
        out = work / f"prelabels {name}"
        made = prelabel(bare, ontology, parts.teacher(), judge, parts.remembered(), out, settings, progress)
        quality, ranked = measure(out, hidden), compare_verification(out, hidden)
        report[f"prelabels, {name}"] = {
            "proven": made.proven,
            "warnings": made.warnings,
            "routes": made.boxes,
            "accepted_precision": quality.accepted_precision,
            "accepted_interval": quality.accepted_interval,
            "accepted_recall": quality.accepted_recall,
            "recall": quality.recall,
            **{f"AP by {key}": value["average_precision"] for key, value in ranked.items()},
        }
        _write(work, report)
        labelled = training_set(out)
        joined = work / f"{name}.json"
        coco.write(Dataset.build([*labelled, *gold], everything.classes), joined)
        student(f"student, {name}", Dataset.open(joined))
        student(f"student, {name}, doubtful boxes learnt by weight", Dataset.open(joined), review="learn")
    report["rounds"] = in_rounds(work, rest, learn, judge, test, memory, settings, settings_for, options, progress)
    _write(work, report)
    print(json.dumps(report, indent=1))


def tested(folder: Path, test: Dataset, progress: RichProgress) -> dict[str, Any]:
    model = load_student(folder)
    seen = track(progress, test, f"test {folder.name}", len(test))
    scores = evaluate(test, [model.detect([sample.image()], 0.001)[0] for sample in seen])
    return {"AP": scores["AP"], "AP50": scores["AP50"]}


def in_rounds(
    work: Path,
    rest: Dataset,
    learn: Dataset,
    judge: Dataset,
    test: Dataset,
    memory: Path,
    settings: PrelabelSettings,
    settings_for: Callable[[int], TrainSettings],
    options: argparse.Namespace,
    progress: RichProgress,
) -> list[dict[str, Any]]:
    source = Dataset.build([replace(s, truth=None) for s in (*rest, *learn)], rest.classes)
    parts = Parts((f"detector:{work / 'proposer'}",), Ontology.of(rest.classes), memory)
    teacher, remembered, _ = parts()
    job = work / "prelabels for rounds"
    prelabel(source, parts.ontology, teacher, judge, remembered, job, settings, progress, parts=parts)
    take_back(job, learn)
    done = rounds(
        job, options.student, work / "rounds", judge, settings_for(len(source)), count=options.rounds, progress=progress
    )
    hidden = Dataset.build([*rest, *learn], rest.classes)
    found: list[dict[str, Any]] = []
    for one in done:
        quality = measure(one.labels, hidden)
        found.append(
            {**asdict(one), **tested(Path(one.out), test, progress), "accepted_precision": quality.accepted_precision,
             "accepted_recall": quality.accepted_recall}
        )  # fmt: skip
    return found


def _write(work: Path, report: dict[str, Any]) -> None:
    (work / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
