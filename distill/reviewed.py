"""What annotators make of pre-labels, brought back: how much they changed, and a better training set.

    foveal prelabel import PRELABELS export.json

Shape letters: N boxes shown, T boxes they became.
"""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.prelabel import load_report
from distill.prelabels import PREDICTIONS, detections, records
from distill.records import Record
from evals.detection import assign
from evals.intervals import wilson
from foveal.artifacts import write_text
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, IntArray, pairwise_iou
from foveal.errors import BadInput
from foveal.formats import FORMATS, coco, detect
from foveal.formats.attributes import as_text
from retrieval.corrections import Correction

REVIEWS, CORRECTED = "reviews.jsonl", "corrected.coco.json"
SHOWN = ("accept", "review")  # routes that annotators see
MOVED = 0.9  # IoU below which a kept box counts as moved
SAME = 0.5  # IoU from which a box is still about the same object
MOST_FOREIGN = 0.5  # share of images that may belong to something else
CHANGES = ("kept", "moved", "relabelled", "removed", "added")


@dataclass(frozen=True, slots=True)
class ReviewReport:
    """What one import brought."""

    images: int  # of the job that came back annotated
    new: int  # of them not imported before, or annotated anew
    foreign: tuple[str, ...]  # images that the job does not know
    changes: dict[str, int]  # kept, moved, relabelled, removed, added boxes
    shown: int  # boxes that annotators were shown on those images
    boxes: int  # boxes they left or drew
    edit_rate: float | None  # changed boxes, over those shown
    saved: float | None  # 1 - changed boxes / boxes in the end: the share of drawing that was spared
    seconds_saved: float | None  # where a price in seconds a box was given
    precision: dict[str, dict[str, Any]]  # of each route, as found on these images: boxes, right, interval
    classes: dict[str, dict[str, int]]
    attributes: dict[str, dict[str, int]]  # name -> filled in on boxes that were kept, and of these right

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def read_corrected(source: Path, out: Path, format: str | None = None) -> Dataset:
    """The annotated set at `source`. Where its images are not beside it, those of the job in `out` stand in for them:
    found by file name, or by their path below the folder that holds them all.

    Raises:
        UnknownName, BadInput: no such format, nothing recognised, or images are missing.
    """
    name = format or detect(source)
    module: Any = FORMATS[name]
    try:
        return module.read(source)
    except BadInput:
        if name not in ("coco", "cvat", "label_studio", "voc"):
            raise
    with tempfile.TemporaryDirectory() as folder:
        _link(out, Path(folder))
        return module.read(source, images=Path(folder))


