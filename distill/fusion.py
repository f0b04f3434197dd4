"""Several teachers as one: their boxes joined by weighted box fusion (arXiv 1910.13302), and who agreed on each.

Shape letters: Q boxes of all teachers, F fused ones, P prompts, T teachers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from distill.teacher import Dense, DenseDetector, look
from foveal.detections import FloatArray, IntArray, pairwise_iou
from foveal.errors import BadInput
from foveal.models import OpenDetector

if TYPE_CHECKING:
    from PIL.Image import Image

FLOOR = 0.02
OWN_NMS = 0.6  # within one teacher's answer
SAME = 0.55  # IoU from which boxes of two teachers are one, as in the paper
MOST = 40  # boxes of one teacher in one image


class Ensemble:
    """Teachers that look at the same images; the first one leads: the embeddings of its regions speak for the boxes.

    Raises:
        BadInput: fewer than two teachers, or two of one name.
    """

    def __init__(self, teachers: Sequence[OpenDetector | DenseDetector]) -> None:
        self.members = tuple(getattr(t, "name", type(t).__name__) for t in teachers)
        if len(teachers) < 2 or len(set(self.members)) < len(teachers):
            raise BadInput(
                "an ensemble needs different teachers", expected="two or more", received=", ".join(self.members)
            )
        self._teachers = tuple(teachers)
        self.name = " and ".join(self.members)
        prints = " ".join(getattr(t, "fingerprint", "") for t in teachers)
        self.fingerprint = hashlib.sha256(f"ensemble {prints}".encode()).hexdigest()

    def dense(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Dense]:
        """One `Dense` an image: fused boxes, each teacher's mean score, and who proposed them."""
        answers = [look(teacher, images, prompts, FLOOR) for teacher in self._teachers]
        return [fused(list(one)) for one in zip(*answers, strict=True)]


def fused(answers: Sequence[Dense]) -> Dense:
    """The answers of T teachers about one image as one.

    Boxes of different teachers that overlap by `SAME` become one, its corners their mean weighted by what each teacher
    makes of it; its scores (P) and objectness are means over all T teachers, silence counting 0, so that a box that
    only one of them sees falls behind.
    """
    kept = [_strongest(answer) for answer in answers]
    boxes = np.concatenate([dense.boxes for dense in kept]).astype(np.float32)
    teacher = np.concatenate([np.full(len(dense), t) for t, dense in enumerate(kept)]).astype(np.int64)
    # Teachers score on scales of their own: each box counts by its rank among its teacher's boxes of that image.
    weight = np.concatenate([_ranks(dense.worth) for dense in kept]).astype(np.float32)
    worth = np.concatenate([dense.worth for dense in kept]).astype(np.float32)
    scores = np.concatenate([dense.scores for dense in kept]).astype(np.float32)
    cluster, count = _clusters(boxes, weight, teacher)
    total, seen = len(answers), np.zeros((count, len(answers)), dtype=bool)
    seen[cluster, teacher] = True
    share = np.bincount(cluster, weight, count)[:, None]
    corners = np.stack([np.bincount(cluster, weight * side, count) for side in boxes.T], axis=1) / share
    said = np.stack([np.bincount(cluster, column, count) for column in scores.T], axis=1) / total
    objectness = np.bincount(cluster, worth, count) / total
    return Dense(
        corners.astype(np.float32),
        said.astype(np.float32),
        objectness.astype(np.float32),
        _features(corners.astype(np.float32), answers[0]),
        seen,
    )


def _strongest(dense: Dense) -> Dense:
    """One teacher's boxes without its own duplicates, at most `MOST`, best first; a kept box takes over the scores."""
    order = np.argsort(-dense.worth, kind="stable")[: 20 * MOST]
    order = order[dense.worth[order] >= FLOOR]
    overlap = pairwise_iou(dense.boxes[order], dense.boxes[order])
    alive, keep, scores = np.ones(len(order), dtype=bool), list[int](), list[FloatArray]()
    for i in range(len(order)):
        if alive[i]:
            group = alive & (overlap[i] > OWN_NMS)
            group[i] = True
            keep.append(int(order[i]))
            scores.append(dense.scores[order[group]].max(axis=0))
            alive &= ~group
        if len(keep) == MOST:
            break
    rows = np.array(keep, dtype=np.int64)
    said = np.stack(scores) if scores else np.zeros((0, dense.scores.shape[1]), np.float32)
    return replace(dense[rows], scores=said.astype(np.float32))


def _ranks(worth: FloatArray) -> FloatArray:
    place = np.empty(len(worth), dtype=np.float32)
    place[np.argsort(-worth, kind="stable")] = np.arange(len(worth), dtype=np.float32)
    return 1.0 / (1.0 + place)


def _clusters(boxes: FloatArray, weight: FloatArray, teacher: IntArray) -> tuple[IntArray, int]:
    """The fused box that each box belongs to (Q,), and how many there are.

    Best first, each box joins the cluster whose present mean it overlaps most, by `SAME` at least, unless its own
    teacher has a box there already; else it begins one.
    """
    cluster = np.full(len(boxes), -1, dtype=np.int64)
    sums, shares, members = list[FloatArray](), list[float](), list[set[int]]()
    for i in np.argsort(-weight, kind="stable").tolist():
        means = np.array([s / n for s, n in zip(sums, shares, strict=True)], dtype=np.float32).reshape(-1, 4)
        overlap = pairwise_iou(boxes[i : i + 1], means)[0]
        free = np.array([int(teacher[i]) not in m for m in members], dtype=bool)
        overlap = np.where(free, overlap, 0.0)
        best = int(overlap.argmax()) if len(overlap) else -1
        if best < 0 or overlap[best] < SAME:
            best = len(sums)
            sums.append(np.zeros(4, np.float32))
            shares.append(0.0)
            members.append(set())
        sums[best] = (sums[best] + weight[i] * boxes[i]).astype(np.float32)
        shares[best] += float(weight[i])
        members[best].add(int(teacher[i]))
        cluster[i] = best
    return cluster, len(sums)


def _features(boxes: FloatArray, lead: Dense) -> FloatArray | None:
    """The leading teacher's view of each box: of its own box that overlaps most."""
    if lead.features is None or not len(lead):
        return None
    return lead.features[pairwise_iou(boxes, lead.boxes).argmax(axis=1)]
