"""Few-shot classification measured: several draws of several numbers of examples, all asked the same held-out images.

Shape letters: N asked images or crops, D embedding dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evals import few_shot, zero_shot
from evals.results import Measured
from evals.zero_shot import TEMPLATES, Embedded
from foveal.dataset import Dataset, Sample
from foveal.detections import FloatArray, IntArray
from foveal.errors import BadInput
from foveal.images import content_hash
from foveal.models import Encoder
from foveal.progress import Progress, track

SHOTS = (1, 4, 16)
SEEDS = 3
# As `few_shot.compare` calls a method -> its columns and figures.
METHODS = {"zero-shot": "zero_shot", "Tip-Adapter": "tip_adapter", "linear probe": "linear_probe"}


def measure(
    encoder: Encoder,
    dataset: Dataset,
    test: Dataset | None = None,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    templates: Sequence[str] = TEMPLATES,
    context: float = 0.1,
    progress: Progress | None = None,
) -> Measured:
    """Zero-shot, Tip-Adapter and a linear probe, fitted to examples of `dataset` and asked `test`.

    Figures: `zero_shot_top1`, `tip_adapter_top1` and `linear_probe_top1` at the most shots, means over the draws;
    under `shots`, for each number and method the means `top1` and `mean_class_accuracy`, their `spread` (standard
    deviation of top1 over the draws, None of one draw), and the `examples` drawn; and the `count` of those asked.
    Items, one an asked image or crop: `image`, `class`, at the most shots for each method the share of draws in which
    it was right (`zero_shot`, ...) and the class that was said most often (`zero_shot_said`, ...).

    Args:
        test: images of the same classes; without it, half of the images of `dataset` are held out, see `halves`.
        shots: examples a class; where a class has fewer, all of them.

    Raises:
        BadInput: nothing to draw or to ask, classes of `test` that `dataset` lacks, or images that are in both.
    """
    if not shots or min(shots) < 1 or seeds < 1:
        raise BadInput(
            "nothing to draw", expected="at least one shot and one draw", received=f"{list(shots)}, {seeds} draws"
        )
    classes = dataset.classes
    known, asked = halves(dataset) if test is None else (dataset, _same_classes(dataset, test))
    names = zero_shot.class_embeddings(encoder, classes, templates)
    examples = zero_shot.embedded(encoder, known, classes, context, progress)
    held = zero_shot.embedded(encoder, asked, classes, context, progress)
    rounds = _Rounds(held, len(classes))
    numbers = sorted(set(shots))
    for number, seed in track(progress, [(n, s) for n in numbers for s in range(seeds)], "draw and fit"):
        rows = few_shot.draw(examples.labels.tolist(), number, seed)
        drawn = examples.vectors[rows], examples.labels[rows].tolist()
        rounds.add(number, len(rows), few_shot.logits(names, encoder.logit_scale, drawn, held.vectors))
    most = numbers[-1]
    items: dict[str, list[Any]] = {
        "id": held.ids,
        "image": [sample.id for sample in held.samples],
        "class": [classes[label] for label in held.labels],
    }
    figures: dict[str, Any] = {}
    for method, column in METHODS.items():
        said = rounds.said[most][method]
        items[column] = np.mean([answer == held.labels for answer in said], axis=0).tolist()
        items[f"{column}_said"] = [classes[label] for label in _usual(said, len(classes))]
        figures[f"{column}_top1"] = float(np.mean(items[column]))
    figures |= {"shots": rounds.figures, "count": float(len(held.ids))}
    return Measured(figures, items, {"class": [*items["class"]], **held.slices})


def halves(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Images to draw from and images to ask, the same at every call; each class divided as evenly as can be.

    Images of several classes count as one of the rarest of them. A class with a single image is drawn, not asked.

    Raises:
        BadInput: no class has two images.
    """
    found = [_classes_of(sample) for sample in dataset]
    counts = Counter(name for names in found for name in names)
    strata: dict[str, list[int]] = {}
    for i, names in enumerate(found):
        if names:
            strata.setdefault(min(names, key=lambda name: (counts[name], name)), []).append(i)
    drawn: list[int] = []
    asked: list[int] = []
    for _, rows in sorted(strata.items()):
        mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        half = len(rows) // 2
        asked += mixed[:half]
        drawn += mixed[half:]
    if not asked:
        raise BadInput(
            "too few images to hold some out", expected="a class with two labelled images", remedy="Give a test set."
        )
    return dataset.subset(sorted(drawn)), dataset.subset(sorted(asked))


