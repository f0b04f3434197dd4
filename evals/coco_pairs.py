"""Truth and predictions, in whatever form they come, joined into one pair that COCO's evaluation can run on.

Nothing is dropped silently: an image, class or value that does not fit is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.errors import BadInput

Record = dict[str, Any]
TruthLike = str | Path | Mapping[str, Any] | Dataset | Sequence[Detections]
PredictionLike = str | Path | Mapping[str, Any] | Dataset | Sequence[Detections] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Pairs:
    """COCO annotations of both sides with 1-based ids: images 1..`images`, category k is `classes[k - 1]`."""

    images: int
    classes: list[str]
    truth: list[Record]
    predictions: list[Record]


@dataclass(frozen=True, slots=True)
class _Index:
    """How images and classes of the truth may be called, each -> its 1-based id."""

    images: dict[str, int]
    classes: dict[str, int]  # by name
    category_ids: dict[int, int]  # by the truth file's own category id
    sizes: dict[int, tuple[float, float]]
    own_ids: list[str]  # the truth's own image ids, in its order


def pair_up(truth: TruthLike, predictions: PredictionLike) -> Pairs:
    """Both sides under the truth's images and classes; raises `BadInput` as `evals.detection.evaluate` says."""
    image_names, classes, records, index = _read_truth(truth)
    source = predictions if isinstance(predictions, str | Path) else "predictions"
    loaded: Any = read_json(Path(predictions)) if isinstance(predictions, str | Path) else predictions
    if isinstance(loaded, Dataset):
        found = _from_dataset(loaded, index, source)
    elif isinstance(loaded, Mapping):
        found = _from_instances(cast("Mapping[str, Any]", loaded), index, source)
    elif isinstance(loaded, Sequence) and not isinstance(loaded, str | bytes):
        items = cast("Sequence[Any]", loaded)
        if any(isinstance(item, Detections) for item in items):
            found = _from_detections(items, [str(i + 1) for i in range(len(image_names))], classes, index)
        else:
            found = _from_results(items, index, source)
    else:
        raise BadInput(
            f"{source} holds no predictions",
            expected="a COCO results list, an instances-style COCO object with scores, or one Detections an image",
            received=type(loaded).__name__,
        )
    _check_values(found, index, source)
    if all(name.isdecimal() for name in index.own_ids):
        # Equal scores are ranked by image id, so the ids' order must be the truth's own to reproduce COCO's numbers.
        order = sorted(range(len(image_names)), key=lambda i: int(index.own_ids[i]))
        rank = {i + 1: place for place, i in enumerate(order, start=1)}
        for record in records + found:
            record["image_id"] = rank[record["image_id"]]
    return Pairs(len(image_names), classes, records, _numbered(found))


