"""Which labels of a set are probably wrong, by what its other images teach.

Confident learning (Northcutt et al. 2021, arXiv 1911.00068): out-of-sample probabilities of each label, counted against
thresholds that each class sets for itself, tell how many labels are wrong; those least confirmed come first. The
probabilities are those of a logistic regression on the memory's crops, an image never judged by its own: on the sample
world it ranks wrong labels better than the memory's votes do (`benchmarks/bench_memory.py`), which too few and too
similar neighbours sway. The votes and the neighbours stay as what a person can look at.

Shape letters: N labels, M remembered crops, C classes, of which the last column of probabilities, C, is background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax  # pyright: ignore[reportMissingTypeStubs]
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from evals.few_shot import linear_probe
from evals.report import Report, State
from foveal.dataset import Dataset
from foveal.detections import IntArray, Neighbour
from foveal.errors import BadInput
from retrieval.collect import Exemplar
from retrieval.examples import Crops
from retrieval.memory import BACKGROUND, ExemplarMemory

if TYPE_CHECKING:
    from PIL.Image import Image

Array = npt.NDArray[np.float64]
FOLDS = 5
STRENGTH = 3e-4  # of the regression's penalty
TINY = 1e-12  # instead of a probability that underflows
PAGE = 100  # suspects that a page shows
BESIDE = 4  # neighbours beside each


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label that the set's other images do not confirm."""

    id: str  # of the box
    image: str  # id of the sample
    box: tuple[float, float, float, float]  # xyxy pixels; all of the image where that is what is labelled
    given: str
    suggested: str  # a class, or background
    probability: float  # of the given label
    suggested_probability: float
    vote: float  # share of the nearest neighbours that confirms the given label
    neighbours: tuple[Neighbour, ...]  # of other images, nearest first; `supports` the given label


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """The labels to look at, most doubtful first."""

    suspects: tuple[Suspect, ...]
    estimated: int  # wrong labels; too many where the encoder cannot tell classes apart
    labels: int  # looked at
    accuracy: float  # share of the labels that the regression would have given too
    thresholds: Mapping[str, float]  # class -> mean probability of its own labels

    def rows(self) -> list[dict[str, Any]]:
        """A flat record each, for CSV and JSON."""
        return [
            {
                "id": one.id,
                "image": one.image,
                "x1": one.box[0],
                "y1": one.box[1],
                "x2": one.box[2],
                "y2": one.box[3],
                "given": one.given,
                "suggested": one.suggested,
                "probability": round(one.probability, 4),
                "suggested_probability": round(one.suggested_probability, 4),
                "vote": round(one.vote, 4),
                "neighbours": "; ".join(f"{n.id} {n.label} {n.similarity:.3f}" for n in one.neighbours),
            }
            for one in self.suspects
        ]


@dataclass(frozen=True, slots=True)
class Confidence:
    """What probabilities (N, C + 1) say of the columns that were given."""

    given: Array  # (N,) probability of the given column; the lower, the more doubtful
    rival: IntArray  # (N,) most probable other column
    thresholds: Array  # (C + 1,) mean probability of a column where it is given; 1 where it never is
    wrong: Array  # (C + 1,) how many of those given each column are wrong, estimated


def confidence(probability: Array, own: IntArray) -> Confidence:
    """Confident learning's count: a label counts as the most probable of the classes that reach their own thresholds.

    The counts of each given class are scaled to how often it was given (arXiv 1911.00068, equations 1 to 3).
    """
    rows, width = np.arange(len(own)), probability.shape[1]
    given = probability[rows, own]
    others = probability.copy()
    others[rows, own] = -1
    times = np.bincount(own, minlength=width)
    sums = np.bincount(own, weights=given, minlength=width)
    thresholds = np.where(times > 0, sums / np.maximum(times, 1), 1.0)
    reached = probability >= thresholds
    counted = reached.any(axis=1)
    true = np.where(reached, probability, -1).argmax(axis=1)
    joint = np.zeros((width, width))
    np.add.at(joint, (own[counted], true[counted]), 1)
    share = 1 - np.diag(joint) / np.maximum(joint.sum(axis=1), 1)
    return Confidence(given, others.argmax(axis=1), thresholds, np.where(joint.sum(axis=1) > 0, share * times, 0.0))