def take_back(
    out: str | Path,
    corrected: Dataset,
    *,
    rename: Mapping[str, str] | None = None,
    seconds_a_box: float | None = None,
) -> ReviewReport:
    """Compare what came back with what the job in `out` proposed, and keep it there.

    `reviews.jsonl` gets a line for each image that is new or annotated anew (the last line of an image counts);
    `corrected.coco.json` is the job's training set with people's boxes in the place of proposed ones. The same set
    taken back twice changes nothing. Annotators who start with the most doubtful images see a worse precision than all
    images have: for that, see `distill.spot_check`.

    Args:
        rename: class names of the annotation tool -> those of the ontology.
        seconds_a_box: what drawing one box takes, to tell the time saved.

    Raises:
        BadInput: `out` is no job, the set is of other images, has no annotated image, or uses other class names.
    """
    out = Path(out)
    proposals = {record["image"]: record for record in records(out) if "error" not in record}
    classes = _job_classes(out)
    matched, foreign = _matched(corrected, proposals)
    if not matched:
        raise BadInput(
            "no image of this job came back annotated",
            expected=f"images such as {next(iter(proposals), 'none')}",
            received=f"{len(corrected)} images, {len(foreign)} of them unknown here",
        )
    if len(foreign) > MOST_FOREIGN * (len(foreign) + len(matched)):
        raise BadInput(
            f"most of these images are not of {out}: {len(foreign)} of {len(foreign) + len(matched)}",
            received=f"{foreign[0]} for one",
            remedy="Check that the annotations belong to this job.",
        )
    known = reviews(out)
    lines: list[str] = []
    changes: Counter[str] = Counter()
    per_class = {name: Counter[str]() for name in classes}
    routes = {route: [0, 0] for route in SHOWN}
    shown_boxes = final_boxes = 0
    attributes: dict[str, dict[str, int]] = {}
    for image, truth in matched.items():
        final = _in_classes(truth, classes, rename or {})
        shown, route = _shown(proposals[image], classes)
        what, owner = compare(shown, final)
        shown_boxes, final_boxes = shown_boxes + len(shown), final_boxes + len(final)
        for row, change in enumerate(what):
            changes[change] += 1
            per_class[shown.label_names[row]][change] += 1
            routes[route[row]][0] += 1
            routes[route[row]][1] += change in ("kept", "moved")
        for row in np.flatnonzero(owner < 0).tolist():
            changes["added"] += 1
            per_class[final.label_names[row]]["added"] += 1
        for row, target in _pairs(what, owner):
            said = {} if shown.attributes is None else shown.attributes[row]
            true = {} if final.attributes is None else final.attributes[target]
            for name, value in said.items():
                filled = attributes.setdefault(name, {"filled": 0, "right": 0})
                filled["filled"] += 1
                filled["right"] += name in true and as_text(true[name]) == as_text(value)
        line = _line(image, final, what, shown)
        if known.get(image) != line:
            lines.append(json.dumps(line) + "\n")
    if lines:
        _append(out / REVIEWS, lines)
        _write_corrected(out, classes)
    edits = sum(changes.values()) - changes["kept"]
    saved = 1 - edits / final_boxes if final_boxes else None
    return ReviewReport(
        images=len(matched),
        new=len(lines),
        foreign=tuple(foreign),
        changes={name: changes[name] for name in CHANGES},
        shown=shown_boxes,
        boxes=final_boxes,
        edit_rate=edits / shown_boxes if shown_boxes else None,
        saved=saved,
        seconds_saved=None if seconds_a_box is None else seconds_a_box * (final_boxes - edits),
        precision={
            name: {"boxes": n, "right": k, "precision": k / n if n else None, "interval": wilson(k, n)}
            for name, (n, k) in routes.items()
        },
        classes={name: {change: counts[change] for change in CHANGES} for name, counts in per_class.items()},
        attributes=attributes,
    )


def carry_over(out: Path, to: Path) -> None:
    """Let what people said of the job in `out` stand for the images of another job in `to` too."""
    if (out / REVIEWS).is_file():
        write_text(to / REVIEWS, (out / REVIEWS).read_text(encoding="utf-8"))
        _write_corrected(to, _job_classes(to))


def compare(shown: Detections, final: Detections) -> tuple[list[str], IntArray]:
    """What became of each box shown (N), and which of them each final box was (T,), -1 where it was drawn anew.

    Boxes of one label are paired first, then what is left by place alone.
    """
    what, owner = ["removed"] * len(shown), np.full(len(final), -1, dtype=np.int64)
    taken = assign(shown, final, SAME)
    overlap = pairwise_iou(shown.boxes, final.boxes)
    for row, target in enumerate(taken.tolist()):
        if target >= 0:
            what[row], owner[target] = "kept" if overlap[row, target] >= MOVED else "moved", row
    left, free = np.flatnonzero(taken < 0), np.flatnonzero(owner < 0)
    again = assign(shown[left], final[free], SAME, class_agnostic=True)
    for row, target in zip(left.tolist(), again.tolist(), strict=True):
        if target >= 0:
            what[row], owner[free[target]] = "relabelled", row
    return what, owner


def _pairs(what: Sequence[str], owner: IntArray) -> list[tuple[int, int]]:
    """Boxes that stayed what they were: which was shown, and which final one it is."""
    return [(row, target) for target, row in enumerate(owner.tolist()) if row >= 0 and what[row] in ("kept", "moved")]


def corrections(out: str | Path, images: Sequence[str] | None = None) -> Iterator[Correction]:
    """What reviewers said, as an exemplar memory learns it: their boxes approved, boxes they removed rejected.

    Args:
        images: only of these; None for all that were reviewed.

    Raises:
        BadImage: an image has gone.
    """
    out = Path(out)
    classes, said = _job_classes(out), reviews(out)
    for sample in coco.read(out / PREDICTIONS):
        line = said.get(sample.id)
        if line is None or (images is not None and sample.id not in images):
            continue
        removed = np.array([box for box, change in line["shown"] if change == "removed"], np.float32).reshape(-1, 4)
        yield Correction(sample.id, sample.image(), final_boxes(line, classes), removed)


