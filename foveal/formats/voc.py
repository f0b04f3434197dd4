"""Pascal VOC: an XML file an image in `Annotations/`, the images in `JPEGImages/`, or both in one folder.

Coordinates are pixels from the left and top edge, as LabelImg, CVAT and most tools write them today (the devkit of 2012
counts its first pixel as 1: its boxes come out one pixel to the right and below). `labelmap.txt`, as CVAT writes it,
holds the classes in order; without it they are sorted. An image without an XML file was not looked at; one without
objects is empty. `score` is kept in an element of that name, which other tools pass over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from foveal.artifacts import staged
from foveal.dataset import Dataset, Sample, check_classes
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.formats.images import check_any, scan
from foveal.formats.places import Locator, copy_images, file_names
from foveal.formats.predictions import shortest
from foveal.formats.xml import elements, number, root_name
from foveal.images import find_images

ANNOTATIONS, PICTURES, LABELMAP = "Annotations", "JPEGImages", "labelmap.txt"
SETS = "ImageSets/Main"
Object = tuple[str, tuple[float, float, float, float], float]  # class, xyxy pixels, score


def recognises(path: Path) -> bool:
    """A folder with `Annotations/`, or with XML files of VOC beside its images."""
    if not path.is_dir():
        return False
    first = next((path / ANNOTATIONS).rglob("*.xml"), None) or next(path.glob("*.xml"), None)
    return first is not None and root_name(first) == "annotation"


def read(path: Path, *, images: Path | None = None, skip_missing: bool = False) -> Dataset:
    """Every image that has an XML file, and those of `JPEGImages/` without one, which nobody looked at.

    Args:
        images: a folder to look for the images in, where they are not beside the annotations.

    Raises:
        BadInput: no XML file, one that is not VOC, or images are missing (unless `skip_missing`); names the file.
    """
    base = path / ANNOTATIONS if (path / ANNOTATIONS).is_dir() else path
    files = sorted(base.rglob("*.xml"))
    if not files:
        raise BadInput(f"{path} holds no annotation", expected=f"XML files in {ANNOTATIONS}/ or beside the images")
    locator = Locator(images or path, PICTURES)
    found: list[tuple[str, Path, tuple[int, int] | None, list[Object]]] = []
    for file in files:
        name, size, objects = _one(file, base)
        image = locator.find(name, *_beside(name))
        if image is not None:
            found.append((name, image, size, objects))
    classes = _classes(path, [label for _, _, _, objects in found for label, _, _ in objects])
    skipped: list[tuple[Path, str]] = [*locator.settle(path, len(files), skip_missing)]
    truths = {image: (name, size, objects) for name, image, size, objects in found}
    listed = find_images(path / PICTURES) if images is None and (path / PICTURES).is_dir() else []
    bare = [file for file in listed if file not in truths]

    def samples() -> Iterator[Sample]:
        for image in [*truths, *bare]:
            root = path / PICTURES if image.is_relative_to(path / PICTURES) else image.parent
            for sample in scan([image], root, skipped):
                if image not in truths:
                    yield sample
                    continue
                name, size, objects = truths[image]
                if size is not None and size != (sample.width, sample.height) and all(size):
                    skipped.append((image, f"is {sample.width} x {sample.height}, its XML says {size[0]} x {size[1]}"))
                    continue
                boxes = [box for _, box, _ in objects]
                scores = np.array([score for _, _, score in objects], dtype=np.float32)
                truth = Detections.build(boxes, scores, [label for label, _, _ in objects], classes)
                yield Sample(name, image, sample.width, sample.height, truth)

    dataset = Dataset.build(samples(), classes)
    dataset.skipped = tuple(skipped)
    check_any(dataset, path)
    return dataset


def write(dataset: Dataset, path: Path) -> None:
    """Write `Annotations/`, `JPEGImages/` with the images copied, `ImageSets/Main/default.txt` and `labelmap.txt`.

    Raises:
        BadInput: no sample has been annotated.
    """
    if dataset.arrow.column("boxes").null_count == len(dataset):
        raise BadInput("no sample has boxes", expected="truth to write", remedy="Choose another format.")
    names = file_names(dataset)
    with staged(path, folder=True) as folder:
        copy_images(dataset, names, folder / PICTURES)
        for name, sample in zip(names, dataset, strict=True):
            if sample.truth is not None:
                target = folder / ANNOTATIONS / PurePosixPath(name).with_suffix(".xml")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(_xml(name, sample, sample.truth), encoding="utf-8")
        (folder / SETS).mkdir(parents=True)
        stems = "".join(f"{PurePosixPath(name).with_suffix('')}\n" for name in names)
        (folder / SETS / "default.txt").write_text(stems, encoding="utf-8")
        rows = ["# label:color_rgb:parts:actions", *(f"{name}:::" for name in dataset.classes)]
        (folder / LABELMAP).write_text("\n".join(rows) + "\n", encoding="utf-8")


def _beside(name: str) -> list[str]:
    """Where an image may lie by its annotation's own name, whatever ending the file in it had."""
    stem = PurePosixPath(name).with_suffix("")
    return [f"{stem}{suffix}" for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".webp", ".bmp", ".tif")]


