"""Vendor formats, a module each: every one reads into and writes from `foveal.dataset.Dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from foveal.dataset import Dataset
from foveal.errors import BadInput, UnknownName
from foveal.formats import captions, coco, cvat, image_folder, images, label_studio, voc, yolo


class Format(Protocol):
    """What each module offers."""

    def recognises(self, path: Path) -> bool:
        """Whether an existing file or folder looks like this format; cheap, and never raises."""
        ...

    def read(self, path: Path) -> Dataset:
        """The dataset at `path`; BadInput says what is wrong with it."""
        ...

    def write(self, dataset: Dataset, path: Path) -> None:
        """Write whole or not at all."""
        ...


# Tried in this order when a path names no format: the specific before the general.
FORMATS: dict[str, Format] = {
    "yolo": yolo,
    "coco": coco,
    "label_studio": label_studio,
    "cvat": cvat,
    "voc": voc,
    "captions": captions,
    "image_folder": image_folder,
    "images": images,
}


def named(name: str) -> Format:
    """The format called `name`.

    Raises:
        UnknownName: there is none; lists the choices.
    """
    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    return FORMATS[name]


def detect(path: Path) -> str:
    """The name of the first format that recognises `path`.

    Raises:
        BadInput: none does.
    """
    for name, module in FORMATS.items():
        if module.recognises(path):
            return name
    raise BadInput(
        f"{path} is in no known data format",
        expected="COCO or Label Studio JSON, YOLO, CVAT XML, Pascal VOC, caption JSONL/CSV, or a folder of images",
        remedy="Check the path, or name the format.",
    )