def _same_classes(dataset: Dataset, test: Dataset) -> Dataset:
    """The test set over the classes of the other."""
    used = {name for sample in test for name in _classes_of(sample)}
    strange = sorted(used - set(dataset.classes))
    if strange:
        raise BadInput(
            "the test set has classes of which there are no examples",
            expected=f"some of {', '.join(dataset.classes)}",
            received=", ".join(strange),
            remedy="Rename them, or take them out.",
        )
    seen = {content_hash(sample.path): sample.id for sample in dataset}
    both = [sample.id for sample in test if content_hash(sample.path) in seen]
    if both:
        raise BadInput(
            f"{len(both):,} images are both to learn from and to be asked, the first {both[0]}",
            remedy="Take them out of one, or leave out the test set: half of the images are then held out.",
        )
    return Dataset.build(test, dataset.classes)


def _classes_of(sample: Sample) -> set[str]:
    if sample.truth is not None and len(sample.truth):
        return set(sample.truth.label_names)
    return set() if sample.label is None else {sample.label}


@dataclass(slots=True)
class _Rounds:
    """What the methods said in each draw, and figures over the draws."""

    held: Embedded
    classes: int
    said: dict[int, dict[str, list[IntArray]]] = field(default_factory=dict[int, dict[str, list[IntArray]]])
    scores: dict[int, dict[str, list[dict[str, float]]]] = field(
        default_factory=dict[int, dict[str, list[dict[str, float]]]]
    )
    examples: dict[int, int] = field(default_factory=dict[int, int])

    def add(self, number: int, examples: int, logits: dict[str, Any]) -> None:
        """One draw of `number` shots a class."""
        self.examples[number] = examples
        for method, values in logits.items():
            self.said.setdefault(number, {}).setdefault(method, []).append(_answers(values, self.held.labels))
            scored = zero_shot.scores(values, self.held.labels.tolist())
            self.scores.setdefault(number, {}).setdefault(method, []).append(scored)

    @property
    def figures(self) -> dict[str, Any]:
        """For each number of shots: a method's means and spread."""
        found: dict[str, Any] = {}
        for number, methods in self.scores.items():
            rows: dict[str, Any] = {"examples": self.examples[number]}
            for method, scored in methods.items():
                top1 = [one["top1"] for one in scored]
                rows[METHODS[method]] = {
                    "top1": float(np.mean(top1)),
                    "spread": float(np.std(top1, ddof=1)) if len(top1) > 1 else None,
                    "mean_class_accuracy": float(np.mean([one["mean_class_accuracy"] for one in scored])),
                }
            found[str(number)] = rows
        return found


def _answers(logits: FloatArray, truth: IntArray) -> IntArray:
    """The best class (N,) of logits (N, classes); where the right one only ties for it, another that does."""
    own = logits[np.arange(len(truth)), truth]
    others = logits.copy()
    others[np.arange(len(truth)), truth] = -np.inf
    rival = others.argmax(axis=1)
    return np.where(others.max(axis=1) >= own, rival, truth).astype(np.int64)


def _usual(said: Sequence[IntArray], classes: int) -> IntArray:
    """The class (N,) said in most draws."""
    votes = np.zeros((len(said[0]), classes), np.int64)
    for answer in said:
        votes[np.arange(len(answer)), answer] += 1
    return votes.argmax(axis=1)
