"""Is the precision that pre-labels promise the one that is found? Many random gold sets, each judging all other images.

    python -m benchmarks.bench_promise --images 1000 --gold 40 --sets 20 --out runs/promise.json
    python -m benchmarks.bench_promise --data BOARDS/train.json --gold 60 --ontology boards.yaml

Each gold set calibrates a labeller of its own; what it then accepts among the other images is compared with their
truth. A promise is kept when the precision found is at least the target (where the gold set proved it), or at least the
lower bound stated for the target. The same boxes ranked by the teacher's raw score, by its calibrated evidence and with
the exemplar memory's word tell what calibration and verification bring.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from benchmarks.bench_memory import Once
from distill.gold import fit_labeller
from distill.labeller import Labelled, Labeller, PrelabelSettings
from distill.ontology import Ontology
from distill.teacher import Dense, look
from evals.detection import assign, sweep
from evals.reliability import ece
from foveal import world
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.models import load_encoder, load_open_detector
from foveal.progress import RichProgress
from foveal.runtime import describe_machine
from retrieval.memory import ExemplarMemory

RECALLS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Looked:
    """A teacher that looks at each picture once."""

    def __init__(self, teacher: Any, threshold: float) -> None:
        self.name, self.fingerprint = teacher.name, teacher.fingerprint
        self._teacher, self._threshold, self._known = teacher, threshold, dict[bytes, Dense]()

    def dense(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Dense]:
        answers: list[Dense] = []
        for image in images:
            key = image.tobytes()
            if key not in self._known:
                self._known[key] = _most(look(self._teacher, [image], prompts, self._threshold)[0])
            answers.append(self._known[key])
        return answers


def _most(dense: Dense, keep: int = 400) -> Dense:
    """The boxes that any later step could ask for, so that thousands of images fit in memory."""
    worth = dense.scores.max(axis=1, initial=0.0) + (0.0 if dense.objectness is None else dense.objectness)
    rows = np.sort(np.argsort(-worth, kind="stable")[:keep])
    objectness, features = dense.objectness, dense.features
    return Dense(
        dense.boxes[rows],
        dense.scores[rows],
        None if objectness is None else objectness[rows],
        None if features is None else features[rows],
    )


def one(
    gold: Dataset, others: Sequence[tuple[Sample, Image]], ontology: Ontology, teacher: Any, encoder: Any, settings: Any
) -> dict[str, Any]:
    """What one gold set promises, and what the other images show."""
    memory = ExemplarMemory.build(encoder, gold)
    labeller, summary = fit_labeller(ontology, teacher, gold, memory, settings)
    found = [(sample.truth, labeller.label([image])[0]) for sample, image in others if sample.truth is not None]
    truths = sum(name in ontology.names for truth, _ in found for name in truth.label_names)
    accepted = correct = 0
    for truth, labelled in found:
        routes = np.array([p.route for p in labelled.detections.provenance or ()], dtype=object)
        mine = labelled.detections[routes == "accept"]
        accepted += len(mine)
        correct += int((assign(mine, truth, order=mine.probabilities) >= 0).sum())
    choice = labeller.routing.choices[0]
    precision = correct / accepted if accepted else None
    gold_curve = sweep(summary.with_memory.probabilities, summary.with_memory.correct, summary.boxes)
    return {
        "gold_boxes": summary.boxes,
        "target": choice.target,
        "proven": choice.proven,
        "lower_bound": choice.lower_bound,
        "accepted": accepted,
        "precision": precision,
        "recall": correct / truths,
        "gold_recall": choice.correct / summary.boxes,
        "kept": None if precision is None or not choice.proven else bool(precision >= choice.target),
        "bound_holds": None if precision is None else bool(precision >= (choice.lower_bound or 0.0)),
        "gold_average_precision": gold_curve.average_precision,
        **_rankings(found, labeller, truths),
    }


def _rankings(found: Sequence[tuple[Detections, Labelled]], labeller: Labeller, truths: int) -> dict[str, Any]:
    """The same boxes by the teacher's score, by its calibrated evidence, and with the memory's."""
    ranked: dict[str, tuple[list[Any], list[Any]]] = {
        name: ([], []) for name in ("teacher", "calibrated", "with memory")
    }
    for truth, labelled in found:
        boxes, names = labelled.detections.boxes, labeller.classes
        for name, labels, keys in (
            ("teacher", labelled.teacher_labels, labelled.teacher_scores),
            ("calibrated", labelled.plain_labels, labelled.plain_probabilities),
            ("with memory", labelled.detections.labels, labelled.detections.probabilities),
        ):
            said = Detections.build(boxes, np.clip(keys, 0, 1), labels, names)  # pyright: ignore
            ranked[name][0].append(said.scores)
            ranked[name][1].append(assign(said, truth) >= 0)
    result: dict[str, Any] = {}
    for name, (keys, right) in ranked.items():
        curve = sweep(np.concatenate(keys), np.concatenate(right), truths)
        result[name] = {
            "average_precision": curve.average_precision,
            "ece": ece(np.concatenate(keys), np.concatenate(right)),
            "precision_at_recall": {str(r): curve.precision_at_recall(r) for r in RECALLS},
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="labelled images; the sample world's site scenes when left out")
    parser.add_argument("--ontology", type=Path, help="YAML; the classes of the data when left out")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--gold", type=int, default=40, help="images a gold set")
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--teacher", default="bundled:owl")
    parser.add_argument("--encoder", default="bundled:clip")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = PrelabelSettings(target_precision=options.target, confidence=options.confidence)
    progress = RichProgress()
    with tempfile.TemporaryDirectory() as temporary:
        if options.data:
            data = Dataset.open(options.data)
        else:
            world.write(Path(temporary) / "site", "site", options.images, seed=77, workers=2)
            data = Dataset.open(Path(temporary) / "site" / "instances.json")
        data = data.subset(range(min(options.images, len(data))))
        ontology = Ontology.load(options.ontology) if options.ontology else Ontology.of(data.classes)
        samples = [(sample, sample.image()) for sample in data if sample.truth is not None]
        teacher = Looked(load_open_detector(options.teacher), settings.threshold)
        encoder = Once(load_encoder(options.encoder))
        runs: list[dict[str, Any]] = []
        progress.start("gold sets", options.sets)
        for seed in range(options.sets):
            began = time.perf_counter()
            drawn = set(np.random.default_rng(seed).choice(len(samples), options.gold, replace=False).tolist())
            others = [pair for i, pair in enumerate(samples) if i not in drawn]
            runs.append(one(data.subset(sorted(drawn)), others, ontology, teacher, encoder, settings))
            progress.advance()
            said = {k: v for k, v in runs[-1].items() if not isinstance(v, dict)}
            print(f"set {seed}, {time.perf_counter() - began:.0f} s: {said}", file=sys.stderr, flush=True)
        progress.finish()
    report = {"machine": describe_machine(), "settings": {k: str(v) for k, v in vars(options).items()}, "sets": runs}
    print(_table(runs))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _table(runs: Sequence[dict[str, Any]]) -> str:
    proven = [run for run in runs if run["proven"]]
    shown = [run for run in runs if run["precision"] is not None]
    lines = [
        f"gold sets: {len(runs)}, target proven by {len(proven)}, kept by {sum(run['kept'] for run in proven)} of them",
        f"stated bound holds: {sum(run['bound_holds'] for run in shown)} of {len(shown)}",
        f"precision found: {_spread([run['precision'] for run in shown])}; "
        f"true boxes accepted: {_spread([run['recall'] for run in runs])}; "
        f"gold said {_spread([run['gold_recall'] for run in runs])}",
        "| ranked by | average precision | calibration error | precision at recall 0.5 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in ("teacher", "calibrated", "with memory"):
        cells = [_spread([run[name][key] for run in runs]) for key in ("average_precision", "ece")]
        at = [run[name]["precision_at_recall"]["0.5"] for run in runs]
        lines.append(f"| {name} | {' | '.join(cells)} | {_spread([v for v in at if v is not None])} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}" if len(values) else "none"


if __name__ == "__main__":
    main()
