"""What each part of distilling brings: one labelling job, students that learn from it in more and more ways.

    python -m benchmarks.ablation_students --images 400 --gold 40 --test 200 --epochs 60 --seeds 2 --work runs/ablation

Site scenes of the sample world. All students see the same images for the same number of steps (not seconds: what a part
costs in time is a column of its own); rows add one thing each, the last learns from people's labels of the same images.
Resumes: a folder a cell.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distill.ontology import Ontology
from distill.parts import Parts, remember_gold
from distill.prelabel import PrelabelSettings, prelabel
from distill.rounds import rounds
from distill.students import load_student
from distill.train import TrainSettings, train, training_set
from evals.detection import evaluate
from foveal import world
from foveal.dataset import Dataset
from foveal.progress import RichProgress
from foveal.runtime import describe_machine

# Row -> settings of its students; each adds to the one before, but for the last.
ROWS: dict[str, dict[str, Any]] = {
    "accepted boxes": {"soft": False, "review": "ignore"},
    "+ weights": {"review": "ignore"},
    "+ doubtful boxes by weight": {"review": "learn"},
    "+ features": {"review": "learn", "hints": "TEACHER"},
    "+ classes": {"review": "learn", "hints": "TEACHER", "class_weight": 0.5},
    "+ rounds": {"review": "learn", "hints": "TEACHER", "class_weight": 0.5, "rounds": 2},
    "people's labels": {"people": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--gold", type=int, default=40)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--student", default="fcos-resnet")
    parser.add_argument("--teacher", default="bundled:owl")
    parser.add_argument("--encoder", default="bundled:clip")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    work, progress = options.work, RichProgress()
    sets: dict[str, Dataset] = {}
    for number, (name, count) in enumerate(
        {"pool": options.images, "gold": options.gold, "test": options.test}.items(), start=41
    ):
        if not (work / name).is_dir():
            world.write(work / name, "site", count, seed=number, workers=2)
        sets[name] = Dataset.open(work / name / "instances.json")
    ontology = Ontology.of(sets["gold"].classes)
    memory = remember_gold(sets["gold"], options.encoder, work / "memory", progress)
    parts = Parts((options.teacher,), ontology, memory)
    teacher, remembered, _ = parts()
    bare = sets["pool"].with_truth([None] * len(sets["pool"]), ontology.names)
    out, settings = work / "prelabels", PrelabelSettings()
    prelabel(bare, ontology, teacher, sets["gold"], remembered, out, settings, progress, parts=parts)
    labelled = training_set(work / "prelabels")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.rows}
    for seed in range(options.seeds):
        for name in options.rows:
            chosen = dict(ROWS[name])
            data = sets["pool"] if chosen.pop("people", False) else labelled
            again = chosen.pop("rounds", 1)
            if "hints" in chosen:
                chosen["hints"] = options.teacher
            # Two rounds of half the steps each: as many in all.
            settings = TrainSettings(epochs=options.epochs // again, seed=seed, **chosen)
            out = work / f"{name.replace(' ', '-').replace(chr(39), '')}-{seed}"
            if again > 1:
                done = rounds(
                    work / "prelabels", options.student, out, sets["gold"], settings, count=again, progress=progress
                )
                seconds, boxes = 0.0, done[-1].accepted
            else:
                report = train(data, options.student, out, settings, progress)
                seconds, boxes = report.seconds, report.boxes
            model = load_student(out)
            found = [model.detect([sample.image()], 0.001)[0] for sample in sets["test"]]
            scores = evaluate(sets["test"], found)
            cell = {"AP": scores["AP"] or 0.0, "AP50": scores["AP50"] or 0.0, "seconds": seconds, "boxes": float(boxes)}
            results[name].append(cell)
            print(f"{name}, seed {seed}: {cell}", file=sys.stderr, flush=True)
            text = json.dumps({"machine": describe_machine(), "results": results}, indent=1)
            (work / "ablation.json").write_text(text + "\n")
    print("| student learns from | mAP | mAP50 | boxes | s |\n| --- | ---: | ---: | ---: | ---: |")
    for name, cells in results.items():
        told = [f"{np.mean([c[k] for c in cells]):.3f} ± {np.std([c[k] for c in cells]):.3f}" for k in ("AP", "AP50")]
        told += [f"{np.mean([c[k] for c in cells]):.0f}" for k in ("boxes", "seconds")]
        print(f"| {name} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
