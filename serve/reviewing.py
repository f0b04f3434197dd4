"""The doubtful boxes of a labelling job, looked at one by one: what people decide is kept as annotations.

Each picture is a task with one annotation in the form that Label Studio's webhooks tell, kept in the same file
(`serve.corrections`), so that `foveal prelabel import` takes it back like any other. Until every doubtful box of a
picture is decided its annotation is marked as cancelled, which nobody imports; the decisions lie in it as `foveal`.
One server at a time may decide on a job.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.outcome import load_report
from distill.prelabel import ontology_of
from distill.prelabels import PREDICTIONS, detections, records
from distill.records import Record
from foveal import artifacts
from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.errors import BadInput, FovealError
from foveal.formats import coco
from foveal.formats.attributes import controls
from foveal.formats.label_studio import LOCAL_FILES, VALUE
from foveal.formats.regions import regions
from serve.corrections import Corrections, Event

if TYPE_CHECKING:
    from PIL.Image import Image

STORE = "review.sqlite"  # in the job's folder, unless another file keeps corrections
CONTEXT = 0.25  # of a neighbour's box that is shown around it
SMALLEST = 1.0  # pixels of a box's side
Box = tuple[float, float, float, float]  # xyxy pixels


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person made of a box."""

    box: int  # its place in the record
    keep: bool
    label: str
    place: Box
    at: str  # UTC, to the microsecond


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a review is."""

    decided: int
    boxes: int
    finished: int  # pictures, all of whose doubtful boxes are decided
    pictures: int


@dataclass(frozen=True, slots=True)
class Case:
    """One doubtful box."""

    number: int  # its place in the queue
    image: str  # the picture's id in the job
    box: int  # its place in the picture's record


class ReviewJob:
    """The queue of the job in `out`, the most valuable picture first, and its decisions.

    Args:
        gold: the labelled images that the job learned from, which its neighbours are crops of; None: not shown.
        corrections: where decisions are kept; None: in the job's folder.

    Raises:
        BadInput: `out` is no finished job, or `gold` no dataset.
    """

    def __init__(self, out: Path, gold: Path | Dataset | None = None, corrections: Corrections | None = None) -> None:
        self.out = out
        report = load_report(out)
        self.classes: tuple[str, ...] = tuple(report.classes)
        self.project = f"review-{report.job[:16]}"
        self.corrections = corrections or Corrections(out / STORE)
        self._controls = controls(ontology_of(artifacts.read(out)).schema_of_attributes)
        self._samples = {sample.id: sample for sample in coco.read(out / PREDICTIONS)}
        gold = Dataset.open(gold) if isinstance(gold, Path) else gold
        self._gold = {} if gold is None else {sample.id: sample for sample in gold}
        doubtful = [
            record
            for record in records(out)
            if record["image"] in self._samples and any(_doubtful(box) for box in record.get("boxes", ()))
        ]
        doubtful.sort(key=lambda record: -sum(box["value"] for box in record["boxes"]))
        self._records: dict[str, Record] = {record["image"]: record for record in doubtful}
        found: list[Case] = []
        for record in doubtful:
            mine = [place for place, box in enumerate(record["boxes"]) if _doubtful(box)]
            mine.sort(key=lambda place, boxes=record["boxes"]: -boxes[place]["value"])
            found += [Case(len(found) + n, record["image"], place) for n, place in enumerate(mine)]
        self.cases: tuple[Case, ...] = tuple(found)
        self._lock = threading.Lock()
        self.changes = 0  # decisions made or taken back since the server started
        self._decided: dict[str, dict[int, Decision]] = self._read()
        self.thumbnail = lru_cache(maxsize=4096)(self._thumbnail)

    def record(self, case: Case) -> Mapping[str, Any]:
        """What the job says of the box: box, label, probability, neighbours and so on."""
        return self._records[case.image]["boxes"][case.box]

    def others(self, case: Case) -> Detections:
        """The picture's boxes besides: accepted ones, and decided ones that were kept."""
        return self._final(case.image, without=case.box)

    def picture(self, case: Case) -> Image:
        """The pixels; BadImage when they are gone."""
        return self._samples[case.image].image()

    def size(self, case: Case) -> tuple[int, int]:
        """Width and height of the picture."""
        sample = self._samples[case.image]
        return sample.width, sample.height

    def decision(self, case: Case) -> Decision | None:
        """What was decided; None while it is open."""
        return self._decided.get(case.image, {}).get(case.box)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        decided = sum(map(len, self._decided.values()))
        finished = sum(self._finished(image) for image in self._records)
        return Progress(decided, len(self.cases), finished, len(self._records))

    def open_after(self, number: int, others: Collection[str] = ()) -> Case | None:
        """The next open case from a place in the queue on, going around; None when all are decided.

        Args:
            others: pictures that somebody else is at, which come last.
        """
        ahead = (*self.cases[max(0, number) :], *self.cases[: max(0, number)])
        left = [case for case in ahead if self.decision(case) is None]
        return next((case for case in left if case.image not in others), left[0] if left else None)

    def decide(self, case: Case, *, keep: bool, label: str | None = None, place: Sequence[float] | None = None) -> None:
        """Keeps a decision, durably once this returns.

        Args:
            label: None: the proposed one.
            place: xyxy pixels; None: the proposed ones.

        Raises:
            BadInput: no such class, or no box within the picture.
        """
        proposed = self.record(case)
        label = proposed["label"] if label is None else label
        if label not in self.classes:
            raise BadInput(f"there is no class {label!r}", expected=", ".join(self.classes))
        width, height = self.size(case)
        given = np.asarray(proposed["box"] if place is None else place, dtype=np.float64)
        if given.shape != (4,) or not np.isfinite(given).all():
            raise BadInput("the box cannot be used", expected="x1, y1, x2, y2 in pixels", received=str(place)[:60])
        x1, y1, x2, y2 = np.clip(given, 0, [width, height] * 2).tolist()
        if min(x2 - x1, y2 - y1) < SMALLEST:
            raise BadInput("the box has no area within the picture", expected=f"within {width} x {height} pixels")
        decision = Decision(case.box, keep, label, (x1, y1, x2, y2), _now())
        with self._lock:
            self._keep(case.image, {**self._decided.get(case.image, {}), case.box: decision})

    def undo(self) -> Case | None:
        """Takes the latest decision back, and returns its case; None when there is none."""
        with self._lock:
            latest = max(
                ((one.at, image, box) for image, mine in self._decided.items() for box, one in mine.items()),
                default=None,
            )
            if latest is None:
                return None
            _, image, box = latest
            self._keep(image, {key: one for key, one in self._decided[image].items() if key != box})
        return next(case for case in self.cases if (case.image, case.box) == (image, box))

    def _thumbnail(self, neighbour: str) -> Image | None:
        """The crop that a neighbour is, or the picture that it was found in; None where it is not known."""
        image, _, which = neighbour.rpartition("#")
        sample = self._gold.get(image)
        if sample is None:
            return None
        try:
            pixels = sample.image()
        except FovealError:
            return None
        boxes = [] if sample.truth is None else sample.truth.boxes.tolist()
        if not which.isdecimal() or int(which) >= len(boxes):
            return pixels  # a proposal of the teacher's there, whose place is not recorded
        x1, y1, x2, y2 = boxes[int(which)]
        room = CONTEXT * max(x2 - x1, y2 - y1)
        inside = max(0, x1 - room), max(0, y1 - room), min(pixels.width, x2 + room), min(pixels.height, y2 + room)
        return pixels.crop((round(inside[0]), round(inside[1]), round(inside[2]), round(inside[3])))

    def _finished(self, image: str) -> bool:
        decided = self._decided.get(image, {})
        return all(place in decided for place, box in enumerate(self._records[image]["boxes"]) if _doubtful(box))

    def _final(self, image: str, without: int | None = None) -> Detections:
        """The picture's boxes as they stand: accepted ones, and doubtful ones that a person kept."""
        made: list[Record] = []
        for place, box in enumerate(self._records[image]["boxes"]):
            said = self._decided.get(image, {}).get(place)
            if place == without or not (box["route"] == "accept" or (said is not None and said.keep)):
                continue
            if said is not None:
                box = {**box, "box": list(said.place), "label": said.label}
                if list(said.place) != self._records[image]["boxes"][place]["box"]:
                    box.pop("mask", None)  # drawn for where the box was
            made.append(box)
        found = detections({"boxes": made}, self.classes)
        return Detections.build(
            found.boxes, 1.0, found.labels, self.classes, masks=found.masks, attributes=found.attributes
        )

    def _keep(self, image: str, decided: dict[int, Decision]) -> None:
        """Writes a picture's decisions; only then they count."""
        before = self._decided.get(image, {})
        self._decided[image] = decided
        record = self._records[image]
        annotation = {
            "id": f"{self.project}-{image}",
            "updated_at": _now(),
            "was_cancelled": not self._finished(image),
            "result": regions(self._final(image), record["width"], record["height"], controls=self._controls),
            "foveal": {"decisions": [asdict(one) for one in decided.values()]},
        }
        task = {"id": image, "data": {VALUE: LOCAL_FILES + record["file"], "sample_id": image}}
        told = {"action": "ANNOTATION_UPDATED", "project": {"id": self.project}, "annotation": annotation, "task": task}
        try:
            self.corrections.take(Event.model_validate(told))
        except BaseException:
            self._decided[image] = before
            raise
        self.changes += 1

    def _read(self) -> dict[str, dict[int, Decision]]:
        found: dict[str, dict[int, Decision]] = {}
        for task in self.corrections.tasks(self.project):
            image = str(task["data"]["sample_id"])
            if image in self._records:
                kept: list[dict[str, Any]] = task["annotations"][-1]["foveal"]["decisions"]
                made = [Decision(one["box"], one["keep"], one["label"], tuple(one["place"]), one["at"]) for one in kept]
                found[image] = {one.box: one for one in made}
        return found


def _doubtful(box: Mapping[str, Any]) -> bool:
    return box["route"] == "review"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
