"""Label Studio regions: `rectanglelabels` in percent of the image, from the top left, and back to boxes in pixels."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from foveal.dataset import provenance_from
from foveal.detections import Detections
from foveal.formats.predictions import shortest

FROM_NAME, TO_NAME = "label", "image"


class Unusable(Exception):
    """A region that cannot become a box; the message says why."""


def regions(boxes: Detections, width: int, height: int, prefix: str = "box") -> list[dict[str, Any]]:
    """Label Studio `rectanglelabels` regions of one image, percent of `width` x `height` pixels.

    `score` is the calibrated probability where there is one; the whole record travels in `meta`.
    """
    made: list[dict[str, Any]] = []
    for row, (name, box) in enumerate(zip(boxes.label_names, boxes.boxes.astype(np.float64), strict=True)):
        x1, y1, x2, y2 = (float(value) for value in box)
        made.append(
            {
                "id": f"{prefix}-{row + 1}",
                "from_name": FROM_NAME,
                "to_name": TO_NAME,
                "type": "rectanglelabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "x": 100 * x1 / width,
                    "y": 100 * y1 / height,
                    "width": 100 * (x2 - x1) / width,
                    "height": 100 * (y2 - y1) / height,
                    "rotation": 0,
                    "rectanglelabels": [name],
                },
                **_evidence(boxes, row),
            }
        )
    return made


def _evidence(boxes: Detections, row: int) -> dict[str, Any]:
    """`score` and `meta` of one region; truth that a person drew has neither."""
    score = shortest(boxes.scores[row])
    probability = None if boxes.probabilities is None else shortest(boxes.probabilities[row])
    provenance = None if boxes.provenance is None else boxes.provenance[row]
    if score == 1 and probability is None and provenance is None:
        return {}
    words = [f"{probability if probability is not None else score:.0%}"]
    record: dict[str, Any] = {"score": score, "probability": probability}
    if provenance is not None:
        record |= asdict(provenance)
        words += [provenance.route] if provenance.route else []
        if provenance.neighbours:
            words.append(f"{sum(n.supports for n in provenance.neighbours)}/{len(provenance.neighbours)} neighbours")
    meta = {"text": [", ".join(words)], "foveal": record}
    return {"score": probability if probability is not None else score, "meta": meta}


def detections(made: dict[str, Any], classes: tuple[str, ...], width: int, height: int) -> Detections:
    found = [r for r in made.get("result", []) if r.get("type") in ("rectanglelabels", "rectangle", "polygonlabels")]
    if not found:
        return Detections.empty(classes)
    boxes = np.asarray([_box(region, width, height) for region in found], dtype=np.float64).astype(np.float32)
    labels: list[int] = []
    for region in found:
        name = next(iter(class_names(region)), None)
        if name not in classes:
            raise Unusable("a region has no class" if name is None else f"class {name!r} is not in the configuration")
        labels.append(classes.index(name))
    records: list[dict[str, Any]] = [(r.get("meta") or {}).get("foveal", {}) for r in found]
    scores = [k.get("score", r.get("score", 1.0)) for k, r in zip(records, found, strict=True)]
    known = [k["probability"] for k in records if k.get("probability") is not None]
    made_by = [
        provenance_from({key: value for key, value in k.items() if key not in ("score", "probability")})
        for k in records
        if "model" in k
    ]
    return Detections(
        boxes=boxes,
        scores=np.asarray([1.0 if score is None else score for score in scores], dtype=np.float32),
        labels=np.asarray(labels, dtype=np.int64),
        names=classes,
        probabilities=np.asarray(known, dtype=np.float32) if len(known) == len(found) else None,
        provenance=tuple(made_by) if len(made_by) == len(found) else None,
    )


def _box(region: dict[str, Any], width: int, height: int) -> tuple[float, float, float, float]:
    """Percent -> xyxy pixels; a turned rectangle or a polygon becomes the box around it."""
    if region.get("image_rotation"):
        raise Unusable("it was drawn on a turned image")
    value = region["value"]
    try:
        if "points" in value:
            corners = [(float(x) * width / 100, float(y) * height / 100) for x, y in value["points"]]
        else:
            x, y, w, h = (float(value[key]) for key in ("x", "y", "width", "height"))
            x1, y1, x2, y2 = x * width / 100, y * height / 100, (x + w) * width / 100, (y + h) * height / 100
            angle = math.radians(float(value.get("rotation") or 0))  # clockwise, about the top left corner
            if not angle:
                return x1, y1, x2, y2
            turned = [(dx, dy) for dx in (0, x2 - x1) for dy in (0, y2 - y1)]
            cos, sin = math.cos(angle), math.sin(angle)
            corners = [(x1 + dx * cos - dy * sin, y1 + dx * sin + dy * cos) for dx, dy in turned]
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"a region is malformed: {error}") from error
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def class_names(region: dict[str, Any]) -> list[str]:
    value = region.get("value", {})
    return list(value.get("rectanglelabels") or value.get("polygonlabels") or [])
