"""Label Studio tasks: people's annotations as truth, a model's predictions beside them, and the labelling XML.

Boxes are `rectanglelabels` in percent of the image, from the top left. Only annotations are read as truth; predictions
stay predictions until somebody has confirmed them (`read_predictions`). Image addresses are looked up among local files
and never fetched. Beside `X.json` lies `X.xml`, the labelling configuration, which holds the classes in order.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from foveal.artifacts import staged, write_text
from foveal.dataset import Dataset, Sample, check_classes
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.formats.attributes import Schema, controls, used
from foveal.formats.places import IMAGES, Locator, copy_images, file_names, first_character, read_json, scalars
from foveal.formats.regions import (
    FROM_NAME,
    POLYGON,
    TO_NAME,
    Controls,
    Unusable,
    class_names,
    detections,
    regions,
)
from foveal.images import SUFFIXES, size

TASKS = "tasks.json"
VALUE = "image"  # the entry of a task's data that holds the image address
LOCAL_FILES = "/data/local-files/?d="
_KNOWN = (VALUE, "sample_id", "captions", "label", "metadata")
_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#9a6324",
    "#808000",
    "#000075",
    "#f032e6",
)


def recognises(path: Path) -> bool:
    """A JSON list, or a folder with tasks.json."""
    if path.is_dir():
        return (path / TASKS).is_file()
    return path.suffix.lower() == ".json" and first_character(path) == "["


def read(path: Path, *, images: Path | None = None, skip_missing: bool = False) -> Dataset:
    """Tasks of a JSON export, or the folder that holds `tasks.json`; truth is each task's last finished annotation.

    Images are sought beside the JSON, in `images/` there, or in the folder `images` alone when it is given.
    A task whose annotation has an unnamed region or was drawn on a turned image is listed in `.skipped`.

    Raises:
        BadInput: not an export, duplicate class names, or images are missing (unless `skip_missing`).
    """
    source = _source(path)
    tasks = _tasks(source)
    drawn = [_annotation(task) for task in tasks]
    classes = _classes(source, [annotation for annotation in drawn if annotation is not None])
    locator = Locator(images or source.parent)
    samples: list[Sample] = []
    skipped: list[tuple[Path, str]] = []
    for number, (task, annotation) in enumerate(zip(tasks, drawn, strict=True), start=1):
        names = _local_names(task, source)
        found = locator.find(*names)
        if found is None:
            continue
        width, height = size(found)
        data = task["data"]
        try:
            truth = None if annotation is None else detections(annotation, classes, width, height)
        except Unusable as reason:
            skipped.append((found, f"task {task.get('id', number)}: {reason}"))
            continue
        nested = data.get("metadata")
        samples.append(
            Sample(
                id=_sample_id(task, number),
                path=found,
                width=width,
                height=height,
                truth=truth,
                captions=tuple(data.get("captions", ())),
                label=data.get("label"),
                metadata=scalars(data, _KNOWN) | (scalars(nested, ()) if isinstance(nested, dict) else {}),
            )
        )
    skipped += locator.settle(source, len(tasks), skip_missing)
    dataset = Dataset.build(samples, classes)
    dataset.skipped = tuple(skipped)
    return dataset


def read_predictions(path: Path, dataset: Dataset, model_version: str | None = None) -> list[Detections]:
    """Each sample's last prediction (of `model_version` when given), in the dataset's order; none is no boxes.

    Raises:
        BadInput: not an export, or a prediction cannot be read; names the task.
    """
    source = _source(path)
    rows = {sample_id: row for row, sample_id in enumerate(dataset.ids)}
    found = [Detections.empty(dataset.classes) for _ in range(len(dataset))]
    for number, task in enumerate(_tasks(source), start=1):
        row = rows.get(_sample_id(task, number))
        made = [p for p in task.get("predictions") or [] if model_version in (None, p.get("model_version"))]
        if row is None or not made:
            continue
        sample = dataset[row]
        try:
            found[row] = detections(made[-1], dataset.classes, sample.width, sample.height)
        except Unusable as reason:
            raise BadInput(f"{source}, task {task.get('id', number)}: {reason}") from reason
    return found


def write(
    dataset: Dataset,
    path: Path,
    *,
    predictions: Iterable[Detections] | None = None,
    model_version: str = "foveal",
    address: str = LOCAL_FILES,
    attributes: Schema | None = None,
) -> None:
    """Write tasks to import: truth as annotations, `predictions` (one a sample, in order) as predictions.

    A path that ends in `.json` writes tasks and XML alone (`read` then needs `images`); a folder gets `tasks.json`,
    `tasks.xml` and the images. Image addresses are `address` plus the path below that folder, or below the images'
    common folder: serve it as Label Studio's local-files root.

    Args:
        attributes: class -> attribute -> values that annotators choose from; None: those that occur.

    Raises:
        BadInput: not one prediction a sample.
    """
    path = Path(path)
    given = list(predictions) if predictions is not None else [None] * len(dataset)
    if len(given) != len(dataset):
        raise BadInput("predictions do not match the images", expected=str(len(dataset)), received=str(len(given)))

    shown = [*given, *(sample.truth for sample in dataset)]
    schema = used(shown) if attributes is None else attributes
    outlined = any(boxes is not None and boxes.masks is not None for boxes in shown)
    config, asked = labelling_config(dataset.classes, schema, polygons=outlined), controls(schema)

    def text(names: Sequence[str]) -> str:
        rows = zip(dataset, names, given, strict=True)
        tasks = [
            _task(i, sample, address + urllib.parse.quote(name), boxes, model_version, asked)
            for i, (sample, name, boxes) in enumerate(rows, start=1)
        ]
        return json.dumps(tasks, ensure_ascii=False) + "\n"

    if path.suffix.lower() == ".json":
        write_text(path.with_suffix(".xml"), config)
        write_text(path, text(_below_common(dataset)))
        return
    names = file_names(dataset)
    with staged(path, folder=True) as folder:
        copy_images(dataset, names, folder / IMAGES)
        (folder / TASKS).with_suffix(".xml").write_text(config, encoding="utf-8")
        (folder / TASKS).write_text(text([f"{IMAGES}/{name}" for name in names]), encoding="utf-8")


def labelling_config(classes: Sequence[str], attributes: Schema | None = None, *, polygons: bool = False) -> str:
    """The labelling configuration XML to paste into a project: boxes of these classes over one image.

    Args:
        attributes: what is to be chosen for each region.
        polygons: outlines can be drawn too.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=TO_NAME, value=f"${VALUE}", zoom="true")
    labels = ElementTree.SubElement(view, "RectangleLabels", name=FROM_NAME, toName=TO_NAME)
    for i, name in enumerate(check_classes(classes)):
        ElementTree.SubElement(labels, "Label", value=name, background=_COLOURS[i % len(_COLOURS)])
    if polygons:
        labels = ElementTree.SubElement(view, "PolygonLabels", name=POLYGON, toName=TO_NAME)
        for i, name in enumerate(classes):
            ElementTree.SubElement(labels, "Label", value=name, background=_COLOURS[i % len(_COLOURS)])
    for key, (name, labels_, values) in controls(attributes or {}).items():
        ElementTree.SubElement(view, "Header", value=name, size="6")
        choices = ElementTree.SubElement(
            view, "Choices", name=".".join(key), toName=TO_NAME, perRegion="true", choice="single-radio",
            whenTagName=POLYGON if polygons else FROM_NAME, whenLabelValue=",".join(labels_),
        )  # fmt: skip
        for value in values:
            ElementTree.SubElement(choices, "Choice", value=value)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _task(
    number: int, sample: Sample, address: str, boxes: Detections | None, model_version: str, asked: Controls
) -> dict[str, Any]:
    task_id = int(sample.id) if sample.id.isdecimal() else number
    clash = {key: value for key, value in sample.metadata.items() if key in _KNOWN}
    data: dict[str, Any] = {VALUE: address, "sample_id": sample.id}
    data |= {key: value for key, value in sample.metadata.items() if key not in clash}
    data |= {"metadata": clash} if clash else {}
    data |= {"captions": list(sample.captions)} if sample.captions else {}
    data |= {"label": sample.label} if sample.label is not None else {}
    task: dict[str, Any] = {"id": task_id, "data": data}
    if sample.truth is not None:
        drawn = regions(sample.truth, sample.width, sample.height, controls=asked)
        task["annotations"] = [{"result": drawn, "was_cancelled": False}]
    if boxes is not None:
        result = regions(boxes, sample.width, sample.height, controls=asked)
        prediction: dict[str, Any] = {"model_version": model_version, "result": result}
        if result:  # the least certain box, so that sorting by score brings the doubtful images first
            prediction["score"] = min(region.get("score", 1.0) for region in result)
        task["predictions"] = [prediction]
    return task


