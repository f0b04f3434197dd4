"""The judge: from a teacher's candidates and the exemplar memory to a label and a calibrated probability a box.

It is fitted on the gold set alone. Everything it says of gold images is said without them: probabilities are out of
fold by image, and no exemplar cut from an image speaks about that image.

Shape letters: N candidates of one image or all, E exemplars, K classes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.teacher import Candidates
from distill.verifier import BACKGROUND, Evidence, Verifier, folds_by_image, log_loss
from evals.calibration import Calibrator, logit
from evals.detection import assign
from foveal.detections import BoolArray, Detections, FloatArray, IntArray, Neighbour, pairwise_iou

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
NEAREST = 3  # exemplars of a class that are averaged beside the nearest one
STRENGTHS = (0.5, 2.0, 8.0)


@dataclass(frozen=True, slots=True)
class Bank:
    """Exemplars in one embedding space: approved crops of each class, and rejected ones as background."""

    vectors: FloatArray  # (E, D) unit length
    labels: IntArray  # (E,) class, or BACKGROUND
    images: tuple[str, ...]  # (E,) the image each was cut from
    ids: tuple[str, ...]  # (E,)

    def evidence(self, queries: FloatArray, classes: int, *, without: str | None = None) -> tuple[Array, Array]:
        """Similarity of queries (N, D) to each class (N, K, 2) and to background (N, 2): the nearest, the mean of few.

        Exemplars of the image `without` stay silent. A class with none left is given the other classes' mean.
        """
        similarity = (queries @ self.vectors.T).astype(np.float64)
        open_ears = np.array([image != without for image in self.images], dtype=bool)
        result = np.full((len(queries), classes + 1, 2), np.nan)
        for c in range(BACKGROUND, classes):
            mine = similarity[:, open_ears & (self.labels == c)]
            if mine.shape[1]:
                best = -np.sort(-mine, axis=1)[:, :NEAREST]
                result[:, c + 1, 0], result[:, c + 1, 1] = best[:, 0], best.mean(axis=1)
        known = ~np.isnan(result[0, :, 0]) if len(queries) else np.zeros(classes + 1, dtype=bool)
        fill = result[:, known].mean(axis=1, keepdims=True) if known.any() else np.zeros((len(queries), 1, 2))
        result[:, ~known] = fill
        return result[:, 1:], result[:, 0]

    def neighbours(
        self, queries: FloatArray, labels: IntArray, names: Sequence[str], *, count: int = 5
    ) -> list[tuple[Neighbour, ...]]:
        """The `count` nearest exemplars of each query, and whether they speak for its label (N,)."""
        similarity = queries @ self.vectors.T
        result: list[tuple[Neighbour, ...]] = []
        for row, label in zip(similarity, labels.tolist(), strict=True):
            # Several crops of one box count as one neighbour.
            nearest: list[int] = []
            for e in map(int, np.argsort(-row, kind="stable")):
                if self.ids[e] not in [self.ids[n] for n in nearest]:
                    nearest.append(e)
                if len(nearest) == count:
                    break
            result.append(
                tuple(
                    Neighbour(
                        self.ids[e],
                        round(float(row[e]), 4),
                        names[int(self.labels[e])] if self.labels[e] != BACKGROUND else "background",
                        bool(self.labels[e] == label),
                    )
                    for e in nearest
                )
            )
        return result


@dataclass(frozen=True, slots=True)
class GoldImage:
    """A labelled image with what the teacher found in it."""

    id: str
    found: Candidates
    truth: Detections  # labels by name


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The judge's word on N candidates."""

    labels: IntArray  # (N,)
    probabilities: FloatArray  # (N,) calibrated P(right label and IoU >= 0.5)


