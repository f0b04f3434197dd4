"""Image-caption pairs: JSON lines `{"image", "captions" | "caption"}`, or CSV with columns image and caption.

Other scalar entries become metadata. Several rows of one image are one sample with several captions.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveal.artifacts import staged
from foveal.dataset import Dataset, Metadata, Sample
from foveal.errors import BadInput
from foveal.formats.places import IMAGES, Locator, copy_images, file_names, scalars
from foveal.images import size

NAMES = ("captions.jsonl", "captions.csv")
_KNOWN = ("image", "file_name", "captions", "caption", "text", "id", "metadata", "label")


@dataclass(slots=True)
class Record:
    """What the lines about one image say."""

    captions: list[str] = field(default_factory=list)
    id: str | None = None
    label: str | None = None
    metadata: Metadata = field(default_factory=dict)


def recognises(path: Path) -> bool:
    """A JSONL or CSV file, or a folder with captions.jsonl or captions.csv."""
    if path.is_dir():
        return any((path / name).is_file() for name in NAMES)
    return path.suffix.lower() in (".jsonl", ".csv")


def read(path: Path, *, skip_missing: bool = False) -> Dataset:
    """Captions from a JSONL or CSV file or the folder that holds one; images beside it or in `images/`.

    Raises:
        BadInput: a line is malformed, or images are missing (unless `skip_missing`); names the file and line.
    """
    source = next((path / name for name in NAMES if (path / name).is_file()), path) if path.is_dir() else path
    if source.is_dir():
        raise BadInput(f"{path} holds no captions", expected=" or ".join(NAMES))
    merged: dict[str, Record] = {}
    for name, record in records(source):
        known = merged.setdefault(name, Record())
        known.captions += record.captions
        known.id, known.label = record.id or known.id, record.label or known.label
        known.metadata |= record.metadata
    locator = Locator(source.parent)
    samples: list[Sample] = []
    for name, record in merged.items():
        found = locator.find(name)
        if found is not None:
            width, height = size(found)
            samples.append(
                Sample(
                    id=record.id or name,
                    path=found,
                    width=width,
                    height=height,
                    captions=tuple(record.captions),
                    label=record.label,
                    metadata=record.metadata,
                )
            )
    skipped = locator.settle(source, len(merged), skip_missing)
    dataset = Dataset.build(samples, sorted({s.label for s in samples if s.label is not None}))
    dataset.skipped = skipped
    return dataset


def records(source: Path) -> Iterator[tuple[str, Record]]:
    """(image name, record) of each line.

    Raises:
        BadInput: a line is malformed; names the file and line.
    """
    rows = _csv_rows(source) if source.suffix.lower() == ".csv" else _json_rows(source)
    for number, row in rows:
        name = row.get("image") or row.get("file_name")
        captions = row.get("captions", row.get("caption", row.get("text")))
        captions = [captions] if isinstance(captions, str) else captions
        if (
            not isinstance(name, str)
            or not isinstance(captions, list)
            or not all(isinstance(caption, str) for caption in captions)
        ):
            raise BadInput(
                f"{source} line {number} is no caption",
                expected='an image and its caption, e.g. {"image": "a.jpg", "captions": ["a red box"]}',
                received=json.dumps(row)[:120],
            )
        nested = row.get("metadata")
        metadata = scalars(row, _KNOWN) | (scalars(nested, ()) if isinstance(nested, dict) else {})
        label, given = row.get("label"), row.get("id")
        yield (
            name,
            Record(
                captions=captions,
                id=None if given is None else str(given),
                label=None if label is None else str(label),
                metadata=metadata,
            ),
        )


def write(dataset: Dataset, path: Path) -> None:
    """Write `captions.jsonl` and `images/`; boxes are not part of this format.

    Raises:
        BadInput: no sample has a caption.
    """
    if not any(dataset.arrow.column("captions").to_pylist()):
        raise BadInput("no sample has a caption", expected="captions to write", remedy="Choose another format.")
    names = file_names(dataset)
    with staged(path, folder=True) as folder:
        copy_images(dataset, names, folder / IMAGES)
        with (folder / NAMES[0]).open("w", encoding="utf-8") as stream:
            for name, sample in zip(names, dataset, strict=True):
                row: dict[str, Any] = {"image": name, "captions": list(sample.captions)}
                if sample.id != name:
                    row["id"] = sample.id
                if sample.label is not None:
                    row["label"] = sample.label
                if sample.metadata:
                    row["metadata"] = sample.metadata
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _json_rows(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with source.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"{source} line {number} is not JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise BadInput(f"{source} line {number} is no JSON object", received=line.strip()[:80])
            yield number, row


def _csv_rows(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with source.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        for row in rows:
            yield rows.line_num, {key: value for key, value in row.items() if key and value is not None}
