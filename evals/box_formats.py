"""Are boxes written as they are said to be? COCO's [x, y, width, height] in pixels is easily taken for another form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from evals.coco_boxes import Boxes, Doubles
from evals.overlaps import overlaps
from foveal.errors import BadInput

FEWEST = 20  # predictions from which something can be said
LOOKED_AT = 2000  # of the surest predictions
OUTSIDE = 0.1  # share of boxes that may leave their image

# What boxes may be in truth -> how such are read as [x, y, width, height].
FORMS: dict[str, Callable[[Doubles], Doubles]] = {
    "[x1, y1, x2, y2]": lambda b: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1),
    "cxcywh, [centre x, centre y, width, height]": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:] / 2, b[:, 2:]], axis=1
    ),
}


def check_format(found: Boxes, truth: Boxes, sizes: Doubles, source: str) -> None:
    """Refuses predictions whose boxes are plainly of another form.

    They are when they leave their images as they are read, or miss the truth, and in another form do not.

    Args:
        sizes: (I, 2) width and height of the images, NaN where unknown.

    Raises:
        BadInput: says which form they look like.
    """
    _refuse_normalised(truth.boxes, sizes[truth.image], "the truth")
    surest = np.argsort(-found.score, kind="stable")[:LOOKED_AT]
    if len(surest) < FEWEST:
        return
    looked = Boxes.build(found.image[surest], found.category[surest], found.boxes[surest], score=found.score[surest])
    extents = sizes[looked.image]
    _refuse_normalised(looked.boxes, extents, source)
    objects = replace(truth, masks=None)
    near, outside = _near(looked, objects), _outside(looked.boxes, extents)
    for name, read in FORMS.items():
        boxes = read(looked.boxes)
        if boxes[:, 2:].min() < 0:
            continue
        other = _near(replace(looked, boxes=boxes), objects)
        fits = outside > OUTSIDE and _outside(boxes, extents) < OUTSIDE / 10 and other >= near
        if fits or (other >= 0.2 and other > 4 * near):
            why = f"{outside:.0%} leave their image" if fits else f"{near:.0%} lie on an object, else {other:.0%}"
            raise BadInput(
                f"the boxes of {source} look like {name}: read as [x, y, width, height], {why}",
                expected="bbox [x, y, width, height] in pixels",
                remedy="Convert the boxes.",
            )


def _refuse_normalised(boxes: Doubles, extents: Doubles, source: str) -> None:
    if len(boxes) and boxes.max() <= 1.0 and (not np.isfinite(extents).any() or np.nanmin(extents) > 16):
        raise BadInput(
            f"the boxes of {source} look normalised to 0..1",
            expected="bbox [x, y, width, height] in pixels",
            remedy="Multiply them by the width and height of their image.",
        )


def _near(found: Boxes, truth: Boxes) -> float:
    """Share of the predictions that lie on an object of any class, by an IoU of a half."""
    pairs = overlaps(found, truth, 0.5, same_class=False)
    return len(np.unique(pairs.prediction)) / len(found)


def _outside(boxes: Doubles, extents: Doubles) -> float:
    """Share of the boxes that leave their image by more than a twentieth of it, where its size is known."""
    known = np.isfinite(extents).all(axis=1)
    if not known.any():
        return 0.0
    low, high = boxes[known, :2], boxes[known, :2] + boxes[known, 2:]
    slack = 0.05 * extents[known]
    return float(((high > extents[known] + slack) | (low < -slack)).any(axis=1).mean())
