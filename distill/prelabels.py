"""The folder of a labelling job: written for annotation tools and for training, and read back.

    predictions.coco.json   every box with score, probability, route and neighbours (COCO, images where they lie)
    accepted.coco.json      the accepted boxes alone, as a dataset to train on
    label_studio.json, .xml accepted and doubtful boxes as predictions, most valuable image first; further files of
                            `TASKS_A_FILE` tasks each where there are more images than that
    review.json             the images to look at, most valuable first, with the boxes in doubt
    boxes.jsonl             one line an image: each box with what it would be without the memory

Everything is written image by image, so its size does not matter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.ontology import Ontology
from distill.records import Record, RecordFile
from foveal.dataset import Dataset, Sample, provenance_from
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.formats import coco, label_studio
from foveal.formats.predictions import extra_keys, image_ids, shortest, to_xywh

PREDICTIONS, ACCEPTED, LABEL_STUDIO, REVIEW = (
    "predictions.coco.json",
    "accepted.coco.json",
    "label_studio.json",
    "review.json",
)
RECORDS = "boxes.jsonl"
ROUTES = ("accept", "review", "reject")
TASKS_A_FILE = 2000


def write_prelabels(
    folder: Path, source: Dataset, labelled: RecordFile, classes: Sequence[str], ontology: Ontology
) -> None:
    """Write all files for people and trainers into `folder` from the records, which follow `source`."""
    _write_coco(folder / PREDICTIONS, source, labelled, classes, ontology, lambda box: True)
    _write_coco(folder / ACCEPTED, source, labelled, classes, ontology, lambda box: box["route"] == "accept")
    values = [sum(box["value"] for box in record.get("boxes", ())) for record in labelled]
    order = sorted((i for i in range(len(values))), key=lambda i: (-values[i], i))
    _write_review(folder / REVIEW, labelled, [i for i in order if values[i] > 0])
    _write_label_studio(folder, source, labelled, classes, order, ontology)


def detections(record: Record, classes: Sequence[str]) -> Detections:
    """One record's boxes; none where its image could not be read."""
    boxes = record.get("boxes", [])
    return Detections.build(
        [b["box"] for b in boxes],
        np.array([b["score"] for b in boxes], dtype=np.float32),
        [b["label"] for b in boxes],
        classes,
        probabilities=np.array([b["probability"] for b in boxes], dtype=np.float32),
        masks=tuple(b.get("mask", "") for b in boxes) if any("mask" in b for b in boxes) else None,
        attributes=tuple(b.get("attributes", {}) for b in boxes) if any("attributes" in b for b in boxes) else None,
        provenance=tuple(
            provenance_from({key: b[key] for key in ("model", "teachers", "route", "neighbours")}) for b in boxes
        ),
    )


def load_prelabels(out: str | Path) -> list[tuple[Sample, Detections]]:
    """Each labelled image with all its boxes, their probabilities and `provenance[i].route`; images without truth.

    Raises:
        BadInput: `out` is not the folder of a labelling job, or images have gone.
    """
    path = Path(out) / PREDICTIONS
    if not path.is_file():
        raise BadInput(
            f"{out} holds no pre-labels", expected=f"a folder with {PREDICTIONS}, as `foveal prelabel` writes"
        )
    return [(replace(sample, truth=None), sample.truth) for sample in coco.read(path) if sample.truth is not None]


def as_dataset(out: str | Path, routes: Sequence[str]) -> Dataset:
    """A finished job's boxes of these routes as a dataset for any format; scores are the calibrated probabilities.

    Raises:
        BadInput: `out` is not the folder of one, images have gone, or a route is none.
    """
    unknown = [route for route in routes if route not in ROUTES]
    if unknown or not routes:
        raise BadInput(f"there is no route {', '.join(unknown)}", expected=f"some of {', '.join(ROUTES)}")
    loaded = load_prelabels(out)

    def samples() -> Iterator[Sample]:
        for sample, found in loaded:
            keep = np.array([p.route in routes for p in found.provenance or ()], dtype=bool)
            shown = found[keep]
            sure = shown.scores if shown.probabilities is None else shown.probabilities  # None where nothing was found
            yield replace(sample, truth=replace(shown, scores=sure, provenance=None))

    classes = loaded[0][1].names if loaded else ()
    return Dataset.build(samples(), classes)


