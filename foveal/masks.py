"""Masks as COCO writes them: polygons or run lengths, as JSON text a box, so that they cost little and travel anywhere.

Shape letters: H, W image height and width, N boxes, K corners of a polygon.
"""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from foveal.detections import BoolArray, FloatArray
from foveal.errors import BadInput

SMALLEST = 3  # corners of a polygon
SMOOTH = 0.5  # pixels by which an outline may leave the mask


def encode(mask: BoolArray) -> str:
    """The compressed run lengths of (H, W)."""
    coco = _coco()
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return json.dumps({"size": list(mask.shape), "counts": packed["counts"].decode("ascii")})


def decode(text: str, height: int, width: int) -> BoolArray:
    """The mask (H, W) of polygons or run lengths.

    Raises:
        BadInput: neither, or run lengths of an image of another size.
    """
    coco, told = _coco(), _parsed(text)
    if isinstance(told, dict):
        if list(told.get("size", ())) != [height, width]:
            raise BadInput("a mask is of another size", expected=f"[{height}, {width}]", received=str(told.get("size")))
        if isinstance(told.get("counts"), list):
            told = coco.frPyObjects(told, height, width)
        elif isinstance(told.get("counts"), str):
            told = {"size": told["size"], "counts": told["counts"].encode("ascii")}
        return np.asarray(coco.decode(told)).astype(bool)
    return np.asarray(coco.decode(coco.merge(coco.frPyObjects(told, height, width)))).astype(bool)


def polygons(text: str, height: int, width: int) -> list[FloatArray]:
    """The outlines (K, 2) of a mask in pixels, largest first; holes are filled."""
    told = _parsed(text)
    if isinstance(told, list):
        found = [np.asarray(flat, np.float32).reshape(-1, 2) for flat in told]
    else:
        mask = decode(text, height, width).astype(np.uint8)
        # Outlines run through the centres of the border's pixels; half a pixel is added on each side by drawing larger.
        twice = cv2.resize(mask, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
        lines, _ = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        smooth = [cv2.approxPolyDP(line, 2 * SMOOTH, True).reshape(-1, 2) for line in lines]
        found = [((corners.astype(np.float32) + 0.5) / 2).astype(np.float32) for corners in smooth]
    found = [outline for outline in found if len(outline) >= SMALLEST]
    return sorted(found, key=lambda outline: -abs(float(cv2.contourArea(outline))))


def of_polygon(points: npt.NDArray[np.floating]) -> str:
    """One outline (K, 2) in pixels as a mask."""
    return json.dumps([[round(float(v), 2) for v in np.asarray(points, np.float64).ravel()]])


def box(text: str, height: int, width: int) -> tuple[float, float, float, float] | None:
    """The upright box around a mask, xyxy pixels; None where it is empty."""
    told = _parsed(text)
    if isinstance(told, list):
        points = np.concatenate([np.asarray(flat, np.float64).reshape(-1, 2) for flat in told])
        return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    rows, columns = np.nonzero(decode(text, height, width))
    if not len(rows):
        return None
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def _parsed(text: str) -> Any:
    told = json.loads(text)
    fits = isinstance(told, dict) or (
        isinstance(told, list)
        and told
        and all(isinstance(flat, list) and len(flat) >= 2 * SMALLEST and len(flat) % 2 == 0 for flat in told)
    )
    if not fits:
        raise BadInput("a mask is malformed", expected="COCO polygons or run lengths", received=text[:60])
    return told


def _coco() -> Any:
    from faster_coco_eval import mask

    return mask
