"""From a few labelled images of real boards to a detector: what pre-labels and a student from them are worth.

    python -m benchmarks.bench_boards --train BOARDS/train.json --test BOARDS/test.json --gold 60 --work runs/boards

`--gold` of the training images keep their labels, the labels of all others are only looked at to measure. Half of the
gold trains a small detector that proposes boxes, half calibrates; the crops of all gold images are the exemplar memory.
Pre-labels of all other images, with the proposer's own opinion and without it (boxes and memory alone), then train a
student, beside the same student on the gold images alone and on all human labels. Every step resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from distill.audit import compare_verification, measure
from distill.ontology import Ontology
from distill.parts import Parts, remember_gold
from distill.prelabel import PrelabelSettings, prelabel
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
    options = parser.parse_args()
    work, progress = options.work, RichProgress()
    everything, test = Dataset.open(options.train), Dataset.open(options.test)
    gold_rows = np.linspace(0, len(everything) - 1, options.gold).round().astype(int).tolist()
    gold = everything.subset(gold_rows)
    rest = everything.subset([row for row in range(len(everything)) if row not in set(gold_rows)])
    learn, judge = gold.subset(range(0, len(gold), 2)), gold.subset(range(1, len(gold), 2))
    report: dict[str, Any] = {"machine": describe_machine(), "settings": {k: str(v) for k, v in vars(options).items()}}

    def student(name: str, data: Dataset, **more: Any) -> dict[str, Any]:
        epochs = max(1, options.views // len(data))
        settings = TrainSettings(size=options.size, epochs=epochs, **more)
        made = train(data, options.student, work / name, settings, progress)
        model = load_student(work / name)
        found = [
            model.detect([sample.image()], 0.001)[0] for sample in track(progress, test, f"test {name}", len(test))
        ]
        scores = evaluate(test, found)
        report[name] = {
            "images": len(data),
            "boxes": made.boxes,
            "ignored": made.ignored,
            "seconds": made.seconds,
            "AP": scores["AP"],
            "AP50": scores["AP50"],
        }
        _write(work, report)
        return report[name]

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
    print(json.dumps(report, indent=1))


def _write(work: Path, report: dict[str, Any]) -> None:
    (work / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
