"""Which labels of a finished job look wrong, before anybody has looked: the list to start a review with.

    foveal prelabel suspects PRELABELS --student runs/student --out suspects.json --html suspects.html

Two witnesses speak about each box that was not rejected: its calibrated probability, in which teacher and remembered
crops have their say, and, where there is one, a student trained on these very labels, which learns what most of them
say and so disagrees with those that are not like the rest (the small-loss observation of Co-teaching, arXiv
1804.06872). What the student sees and no box covers is listed too.

Shape letters: N boxes of one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.prelabels import records
from distill.records import Record
from evals.report import Report
from foveal.dataset import Dataset, Sample
from foveal.detections import BoolArray, Detections, FloatArray, pairwise_iou
from foveal.errors import BadImage
from foveal.models import Detector
from foveal.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from PIL.Image import Image

SAME = 0.5  # IoU from which two boxes speak of one object
SURE, DOUBT = 0.5, 0.2  # student scores from which it is sure of an object, and below which it does not see it
ROUTES = ("accept", "review")
BATCH = 16
PAGE = 100


@dataclass(frozen=True, slots=True)
class Suspect:
    """One label that witnesses speak against."""

    image: str
    box: tuple[float, float, float, float]  # xyxy pixels
    label: str | None  # None: there is no box, and the student sees one
    instead: str | None  # what the strongest witness against calls it; None: nothing
    suspicion: float  # [0, 1]; an order, no probability
    route: str | None
    against: tuple[str, ...]  # in words


def suspects(
    out: str | Path,
    source: Dataset,
    student: Detector | None = None,
    *,
    most: int = 1000,
    progress: Progress | None = None,
) -> list[Suspect]:
    """The `most` suspicious labels of a finished job, worst first.

    Suspicion is 1 less the calibrated probability times the student's score for that label there. Neighbours and the
    teacher's own label are told as reasons and not counted again: the probability has heard them (counting them twice
    found fewer of the wrong labels, docs/results/distill.md).

    Args:
        source: the images of the job; those it lacks are left out.

    Raises:
        BadInput: `out` is not the folder of a labelling job.
    """
    progress = progress or SilentProgress()
    found: list[Suspect] = []
    progress.start("question", len(source))
    for sample, record, seen in _judged(out, source, student, progress):
        found += _of_image(sample.id, record, seen)
        if len(found) > 8 * most:
            found = _worst(found, most)
    progress.finish()
    return _worst(found, most)


def page(found: Sequence[Suspect], source: Dataset, facts: Sequence[tuple[str, str]] = ()) -> Report:
    """The first `PAGE` suspects as an HTML page, each box on its image."""
    report = Report(
        "Suspicious labels", "Boxes that neighbours, calibration or the student speak against.", facts=facts
    )
    missed = sum(one.label is None for one in found)
    report.figures(
        [
            ("listed", f"{len(found):,}", "worst first", None),
            ("missed objects", f"{missed:,}", "seen by the student, covered by no box", None),
            ("accepted ones", f"{sum(one.route == 'accept' for one in found):,}", "nobody would look at", None),
        ]
    )
    report.section("Labels", f"The first {min(PAGE, len(found))} of {len(found):,}.")
    place = {id: row for row, id in enumerate(source.ids)}
    tiles: list[tuple[Image, str]] = []
    for one in found[:PAGE]:
        try:
            image = source[place[one.image]].image()
        except BadImage:
            continue
        said = f"{one.label or 'nothing'}, or {one.instead or 'nothing'}? {'; '.join(one.against)}"
        tiles.append((_marked(image, one.box), said))
    report.gallery(tiles)
    return report


def to_json(found: Sequence[Suspect]) -> list[dict[str, Any]]:
    """Plain values, worst first."""
    return [asdict(one) for one in found]


def _judged(
    out: str | Path, source: Dataset, student: Detector | None, progress: Progress
) -> Iterator[tuple[Sample, Record, Detections | None]]:
    """Every labelled image with its record, and what the student sees in it."""
    waiting: list[tuple[Sample, Record]] = []
    place = {id: row for row, id in enumerate(source.ids)}
    for record in records(out):
        if "error" in record or record["image"] not in place:
            continue
        progress.advance()
        waiting.append((source[place[record["image"]]], record))
        if len(waiting) == BATCH:
            yield from _asked(waiting, student)
            waiting = []
    yield from _asked(waiting, student)


def _asked(
    waiting: Sequence[tuple[Sample, Record]], student: Detector | None
) -> Iterator[tuple[Sample, Record, Detections | None]]:
    if student is None or not waiting:
        yield from ((sample, record, None) for sample, record in waiting)
        return
    images: list[Any] = []
    kept: list[tuple[Sample, Record]] = []
    for sample, record in waiting:
        try:
            images.append(sample.image())
            kept.append((sample, record))
        except BadImage:
            continue  # gone since it was labelled
    for (sample, record), seen in zip(kept, student.detect(images, 0.02), strict=True):
        yield sample, record, seen


def _of_image(image: str, record: Record, seen: Detections | None) -> list[Suspect]:
    boxes = [box for box in record["boxes"] if box["route"] in ROUTES]
    corners = np.array([box["box"] for box in boxes], dtype=np.float32).reshape(-1, 4)
    overlap = None if seen is None else pairwise_iou(corners, seen.boxes) >= SAME
    found: list[Suspect] = []
    for row, box in enumerate(boxes):
        support, instead, against = box["probability"], None, list[str]()
        if support < SURE:
            against.append(f"probability {support:.2f}")
        teacher = box["teacher"]["label"]
        if teacher != box["label"]:
            against.append(f"the teacher said {teacher}")
            instead = teacher
        share, rival = _neighbours(box)
        if share < 0.5:
            against.append(f"{1 - share:.0%} of its neighbours are {rival}")
            instead = rival
        if seen is not None and overlap is not None:
            sure, other = _student(box["label"], seen, overlap[row])
            support *= sure
            if sure < SURE:
                against.insert(
                    0, f"the student sees {other or 'nothing'} there" if sure < DOUBT else "the student doubts"
                )
                instead = other or instead
        if against:
            found.append(
                Suspect(image, _tuple(corners[row]), box["label"], instead, 1 - support, box["route"], tuple(against))
            )
    if seen is not None and overlap is not None:
        # Anything proposed there at all, even if rejected, has been judged already.
        everything = np.array([box["box"] for box in record["boxes"]], dtype=np.float32).reshape(-1, 4)
        covered = (pairwise_iou(everything, seen.boxes) >= SAME).any(axis=0)
        for i in np.flatnonzero(~covered & (seen.scores >= SURE)).tolist():
            name, score = seen.label_names[i], float(seen.scores[i])
            found.append(
                Suspect(
                    image, _tuple(seen.boxes[i]), None, name, score, None, (f"the student sees {name}, {score:.2f}",)
                )
            )
    return found


def _neighbours(box: Record) -> tuple[float, str | None]:
    """Share of the neighbours' similarity that speaks for the label, and the strongest rival; 1 without neighbours."""
    near = box["neighbours"]
    weight = np.maximum([n["similarity"] for n in near], 0.0)
    supports = np.array([n["supports"] for n in near], dtype=bool)
    rivals = [n for n in near if not n["supports"]]
    if not rivals or not weight.sum():
        return 1.0, None
    return float(weight[supports].sum() / weight.sum()), max(rivals, key=lambda n: n["similarity"])["label"]


def _student(label: str, seen: Detections, here: BoolArray) -> tuple[float, str | None]:
    """The student's score of a label on what overlaps the box (mask over its detections), and what else it sees."""
    names, scores = seen.label_names, seen.scores
    same = max((float(scores[i]) for i in np.flatnonzero(here) if names[i] == label), default=0.0)
    others = [(float(scores[i]), names[i]) for i in np.flatnonzero(here) if names[i] != label]
    rival = max(others, default=(0.0, None))
    return same, rival[1] if rival[0] > same else None


def _worst(found: list[Suspect], most: int) -> list[Suspect]:
    return sorted(found, key=lambda one: (-one.suspicion, one.image, one.box))[:most]


def _tuple(box: FloatArray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (round(float(v), 2) for v in box)
    return x1, y1, x2, y2


def _marked(image: Image, box: tuple[float, float, float, float], side: int = 320) -> Image:
    """The image shrunk to `side` pixels with the box drawn on it."""
    from PIL import ImageDraw

    factor = min(1.0, side / max(image.size))
    small = image.resize((round(image.width * factor), round(image.height * factor)))
    ImageDraw.Draw(small).rectangle([v * factor for v in box], outline=(220, 40, 40), width=2)
    return small
