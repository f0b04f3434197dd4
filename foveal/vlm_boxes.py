"""Boxes in the words of each family: what it is asked, how its answer is written, and how that is read back.

Boxes here are (N, 4) float32, x1 y1 x2 y2 as shares of the image in [0, 1].
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foveal.detections import FloatArray, IntArray
from foveal.errors import UnknownName

Size = tuple[int, int]  # width, height of the image as the model sees it
Grid = tuple[float, float]
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"


class BoxFormat(ABC):
    """One family's way to write boxes."""

    @abstractmethod
    def ask(self, phrase: str) -> str:
        """The question that is answered with the boxes of `phrase`."""

    @abstractmethod
    def write(self, phrase: str, boxes: FloatArray, seen: Size) -> str:
        """The answer: every box of `phrase`."""

    @abstractmethod
    def read(self, text: str, seen: Size) -> FloatArray:
        """The boxes in an answer, in their order; none where it holds none. What is no box is passed over."""

    @abstractmethod
    def error(self, seen: Size) -> float:
        """The most that a coordinate changes by being written and read, as a share of the image."""


class QwenPixels(BoxFormat):
    """Qwen2.5-VL (arXiv 2502.13923): JSON, whole pixels of the image after the processor resized it."""

    def ask(self, phrase: str) -> str:
        return f"Locate every {phrase} in the image and answer with bounding boxes in JSON."

    def write(self, phrase: str, boxes: FloatArray, seen: Size) -> str:
        entries = [{"bbox_2d": row, "label": phrase} for row in _cells(boxes, self._grid(seen)).tolist()]
        return f"```json\n{json.dumps(entries)}\n```"

    def read(self, text: str, seen: Size) -> FloatArray:
        found = re.findall(rf'"bbox_2d"\s*:\s*\[{",".join([NUMBER] * 4)}\]', text)
        return _shares(found, self._grid(seen))

    def error(self, seen: Size) -> float:
        return 0.5 / min(self._grid(seen))

    def _grid(self, seen: Size) -> Grid:
        return seen


class QwenRelative(QwenPixels):
    """Qwen3-VL: the same JSON, thousandths of the image whatever its size."""

    def _grid(self, seen: Size) -> Grid:
        return 1000, 1000


class PaliGemmaTokens(BoxFormat):
    """PaliGemma (arXiv 2407.07726): four location tokens of 1024 steps, y before x, then the name."""

    def ask(self, phrase: str) -> str:
        return f"detect {phrase}"

    def write(self, phrase: str, boxes: FloatArray, seen: Size) -> str:
        rows = np.clip(np.floor(_sorted(boxes) * 1024), 0, 1023).astype(int)
        return " ; ".join(f"<loc{y1:04d}><loc{x1:04d}><loc{y2:04d}><loc{x2:04d}> {phrase}" for x1, y1, x2, y2 in rows)

    def read(self, text: str, seen: Size) -> FloatArray:
        found = re.findall(r"<loc(\d{4})>" * 4, text)
        return _shares([(x1, y1, x2, y2) for y1, x1, y2, x2 in found], (1024, 1024), middle=0.5)

    def error(self, seen: Size) -> float:
        return 0.5 / 1024


class InternVLBoxes(BoxFormat):
    """InternVL (arXiv 2312.14238, 2504.10479): the phrase in <ref>, boxes in <box>, thousandths of the image."""

    def ask(self, phrase: str) -> str:
        return f"Please provide the bounding box coordinates of the region this sentence describes: <ref>{phrase}</ref>"

    def write(self, phrase: str, boxes: FloatArray, seen: Size) -> str:
        return f"<ref>{phrase}</ref><box>{json.dumps(_cells(boxes, (1000, 1000)).tolist())}</box>"

    def read(self, text: str, seen: Size) -> FloatArray:
        inside = " ".join(re.findall(r"<box>(.*?)</box>", text, flags=re.DOTALL))
        return _shares(re.findall(rf"\[{','.join([NUMBER] * 4)}\]", inside), (1000, 1000))

    def error(self, seen: Size) -> float:
        return 0.5 / 1000


class FlorenceTokens(BoxFormat):
    """Florence-2 (arXiv 2311.06242): the phrase and four location tokens, each the middle of one of 1000 bins."""

    def ask(self, phrase: str) -> str:
        return f"<OPEN_VOCABULARY_DETECTION>{phrase}"

    def write(self, phrase: str, boxes: FloatArray, seen: Size) -> str:
        rows = np.clip(np.floor(_sorted(boxes) * 1000), 0, 999).astype(int)
        return phrase + "".join(f"<loc_{value}>" for value in rows.ravel())

    def read(self, text: str, seen: Size) -> FloatArray:
        return _shares(re.findall(r"<loc_(\d+)>" * 4, text), (1000, 1000), middle=0.5)

    def error(self, seen: Size) -> float:
        return 0.5 / 1000


class PlainShares(BoxFormat):
    """LLaVA-1.5 (arXiv 2310.03744): [x1, y1, x2, y2] as shares of the image, two decimals."""

    def ask(self, phrase: str) -> str:
        return f"where is the {phrase}"

    def write(self, phrase: str, boxes: FloatArray, seen: Size) -> str:
        return ", ".join("[" + ", ".join(f"{value:.2f}" for value in row) + "]" for row in _sorted(boxes).tolist())

    def read(self, text: str, seen: Size) -> FloatArray:
        return _shares(re.findall(rf"\[{','.join([NUMBER] * 4)}\]", text), (1, 1))

    def error(self, seen: Size) -> float:
        return 0.5 / 100


# model_type -> how it writes boxes. SmolVLM and Idefics3 were given no form of their own: they take LLaVA's.
FORMATS: dict[str, BoxFormat] = {
    "florence2": FlorenceTokens(),
    "idefics3": PlainShares(),
    "internvl": InternVLBoxes(),
    "llava": PlainShares(),
    "paligemma": PaliGemmaTokens(),
    "qwen2_5_vl": QwenPixels(),
    "qwen3_vl": QwenRelative(),
    "smolvlm": PlainShares(),
}


def box_format(family: str) -> BoxFormat:
    """The format of a model type.

    Raises:
        UnknownName: it has none.
    """
    if family not in FORMATS:
        raise UnknownName("box format", family, FORMATS)
    return FORMATS[family]


def seen_size(processor: object, size: Size) -> Size:
    """Width and height of an image of `size` once the processor resized it; `size` itself where that is no matter."""
    images = getattr(processor, "image_processor", None)
    merge, patch = getattr(images, "merge_size", None), getattr(images, "patch_size", None)
    if images is None or merge is None or patch is None:
        return size
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    limits = images.size
    height, width = smart_resize(
        size[1], size[0], patch * merge, int(limits["shortest_edge"]), int(limits["longest_edge"])
    )
    return width, height


def _sorted(boxes: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Boxes within the image, larger corner last."""
    rows = np.clip(np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2), 0, 1)
    return np.sort(rows, axis=1).reshape(-1, 4)


def _cells(boxes: FloatArray, grid: Grid) -> IntArray:
    return np.rint(_sorted(boxes) * np.array([*grid, *grid])).astype(np.int64)


def _shares(found: Sequence[Sequence[str]], grid: Grid, middle: float = 0.0) -> FloatArray:
    rows = np.array([[float(value) for value in row] for row in found], dtype=np.float64).reshape(-1, 4)
    return _sorted((rows + middle) / np.array([*grid, *grid])).astype(np.float32)
