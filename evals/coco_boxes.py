"""Annotations of many images in columns, and how a truth's images and classes may be called.

Shape letters: N annotations, I images, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from foveal.detections import BoolArray, Detections, IntArray
from foveal.errors import BadInput

Doubles = npt.NDArray[np.float64]
LISTED = 5  # names that a message shows before it counts the rest


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Annotations of either side, a row each, in the order in which they came."""

    image: IntArray  # (N,) in 0..I-1
    category: IntArray  # (N,) in 0..K-1
    boxes: Doubles  # (N, 4) x, y, width, height, pixels
    area: Doubles  # (N,) square pixels
    crowd: BoolArray  # (N,) regions in which nothing counts
    score: Doubles  # (N,) in [0, 1]; of truth 1
    masks: tuple[Any, ...] | None = None  # (N,) COCO polygons or run lengths, where masks are compared

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def build(
        cls,
        image: Iterable[int],
        category: Iterable[int],
        boxes: Any,
        *,
        area: Any = None,
        crowd: Any = None,
        score: Any = 1.0,
        masks: Sequence[Any] | None = None,
    ) -> Boxes:
        """Columns from anything array-like; the area is width times height unless given."""
        placed = np.asarray(boxes, np.float64).reshape(-1, 4)
        count = len(placed)
        return cls(
            np.fromiter(image, np.int64, count),
            np.fromiter(category, np.int64, count),
            placed,
            placed[:, 2] * placed[:, 3] if area is None else np.asarray(area, np.float64),
            np.zeros(count, bool) if crowd is None else np.asarray(crowd, bool),
            np.broadcast_to(np.asarray(score, np.float64), (count,)),
            None if masks is None else tuple(masks),
        )


@dataclass(frozen=True, slots=True)
class Index:
    """The truth's images and classes, and every name under which predictions may refer to one."""

    ids: list[str]  # of the images
    aliases: dict[str, int]  # id, file name, its last part or its stem -> image
    classes: list[str]
    categories: dict[str, int]  # class name -> category
    category_ids: dict[int, int]  # the truth file's own number -> category
    sizes: Doubles  # (I, 2) width and height, NaN where they are not known
    given: IntArray  # (I,) where each image stands here, in the order in which the truth was given

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        files: Sequence[str],
        classes: Sequence[str],
        category_ids: Sequence[int],
        sizes: Sequence[tuple[float, float] | None],
        order: Sequence[int] | None = None,
    ) -> Index:
        """The index of images in this order, which takes them from places `order` of the truth as it was given.

        Where two images share a name the first keeps it.

        Raises:
            BadInput: no classes, or two of one name.
        """
        if not classes:
            raise BadInput("the truth has no classes", expected="at least one category")
        twice = [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]
        if twice:
            raise BadInput(f"the truth names {some(twice)} more than once", expected="different class names")
        aliases = {name: i for i, name in enumerate(ids)}
        for i, file in enumerate(files):
            for alias in (file, PurePosixPath(file).name, PurePosixPath(file).stem):
                if alias:
                    aliases.setdefault(alias, i)
        unknown = (float("nan"), float("nan"))
        return cls(
            list(ids),
            aliases,
            list(classes),
            {name: k for k, name in enumerate(classes)},
            {number: k for k, number in enumerate(category_ids)},
            np.array([size or unknown for size in sizes], np.float64).reshape(-1, 2),
            np.arange(len(ids)) if order is None else np.argsort(np.asarray(order, np.int64)),
        )


def of_detections(items: Sequence[Detections], categories: dict[str, int], *, masks: bool = False) -> Boxes:
    """One `Detections` an image, in order.

    Raises:
        BadInput: a class that the truth does not have, or a box without mask where masks are wanted.
    """
    unknown = sorted({name for item in items for name in set(item.label_names)} - categories.keys())
    if unknown:
        raise BadInput(
            f"predicted classes unknown to the truth: {some(unknown)}", expected=f"names among {some(categories)}"
        )
    filled = [(i, item) for i, item in enumerate(items) if len(item)]
    corners = np.concatenate([np.zeros((0, 4), np.float32), *(item.boxes for _, item in filled)])
    # Width and height are rounded to float32 like the corners, as a results file written from them has it.
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64)
    return Boxes.build(
        [i for i, item in filled for _ in range(len(item))],
        [categories[name] for _, item in filled for name in item.label_names],
        boxes,
        score=np.concatenate([np.zeros(0, np.float32), *(item.scores for _, item in filled)]),
        masks=[mask for _, item in filled for mask in parsed_masks(item)] if masks else None,
    )


def parsed_masks(item: Detections) -> list[Any]:
    """The masks of one image's boxes as COCO objects.

    Raises:
        BadInput: a box has none.
    """
    if item.masks is None or not all(item.masks):
        raise BadInput("a box has no mask", expected="a mask a box", remedy="Compare boxes, without --masks.")
    return [json.loads(text) for text in item.masks]


def read_json(path: Path) -> Any:
    """Parsed JSON, or a `BadInput` that names the file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist", expected="a COCO JSON file") from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a folder", expected="a COCO JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not JSON", expected="a COCO JSON file", received=str(error)) from error


def some(names: Iterable[Any]) -> str:
    """The first few names, and how many more there are."""
    listed = [str(n) for n in names]
    return ", ".join(listed[:LISTED]) + (f" and {len(listed) - LISTED} more" if len(listed) > LISTED else "")
