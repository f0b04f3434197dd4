"""Accept, review or reject: thresholds from gold verdicts that keep the precision asked for, and what to review first.

Shape letter: N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.judge import GoldVerdicts, Verdicts
from distill.ontology import Ontology
from evals.intervals import wilson
from evals.thresholds import ThresholdChoice, threshold_for_precision
from foveal.detections import FloatArray, Route

LIKELY = 0.5  # a box that is more likely wrong than right is not accepted, however good its company


@dataclass(frozen=True, slots=True)
class ClassPromise:
    """What the gold set says of one class among its accepted boxes."""

    gold_boxes: int
    accepted: int
    correct: int
    interval: tuple[float, float]  # two-sided 95% Wilson interval of its precision
    rule: str  # the target its threshold was chosen for, or why none of its boxes is accepted


@dataclass(frozen=True, slots=True)
class Routing:
    """The accept threshold of each class, and from which probability on a box is worth a reviewer's look."""

    names: tuple[str, ...]
    accept: Mapping[str, float | None]  # None: never accepted without a look
    review: float
    choices: tuple[ThresholdChoice, ...]  # one a distinct target precision
    promises: Mapping[str, ClassPromise]

    @property
    def proven(self) -> bool:
        """Whether every target has its bound."""
        return all(choice.proven for choice in self.choices)

    @property
    def warnings(self) -> list[str]:
        """What an annotation lead should know before trusting the accepted boxes."""
        said = [f"target {c.target:g}: {c.reason}" for c in self.choices if not c.proven]
        unseen = [name for name, p in self.promises.items() if p.gold_boxes == 0]
        if unseen:
            said.append(f"no promise for {', '.join(unseen)}: not in the gold set, so their boxes go to review")
        return said

    def routes(self, verdicts: Verdicts) -> list[Route]:
        """The route of each of N boxes."""
        result: list[Route] = []
        for label, p in zip(verdicts.labels.tolist(), verdicts.probabilities.tolist(), strict=True):
            bar = self.accept[self.names[label]]
            result.append("accept" if bar is not None and p >= bar else "review" if p >= self.review else "reject")
        return result

    def to_json(self) -> dict[str, Any]:
        """Plain values, for reading and for `from_json`."""
        return {
            "names": list(self.names),
            "accept": dict(self.accept),
            "review": self.review,
            "proven": self.proven,
            "choices": [asdict(c) for c in self.choices],
            "promises": {name: asdict(p) for name, p in self.promises.items()},
            "warnings": self.warnings,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Routing:
        """The routing `to_json` described."""
        return cls(
            tuple(data["names"]),
            data["accept"],
            data["review"],
            tuple(ThresholdChoice(**c) for c in data["choices"]),
            {n: _promise(p) for n, p in data["promises"].items()},
        )


def choose_routing(
    gold: GoldVerdicts, ontology: Ontology, *, target: float, confidence: float | None, review: float
) -> Routing:
    """Thresholds from out-of-fold gold verdicts.

    Classes of the same target share one threshold on the calibrated probability: with about ten gold boxes each, no
    class could prove a precision by itself, so the promise is about the boxes accepted for that target together. A
    class without a single gold box is never accepted.
    """
    names = ontology.names
    labels = np.array([names[k] for k in gold.labels.tolist()], dtype=object)
    wanted = {c.name: c.target_precision or target for c in ontology.classes}
    known = {name for name in names if gold.truth_per_class.get(name, 0) > 0}
    accept: dict[str, float | None] = dict.fromkeys(names)
    choices: list[ThresholdChoice] = []
    for goal in sorted(set(wanted.values())):
        members = [name for name in names if wanted[name] == goal and name in known]
        if not members:
            continue
        mine = np.isin(labels, members)
        choice = threshold_for_precision(
            gold.probabilities[mine], gold.correct[mine], goal, confidence, floor=LIKELY, groups=gold.images[mine]
        )
        choices.append(choice)
        accept.update(dict.fromkeys(members, choice.threshold))
    promises: dict[str, ClassPromise] = {}
    for name in names:
        bar = accept[name]
        taken = (labels == name) & (gold.probabilities >= (2.0 if bar is None else bar))
        n, k = int(taken.sum()), int(gold.correct[taken].sum())
        rule = f"precision {wanted[name]:g}" if name in known else "not in the gold set: never accepted"
        promises[name] = ClassPromise(gold.truth_per_class.get(name, 0), n, k, wilson(k, n), rule)
    return Routing(names, accept, review, tuple(choices), promises)


def review_values(
    verdicts: Verdicts, routes: Sequence[Route], accepted_share: Mapping[str, float], names: Sequence[str]
) -> FloatArray:
    """How much a reviewer's look at each box is worth to the next model -> (N,); 0 for boxes not in review.

    A yes or no is worth its entropy in bits, more for a class of which few boxes are accepted without a look:
    divided by the square root of the class's share of the accepted boxes, relative to an even share.
    """
    p = np.clip(verdicts.probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    entropy: npt.NDArray[np.float64] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    share = np.array([accepted_share.get(names[int(k)], 0.0) for k in verdicts.labels])
    rarity = 1 / np.sqrt(np.clip(share * len(names), 0.1, None))
    return np.where(np.array([r == "review" for r in routes], dtype=bool), entropy * rarity, 0.0).astype(np.float32)


def _promise(data: Mapping[str, Any]) -> ClassPromise:
    low, high = data["interval"]
    return ClassPromise(data["gold_boxes"], data["accepted"], data["correct"], (low, high), data["rule"])
