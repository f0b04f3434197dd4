"""Label Studio regions: `rectanglelabels` in percent of the image, from the top left, and back to boxes in pixels.

A box with a mask is a `polygonlabels` region, the mask's largest outline; attributes are `choices` of the same region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from foveal import masks
from foveal.dataset import provenance_from
from foveal.detections import Attributes, Detections, FloatArray
from foveal.formats.attributes import as_text
from foveal.formats.predictions import shortest

FROM_NAME, TO_NAME, POLYGON = "label", "image", "polygon"
Controls = Mapping[tuple[str, ...], tuple[str, list[str], Sequence[str]]]
NO_CONTROLS: Controls = {}


class Unusable(Exception):
    """A region that cannot become a box; the message says why."""


def regions(
    boxes: Detections, width: int, height: int, prefix: str = "box", controls: Controls = NO_CONTROLS
) -> list[dict[str, Any]]:
    """Label Studio regions of one image's boxes, percent of `width` x `height` pixels.

    `score` is the calibrated probability where there is one; the whole record travels in `meta`.

    Args:
        controls: attribute controls of the labelling configuration, see `foveal.formats.attributes.controls`.
    """
    made: list[dict[str, Any]] = []
    for row, name in enumerate(boxes.label_names):
        drawn = _outline(boxes, row, width, height)
        kind, place = (
            (POLYGON, drawn) if drawn is not None else (FROM_NAME, _rectangle(boxes.boxes[row], width, height))
        )
        region = {
            "id": f"{prefix}-{row + 1}",
            "from_name": kind,
            "to_name": TO_NAME,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
        }
        labels = "rectanglelabels" if drawn is None else "polygonlabels"
        made.append({**region, "type": labels, "value": {**place, labels: [name]}, **_evidence(boxes, row)})
        attributes = {} if boxes.attributes is None else boxes.attributes[row]
        for key, (attribute, classes, _) in controls.items():
            if attribute in attributes and name in classes:
                said = {**place, "choices": [as_text(attributes[attribute])]}
                made.append({**region, "from_name": ".".join(key), "type": "choices", "value": said})
    return made


def _rectangle(box: FloatArray, width: int, height: int) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box.astype(np.float64))
    return {
        "x": 100 * x1 / width,
        "y": 100 * y1 / height,
        "width": 100 * (x2 - x1) / width,
        "height": 100 * (y2 - y1) / height,
        "rotation": 0,
    }


def _outline(boxes: Detections, row: int, width: int, height: int) -> dict[str, Any] | None:
    if boxes.masks is None or not boxes.masks[row]:
        return None
    found = masks.polygons(boxes.masks[row], height, width)
    if not found:
        return None
    percent = found[0].astype(np.float64) * (100 / width, 100 / height)
    return {"points": [[round(x, 4), round(y, 4)] for x, y in percent.tolist()], "closed": True}


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
    drawn = tuple(_mask(region, width, height) for region in found)
    chosen: dict[Any, Attributes] = {}
    for item in made.get("result", []):
        if item.get("type") == "choices" and item.get("value", {}).get("choices"):
            name = str(item.get("from_name")).rsplit(".", 1)[-1]
            chosen.setdefault(item.get("id"), {})[name] = str(item["value"]["choices"][0])
    attributes = tuple(chosen.get(region.get("id"), {}) for region in found)
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
        masks=drawn if any(drawn) else None,
        attributes=attributes if any(attributes) else None,
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


def _mask(region: dict[str, Any], width: int, height: int) -> str:
    points = region.get("value", {}).get("points")
    if not points or len(points) < masks.SMALLEST:
        return ""
    return masks.of_polygon(np.asarray(points, np.float64) * (width / 100, height / 100))


def class_names(region: dict[str, Any]) -> list[str]:
    value = region.get("value", {})
    return list(value.get("rectanglelabels") or value.get("polygonlabels") or [])
