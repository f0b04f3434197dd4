"""The truth of a detection set, from a COCO file, a dataset or `Detections`, with its images in COCO's order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from evals.coco_boxes import Boxes, Index, of_detections, parsed_masks, read_json, some
from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.errors import BadInput

TruthLike = str | Path | Mapping[str, Any] | Dataset | Sequence[Detections]
Columns = dict[str, list[Any]]


def read_truth(truth: TruthLike, *, masks: bool = False) -> tuple[Boxes, Index]:
    """The truth's annotations and index.

    Images whose ids are all numbers come in the order of these: equal scores are ranked by image, and COCO ranks by id.

    Raises:
        BadInput: nothing to measure against, images without labels, or annotations that refer to nothing.
    """
    if isinstance(truth, str | Path):
        path = Path(truth)
        truth = Dataset.open(path) if path.is_dir() else read_json(path)
    if isinstance(truth, Dataset):
        return _of_dataset(truth, masks)
    if isinstance(truth, Mapping):
        return _of_coco(truth, masks)
    if isinstance(truth, Sequence) and all(isinstance(item, Detections) for item in truth):
        items = cast("Sequence[Detections]", truth)
        classes = list(dict.fromkeys(name for item in items for name in item.names))
        numbers = range(1, len(items) + 1)
        index = Index.build([str(n) for n in numbers], (), classes, range(1, len(classes) + 1), [None] * len(items))
        return of_detections(items, index.categories, masks=masks), index
    raise BadInput("the truth has no boxes to measure against", expected="COCO, a Dataset or one Detections an image")


def _of_dataset(truth: Dataset, masks: bool) -> tuple[Boxes, Index]:
    samples = list(truth)
    unlabelled = [s.id for s in samples if s.truth is None]
    if unlabelled:
        raise BadInput(
            f"{len(unlabelled)} of {len(samples)} truth images have no labels: {some(unlabelled)}",
            expected="boxes (possibly none) for every image",
        )
    order = _in_order([s.id for s in samples])
    samples = [samples[i] for i in order]
    index = Index.build(
        [s.id for s in samples],
        [s.path.as_posix() for s in samples],
        truth.classes,
        truth.category_ids,
        [(s.width, s.height) for s in samples],
        order,
    )
    known = [s.truth for s in samples if s.truth is not None]
    objects = of_detections(known, index.categories)
    image, category, boxes = objects.image.tolist(), objects.category.tolist(), objects.boxes.tolist()
    outlines = [mask for item in known if len(item) for mask in parsed_masks(item)] if masks else []
    for i, sample in enumerate(samples):
        # The COCO reader keeps crowd regions apart from objects: what lies in one is neither hit nor false alarm.
        for region in json.loads(str(sample.metadata.get("crowd", "[]"))):
            x, y, w, h = (float(v) for v in region["bbox"])
            image.append(i)
            category.append(index.categories[region["category"]])
            boxes.append([x, y, w, h])
            outlines.append([[x, y, x + w, y, x + w, y + h, x, y + h]])
    crowd = [False] * len(objects) + [True] * (len(boxes) - len(objects))
    return Boxes.build(image, category, boxes, crowd=crowd, masks=outlines if masks else None), index


def _of_coco(truth: Mapping[str, Any], masks: bool) -> tuple[Boxes, Index]:
    missing = [key for key in ("images", "annotations", "categories") if key not in truth]
    if missing:
        raise BadInput(
            f"the truth lacks {', '.join(missing)}", expected="a COCO object with images, annotations, categories"
        )
    listed: list[Mapping[str, Any]] = list(truth["images"])
    order = _in_order([str(image["id"]) for image in listed])
    images = [listed[i] for i in order]
    categories = sorted(truth["categories"], key=lambda c: c["id"])
    index = Index.build(
        [str(image.get("sample_id", image["id"])) for image in images],
        [str(image.get("file_name", "")) for image in images],
        [str(c["name"]) for c in categories],
        [int(c["id"]) for c in categories],
        [(im["width"], im["height"]) if im.get("width") and im.get("height") else None for im in images],
        order,
    )
    by_id = {str(image["id"]): i for i, image in enumerate(images)}
    if len(by_id) < len(images):
        raise BadInput("the truth gives two images one id", remedy="Number the images anew.")
    index.aliases.update(by_id)
    found: Columns = {name: [] for name in ("image", "category", "boxes", "area", "crowd", "masks")}
    for annotation in truth["annotations"]:
        try:
            row = _row(annotation, by_id, index, masks)
        except (KeyError, TypeError, ValueError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise BadInput(
                f"truth annotation {_id_of(annotation)} is malformed: {why}",
                expected="image_id, category_id and bbox [x, y, width, height]",
            ) from None
        for column, value in zip(found.values(), row, strict=True):
            column.append(value)
    outlines = found.pop("masks")
    return Boxes.build(**found, masks=outlines if masks else None), index


def _row(
    annotation: Mapping[str, Any], by_id: Mapping[str, int], index: Index, masks: bool
) -> tuple[int, int, list[float], float, bool, Any]:
    image = by_id.get(str(annotation["image_id"]))
    category = index.category_ids.get(int(annotation["category_id"]))
    if image is None or category is None:
        what = f"image {annotation['image_id']}" if image is None else f"category {annotation['category_id']}"
        raise BadInput(f"truth annotation {_id_of(annotation)} names {what}, which the file does not list")
    x, y, width, height = (float(v) for v in annotation["bbox"])
    outline = annotation.get("segmentation")
    if masks and not outline:
        raise BadInput(f"truth annotation {_id_of(annotation)} has no segmentation", expected="a mask a box")
    area = float(annotation.get("area", width * height))
    return image, category, [x, y, width, height], area, bool(annotation.get("iscrowd", 0)), outline


def _id_of(annotation: Any) -> Any:
    return annotation.get("id") if isinstance(annotation, Mapping) else repr(annotation)[:40]


def _in_order(ids: list[str]) -> list[int]:
    """The rows by number where all ids are numbers, else as they come."""
    if not all(name.isdecimal() for name in ids):
        return list(range(len(ids)))
    return sorted(range(len(ids)), key=lambda i: int(ids[i]))
