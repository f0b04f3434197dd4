"""YOLO detection data: `data.yaml`, `images/`, and a text file of `class cx cy w h` a image in `labels/`.

Numbers are fractions of the image and written in full, so that a box reads back as the same float32. A sixth column is
a score, more are a polygon, taken as its bounding box. An image without a label file was not looked at; an empty label
file says that there is nothing in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from foveal.artifacts import staged
from foveal.config import read_yaml
from foveal.dataset import Dataset, Sample, check_classes
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.formats.images import check_any, scan
from foveal.formats.places import IMAGES, copy_images, file_names
from foveal.images import find_images

CONFIG = "data.yaml"
LABELS = "labels"
SPLITS = ("train", "val", "test")


def recognises(path: Path) -> bool:
    """A folder with data.yaml, or a YAML file."""
    return (path / CONFIG).is_file() if path.is_dir() else path.suffix.lower() in (".yaml", ".yml")


def read(path: Path) -> Dataset:
    """Every split that `data.yaml` names; `metadata["split"]` says which when there are several.

    Raises:
        BadInput: no class names, duplicate ones, or a label line that does not fit; names the file and line.
    """
    source = path / CONFIG if path.is_dir() else path
    content = read_yaml(source)
    if not isinstance(content, dict):
        raise BadInput(f"{source} is no YOLO description", expected="names, and train, val or test")
    classes = _classes(content.get("names"), source)
    places = _splits(content, source)
    skipped: list[tuple[Path, str]] = []
    dataset = Dataset.build(_samples(places, source.parent, classes, skipped), classes)
    dataset.skipped = tuple(skipped)
    check_any(dataset, source)
    return dataset


def write(dataset: Dataset, path: Path) -> None:
    """Write `data.yaml`, `images/` and `labels/`, images copied; scores are a sixth column where they are not 1.

    Raises:
        BadInput: no sample has been annotated.
    """
    if dataset.arrow.column("boxes").null_count == len(dataset):
        raise BadInput("no sample has boxes", expected="truth to write", remedy="Choose another format.")
    names = file_names(dataset)
    splits = sorted({str(sample.metadata.get("split", "")) for sample in dataset})
    if not set(splits) <= set(SPLITS):
        splits = []
    placed = [_placed(n, str(s.metadata["split"])) if splits else n for n, s in zip(names, dataset, strict=True)]
    with staged(path, folder=True) as folder:
        copy_images(dataset, placed, folder / IMAGES)
        for name, sample in zip(placed, dataset, strict=True):
            if sample.truth is not None:
                target = folder / LABELS / PurePosixPath(name).with_suffix(".txt")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text("".join(_lines(sample, sample.truth)), encoding="utf-8")
        content: dict[str, Any] = {"path": "."}
        content |= {s: f"{IMAGES}/{s}" for s in splits} if splits else {"train": IMAGES, "val": IMAGES}
        content["names"] = dict(enumerate(dataset.classes))
        (folder / CONFIG).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _placed(name: str, split: str) -> str:
    return name if name.startswith(f"{split}/") else f"{split}/{name}"


def _classes(names: Any, source: Path) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise BadInput(f"{source} numbers its classes with gaps", expected=f"0..{len(names) - 1}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise BadInput(f"{source} names no classes", expected="names: [cat, dog] or names: {0: cat, 1: dog}")
    return check_classes([str(name) for name in names], str(source))


def _splits(content: dict[str, Any], source: Path) -> list[tuple[str, list[Path]]]:
    """(split, its image files), each file once."""
    root = Path(str(content.get("path") or "."))
    base = source.parent / root  # an absolute root stands for itself
    base = base if base.is_dir() else source.parent  # a `path` of the machine it was made on
    found: list[tuple[str, list[Path]]] = []
    seen: set[Path] = set()
    for split in SPLITS:
        given = content.get(split) or []
        files: list[Path] = []
        for entry in given if isinstance(given, list) else [given]:
            files += _listed(base / str(entry), source)
        fresh = [file for file in dict.fromkeys(files) if file not in seen]
        seen.update(fresh)
        if fresh:
            found.append((split, fresh))
    if not found and (base / IMAGES).is_dir():
        found = [("train", find_images(base / IMAGES))]
    if not found:
        raise BadInput(f"{source} leads to no images", expected="train, val or test: a folder of images")
    return found


def _listed(place: Path, source: Path) -> list[Path]:
    if place.is_dir():
        return find_images(place)
    if place.suffix == ".txt" and place.is_file():
        lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines()]
        return [place.parent / line for line in lines if line]
    raise BadInput(f"{source} names {place}, which is missing", expected="a folder of images, or a .txt list of them")


def _samples(
    places: list[tuple[str, list[Path]]], base: Path, classes: tuple[str, ...], skipped: list[tuple[Path, str]]
) -> Iterator[Sample]:
    for split, files in places:
        for file in files:
            root = next((folder for folder in file.parents if folder.name == IMAGES), base)
            root = root if file.is_relative_to(root) else file.parent
            for sample in scan([file], root, skipped):
                metadata = {"split": split} if len(places) > 1 else {}
                truth = _truth(_label_file(file), sample.width, sample.height, classes)
                yield replace(sample, truth=truth, metadata=metadata)


def _label_file(image: Path) -> Path:
    """The last folder called images becomes labels, the ending .txt."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == IMAGES:
            parts[i] = LABELS
            break
    elsewhere = Path(*parts).with_suffix(".txt")
    beside = image.with_suffix(".txt")
    return beside if beside.is_file() and not elsewhere.is_file() else elsewhere


def _truth(path: Path, width: int, height: int, classes: tuple[str, ...]) -> Detections | None:
    if not path.is_file():
        return None
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    scores: list[float] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            label, *values = (float(field) for field in line.split())
        except ValueError as error:
            raise BadInput(f"{path} line {number} is not numbers", received=line[:80]) from error
        if not (label.is_integer() and 0 <= label < len(classes)):
            raise BadInput(
                f"{path} line {number} has no such class", expected=f"0..{len(classes) - 1}", received=f"{label:g}"
            )
        boxes.append(_box(values, f"{path} line {number}", width, height))
        labels.append(int(label))
        scores.append(values[4] if len(values) == 5 else 1.0)
    return Detections.build(boxes, np.asarray(scores), labels, classes)


def _box(values: list[float], where: str, width: int, height: int) -> tuple[float, float, float, float]:
    """Fractions -> xyxy pixels."""
    polygon = len(values) >= 6 and len(values) % 2 == 0
    if not (polygon or len(values) in (4, 5)) or not np.isfinite(values).all():
        raise BadInput(f"{where} is malformed", expected="class cx cy w h", received=f"{len(values)} numbers")
    if max(map(abs, values)) > 2 or (not polygon and min(values[2:4]) < 0):
        raise BadInput(
            f"{where} is not in fractions of the image",
            expected="numbers in 0..1",
            received=" ".join(f"{value:g}" for value in values),
            remedy="Divide x and w by the image width, y and h by its height.",
        )
    if polygon:
        xs, ys = values[::2], values[1::2]
        return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
    x, y, w, h = values[:4]
    return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height


def _lines(sample: Sample, truth: Detections) -> Iterator[str]:
    for label, score, box in zip(truth.labels.tolist(), truth.scores, truth.boxes.astype(np.float64), strict=True):
        x1, x2 = float(box[0]) / sample.width, float(box[2]) / sample.width
        y1, y2 = float(box[1]) / sample.height, float(box[3]) / sample.height
        values = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        if score != 1:
            values.append(float(str(score)))
        yield " ".join([str(label), *(repr(value) for value in values)]) + "\n"
