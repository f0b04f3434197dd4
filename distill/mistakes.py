"""What a labelling job got wrong in the eyes of its reviewers, image by image: what scenarios are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.prelabel import load_report
from distill.prelabels import PREDICTIONS, records
from distill.reviewed import SHOWN, compare, final_boxes, reviews
from foveal.dataset import Sample
from foveal.detections import Detections, pairwise_iou
from foveal.errors import BadInput
from foveal.formats import coco

NEAR = 0.3  # IoU with a right box of its label from which a removed one was a copy, not a mistake of its own


@dataclass(frozen=True, slots=True)
class Mistake:
    """The boxes of one image that a reviewer had to mend."""

    sample: Sample
    missed: Detections  # drawn, given another label or moved far: what should have been found
    wrong: Detections  # removed, or of another label: what should not have been, and nothing like it is there

    @property
    def count(self) -> int:
        """How many."""
        return len(self.missed) + len(self.wrong)


def mistakes(out: str | Path, iou: float = 0.5) -> Iterator[Mistake]:
    """Of each image of the job in `out` that came back corrected, what was wrong; images without it are left out.

    A box that was only moved was missed if it overlaps what it became by less than `iou`.

    Raises:
        BadInput: `out` is no labelling job, or nothing of it was reviewed.
    """
    out = Path(out)
    classes, said = tuple(load_report(out).classes), reviews(out)
    if not said:
        raise BadInput(
            f"nothing of {out} was reviewed", remedy=f"Bring corrections back: foveal prelabel import {out} EXPORT."
        )
    proposed = {record["image"]: record for record in records(out) if "error" not in record}
    for sample in coco.read(out / PREDICTIONS):
        line = said.get(sample.id)
        if line is None or sample.id not in proposed:
            continue
        boxes = [box for box in proposed[sample.id]["boxes"] if box["route"] in SHOWN]
        shown = Detections.build(
            [b["box"] for b in boxes], [b["score"] for b in boxes], [b["label"] for b in boxes], classes
        )
        final = final_boxes(line, classes)
        what, owner = compare(shown, final)
        changed = [row for row, change in enumerate(what) if change in ("removed", "relabelled")]
        overlap = pairwise_iou(shown.boxes, final.boxes)
        missed = [
            i
            for i, row in enumerate(owner.tolist())
            if row < 0 or what[row] == "relabelled" or (what[row] == "moved" and overlap[row, i] < iou)
        ]
        found = Mistake(sample, final[missed], _not_there(shown[changed], final))
        if found.count:
            yield found


def _not_there(wrong: Detections, final: Detections) -> Detections:
    """Without boxes that lie where something of the same label is: there a detector may well find it."""
    if not len(wrong) or not len(final):
        return wrong
    same = np.array(wrong.label_names)[:, None] == np.array(final.label_names)[None, :]
    near = np.where(same, pairwise_iou(wrong.boxes, final.boxes), 0.0).max(axis=1)
    return wrong[near < NEAR]
