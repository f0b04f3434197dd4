"""Predictions in whatever form they come, under the truth's images and classes.

Nothing is dropped silently: an image or class that the truth does not have is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from evals.coco_boxes import Boxes, Index, of_detections, read_json, some
from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.errors import BadInput

Record = Mapping[str, Any]
PredictionLike = str | Path | Record | Dataset | Sequence[Detections] | Sequence[Record]


def read_predictions(predictions: PredictionLike, index: Index, *, masks: bool = False) -> Boxes:
    """The predictions' annotations.

    One `Detections` an image come in the order in which the truth was given.

    Raises:
        BadInput: no predictions, or some for images or classes that the truth lacks, or incomplete ones.
    """
    source = str(predictions) if isinstance(predictions, str | Path) else "predictions"
    loaded: Any = read_json(Path(predictions)) if isinstance(predictions, str | Path) else predictions
    if isinstance(loaded, Dataset):
        return _of_dataset(loaded, index, source, masks)
    if isinstance(loaded, Mapping):
        return _of_instances(cast("Record", loaded), index, source, masks)
    if isinstance(loaded, Sequence) and not isinstance(loaded, str | bytes):
        items = cast("Sequence[Any]", loaded)
        if any(isinstance(item, Detections) for item in items):
            return _in_truths_order(items, index, masks)
        odd = next((item for item in items if not isinstance(item, Mapping)), None)
        if odd is not None:
            raise BadInput(f"{source} is not a COCO results list", expected="objects", received=type(odd).__name__)
        return _of_records(items, {}, {}, index, source, masks)
    raise BadInput(
        f"{source} holds no predictions",
        expected="a COCO results list, an instances-style COCO object with scores, or one Detections an image",
        received=type(loaded).__name__,
    )


def _in_truths_order(items: Sequence[Detections], index: Index, masks: bool) -> Boxes:
    if len(items) != len(index.ids):
        raise BadInput(
            "predictions and truth cover different images",
            expected=f"{len(index.ids)} entries, one an image, in the truth's order",
            received=str(len(items)),
        )
    found = of_detections(items, index.categories, masks=masks)
    return replace(found, image=index.given[found.image])


def _of_dataset(dataset: Dataset, index: Index, source: str, masks: bool) -> Boxes:
    labelled = [sample for sample in dataset if sample.truth is not None]
    lost = [s.id for s in labelled if _image(s.id, index) is None]
    _refuse_images(lost, index, source)
    _refuse_classes(sorted(set(dataset.classes) - index.categories.keys()), labelled, index, source)
    found = of_detections([s.truth for s in labelled if s.truth is not None], index.categories, masks=masks)
    place = np.array([_image(s.id, index) for s in labelled], np.int64)
    return replace(found, image=place[found.image]) if len(found) else found


def _of_instances(loaded: Record, index: Index, source: str, masks: bool) -> Boxes:
    if "annotations" not in loaded:
        raise BadInput(f"{source} has no annotations", expected="a COCO results list or an instances-style object")
    files = {im["id"]: str(im.get("file_name", im["id"])) for im in loaded.get("images", [])}
    names = {c["id"]: str(c["name"]) for c in loaded.get("categories", [])}
    return _of_records(list(loaded["annotations"]), files, names, index, source, masks)


def _of_records(
    items: Sequence[Record],
    files: Mapping[Any, str],
    names: Mapping[Any, str],
    index: Index,
    source: str,
    masks: bool,
) -> Boxes:
    """Records; `files` and `names` say what their own image and category ids stand for, where a file tells."""
    try:
        image_ids, category_ids, scores = (
            [item[key] for item in items] for key in ("image_id", "category_id", "score")
        )
        # The box of a mask is the one around it; whether the record tells it does not matter.
        boxes: list[Any] = [[0, 0, 0, 0]] * len(items) if masks else [item["bbox"] for item in items]
        flat = list(chain.from_iterable(boxes))
        outlines = [item["segmentation"] for item in items] if masks else None
        asked, said = dict.fromkeys(image_ids), dict.fromkeys(category_ids)
    except (KeyError, TypeError):
        raise _incomplete(items, source, masks) from None
    images = {one: _image(files.get(one, str(one)), index) for one in asked}
    _refuse_images([files.get(one, str(one)) for one, known in images.items() if known is None], index, source)
    categories = {
        one: index.categories.get(names[one]) if one in names else index.category_ids.get(one) for one in said
    }
    lost = [names.get(one, repr(one)) for one, known in categories.items() if known is None]
    if lost:
        raise _unknown_classes(lost, index, source)
    try:
        numbers = np.fromiter(flat, np.float64, len(flat))
        ranks = np.fromiter(scores, np.float64, len(scores))
    except (TypeError, ValueError):
        raise _unreadable(source) from None
    if len(numbers) != 4 * len(items) or any(len(box) != 4 for box in boxes):
        raise _unreadable(source)
    return Boxes.build(
        map(cast("Any", images.__getitem__), image_ids),
        map(cast("Any", categories.__getitem__), category_ids),
        numbers,
        score=ranks,
        masks=outlines,
    )


def _image(name: str, index: Index) -> int | None:
    found = index.aliases.get(name)
    return index.aliases.get(PurePosixPath(name).name) if found is None else found


def _incomplete(items: Sequence[Record], source: str, masks: bool) -> BadInput:
    needed = ("image_id", "category_id", "segmentation" if masks else "bbox", "score")
    for number, item in enumerate(items):
        absent = [key for key in needed if key not in item]
        if absent:
            form = "segmentation" if masks else "bbox [x, y, width, height]"
            return BadInput(
                f"prediction {number} in {source} lacks {', '.join(absent)}",
                expected=f"image_id, category_id, {form} and score",
                received=", ".join(sorted(map(str, item))),
            )
    return _unreadable(source)


def _unreadable(source: str) -> BadInput:
    return BadInput(f"{source} holds NaN, infinite or incomplete boxes or scores", expected="finite numbers")


def _refuse_images(lost: Sequence[str], index: Index, source: str) -> None:
    if lost:
        raise BadInput(
            f"{source} has predictions for {len(lost)} images the truth does not have: {some(lost)}",
            expected=f"images such as {some(index.ids)}",
            remedy="Evaluate against the truth of the same images.",
        )


def _refuse_classes(unknown: Sequence[str], labelled: Sequence[Any], index: Index, source: str) -> None:
    used = {name for sample in labelled for name in sample.truth.label_names}
    lost = [name for name in unknown if name in used]
    if lost:
        raise _unknown_classes(lost, index, source)


def _unknown_classes(lost: Sequence[str], index: Index, source: str) -> BadInput:
    numbers = {k: number for number, k in index.category_ids.items()}
    known = [f"{name} (id {numbers[k]})" for k, name in enumerate(index.classes)]
    return BadInput(
        f"{source} names classes the truth does not have: {some(lost)}",
        expected=", ".join(known[:40]) + (f" and {len(known) - 40} more" if len(known) > 40 else ""),
        remedy="Give the predictions the truth's category ids, or an instances-style file that names its own.",
    )
