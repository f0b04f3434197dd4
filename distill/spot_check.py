"""A random look at accepted boxes afterwards: what was their precision really?

    foveal prelabel audit PRELABELS --count 100                         # draws, writes tasks for annotators
    foveal prelabel audit PRELABELS --labels export.json                # reads them back, tells the precision

The boxes are drawn at random among all accepted ones, so the share found right estimates the precision of all of them,
whatever the calibration promised.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distill.prelabels import records
from distill.records import Record
from evals.intervals import lower_bounds
from foveal.artifacts import write_text
from foveal.dataset import Dataset
from foveal.detections import Detections, pairwise_iou
from foveal.errors import BadInput
from foveal.formats import label_studio

DRAWN = "audit.json"
TASKS = "audit.label_studio.json"


@dataclass(frozen=True, slots=True)
class SpotCheck:
    """What the annotators made of the boxes drawn."""

    drawn: int
    answered: int  # boxes on images that came back labelled
    right: int
    precision: float | None
    lower_bound: float  # one-sided, at `confidence`
    confidence: float
    target: float
    kept: bool | None  # the bound reaches the target; None when the interval leaves it open
    wrong: tuple[dict[str, object], ...]  # image, box and label of each


def draw(out: str | Path, source: Dataset, count: int = 100, *, seed: int = 0) -> int:
    """Draw up to `count` accepted boxes of a finished job into `audit.json`, with Label Studio tasks that show them.

    Returns:
        How many were drawn.

    Raises:
        BadInput: nothing was accepted, an audit was drawn already, or the count is below 1.
    """
    out = Path(out)
    if count < 1:
        raise BadInput("count lies outside its range", expected="1 or more", received=str(count))
    if (out / DRAWN).exists():
        raise BadInput(f"{out / DRAWN} was drawn before", remedy="Give its --labels, or remove it to draw anew.")
    rng = np.random.default_rng(seed)
    # One random key a box, the smallest stay: a fair draw in one pass and in bounded memory.
    kept: list[tuple[float, Record]] = []
    for record in records(out):
        for box in record.get("boxes", ()):
            if box["route"] == "accept":
                kept.append((float(rng.random()), {"image": record["image"], "box": box["box"], "label": box["label"]}))
        if len(kept) > 4 * count:
            kept = sorted(kept, key=lambda item: item[0])[:count]
    chosen = [row for _, row in sorted(kept, key=lambda item: item[0])[:count]]
    if not chosen:
        raise BadInput(f"no box of {out} was accepted", expected="at least one")
    place = {id: row for row, id in enumerate(source.ids)}
    images = sorted({row["image"] for row in chosen}, key=lambda id: place[id])
    bare = source.subset([place[id] for id in images])
    shown = [
        Detections.build(
            [row["box"] for row in chosen if row["image"] == id],
            1.0,
            [row["label"] for row in chosen if row["image"] == id],
            source.classes,
        )
        for id in images
    ]
    bare = bare.with_truth([None] * len(images), source.classes)
    label_studio.write(bare, out / TASKS, predictions=shown, model_version="audit")
    write_text(out / DRAWN, json.dumps({"seed": seed, "boxes": chosen}, indent=1) + "\n")
    return len(chosen)


def read(out: str | Path, labels: Dataset, target: float, *, confidence: float = 0.95, iou: float = 0.5) -> SpotCheck:
    """The precision that the annotators' boxes give the ones drawn: right where a box of the same class overlaps.

    Raises:
        BadInput: no audit was drawn, or no image of it is labelled.
    """
    path = Path(out) / DRAWN
    if not path.is_file():
        raise BadInput(f"{out} has no audit", remedy="Draw one first: `foveal prelabel audit PRELABELS`.")
    drawn: list[Record] = json.loads(path.read_text(encoding="utf-8"))["boxes"]
    known = {s.id: s.truth for s in labels if s.truth is not None} | {
        s.path.name: s.truth for s in labels if s.truth is not None
    }
    by_image: defaultdict[str, list[Record]] = defaultdict(list)
    for row in drawn:
        by_image[row["image"]].append(row)
    outcomes: list[bool] = []
    groups: list[str] = []
    wrong: list[dict[str, object]] = []
    for image, rows in by_image.items():
        truth = known.get(image)
        if truth is None:
            continue
        for row in rows:
            same = truth[np.array([name == row["label"] for name in truth.label_names], dtype=bool)]
            box = np.array([row["box"]], dtype=np.float32)
            outcomes.append(bool(pairwise_iou(box, same.boxes).max(initial=0.0) >= iou))
            groups.append(image)
            if not outcomes[-1]:
                wrong.append(dict(row))
    if not outcomes:
        raise BadInput(
            "none of the audited images is labelled",
            expected=f"images of {path}, such as {drawn[0]['image']}",
            received=f"{len(labels)} images, {len(known)} names with labels",
        )
    low = float(lower_bounds(outcomes, groups, confidence)[-1])
    high = 1 - float(lower_bounds([not outcome for outcome in outcomes], groups, confidence)[-1])
    answered, right = len(outcomes), sum(outcomes)
    kept = True if low >= target else False if high < target else None
    return SpotCheck(len(drawn), answered, right, right / answered, low, confidence, target, kept, tuple(wrong))


def to_json(found: SpotCheck) -> dict[str, object]:
    """Plain values."""
    return asdict(found)