def _line(image: str, final: Detections, what: Sequence[str], shown: Detections) -> Record:
    """One line of `reviews.jsonl`: the boxes people left, and what became of those they were shown."""
    return {
        "image": image,
        "boxes": [[round(float(v), 3) for v in box] for box in final.boxes],
        "labels": list(final.label_names),
        "shown": [[[round(float(v), 2) for v in box], change] for box, change in zip(shown.boxes, what, strict=True)],
        **({"attributes": list(final.attributes)} if final.attributes is not None else {}),
        **({"masks": list(final.masks)} if final.masks is not None else {}),
    }


def final_boxes(line: Record, classes: Sequence[str]) -> Detections:
    """What people left of an image, by its line in `reviews.jsonl`."""
    told = {name: tuple(line[name]) for name in ("attributes", "masks") if name in line}
    return Detections.build(line["boxes"], 1.0, line["labels"], classes, **told)


def _shown(record: Record, classes: Sequence[str]) -> tuple[Detections, list[str]]:
    boxes = [box for box in record["boxes"] if box["route"] in SHOWN]
    return detections({"boxes": boxes}, classes), [box["route"] for box in boxes]


def _matched(corrected: Dataset, proposals: Mapping[str, Record]) -> tuple[dict[str, Detections], list[str]]:
    """The annotated images by the job's ids (found by id, file name or its stem), and the names of unknown ones."""
    by_file = _unique((record["file"], id) for id, record in proposals.items())
    by_stem = _unique((Path(record["file"]).stem, id) for id, record in proposals.items())
    matched: dict[str, Detections] = {}
    foreign: list[str] = []
    for sample in corrected:
        if sample.truth is None:
            continue
        id = sample.id if sample.id in proposals else by_file.get(sample.path.name) or by_stem.get(sample.path.stem)
        if id is None:
            foreign.append(sample.id)
            continue
        record = proposals[id]
        if (sample.width, sample.height) != (record["width"], record["height"]):
            raise BadInput(
                f"{sample.id} was annotated at another size",
                expected=f"{record['width']} x {record['height']}",
                received=f"{sample.width} x {sample.height}",
            )
        inside = sample.truth.clipped(sample.width, sample.height)
        sides = inside.boxes[:, 2:] - inside.boxes[:, :2]
        matched[id] = inside[sides.min(axis=1, initial=np.inf) > 0]
    return matched, foreign


def _unique(pairs: Any) -> dict[str, str]:
    """Names that stand for one image only."""
    found: dict[str, str | None] = {}
    for name, id in pairs:
        found[name] = None if name in found else id
    return {name: id for name, id in found.items() if id is not None}


def _in_classes(truth: Detections, classes: Sequence[str], rename: Mapping[str, str]) -> Detections:
    names = [rename.get(name, name) for name in truth.label_names]
    for name in names:
        if name not in classes:
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f" --rename {name}={close[0]}" if close else " --rename NAME=CLASS"
            raise BadInput(
                f"the annotations use a class {name!r} that the ontology lacks",
                expected=", ".join(classes),
                remedy=f"If it is one of those, add{hint}; a new class belongs into the ontology first.",
            )
    return Detections.build(truth.boxes, 1.0, names, classes, masks=truth.masks, attributes=truth.attributes)


def _job_classes(out: Path) -> tuple[str, ...]:
    return tuple(load_report(out).classes)


def reviews(out: Path) -> dict[str, Record]:
    """The last line of each image in `reviews.jsonl`; none where nothing was reviewed."""
    path = out / REVIEWS
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["image"]: line for line in lines}


def _append(path: Path, lines: Sequence[str]) -> None:
    """Add lines, all or none: the file is written anew."""
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(path, before + "".join(lines))


def _write_corrected(out: Path, classes: Sequence[str]) -> None:
    said = reviews(out)

    def samples() -> Iterator[Sample]:
        for sample in coco.read(out / PREDICTIONS):
            line = said.get(sample.id)
            yield sample if line is None else replace(sample, truth=final_boxes(line, classes))

    coco.write(Dataset.build(samples(), classes), out / CORRECTED)


def _link(out: Path, folder: Path) -> None:
    """Put the job's images into `folder`, as links."""
    paths = [sample.path for sample in coco.read(out / PREDICTIONS)]
    above = Path(os.path.commonpath([path.parent for path in paths]))
    names = Counter(path.name for path in paths)
    for path in paths:
        places = {str(path.relative_to(above))} | ({path.name} if names[path.name] == 1 else set())
        for place in places:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).symlink_to(path)
