"""Masks of annotations as the run lengths that COCO's code compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from evals.coco_boxes import Boxes, Doubles
from foveal.errors import BadInput


def encoded(side: Boxes, sizes: Doubles, what: str, *, measured: bool) -> Boxes:
    """The side with compressed run lengths for masks.

    Args:
        sizes: (I, 2) width and height of the images, NaN where unknown: polygons need them.
        measured: boxes and areas are those of the masks, as COCO has it for predictions; else as they were given.

    Raises:
        BadInput: a mask that is neither polygons nor run lengths, or polygons in an image of unknown size.
    """
    from faster_coco_eval import mask  # type: ignore[import-untyped]

    tools: Any = mask
    found: list[Any] = []
    for told, image in zip(side.masks or (), side.image.tolist(), strict=True):
        try:
            found.append(_run_lengths(told, sizes[image], tools.frPyObjects, tools.merge))
        except Exception as error:  # the C++ code raises types of its own
            known = "" if np.isfinite(sizes[image]).all() else "; the truth does not say how large its image is"
            raise BadInput(
                f"a mask of {what} cannot be read{known}",
                expected="COCO polygons or run lengths",
                received=str(told)[:80],
            ) from error
    if not measured or not found:
        return replace(side, masks=tuple(found))
    areas = np.asarray(tools.area(found), np.float64)
    boxes = np.asarray(tools.toBbox(found), np.float64).reshape(-1, 4)
    return replace(side, masks=tuple(found), area=areas, boxes=boxes)


def _run_lengths(told: Any, size: Doubles, read: Callable[..., Any], merge: Callable[..., Any]) -> Any:
    if isinstance(told, dict) and not isinstance(told["counts"], list):
        counts: Any = told["counts"]
        return {**told, "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    height, width = told["size"] if isinstance(told, dict) else (int(size[1]), int(size[0]))
    parts = read(told, height, width)
    return merge(parts) if isinstance(parts, list) else parts