@dataclass(frozen=True, slots=True)
class GoldVerdicts:
    """Out-of-fold verdicts on all gold candidates, with whether each was right."""

    labels: IntArray
    probabilities: FloatArray
    correct: BoolArray
    images: Index
    truth_boxes: int  # of the ontology's classes, in all gold images
    truth_per_class: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Judge:
    """A fitted verifier with its final calibration; `regions` and `crops` say which banks it listens to."""

    names: tuple[str, ...]
    verifier: Verifier
    calibrator: Calibrator
    regions: bool
    crops: bool
    strength: float

    def verdicts(self, found: Candidates, banks: Banks) -> Verdicts:
        """Label and probability of each candidate of one image."""
        evidence = gather(found, banks, len(self.names), regions=self.regions, crops=self.crops)
        return _decide(self.verifier.probabilities(evidence), self.calibrator, self.names)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        return {
            "names": list(self.names),
            "verifier": self.verifier.to_json(),
            "calibrator": self.calibrator.to_json(),
            "regions": self.regions,
            "crops": self.crops,
            "strength": self.strength,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Judge:
        """The judge `to_json` described."""
        return cls(
            tuple(data["names"]),
            Verifier.from_json(data["verifier"]),
            Calibrator.from_json(data["calibrator"]),
            data["regions"],
            data["crops"],
            data["strength"],
        )


@dataclass(frozen=True, slots=True)
class Banks:
    """The exemplars: in the teacher's own region space and in the memory encoder's crop space."""

    regions: Bank | None = None
    crops: Bank | None = None


def gather(
    found: Candidates, banks: Banks, classes: int, *, regions: bool, crops: bool, without: str | None = None
) -> Evidence:
    """The evidence on one image's candidates; signs as `signs` lists them."""
    per_class = [logit(found.teacher)[:, :, None]]
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    per_box = [
        logit(found.objectness)[:, None],
        logit(found.negative)[:, None],
        np.log(np.maximum(sides.min(axis=1), 1.0)).astype(np.float64)[:, None],
        np.log1p(found.crowding.astype(np.float64))[:, None],
    ]
    if found.seen_by is not None:
        per_box.append(found.seen_by.mean(axis=1, dtype=np.float64)[:, None])
    for wanted, bank, queries in ((regions, banks.regions, found.features), (crops, banks.crops, found.crops)):
        if wanted and bank is not None and queries is not None:
            of_class, of_background = bank.evidence(queries, classes, without=without)
            per_class.append(of_class)
            per_box.append(of_background)
    return Evidence(np.concatenate(per_class, axis=2), np.concatenate(per_box, axis=1))


def signs(spaces: int, ensemble: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which way each kind of evidence may point, for `Verifier.fit`, with `spaces` banks in use."""
    return (1,) + (1, 1) * spaces, (1, -1, 0, 0) + (1,) * ensemble + (-1, -1) * spaces


def targets(gold: Sequence[GoldImage], names: Sequence[str], iou: float = 0.5) -> list[IntArray]:
    """True class of each candidate of each image, BACKGROUND for a box that is none of them or a duplicate."""
    index = {name: k for k, name in enumerate(names)}
    result: list[IntArray] = []
    for image in gold:
        boxes = Detections.build(image.found.boxes, 1.0, np.zeros(len(image.found)), ("object",))
        taken = assign(boxes, image.truth, iou, order=image.found.rank, class_agnostic=True)
        classes = np.array([index.get(name, BACKGROUND) for name in image.truth.label_names] + [BACKGROUND])
        result.append(classes[taken].astype(np.int64))
    return result


def gold_exemplars(gold: Sequence[GoldImage], names: Sequence[str], space: str) -> Bank | None:
    """The gold candidates themselves as exemplars: right boxes of their class, clearly wrong ones as background."""
    vectors: list[FloatArray] = []
    labels: list[int] = []
    images: list[str] = []
    ids: list[str] = []
    for image, truth in zip(gold, targets(gold, names), strict=True):
        found: FloatArray | None = getattr(image.found, space)
        if found is None:
            return None
        nearest = pairwise_iou(image.found.boxes, image.truth.boxes).max(axis=1, initial=0.0)
        for i in np.flatnonzero((truth != BACKGROUND) | (nearest < 0.3)).tolist():
            vectors.append(found[i])
            labels.append(int(truth[i]))
            images.append(image.id)
            ids.append(f"{image.id}#candidate{i}")
    if not vectors:
        return None
    return Bank(np.stack(vectors), np.array(labels, dtype=np.int64), tuple(images), tuple(ids))


def joined(first: Bank | None, second: Bank | None) -> Bank | None:
    """Both banks' exemplars as one."""
    if first is None or second is None:
        return first or second
    return Bank(
        np.concatenate([first.vectors, second.vectors]),
        np.concatenate([first.labels, second.labels]),
        first.images + second.images,
        first.ids + second.ids,
    )


def fit_judge(
    gold: Sequence[GoldImage], names: Sequence[str], banks: Banks, *, regions: bool, crops: bool, folds: int = 5
) -> tuple[Judge, GoldVerdicts]:
    """The judge fitted on all gold candidates, and its out-of-fold verdicts on them."""
    regions, crops = regions and banks.regions is not None, crops and banks.crops is not None
    evidence = [gather(g.found, banks, len(names), regions=regions, crops=crops, without=g.id) for g in gold]
    pooled = Evidence(np.concatenate([e.per_class for e in evidence]), np.concatenate([e.per_box for e in evidence]))
    truth = np.concatenate(targets(gold, names))
    images = np.concatenate([np.full(len(g.found), i, dtype=np.int64) for i, g in enumerate(gold)])
    fold = folds_by_image(images, folds)
    class_signs, box_signs = signs(regions + crops, gold[0].found.seen_by is not None)

    def out_of_fold(strength: float) -> Array:
        result = np.zeros((len(truth), len(names)))
        for f in np.unique(fold).tolist():
            held = fold == f
            model = Verifier.fit(pooled[~held], truth[~held], signs=class_signs, box_signs=box_signs, strength=strength)
            result[held] = model.probabilities(pooled[held])
        return result

    tried = {s: out_of_fold(s) for s in STRENGTHS}
    strength = min(tried, key=lambda s: log_loss(tried[s], truth))
    raw = _decide(tried[strength], None, names)
    correct = raw.labels == truth
    label_names = [names[int(k)] for k in raw.labels]
    calibrator = Calibrator.fit(raw.probabilities, correct, label_names, shrinkage=4.0)
    cross = np.zeros(len(truth))
    for f in np.unique(fold).tolist():
        held = fold == f
        partial = Calibrator.fit(
            raw.probabilities[~held],
            correct[~held],
            [n for n, h in zip(label_names, held, strict=True) if not h],
            shrinkage=4.0,
        )
        cross[held] = partial(raw.probabilities[held], [n for n, h in zip(label_names, held, strict=True) if h])
    verifier = Verifier.fit(pooled, truth, signs=class_signs, box_signs=box_signs, strength=strength)
    known = [name for g in gold for name in g.truth.label_names if name in set(names)]
    verdicts = GoldVerdicts(
        raw.labels,
        cross.astype(np.float32),
        correct,
        images,
        len(known),
        {name: known.count(name) for name in names},
    )
    return Judge(tuple(names), verifier, calibrator, regions, crops, strength), verdicts


def _decide(probabilities: Array, calibrator: Calibrator | None, names: Sequence[str]) -> Verdicts:
    labels = probabilities.argmax(axis=1).astype(np.int64)
    best = np.clip(probabilities.max(axis=1, initial=0.0), 0, 1)
    if calibrator is not None:
        best = calibrator(best, [names[int(k)] for k in labels])
    return Verdicts(labels, best.astype(np.float32))


def with_crops(found: Candidates, crops: FloatArray) -> Candidates:
    """The candidates with their crops' embeddings (N, D)."""
    return replace(found, crops=crops)


def save_banks(banks: Banks, path: Path) -> None:
    """The exemplars as one .npz file (plain arrays, no pickle)."""
    arrays: dict[str, Any] = {}
    for name in ("regions", "crops"):
        bank: Bank | None = getattr(banks, name)
        if bank is not None:
            arrays |= {
                f"{name}_vectors": bank.vectors,
                f"{name}_labels": bank.labels,
                f"{name}_images": np.array(bank.images, dtype=np.str_),
                f"{name}_ids": np.array(bank.ids, dtype=np.str_),
            }
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def load_banks(path: Path) -> Banks:
    """The exemplars `save_banks` wrote."""
    with np.load(path, allow_pickle=False) as arrays:

        def bank(name: str) -> Bank | None:
            if f"{name}_vectors" not in arrays:
                return None
            return Bank(
                arrays[f"{name}_vectors"],
                arrays[f"{name}_labels"],
                tuple(arrays[f"{name}_images"].tolist()),
                tuple(arrays[f"{name}_ids"].tolist()),
            )

        return Banks(bank("regions"), bank("crops"))