def read_json(path: Path) -> Any:
    """Parsed JSON, or a `BadInput` that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist", expected="a COCO JSON file") from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a folder", expected="a COCO JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not JSON", expected="a COCO JSON file", received=str(error)) from error


def _read_truth(truth: TruthLike) -> tuple[list[str], list[str], list[Record], _Index]:
    if isinstance(truth, str | Path):
        path = Path(truth)
        truth = Dataset.open(path) if path.is_dir() else read_json(path)
    if isinstance(truth, Dataset):
        return _truth_of_dataset(truth)
    if isinstance(truth, Mapping):
        return _truth_of_coco(truth)
    if isinstance(truth, Sequence) and all(isinstance(item, Detections) for item in truth):
        return _truth_of_detections(cast("Sequence[Detections]", truth))
    raise BadInput("the truth has no boxes to measure against", expected="COCO, a Dataset or one Detections an image")


def _truth_of_detections(truth: Sequence[Detections]) -> tuple[list[str], list[str], list[Record], _Index]:
    classes = list(dict.fromkeys(name for item in truth for name in item.names))
    names = [str(i + 1) for i in range(len(truth))]
    index = _Index(
        {name: i + 1 for i, name in enumerate(names)},
        {name: k + 1 for k, name in enumerate(classes)},
        {k + 1: k + 1 for k in range(len(classes))},
        {},
        names,
    )
    return names, classes, _numbered(_from_detections(truth, names, classes, index)), index


def _truth_of_dataset(truth: Dataset) -> tuple[list[str], list[str], list[Record], _Index]:
    samples = list(truth)
    unlabelled = [s.id for s in samples if s.truth is None]
    if unlabelled:
        raise BadInput(
            f"{len(unlabelled)} of {len(samples)} truth images have no labels: {_some(unlabelled)}",
            expected="boxes (possibly none) for every image",
        )
    images: dict[str, int] = {}
    for i, sample in enumerate(samples):
        _name_image(images, i + 1, sample.id, sample.path.as_posix())
    classes = list(truth.classes)
    index = _Index(
        images,
        {name: k + 1 for k, name in enumerate(classes)},
        {category_id: k + 1 for k, category_id in enumerate(truth.category_ids)},
        {i + 1: (s.width, s.height) for i, s in enumerate(samples)},
        [s.id for s in samples],
    )
    ids = index.own_ids
    records = _from_detections([s.truth for s in samples if s.truth is not None], ids, classes, index)
    for number, sample in enumerate(samples, start=1):
        # The COCO reader keeps crowd regions apart from objects: what lies in one is neither hit nor false alarm.
        for region in json.loads(str(sample.metadata.get("crowd", "[]"))):
            box = [float(v) for v in region["bbox"]]
            category = index.classes[region["category"]]
            records.append(
                {"image_id": number, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 1}
            )
    return ids, classes, _numbered(records), index


def _truth_of_coco(truth: Mapping[str, Any]) -> tuple[list[str], list[str], list[Record], _Index]:
    missing = [key for key in ("images", "annotations", "categories") if key not in truth]
    if missing:
        raise BadInput(
            f"the truth lacks {', '.join(missing)}", expected="a COCO object with images, annotations, categories"
        )
    images: dict[str, int] = {}
    names: list[str] = []
    sizes: dict[int, tuple[float, float]] = {}
    for i, image in enumerate(truth["images"], start=1):
        names.append(str(image.get("file_name", image["id"])))
        _name_image(images, i, str(image["id"]), str(image.get("file_name", "")))
        if image.get("width") and image.get("height"):
            sizes[i] = (image["width"], image["height"])
    by_id = {str(image["id"]): i for i, image in enumerate(truth["images"], start=1)}
    categories = sorted(truth["categories"], key=lambda c: c["id"])
    classes = [str(c["name"]) for c in categories]
    category_ids = {int(c["id"]): k for k, c in enumerate(categories, start=1)}
    records: list[Record] = []
    for annotation in truth["annotations"]:
        image_id, category = by_id.get(str(annotation["image_id"])), category_ids.get(int(annotation["category_id"]))
        if image_id is None or category is None:
            what = f"image {annotation['image_id']}" if image_id is None else f"category {annotation['category_id']}"
            raise BadInput(f"truth annotation {annotation.get('id')} names {what}, which the file does not list")
        box = [float(v) for v in annotation["bbox"]]
        records.append(
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": box,
                "area": float(annotation.get("area", box[2] * box[3])),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    numbers = {name: k for k, name in enumerate(classes, start=1)}
    index = _Index({**images, **by_id}, numbers, category_ids, sizes, list(by_id))
    return names, classes, _numbered(records), index


def _name_image(images: dict[str, int], number: int, *names: str) -> None:
    """An image may be called by its id, its file name, or that name's last part or stem; the first claim counts."""
    for name in names:
        for alias in (name, PurePosixPath(name).name, PurePosixPath(name).stem):
            if alias:
                images.setdefault(alias, number)