def _one(file: Path, base: Path) -> tuple[str, tuple[int, int] | None, list[Object]]:
    """Name of the image, its size where told, and the objects of one XML file."""
    root = next(elements(file, "annotation"), None)
    if root is None:
        raise BadInput(f"{file} is no VOC annotation", expected="a root element <annotation>")
    place = file.relative_to(base).with_suffix("").as_posix()
    told = (root.findtext("filename") or "").strip()
    suffix = PurePosixPath(told).suffix
    size = root.find("size")
    extent = None
    if size is not None:
        extent = (
            int(number(size.findtext("width"), f"{file}: width")),
            int(number(size.findtext("height"), f"{file}: height")),
        )
    objects = [_object(item, f"{file}, object {n}") for n, item in enumerate(root.findall("object"), start=1)]
    return f"{place}{suffix}", extent, objects


def _object(item: ElementTree.Element, where: str) -> Object:
    name = (item.findtext("name") or "").strip()
    box = item.find("bndbox")
    if not name or box is None:
        raise BadInput(f"{where} is malformed", expected="a name and a bndbox")
    x1, y1, x2, y2 = (number(box.findtext(side), f"{where}, {side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise BadInput(f"{where} has negative extent", received=f"{x1:g} {y1:g} {x2:g} {y2:g}")
    score = item.findtext("score")
    return name, (x1, y1, x2, y2), 1.0 if score is None else number(score, f"{where}, score")


def _classes(path: Path, labels: list[str]) -> tuple[str, ...]:
    file = path / LABELMAP
    if file.is_file():
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        known = [line.rsplit(":", 3)[0] for line in lines]
        return check_classes([name for name in known if name != "background" or name in labels], str(file))
    return check_classes(sorted(set(labels)), str(path))


def _xml(name: str, sample: Sample, truth: Detections) -> str:
    root = ElementTree.Element("annotation")
    folder = PurePosixPath(name).parent.as_posix()
    for tag, text in (("folder", "" if folder == "." else folder), ("filename", PurePosixPath(name).name)):
        ElementTree.SubElement(root, tag).text = text
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", sample.width), ("height", sample.height), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    for label, score, box in zip(truth.label_names, truth.scores, truth.boxes, strict=True):
        item = ElementTree.SubElement(root, "object")
        for tag, text in (("name", label), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ElementTree.SubElement(item, tag).text = text
        if score != 1:
            ElementTree.SubElement(item, "score").text = repr(shortest(score))
        corners = ElementTree.SubElement(item, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, tag).text = _plain(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _plain(value: np.float32) -> str:
    """The fewest digits that read back as the same float32, without a point where it is whole."""
    return f"{int(value)}" if float(value).is_integer() else repr(shortest(value))
