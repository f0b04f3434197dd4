"""COCO instance annotations, with the project's own keys beside the standard ones.

Layout written: `instances.json` and `images/`; a path that ends in `.json` writes the annotations alone, pointing at
the images where they lie. Extra keys, which other readers pass over: on images `sample_id`, `captions`, `label`,
`metadata`, `unlabelled`; on annotations those of `foveal.formats.predictions`. Crowd regions (`iscrowd: 1`) are no
objects to learn: they are kept in the sample's `metadata["crowd"]` as JSON, apart from its truth. Beside a folder's
annotations, `captions.jsonl` and `metadata.csv` are read too, as `foveal world` writes them.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.artifacts import staged, write_text
from foveal.dataset import Dataset, Sample, check_classes
from foveal.errors import BadInput
from foveal.formats import captions as caption_format
from foveal.formats.places import IMAGES, Locator, copy_images, file_names, first_character, read_json
from foveal.formats.predictions import extra_keys, from_xywh, image_ids, shortest, to_detections, to_xywh
from foveal.images import size

ANNOTATIONS = "instances.json"
CAPTIONS = "captions.jsonl"
METADATA = "metadata.csv"
CROWD = "crowd"


def recognises(path: Path) -> bool:
    """A JSON object, or a folder with one COCO file in it."""
    if path.is_dir():
        return bool(_candidates(path))
    return path.suffix.lower() == ".json" and first_character(path) == "{"


def read(path: Path, *, images: Path | None = None, skip_missing: bool = False) -> Dataset:
    """A COCO file, or the folder that holds one; image files are sought beside the JSON and in `images/`, or below
    the folder `images` when it is given.

    Raises:
        BadInput: images are missing (unless `skip_missing`: then they are listed in `.skipped`), two categories share a
            name, or an annotation is malformed or refers to nothing; names the file and the first culprit.
    """
    source = _find_file(Path(path))
    content = read_json(source)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise BadInput(f"{source} is not a COCO file", expected="an object with images, annotations and categories")
    categories = _categories(content, source)
    classes = check_classes([name for _, name in categories], str(source))
    groups = _by_image(content, source)
    locator = Locator(images or source.parent, source.stem.removeprefix("instances_").removeprefix("captions_"))
    label = {category_id: i for i, (category_id, _) in enumerate(categories)}
    captions, metadata = _side_files(source.parent)
    samples: list[Sample] = []
    for entry in content["images"]:
        found = locator.find(str(entry["file_name"]))
        if found is not None:
            sample = _sample(entry, found, groups.get(entry["id"], []), label, classes, source, bool(categories))
            name = str(entry["file_name"]).removeprefix(f"{IMAGES}/")
            samples.append(
                replace(
                    sample,
                    captions=sample.captions or captions.get(name, ()),
                    metadata={**metadata.get(name, {}), **sample.metadata},
                )
            )
    skipped = locator.settle(source, len(content["images"]), skip_missing)
    dataset = Dataset.build(samples, classes, category_ids=[category_id for category_id, _ in categories])
    dataset.skipped = skipped
    return dataset


def write(dataset: Dataset, path: Path) -> None:
    """Write a folder of annotations and copied images, or the annotations alone when `path` ends in `.json`."""
    path = Path(path)
    if path.suffix.lower() == ".json":
        here = path.parent.resolve()
        names = [_reference(Path(source), here) for source in dataset.arrow.column("path").to_pylist()]
        write_text(path, json.dumps(to_dict(dataset, names)) + "\n")
        return
    names = file_names(dataset)
    with staged(path, folder=True) as folder:
        copy_images(dataset, names, folder / IMAGES)
        (folder / ANNOTATIONS).write_text(json.dumps(to_dict(dataset, names)) + "\n", encoding="utf-8")


def to_dict(dataset: Dataset, names: list[str] | None = None) -> dict[str, Any]:
    """The COCO object for a dataset, as evaluators take it; `names` are the file names to give."""
    names = names or [Path(source).name for source in dataset.arrow.column("path").to_pylist()]
    category = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, name, sample in zip(image_ids(dataset), names, dataset, strict=True):
        images.append(_image_entry(image_id, name, sample))
        for entry in _annotation_entries(sample, category):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
    return {
        "info": {"description": "written by Foveal"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category_id, "name": name} for name, category_id in category.items()],
    }


def _image_entry(image_id: int, name: str, sample: Sample) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": image_id, "file_name": name, "width": sample.width, "height": sample.height}
    if sample.id != str(image_id):
        entry["sample_id"] = sample.id
    if sample.captions:
        entry["captions"] = list(sample.captions)
    if sample.label is not None:
        entry["label"] = sample.label
    metadata = {key: value for key, value in sample.metadata.items() if key != CROWD}
    if metadata:
        entry["metadata"] = metadata
    if sample.truth is None:
        entry["unlabelled"] = True
    return entry


def _annotation_entries(sample: Sample, category: dict[str, int]) -> Iterator[dict[str, Any]]:
    truth = sample.truth
    for row in range(0 if truth is None else len(truth)):
        assert truth is not None
        bbox = to_xywh(truth.boxes[row])
        entry: dict[str, Any] = {
            "category_id": category[truth.label_names[row]],
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            "iscrowd": 0,
        }
        if float(truth.scores[row]) != 1 or truth.provenance is not None:
            entry["score"] = shortest(truth.scores[row])
        yield {**entry, **extra_keys(truth, row)}
    for region in json.loads(str(sample.metadata.get(CROWD, "[]"))):
        x, y, width, height = region["bbox"]
        yield {
            "category_id": category[region["category"]],
            "bbox": [x, y, width, height],
            "area": width * height,
            "iscrowd": 1,
        }


def _sample(
    entry: dict[str, Any],
    path: Path,
    annotations: list[dict[str, Any]],
    label: dict[Any, int],
    classes: tuple[str, ...],
    source: Path,
    has_classes: bool,
) -> Sample:
    where = f"{source}, image {entry['file_name']},"
    spoken = [str(a["caption"]) for a in annotations if "caption" in a]
    boxed = [a for a in annotations if "caption" not in a]
    crowds = [a for a in boxed if a.get("iscrowd")]
    objects = [a for a in boxed if not a.get("iscrowd")]
    truth = None
    if has_classes and not entry.get("unlabelled"):
        truth = to_detections(objects, label, classes, where)
    metadata = dict(entry.get("metadata", {}))
    if crowds:
        to_detections(crowds, label, classes, where)
        metadata[CROWD] = json.dumps(
            [{"bbox": [float(v) for v in a["bbox"]], "category": classes[label[a["category_id"]]]} for a in crowds]
        )
    width, height = entry.get("width"), entry.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        width, height = size(path)
    return Sample(
        id=str(entry.get("sample_id", entry["id"])),
        path=path,
        width=width,
        height=height,
        truth=truth,
        captions=tuple(entry.get("captions", ())) or tuple(spoken),
        label=entry.get("label"),
        metadata=metadata,
    )


def _categories(content: dict[str, Any], source: Path) -> list[tuple[Any, str]]:
    categories = content.get("categories", [])
    if not all(isinstance(c, dict) and {"id", "name"} <= c.keys() for c in categories):
        raise BadInput(f"{source} has a malformed category", expected="an id and a name each")
    ids = [c["id"] for c in categories]
    if len(set(ids)) < len(ids):
        raise BadInput(f"{source} gives two categories one id", received=str(sorted(ids)))
    return sorted((c["id"], str(c["name"])) for c in categories)


def _by_image(content: dict[str, Any], source: Path) -> dict[Any, list[dict[str, Any]]]:
    """Annotations grouped by image id, in file order."""
    for entry in content["images"]:
        if not isinstance(entry, dict) or not {"id", "file_name"} <= entry.keys():
            raise BadInput(f"{source} has a malformed image entry", expected="id and file_name", received=str(entry))
    groups: dict[Any, list[dict[str, Any]]] = {entry["id"]: [] for entry in content["images"]}
    if len(groups) < len(content["images"]):
        raise BadInput(f"{source} gives two images one id", remedy="Number the images anew.")
    for annotation in content.get("annotations", []):
        if not isinstance(annotation, dict) or annotation.get("image_id") not in groups:
            raise BadInput(
                f"{source} has an annotation of an image that it does not list", received=str(annotation)[:120]
            )
        if "caption" not in annotation:
            from_xywh(annotation.get("bbox"), f"{source}, annotation {annotation.get('id')},")
        groups[annotation["image_id"]].append(annotation)
    return groups


def _side_files(folder: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, Any]]]:
    captions: dict[str, tuple[str, ...]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    if (folder / CAPTIONS).is_file():
        for name, record in caption_format.records(folder / CAPTIONS):
            name = name.removeprefix(f"{IMAGES}/")
            captions[name] = (*captions.get(name, ()), *record.captions)
    if (folder / METADATA).is_file():
        with (folder / METADATA).open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                key = next((k for k in ("image", "file_name", "path") if k in row), next(iter(row), None))
                if key is not None:
                    metadata[row[key].removeprefix(f"{IMAGES}/")] = {
                        k: _number(v) for k, v in row.items() if k != key and k and v
                    }
    return captions, metadata


def _number(text: str) -> str | int | float:
    """A CSV cell as the number it prints as, else as text: `007` stays text."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if str(value) == text:
            return value
    return text


def _candidates(folder: Path) -> list[Path]:
    for names in (
        [folder / ANNOTATIONS, folder / "_annotations.coco.json"],
        sorted((folder / "annotations").glob("instances*.json")),
        sorted(folder.glob("instances*.json")),
    ):
        found = [path for path in names if path.is_file() and first_character(path) == "{"]
        if found:
            return found
    return []


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = _candidates(path)
    if len(found) != 1:
        raise BadInput(
            f"{path} holds {len(found) or 'no'} COCO files",
            expected=f"one, called {ANNOTATIONS}",
            received=", ".join(str(p.relative_to(path)) for p in found) or None,
            remedy="Name the JSON file itself.",
        )
    return found[0]


def _reference(source: Path, here: Path) -> str:
    """The image path as annotations in `here` should name it: relative when it lies below, absolute otherwise."""
    absolute = Path(os.path.abspath(source))
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else str(absolute)