def records(out: str | Path) -> RecordFile:
    """The records of a finished job, one an image.

    Raises:
        BadInput: `out` is not the folder of one.
    """
    path = Path(out) / RECORDS
    if not path.is_file():
        raise BadInput(f"{out} holds no pre-labels", expected="a folder that `foveal prelabel` wrote")
    return RecordFile(path)


def _write_coco(
    path: Path,
    source: Dataset,
    labelled: RecordFile,
    classes: Sequence[str],
    ontology: Ontology,
    wanted: Callable[[Record], bool],
) -> None:
    category = {name: k for k, name in enumerate(classes, start=1)}
    with path.open("w", encoding="utf-8") as stream:
        stream.write('{"info":{"description":"written by Foveal"},\n"categories":')
        told = {
            "guideline": {c.name: c.guideline for c in ontology.classes if c.guideline},
            "attributes": ontology.schema_of_attributes,
        }
        entries = [
            {"id": k, "name": name} | {what: said[name] for what, said in told.items() if name in said}
            for name, k in category.items()
        ]
        stream.write(json.dumps(entries) + ',\n"images":[')
        _write_items(stream, _images(source, labelled, wanted))
        stream.write('],\n"annotations":[')
        _write_items(stream, _annotations(source, labelled, category, wanted))
        stream.write("]}\n")


def _write_items(stream: Any, items: Iterable[Record]) -> None:
    first = True
    for item in items:
        stream.write("\n" if first else ",\n")
        stream.write(json.dumps(item))
        first = False


def _images(source: Dataset, labelled: RecordFile, wanted: Callable[[Record], bool]) -> Iterator[Record]:
    for number, sample, record in zip(image_ids(source), source, labelled, strict=True):
        if "error" in record:
            continue
        entry: Record = {
            "id": number,
            "file_name": os.path.abspath(sample.path),
            "width": sample.width,
            "height": sample.height,
        }
        if sample.id != str(number):
            entry["sample_id"] = sample.id
        # Nothing kept, something doubtful: nobody has said that this image is empty.
        if not any(map(wanted, record["boxes"])) and any(b["route"] != "reject" for b in record["boxes"]):
            entry["unlabelled"] = True
        yield entry


def _annotations(
    source: Dataset, labelled: RecordFile, category: dict[str, int], wanted: Callable[[Record], bool]
) -> Iterator[Record]:
    count = 0
    for number, record in zip(image_ids(source), labelled, strict=True):
        kept = [box for box in record.get("boxes", ()) if wanted(box)]
        found = detections({"boxes": kept}, list(category))
        for row, box in enumerate(kept):
            count += 1
            bbox = to_xywh(found.boxes[row])
            yield {
                "id": count,
                "image_id": number,
                "category_id": category[box["label"]],
                "bbox": bbox,
                "area": bbox[2] * bbox[3],
                "iscrowd": 0,
                "score": shortest(found.scores[row]),
                **extra_keys(found, row),
                "value": box["value"],
            }


def _write_review(path: Path, labelled: RecordFile, order: Sequence[int]) -> None:
    def items() -> Iterator[Record]:
        for record in labelled.pick(order):
            doubtful = [box for box in record["boxes"] if box["route"] == "review"]
            doubtful.sort(key=lambda box: -box["value"])
            yield {
                "image": record["image"],
                "value": round(sum(box["value"] for box in doubtful), 5),
                "boxes": [{k: box[k] for k in ("box", "label", "probability", "value")} for box in doubtful],
            }

    with path.open("w", encoding="utf-8") as stream:
        stream.write("[")
        _write_items(stream, items())
        stream.write("]\n")


def _write_label_studio(
    folder: Path,
    source: Dataset,
    labelled: RecordFile,
    classes: Sequence[str],
    order: Sequence[int],
    ontology: Ontology,
) -> None:
    for part, start in enumerate(range(0, len(order), TASKS_A_FILE)):
        rows = order[start : start + TASKS_A_FILE]
        found = [detections(record, classes) for record in labelled.pick(rows)]
        shown = [d[np.array([p.route != "reject" for p in d.provenance or ()], dtype=bool)] for d in found]
        model = next((p.model for d in shown for p in d.provenance or ()), "foveal")
        bare = source.subset(rows).with_truth([None] * len(rows), classes)
        name = LABEL_STUDIO if part == 0 else LABEL_STUDIO.replace(".json", f"-{part + 1}.json")
        label_studio.write(
            bare, folder / name, predictions=shown, model_version=model, attributes=ontology.schema_of_attributes
        )