def find_label_errors(memory: ExemplarMemory, *, seed: int = 0) -> LabelErrors:
    """The labels of the set that `memory` was built from which its other images contradict.

    Those that are less probable than another class, least probable first; a margin to the other class ranks worse on
    the sample world. Labels of classes that no other part of the set has are not judged.

    Raises:
        BadInput: fewer than two images or two classes: nothing can be held against a label.
    """
    boxes, votes, neighbours = memory.held_out()
    names = (*memory.classes, BACKGROUND)
    own = np.array([names.index(box.label or BACKGROUND) for box in boxes], dtype=np.int64)
    probability = _out_of_fold(memory, boxes, seed)
    judged = probability[np.arange(len(own)), own] > 0
    boxes = [box for box, there in zip(boxes, judged.tolist(), strict=True) if there]
    neighbours = [found for found, there in zip(neighbours, judged.tolist(), strict=True) if there]
    own, probability, votes = own[judged], probability[judged], votes[judged]
    found = confidence(probability, own)
    labelled = np.flatnonzero(own < len(memory.classes))
    ranked = labelled[np.argsort(found.given[labelled], kind="stable")].tolist()
    suspects = tuple(
        Suspect(
            boxes[i].id,
            boxes[i].image,
            boxes[i].box,
            given=names[own[i]],
            suggested=names[found.rival[i]],
            probability=float(found.given[i]),
            suggested_probability=float(probability[i, found.rival[i]]),
            vote=float(votes[i, own[i]]),
            neighbours=neighbours[i],
        )
        for i in ranked
        if probability[i, found.rival[i]] > found.given[i]
    )
    right = (probability.argmax(axis=1) == own)[labelled]
    thresholds = {name: float(found.thresholds[n]) for n, name in enumerate(names) if (own == n).any()}
    return LabelErrors(
        suspects,
        round(float(found.wrong[:-1].sum())),
        len(labelled),
        float(right.mean()) if len(right) else 0.0,
        thresholds,
    )


def _out_of_fold(memory: ExemplarMemory, boxes: Sequence[Exemplar], seed: int) -> Array:
    """Probabilities (N, C + 1) of `boxes` by regressions on the crops of other images.

    Exactly 0 for classes that those images do not show.
    """
    vectors, labels, images, _ = memory.exemplars()
    names = (*memory.classes, BACKGROUND)
    columns = np.array([names.index(label or BACKGROUND) for label in labels], dtype=np.int64)
    shown = sorted(set(images))
    order = np.random.default_rng(seed).permutation(len(shown)) % FOLDS
    fold_of = dict(zip(shown, order.tolist(), strict=True))
    fold = np.array([fold_of[image] for image in images])
    mine = np.array([fold_of[box.image] for box in boxes], dtype=np.int64)
    place = {(e.id, e.variant): row for row, e in enumerate(memory.remembered())}
    rows = np.array([place[box.id, box.variant] for box in boxes], dtype=np.int64)
    if len(boxes) == 0 or len(np.unique(columns)) < 2:
        raise BadInput(
            "no label can be held against another",
            expected="boxes, or labelled images, of two classes on two images or more",
            received=f"{len(boxes)} boxes on {len(shown)} images",
        )
    found = np.zeros((len(boxes), len(names)))
    for number in np.unique(mine).tolist():
        known = np.unique(columns[fold != number])
        if len(known) < 2:
            continue
        compact = np.searchsorted(known, columns[fold != number])
        with threadpool_limits(limits=1, user_api="blas"):  # on a busy machine small products wait for each other
            probe = linear_probe(vectors[fold != number], compact.tolist(), len(known), [STRENGTH])
        part = np.flatnonzero(mine == number)
        found[np.ix_(part, known)] = np.maximum(softmax(probe.logits(vectors[rows[part]]), axis=1), TINY)
    return found


def page(found: LabelErrors, memory: ExemplarMemory, dataset: Dataset, facts: Sequence[tuple[str, str]] = ()) -> Report:
    """The suspects as an HTML page: each crop with its label, beside the crops of other images most like it."""
    report = Report("Label errors", f"Labels that the set's other images contradict, of {found.labels:,}.", facts=facts)
    report.figures(
        [
            ("to look at", f"{len(found.suspects):,}", f"of {found.labels:,} labels", None),
            ("estimated wrong", f"{found.estimated:,}", "too many where classes look alike to the encoder", None),
            ("told right", f"{found.accuracy:.1%}", "of the labels, by other images alone", None),
        ]
    )
    shown = found.suspects[:PAGE]
    report.section("Labels", "The most doubtful first, each beside what other images call its like.")
    pictures = Crops(memory, dataset)
    for one in shown:
        rows = [_shown(pictures.of(one.id), f"{one.given}?", f"{one.image}, p {one.probability:.2f}", "bad")]
        for near in one.neighbours[:BESIDE]:
            state: State | None = "good" if near.supports else None
            rows.append(_shown(pictures.of(near.id), near.label, f"similarity {near.similarity:.2f}", state))
        report.strip(f"{one.given}, or {one.suggested}?", rows, f"{one.suggested_probability:.0%} {one.suggested}")
    return report


def _shown(image: Image, heading: str, caption: str, state: State | None) -> tuple[Image, str, str, State | None]:
    return image, heading, caption, state
