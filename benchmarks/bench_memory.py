"""Are wrong labels found? Labels of the sample world, some of them exchanged at random, by several rankings.

    python benchmarks/bench_memory.py                                      # 300 scenes of the domain site
    python benchmarks/bench_memory.py --encoder bundled:clip+ADAPTER --rate 0.1

For each seed: precision among as many labels as are wrong, average precision, and how often the suggestion is the true
label, of `find_label_errors` (a regression on the crops, ranked by the probability of the given label), of the same by
margin to the next class, and of the memory's own votes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from foveal import world
from foveal.dataset import Dataset
from foveal.detections import BoolArray, FloatArray
from foveal.models import Encoder, load_encoder
from foveal.progress import RichProgress
from foveal.runtime import describe_machine
from retrieval.label_errors import find_label_errors
from retrieval.memory import ExemplarMemory


class Once:
    """An encoder that embeds each picture once: the crops are the same whatever their labels."""

    def __init__(self, encoder: Encoder) -> None:
        self.name, self.fingerprint = encoder.name, encoder.fingerprint
        self.dimension, self.logit_scale = encoder.dimension, encoder.logit_scale
        self._encoder, self._known = encoder, dict[bytes, FloatArray]()

    def encode_images(self, images: Sequence[Image]) -> FloatArray:
        keys = [hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        if new:
            self._known |= zip(new, self._encoder.encode_images(list(new.values())), strict=True)
        return np.stack([self._known[key] for key in keys])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return self._encoder.encode_texts(texts)


def exchanged(dataset: Dataset, rate: float, seed: int) -> tuple[Dataset, dict[str, str]]:
    """The dataset with a share `rate` of its labels exchanged, evenly among other classes, and the ids -> the truth."""
    rng = np.random.default_rng(seed)
    truths = [sample.truth for sample in dataset]
    shown = sorted({label for truth in truths if truth is not None for label in truth.labels.tolist()})
    places = [(n, i) for n, truth in enumerate(truths) if truth is not None for i in range(len(truth))]
    changed: dict[str, str] = {}
    for number in rng.choice(len(places), round(rate * len(places)), replace=False).tolist():
        n, i = places[number]
        truth = truths[n]
        assert truth is not None
        labels = truth.labels.copy()
        changed[f"{dataset.ids[n]}#{i}"] = truth.names[labels[i]]
        labels[i] = rng.choice([label for label in shown if label != truth.labels[i]])
        truths[n] = replace(truth, labels=labels)
    return dataset.with_truth(truths), changed


def ranking(score: Any, wrong: BoolArray) -> dict[str, float]:
    """Precision@n, n being the number of wrong labels, and average precision of a score (N,), higher more doubtful."""
    ranked = wrong[np.argsort(-np.asarray(score), kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return {"precision_at_n": float(ranked[: wrong.sum()].mean()), "average_precision": float(precision[ranked].mean())}


def measure(memory: ExemplarMemory, wrong: dict[str, str]) -> dict[str, Any]:
    """All rankings of one set with known wrong labels."""
    found = find_label_errors(memory)
    doubt = {one.id: 1 - one.probability for one in found.suspects}
    margin = {one.id: one.suggested_probability - one.probability for one in found.suspects}
    boxes, votes, _ = memory.held_out()
    labelled = [(n, box) for n, box in enumerate(boxes) if box.label is not None]
    truth = np.array([box.id in wrong for _, box in labelled])
    own = np.array([votes[n, memory.classes.index(str(box.label))] for n, box in labelled])
    named = {one.id: one.suggested for one in found.suspects}
    return {
        "labels": len(labelled),
        "wrong": len(wrong),
        "estimated": found.estimated,
        "listed": len(found.suspects),
        "accuracy": found.accuracy,
        "suggested_right": float(np.mean([named.get(id) == label for id, label in wrong.items()])),
        "regression": ranking([doubt.get(box.id, 0.0) for _, box in labelled], truth),
        "margin": ranking([margin.get(box.id, -1.0) for _, box in labelled], truth),
        "votes": ranking(-own, truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="bundled:clip")
    parser.add_argument("--data", help="a labelled set, instead of rendered scenes")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    encoder = Once(load_encoder(options.encoder))
    with tempfile.TemporaryDirectory() as folder:
        source = options.data or world.write(Path(folder) / "site", "site", options.scenes, 41)
        clean = Dataset.open(source / "instances.json" if isinstance(source, Path) else source)
        runs: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            labels, wrong = exchanged(clean, options.rate, seed)
            runs.append(measure(ExemplarMemory.build(encoder, labels, progress=RichProgress()), wrong))
            print(json.dumps(runs[-1]), flush=True)
    report = {"machine": describe_machine(), "encoder": encoder.name, "rate": options.rate, "runs": runs}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
