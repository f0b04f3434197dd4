"""COCO result lists: `{image_id, category_id, bbox, score}` plus mask, attributes, probability, route and origin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foveal.artifacts import write_text
from foveal.dataset import Dataset, provenance_from
from foveal.detections import Attributes, Detections
from foveal.errors import BadInput
from foveal.formats.places import read_json

PROVENANCE = ("model", "adapter", "teachers", "neighbours", "route")


def image_ids(dataset: Dataset) -> list[int]:
    """The COCO image id of each sample: its own id where all are whole numbers, else its position from 1."""
    if all(sample_id.isdecimal() and str(int(sample_id)) == sample_id for sample_id in dataset.ids):
        return [int(sample_id) for sample_id in dataset.ids]
    return list(range(1, len(dataset) + 1))


def to_records(dataset: Dataset, detections: Iterable[Detections]) -> list[dict[str, Any]]:
    """COCO result records for one `Detections` a sample, in order.

    Raises:
        BadInput: not one each, or a class that the dataset does not have.
    """
    category = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    found = list(detections)
    if len(found) != len(dataset):
        raise BadInput("predictions do not match the images", expected=f"{len(dataset)}", received=f"{len(found)}")
    records: list[dict[str, Any]] = []
    for image_id, sample_id, boxes in zip(image_ids(dataset), dataset.ids, found, strict=True):
        own_id = {} if str(image_id) == sample_id else {"sample_id": sample_id}
        unknown = sorted(set(boxes.label_names) - set(category))
        if unknown:
            raise BadInput(f"predictions name {', '.join(unknown)}", expected=f"classes {', '.join(dataset.classes)}")
        for row, (name, box) in enumerate(zip(boxes.label_names, boxes.boxes, strict=True)):
            records.append(
                {
                    "image_id": image_id,
                    **own_id,
                    "category_id": category[name],
                    "bbox": to_xywh(box),
                    "score": shortest(boxes.scores[row]),
                    **extra_keys(boxes, row),
                }
            )
    return records


def from_records(dataset: Dataset, records: Sequence[Any], source: str = "predictions") -> list[Detections]:
    """One `Detections` a sample, in the dataset's order; records of one image keep theirs.

    Raises:
        BadInput: a record is malformed, or names an image or category that the dataset lacks.
    """
    by_number = {image_id: row for row, image_id in enumerate(image_ids(dataset))}
    by_name = {sample_id: row for row, sample_id in enumerate(dataset.ids)}
    groups: list[list[dict[str, Any]]] = [[] for _ in range(len(dataset))]
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not {"image_id", "category_id", "bbox", "score"} <= record.keys():
            raise BadInput(
                f"record {number} of {source} is not a detection", expected="image_id, category_id, bbox and score"
            )
        row = by_name.get(record["sample_id"]) if "sample_id" in record else by_number.get(record["image_id"])
        if row is None:
            raise BadInput(f"record {number} of {source} is for image {record['image_id']!r}, which the data lacks")
        groups[row].append(record)
    label = {category_id: i for i, category_id in enumerate(dataset.category_ids)}
    return [to_detections(group, label, dataset.classes, source) for group in groups]


def write(path: Path, dataset: Dataset, detections: Iterable[Detections]) -> None:
    """Write a COCO result file; raises as `to_records`."""
    write_text(path, json.dumps(to_records(dataset, detections)) + "\n")


def read(path: Path, dataset: Dataset) -> list[Detections]:
    """Read a COCO result file against the dataset it is about; raises as `from_records`."""
    records = read_json(path)
    if not isinstance(records, list):
        raise BadInput(f"{path} is not a COCO result file", expected="a list of detections")
    return from_records(dataset, records, str(path))


def to_detections(
    records: Sequence[dict[str, Any]], label: dict[Any, int], classes: tuple[str, ...], source: str
) -> Detections:
    """COCO annotations or results of one image; without `score` they are truth, with score 1."""
    for record in records:
        if record.get("category_id") not in label:
            raise BadInput(
                f"{source} has a box of category {record.get('category_id')!r}",
                expected=f"one of {', '.join(map(str, label))}",
            )
    if not records:
        return Detections.empty(classes)
    probabilities = [record.get("probability") for record in records]
    whole = all(value is not None for value in probabilities)
    provenance = None
    if all("model" in record for record in records):
        provenance = tuple(provenance_from({k: r[k] for k in PROVENANCE if k in r}) for r in records)
    masks = tuple(json.dumps(r["segmentation"]) if r.get("segmentation") else "" for r in records)
    attributes = tuple(_attributes(r.get("attributes")) for r in records)
    return Detections(
        boxes=np.stack([from_xywh(record.get("bbox"), source) for record in records]),
        scores=np.asarray([record.get("score", 1.0) for record in records], dtype=np.float32),
        labels=np.asarray([label[record["category_id"]] for record in records], dtype=np.int64),
        names=classes,
        probabilities=np.asarray(probabilities, dtype=np.float32) if whole else None,
        masks=masks if any(masks) else None,
        attributes=attributes if any(attributes) else None,
        provenance=provenance,
    )


def extra_keys(boxes: Detections, row: int) -> dict[str, Any]:
    """Mask, attributes, probability, model, route and neighbours of one detection, those that are known."""
    extra: dict[str, Any] = {}
    if boxes.masks is not None and boxes.masks[row]:
        extra["segmentation"] = json.loads(boxes.masks[row])
    if boxes.attributes is not None and boxes.attributes[row]:
        extra["attributes"] = boxes.attributes[row]
    if boxes.probabilities is not None:
        extra["probability"] = shortest(boxes.probabilities[row])
    if boxes.provenance is not None:
        known = asdict(boxes.provenance[row])
        extra.update({key: value for key, value in known.items() if key == "model" or value not in (None, ())})
    return extra


def _attributes(told: Any) -> Attributes:
    return {k: v for k, v in told.items() if isinstance(v, str | int | float)} if isinstance(told, dict) else {}


def shortest(value: np.float32) -> float:
    """The decimal with the fewest digits that reads back as the same float32."""
    return float(str(value))


def to_xywh(box: np.ndarray) -> list[float]:
    """An xyxy float32 box (4,) as x, y, width, height in few digits; reads back as the very same box.

    Only a box that begins left of or above the image may differ, by less than 1e-9 pixels.
    """
    x, y = shortest(box[0]), shortest(box[1])
    return [x, y, _extent(x, box[2]), _extent(y, box[3])]


def _extent(low: float, high: np.float32) -> float:
    exact = float(high) - low
    for digits in range(8):
        size = round(exact, digits)
        if np.float32(low + size) == high:
            return size
    return exact


def from_xywh(bbox: Any, source: str) -> np.ndarray:
    """COCO x, y, width, height -> xyxy (4,) float32.

    Raises:
        BadInput: not four finite numbers with a size of at least 0.
    """
    try:
        x, y, width, height = (float(value) for value in bbox)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{source} has a malformed box", expected="[x, y, width, height]", received=str(bbox)) from error
    box = np.array([x, y, x + width, y + height], dtype=np.float32)
    if not np.isfinite(box).all() or width < 0 or height < 0:
        raise BadInput(f"{source} has an impossible box", expected="finite numbers, size >= 0", received=str(bbox))
    return box
