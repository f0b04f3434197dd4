"""Whether a picture shows what a scenario expects, why not, and by how much.

A margin is how far the verdict is from turning, in the unit of what decides it (score, IoU, probability, share of the
ranks, likeness of an answer); positive where it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.scenario_form import Answer, Box, Classify, Count, Detect, Place, Search
from evals.scenario_suite import Suite
from evals.vqa import anls, edit_distance, exact_match, normalised
from evals.zero_shot import class_embeddings
from foveal.detections import Detections, FloatArray, pairwise_iou
from foveal.models import Encoder, VisionLanguageModel

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 16  # pictures a detector gets at once
LOWEST = 0.01  # score down to which boxes are asked for, so that a margin can say how far a miss was
SHOWN_BOXES = 30  # best boxes of a picture that stay in the result
SHOWN_HITS = 4


@dataclass(frozen=True, slots=True)
class Found:
    """What an archive gave: content hashes and names of the hits, best first, or why nothing matches."""

    hashes: tuple[str, ...]
    names: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Subjects:
    """What is tried; None where nothing of that kind is."""

    detect: Callable[[Sequence[Image], float], list[Detections]] | None = None
    classes: tuple[str, ...] | None = None  # that the detector can name; None: whatever it is asked for
    encoder: Encoder | None = None
    vlm: VisionLanguageModel | None = None
    search: Callable[[Search], Found] | None = None

    def has(self, kind: str) -> bool:
        """Whether cases of this kind can be run."""
        tried = {"detect": self.detect, "classify": self.encoder, "search": self.search, "answer": self.vlm}
        return tried[kind] is not None


@dataclass(frozen=True, slots=True)
class Seen:
    """What one picture of a case showed; a search that must find nothing has no picture."""

    held: bool
    margin: float
    reason: str  # why it failed, or what was seen
    image: str | None = None
    boxes: list[list[float]] = field(default_factory=list[list[float]])
    labels: list[str] = field(default_factory=list[str])
    scores: list[float] = field(default_factory=list[float])


def detected(asked: Detect, ids: Sequence[str], images: Sequence[Image], subjects: Subjects) -> list[Seen]:
    assert subjects.detect is not None  # as `_check` has seen
    found: list[Detections] = []
    for start in range(0, len(images), BATCH):
        found += subjects.detect(images[start : start + BATCH], min(LOWEST, asked.score))
    return [judge_boxes(asked, boxes, id) for id, boxes in zip(ids, found, strict=True)]


def judge_boxes(asked: Detect, found: Detections, image: str | None = None) -> Seen:
    """Whether what a detector found in one picture (any scores) is what was asked for."""
    names = np.array(found.label_names, dtype=object)
    scores = {name: np.sort(found.scores[names == name])[::-1].astype(float) for name in asked.classes}
    sure = found[found.scores >= asked.score]
    demands: list[tuple[bool, float, str]] = []
    for name in asked.present:
        demands.append(_at_least(name, 1, scores[name], asked.score))
    for name in asked.absent:
        demands.append(_at_most(name, 0, scores[name], asked.score))
    for name, wanted in asked.count.items():
        bounds = wanted if isinstance(wanted, Count) else Count(min=wanted, max=wanted)
        if bounds.min:
            demands.append(_at_least(name, bounds.min, scores[name], asked.score))
        if bounds.max is not None:
            demands.append(_at_most(name, bounds.max, scores[name], asked.score))
    for place in asked.boxes:
        overlap = _overlap(place, sure)
        told = f"{place.class_} found with an IoU of {overlap:.2f}" if overlap else f"no {place.class_} near its place"
        demands.append((overlap >= place.iou, overlap - place.iou, f"{told}, {place.iou:g} needed"))
    for place in asked.clear:
        overlap = _overlap(place, sure)
        told = f"{place.class_} where there is none, IoU {overlap:.2f}" if overlap else f"no {place.class_} there"
        demands.append((overlap < place.iou, place.iou - overlap, told))
    failed = [reason for held, _, reason in demands if not held]
    worst = min(demands, key=lambda demand: (demand[0], demand[1]))
    least = asked.score if not failed else asked.score / 2  # what almost was there explains a failure
    shown = found[(found.scores >= least) & np.isin(names, asked.classes)][:SHOWN_BOXES]
    return Seen(
        not failed,
        worst[1],
        "; ".join(failed) or worst[2],
        image,
        [[round(float(v), 1) for v in box] for box in shown.boxes],
        shown.label_names,
        [round(float(score), 4) for score in shown.scores],
    )


def _at_least(name: str, count: int, scores: FloatArray | Any, bar: float) -> tuple[bool, float, str]:
    """The `count`th best score decides."""
    best = float(scores[count - 1]) if len(scores) >= count else 0.0
    number = int((scores >= bar).sum())
    many = f"{number} {name}" + ("" if count == 1 else f", at least {count} expected")
    told = f"{name} at {best:.2f}" if number >= count == 1 else f"no {name}, the best scores {best:.2f}"
    return number >= count, best - bar, told if count == 1 else many


def _at_most(name: str, count: int, scores: FloatArray | Any, bar: float) -> tuple[bool, float, str]:
    """The first score too many decides."""
    over = float(scores[count]) if len(scores) > count else 0.0
    number = int((scores >= bar).sum())
    few = f"{number} {name}, at most {count} expected"
    told = f"no {name}" if number <= count else f"{name} at {over:.2f}, none expected"
    return number <= count, bar - over, told if count == 0 else few


def _overlap(place: Place, found: Detections) -> float:
    """The best IoU of the place with what of its class was found."""
    mine = found[[i for i, name in enumerate(found.label_names) if name == place.class_]]
    return float(pairwise_iou(np.array([place.box], np.float32), mine.boxes).max(initial=0.0))


def classified(
    asked: Classify, suite: Suite, ids: Sequence[str], images: Sequence[Image], subjects: Subjects
) -> list[Seen]:
    encoder = subjects.encoder
    assert encoder is not None
    classes = asked.among or list(suite.classes)
    parts = [_part(image, asked.box) for image in images]
    logits = encoder.logit_scale * (encoder.encode_images(parts) @ class_embeddings(encoder, classes).T).astype(float)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    own = classes.index(asked.class_)
    seen: list[Seen] = []
    for id, row in zip(ids, chances, strict=True):
        rival = int(np.delete(np.arange(len(classes)), own)[np.delete(row, own).argmax()])
        margin = min(float(row[own] - row[rival]), float(row[own]) - asked.confidence)
        held = bool(row[own] > row[rival] and row[own] >= asked.confidence)
        said = f"{asked.class_} at {row[own]:.2f}, {classes[rival]} at {row[rival]:.2f}"
        one = Seen(held, margin, said, id)
        if asked.box is not None:  # drawn with what it was taken for
            label, chance = classes[int(row.argmax())], float(row.max())
            one = replace(one, boxes=[list(asked.box)], labels=[label], scores=[chance])
        seen.append(one)
    return seen


def _part(image: Image, box: Box | None) -> Image:
    if box is None:
        return image
    x1, y1, x2, y2 = box
    return image.crop((round(x1), round(y1), round(x2), round(y2)))


def answered(asked: Answer, id: str, image: Image, subjects: Subjects) -> Seen:
    assert subjects.vlm is not None
    said = subjects.vlm.answer(image, asked.question, asked.max_tokens)
    if asked.anls is not None:
        likeness = anls(said, asked.accepted, 0.0)
        return Seen(likeness >= asked.anls, likeness - asked.anls, f"answered {said!r}, likeness {likeness:.2f}", id)
    held = bool(exact_match(said, asked.accepted))
    return Seen(held, 0.0 if held else -_farness(said, asked.accepted), f"answered {said!r}", id)


def _farness(said: str, accepted: Sequence[str]) -> float:
    """How unlike an answer is to the likest accepted one, in (0, 1]."""
    pairs = [(normalised(said), normalised(one)) for one in accepted]
    return min(edit_distance(a, b) / max(len(a), len(b), 1) for a, b in pairs)


def searched(asked: Search, ids: Sequence[str], hashes: Mapping[str, str], subjects: Subjects) -> list[Seen]:
    assert subjects.search is not None
    found = subjects.search(asked)
    if asked.nothing:
        if not found.names:
            return [Seen(True, 1.0, f"nothing matches: {found.reason or 'no hit'}")]
        return [Seen(False, -1.0, f"found {', '.join(found.names[:SHOWN_HITS])}")]
    seen: list[Seen] = []
    for id in ids:
        rank = found.hashes.index(hashes[id]) + 1 if hashes[id] in found.hashes else None
        if rank is None:
            first = f"first is {found.names[0]}" if found.names else found.reason or "nothing was found"
            seen.append(Seen(False, -1.0, f"not among the first {len(found.names)} found; {first}", id))
            continue
        seen.append(Seen(rank <= asked.within, (asked.within - rank) / asked.within, f"found at rank {rank}", id))
    return seen