def _from_detections(
    items: Sequence[Detections], names: Sequence[str], classes: Sequence[str], index: _Index
) -> list[Record]:
    if len(items) != len(names):
        raise BadInput(
            "predictions and truth cover different images",
            expected=f"{len(names)} entries, one an image, in the truth's order",
            received=str(len(items)),
        )
    records: list[Record] = []
    for number, item in enumerate(items, start=1):
        unknown = sorted(set(item.label_names) - set(classes))
        if unknown:
            raise BadInput(
                f"predicted classes unknown to the truth: {_some(unknown)}", expected=f"names among {_some(classes)}"
            )
        sizes = item.boxes[:, 2:] - item.boxes[:, :2]
        for box, size, name, score in zip(item.boxes, sizes, item.label_names, item.scores, strict=True):
            records.append(
                {
                    "image_id": number,
                    "category_id": index.classes[name],
                    "bbox": [float(box[0]), float(box[1]), float(size[0]), float(size[1])],
                    "area": float(size[0]) * float(size[1]),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    return records


def _from_dataset(dataset: Dataset, index: _Index, source: str | Path) -> list[Record]:
    names: dict[int, str] = {}
    annotations: list[Record] = []
    for number, sample in enumerate(dataset, start=1):
        names[number] = sample.id
        if sample.truth is None:
            continue
        for box, name, score in zip(sample.truth.boxes, sample.truth.label_names, sample.truth.scores, strict=True):
            x1, y1, x2, y2 = box.tolist()
            annotations.append(
                {"image_id": number, "category": name, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}
            )
    return _joined(annotations, names, index, source)


def _from_instances(loaded: Mapping[str, Any], index: _Index, source: str | Path) -> list[Record]:
    if "annotations" not in loaded:
        raise BadInput(f"{source} has no annotations", expected="a COCO results list or an instances-style object")
    images = {im["id"]: str(im.get("file_name", im["id"])) for im in loaded.get("images", [])}
    names = {c["id"]: str(c["name"]) for c in loaded.get("categories", [])}
    annotations = [
        {**a, "category": names[a["category_id"]]} if a.get("category_id") in names else dict(a)
        for a in loaded["annotations"]
    ]
    return _joined(annotations, images, index, source)


def _from_results(loaded: Sequence[Any], index: _Index, source: str | Path) -> list[Record]:
    odd = next((item for item in loaded if not isinstance(item, Mapping)), None)
    if odd is not None:
        raise BadInput(f"{source} is not a COCO results list", expected="objects", received=type(odd).__name__)
    return _joined([dict(item) for item in loaded], {}, index, source)


def _joined(items: list[Record], files: Mapping[Any, str], index: _Index, source: str | Path) -> list[Record]:
    """Items with the truth's image and category ids; `files` maps the items' own image ids to names, where known."""
    records: list[Record] = []
    lost_images: dict[str, None] = {}
    lost_classes: dict[str, None] = {}
    for item in items:
        absent = [key for key in ("image_id", "bbox", "score") if key not in item]
        if absent or not ("category" in item or "category_id" in item):
            raise BadInput(
                f"a prediction in {source} lacks {', '.join(absent) or 'category_id'}",
                expected="image_id, category_id, bbox [x, y, width, height] and score",
                received=", ".join(sorted(item)),
            )
        name = files.get(item["image_id"], str(item["image_id"]))
        image = index.images.get(name) or index.images.get(PurePosixPath(name).name)
        if "category" in item:
            category = index.classes.get(item["category"])
        else:
            category = index.category_ids.get(item["category_id"])
        if image is None:
            lost_images[name] = None
        if category is None:
            lost_classes[str(item.get("category", item.get("category_id")))] = None
        if image is not None and category is not None:
            box = [float(v) for v in item["bbox"]]
            records.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": float(item["score"]),
                }
            )
    if lost_images:
        raise BadInput(
            f"{source} has predictions for {len(lost_images)} images the truth does not have: {_some(lost_images)}",
            expected=f"images such as {_some(index.images)}",
            remedy="Evaluate against the truth of the same images.",
        )
    if lost_classes:
        raise BadInput(
            f"{source} names classes the truth does not have: {_some(lost_classes)}",
            expected=", ".join(f"{name} (id {i})" for name, i in _class_ids(index)),
        )
    return records


def _class_ids(index: _Index) -> list[tuple[str, int]]:
    own = {number: category for category, number in index.category_ids.items()}
    return [(name, own[number]) for name, number in index.classes.items()]


def _check_values(records: list[Record], index: _Index, source: str | Path) -> None:
    if not records:
        return
    boxes = np.array([r["bbox"] for r in records], dtype=np.float64)
    scores = np.array([r["score"] for r in records], dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all() or not np.isfinite(scores).all():
        raise BadInput(f"{source} holds NaN, infinite or incomplete boxes or scores", expected="finite numbers")
    if scores.min() < 0 or scores.max() > 1:
        worst = scores.max() if scores.max() > 1 else scores.min()
        raise BadInput(f"{source} has a score outside its range", expected="[0, 1]", received=f"{worst:g}")
    if boxes[:, 2:].min() < 0:
        raise BadInput(f"{source} has a box of negative width or height", expected="bbox [x, y, width, height]")
    sized = [
        (box, index.sizes[r["image_id"]]) for box, r in zip(boxes, records, strict=True) if r["image_id"] in index.sizes
    ]
    if len(sized) < 20:
        return
    extents = np.array([size for _, size in sized])
    placed = np.array([box for box, _ in sized])
    outside = ((placed[:, :2] + placed[:, 2:]) > extents * 1.05).any(axis=1).mean()
    if outside > 0.1 and (placed[:, 2:] >= placed[:, :2]).all() and (placed[:, 2:] <= extents * 1.01).all():
        raise BadInput(
            f"the boxes of {source} look like [x1, y1, x2, y2]: read as sizes, {outside:.0%} leave their image",
            expected="bbox [x, y, width, height]",
        )
    if placed.max() <= 1.0 and extents.min() > 16:
        raise BadInput(f"the boxes of {source} look normalised to 0..1", expected="pixels, [x, y, width, height]")


def _numbered(records: list[Record]) -> list[Record]:
    for number, record in enumerate(records, start=1):
        record["id"] = number
    return records


def _some(names: Any, limit: int = 5) -> str:
    listed = [str(n) for n in names]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