def _source(path: Path) -> Path:
    return path / TASKS if path.is_dir() else path


def _tasks(source: Path) -> list[dict[str, Any]]:
    tasks = read_json(source)
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and isinstance(t.get("data"), dict) for t in tasks):
        raise BadInput(f"{source} is no Label Studio export", expected='a list of tasks with "data" (export as JSON)')
    return tasks


def _sample_id(task: dict[str, Any], number: int) -> str:
    return str(task["data"].get("sample_id", task.get("id", number)))


def _annotation(task: dict[str, Any]) -> dict[str, Any] | None:
    """The ground truth among a task's finished annotations, else the last of them."""
    done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
    return next((a for a in done if a.get("ground_truth")), done[-1] if done else None)


def _classes(source: Path, annotations: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Label names of the XML beside the tasks in its order, else those that occur, sorted."""
    config = source.with_suffix(".xml")
    if config.is_file():
        try:
            root = ElementTree.parse(config).getroot()
        except ElementTree.ParseError as error:
            raise BadInput(f"{config} is not XML: {error}") from error
        tags = [list(tag.iter("Label")) for tag in root.iter() if tag.tag.endswith("Labels")]
        once = [check_classes([label.get("value", "") for label in tag], str(config)) for tag in tags]
        return tuple(dict.fromkeys(name for names in once for name in names))
    return tuple(sorted({name for a in annotations for region in a.get("result", []) for name in class_names(region)}))


def _local_names(task: dict[str, Any], source: Path) -> list[str]:
    """Where the image of a task may lie on this disk, likeliest first."""
    data = task["data"]
    texts = [value for value in data.values() if isinstance(value, str)]
    address = data.get(VALUE) or next((t for t in texts if PurePosixPath(t).suffix.lower() in SUFFIXES), None)
    if not isinstance(address, str):
        raise BadInput(f"{source}: task {task.get('id')} names no image", expected=f"data.{VALUE}")
    parts = urllib.parse.urlsplit(address)
    path = urllib.parse.parse_qs(parts.query).get("d", [urllib.parse.unquote(parts.path)])[0]
    name = PurePosixPath(path).name
    uploaded = re.sub(r"^[0-9a-f]{8}-", "", name)  # Label Studio prefixes what is uploaded
    return list(dict.fromkeys([path.lstrip("/"), name, uploaded, path]))


def _below_common(dataset: Dataset) -> list[str]:
    """Each image path below the folder that holds them all."""
    import os

    paths = [os.path.abspath(path) for path in dataset.arrow.column("path").to_pylist()]
    if not paths:
        return []
    common = Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
    return [Path(path).relative_to(common).as_posix() for path in paths]
