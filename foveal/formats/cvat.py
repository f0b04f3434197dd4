"""CVAT for images 1.1: one XML file for all images, boxes in pixels; the form CVAT exports and takes annotations in.

Boxes, turned boxes, polygons, polylines, ellipses and masks are read, each as the upright box around it; polygons and
masks are kept beside it, and attributes too. `score` is an attribute of that name. Every image of a CVAT task stands in
its export, so one without shapes counts as looked at and empty; images that nobody looked at are left out when writing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from foveal.artifacts import staged, write_text
from foveal.dataset import Dataset, Sample, check_classes
from foveal.detections import Attributes, Detections
from foveal.errors import BadInput
from foveal.formats.attributes import UNSET, Schema, as_text, used
from foveal.formats.places import IMAGES, Locator, copy_images, file_names
from foveal.formats.predictions import shortest
from foveal.formats.xml import elements, number, root_name
from foveal.images import size
from foveal.masks import SMALLEST, box, decode, encode, of_polygon, polygons

FILE = "annotations.xml"
SCORE = "score"
Box = tuple[float, float, float, float]


def recognises(path: Path) -> bool:
    """An XML file with the root `annotations`, or a folder with `annotations.xml`."""
    file = path / FILE if path.is_dir() else path
    return file.suffix.lower() == ".xml" and file.is_file() and root_name(file) == "annotations"


def read(path: Path, *, images: Path | None = None, skip_missing: bool = False) -> Dataset:
    """Every image of the export with the boxes around its shapes.

    Args:
        images: a folder to look for the images in, where they are not beside the file or in `images/`.

    Raises:
        BadInput: a shape that is malformed or of a label that the file does not declare, tracks of a video, or images
            are missing (unless `skip_missing`); names the image.
    """
    source = path / FILE if path.is_dir() else path
    declared: list[str] = []
    listed: list[_Listed] = []
    for element in elements(source, "label", "image", "track"):
        if element.tag == "track":
            raise BadInput(
                f"{source} holds tracks of a video", expected="CVAT for images 1.1", remedy="Export as that."
            )
        if element.tag == "label":
            declared.append((element.findtext("name") or "").strip())
        else:
            listed.append(_listed(element, source))
    if not listed:
        raise BadInput(f"{source} lists no image", expected="<image> elements, as CVAT for images 1.1 has them")
    used = sorted({label for one in listed for label in one.labels})
    classes = check_classes(declared or used, str(source))
    unknown = [label for label in used if label not in classes]
    if unknown:
        raise BadInput(f"{source} uses the label {unknown[0]!r}", expected=f"one it declares: {', '.join(classes)}")
    locator = Locator(images or source.parent)
    skipped: list[tuple[Path, str]] = []

    def samples() -> Iterator[Sample]:
        for one in listed:
            found = locator.find(one.name)
            if found is None:
                continue
            width, height = size(found)
            if (width, height) != (one.width, one.height):
                skipped.append((found, f"is {width} x {height}, the export says {one.width} x {one.height}"))
                continue
            truth = Detections.build(
                one.boxes,
                np.array(one.scores, np.float32),
                one.labels,
                classes,
                masks=tuple(one.masks) if any(one.masks) else None,
                attributes=tuple(one.attributes) if any(one.attributes) else None,
            )
            yield Sample(one.name, found, width, height, truth)

    dataset = Dataset.build(samples(), classes)
    dataset.skipped = (*skipped, *locator.settle(source, len(listed), skip_missing))
    return dataset


def write(dataset: Dataset, path: Path, *, attributes: Schema | None = None) -> None:
    """Write a folder with `annotations.xml` and `images/`, or, for a path that ends in `.xml`, the file alone.

    A mask of one outline is written as a polygon, another one as run lengths.

    Args:
        attributes: class -> attribute -> values that annotators choose from; None: those that occur.

    Raises:
        BadInput: no sample has been annotated.
    """
    path = Path(path)
    if dataset.arrow.column("boxes").null_count == len(dataset):
        raise BadInput("no sample has boxes", expected="truth to write", remedy="Choose another format.")
    names = file_names(dataset)
    text = _xml(dataset, names, used(s.truth for s in dataset) if attributes is None else attributes)
    if path.suffix.lower() == ".xml":
        write_text(path, text)
        return
    with staged(path, folder=True) as folder:
        copy_images(dataset, names, folder / IMAGES)
        (folder / FILE).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Listed:
    name: str
    width: int
    height: int
    labels: list[str]
    boxes: list[Box]
    scores: list[float]
    masks: list[str]
    attributes: list[Attributes]


def _listed(image: ElementTree.Element, source: Path) -> _Listed:
    name = image.get("name") or ""
    where = f"{source}, image {name or image.get('id')!r}"
    if not name:
        raise BadInput(f"{where} has no name")
    labels: list[str] = []
    boxes: list[Box] = []
    scores: list[float] = []
    masks: list[str] = []
    attributes: list[Attributes] = []
    width, height = (int(number(image.get(key), f"{where}, {key}")) for key in ("width", "height"))
    for shape in image:
        around = SHAPES.get(str(shape.tag))
        if around is None:
            continue  # tags and points of an image are no objects with an extent
        labels.append(shape.get("label") or "")
        boxes.append(around(shape, where))
        told = {str(a.get("name")): a.text or "" for a in shape.findall("attribute")}
        scores.append(number(told.pop(SCORE), f"{where}, score") if told.get(SCORE) else 1.0)
        attributes.append({k: v for k, v in told.items() if v not in ("", UNSET) and k != SCORE})
        masks.append(_mask(shape, width, height, where))
    return _Listed(name, width, height, labels, boxes, scores, masks, attributes)


def _mask(shape: ElementTree.Element, width: int, height: int, where: str) -> str:
    """A polygon's or a mask's own form; nothing for others."""
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair]
        points = np.array([[float(x), float(y)] for x, y in pairs])
        return of_polygon(points) if len(points) >= SMALLEST else ""
    if shape.tag != "mask":
        return ""
    x, y, w, h = (int(number(shape.get(key), f"{where}, {key}")) for key in ("left", "top", "width", "height"))
    runs = [int(number(run, f"{where}, rle")) for run in (shape.get("rle") or "").split(",") if run.strip()]
    if min(runs, default=-1) < 0 or sum(runs) != w * h or x < 0 or y < 0 or x + w > width or y + h > height:
        raise BadInput(f"{where}: a mask is malformed", expected=f"run lengths of {w} x {h} pixels inside the image")
    whole = np.zeros((height, width), dtype=bool)
    whole[y : y + h, x : x + w] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w)
    return encode(whole)


def _of_box(shape: ElementTree.Element, where: str) -> Box:
    x1, y1, x2, y2 = (number(shape.get(key), f"{where}, {key}") for key in ("xtl", "ytl", "xbr", "ybr"))
    if x2 < x1 or y2 < y1:
        raise BadInput(f"{where}: a box has negative extent", received=f"{x1:g} {y1:g} {x2:g} {y2:g}")
    turn = math.radians(number(shape.get("rotation", "0"), f"{where}, rotation"))
    if not turn:
        return x1, y1, x2, y2
    across = (abs((x2 - x1) * math.cos(turn)) + abs((y2 - y1) * math.sin(turn))) / 2
    down = (abs((x2 - x1) * math.sin(turn)) + abs((y2 - y1) * math.cos(turn))) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - across, y - down, x + across, y + down


def _of_points(shape: ElementTree.Element, where: str) -> Box:
    pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise BadInput(
            f"{where}: a {shape.tag} is malformed", expected="points as x,y;x,y", received=shape.get("points")
        )
    xs, ys = ([number(pair[axis], where) for pair in pairs] for axis in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


def _of_mask(shape: ElementTree.Element, where: str) -> Box:
    x, y, w, h = (number(shape.get(key), f"{where}, {key}") for key in ("left", "top", "width", "height"))
    return x, y, x + w, y + h


def _of_ellipse(shape: ElementTree.Element, where: str) -> Box:
    x, y, rx, ry = (number(shape.get(key), f"{where}, {key}") for key in ("cx", "cy", "rx", "ry"))
    turn = math.radians(number(shape.get("rotation", "0"), f"{where}, rotation"))
    across = math.hypot(rx * math.cos(turn), ry * math.sin(turn))
    down = math.hypot(rx * math.sin(turn), ry * math.cos(turn))
    return x - across, y - down, x + across, y + down


SHAPES: dict[str, Callable[[ElementTree.Element, str], Box]] = {
    "box": _of_box,
    "polygon": _of_points,
    "polyline": _of_points,
    "mask": _of_mask,
    "ellipse": _of_ellipse,
}


def _shape(image: ElementTree.Element, sample: Sample, truth: Detections, row: int) -> ElementTree.Element:
    """One box, polygon or mask of an image."""
    told = {"label": truth.label_names[row], "source": "manual" if truth.scores[row] == 1 else "auto", "occluded": "0"}
    mask = "" if truth.masks is None else truth.masks[row]
    outlines = polygons(mask, sample.height, sample.width) if mask else []
    if len(outlines) == 1:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outlines[0].tolist())
        return ElementTree.SubElement(image, "polygon", {**told, "points": points, "z_order": "0"})
    around = box(mask, sample.height, sample.width) if outlines else None
    if around is not None:
        x1, y1, x2, y2 = map(int, around)
        inside = decode(mask, sample.height, sample.width)[y1:y2, x1:x2].ravel()
        edges = np.flatnonzero(np.diff(np.concatenate([[False], inside]).astype(np.int8)))
        runs = np.diff(np.concatenate([[0], edges, [inside.size]]))
        place = {"left": str(x1), "top": str(y1), "width": str(x2 - x1), "height": str(y2 - y1)}
        rle = ", ".join(map(str, runs.tolist()))
        return ElementTree.SubElement(image, "mask", {**told, "rle": rle, **place, "z_order": "0"})
    sides = zip(("xtl", "ytl", "xbr", "ybr"), truth.boxes[row], strict=True)
    corners = {key: repr(shortest(v)) for key, v in sides}
    return ElementTree.SubElement(image, "box", {**told, **corners, "z_order": "0"})


def _xml(dataset: Dataset, names: Sequence[str], schema: Schema) -> str:
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    for name in dataset.classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        attributes = ElementTree.SubElement(label, "attributes")
        # CVAT gives a shape without a value the first one.
        asked = {a: ("select", "\n".join([UNSET, *values])) for a, values in schema.get(name, {}).items()}
        for title, (kind, values) in ({SCORE: ("text", "")} | asked).items():
            attribute = ElementTree.SubElement(attributes, "attribute")
            for tag, text in (("name", title), ("mutable", "False"), ("input_type", kind), ("values", values)):
                ElementTree.SubElement(attribute, tag).text = text
    for number_, (name, sample) in enumerate(zip(names, dataset, strict=True)):
        if sample.truth is None:
            continue
        image = ElementTree.SubElement(
            root, "image", id=str(number_), name=name, width=str(sample.width), height=str(sample.height)
        )
        for row, score in enumerate(sample.truth.scores):
            shape = _shape(image, sample, sample.truth, row)
            if score != 1:
                ElementTree.SubElement(shape, "attribute", name=SCORE).text = repr(shortest(score))
            for title, value in (sample.truth.attributes[row] if sample.truth.attributes else {}).items():
                ElementTree.SubElement(shape, "attribute", name=title).text = as_text(value)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
