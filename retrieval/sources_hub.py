"""Hugging Face datasets: from the hub, saved to disk, or in memory. Their bytes are decoded by us, not by them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.errors import BadImage, BadInput, Unavailable
from retrieval.sources_item import Item, Value, check_size, flat, local_uri, read_file

if TYPE_CHECKING:
    import datasets

ROWS = 512
SCHEME = "hf://"
MEMORY = "memory/"
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # what save_to_disk leaves in a folder


class Rows:
    """An `Origin`: one split; its column of images by feature type, its scalar columns as metadata."""

    def __init__(self, dataset: datasets.Dataset, uri: str, split: str | None = None) -> None:
        """Finds the images.

        Raises:
            BadInput: no column holds images.
        """
        import datasets as hf

        self._uri, self._split = uri, split
        self.notes: list[str] = []
        columns = [name for name, feature in dataset.features.items() if isinstance(feature, hf.Image)]
        if not columns:
            raise BadInput(
                f"{uri} has no column of images",
                expected="a feature of type Image",
                received=", ".join(f"{name} ({feature.dtype})" for name, feature in dataset.features.items()),
            )
        if len(columns) > 1:
            self.notes.append(f"{uri}: of {', '.join(columns)} only {columns[0]} is embedded")
        told = [name for name, feature in dataset.features.items() if not _is_media(feature)]
        plain: Any = dataset.with_format(None)
        self._images: Any = plain.select_columns(columns[:1]).cast_column(columns[0], hf.Image(decode=False))
        self._told: Any = plain.select_columns(told)
        self._names = {n: f for n, f in dataset.features.items() if isinstance(f, hf.ClassLabel)}
        self._column = columns[0]
        self._stamp = f"hf;{dataset._fingerprint}"  # pyright: ignore[reportPrivateUsage]
        self.total: int | None = len(dataset)

    def items(self) -> Iterator[Item]:
        for start in range(0, len(self._images), ROWS):
            rows = self._told[start : start + ROWS]
            for i in range(start, min(start + ROWS, len(self._images))):
                metadata = self._metadata({name: values[i - start] for name, values in rows.items()})
                yield Item(f"{self._uri}!/{i}", metadata, self._stamp, partial(self._read, i))

    def covers(self, uri: str) -> bool:
        return uri.startswith(f"{self._uri}!/")

    def _metadata(self, row: dict[str, Any]) -> dict[str, Value]:
        for name, feature in self._names.items():
            if isinstance(row[name], int) and row[name] >= 0:  # -1 stands for no label
                row[name] = feature.int2str(row[name])
        return flat(row) | ({} if self._split is None else {"split": self._split})

    def _read(self, index: int) -> bytes:
        try:
            value = self._images[index][self._column]
        except Exception as error:  # datasets lets through whatever Arrow raises for damaged files
            raise BadImage(f"row {index} of {self._uri} cannot be read: {error}") from error
        if value is None:
            raise BadImage(f"row {index} of {self._uri} has no image")
        if value["bytes"] is None:
            if not os.path.isabs(value["path"] or ""):
                raise BadImage(f"row {index} of {self._uri} has no bytes", received=f"the name {value['path']}")
            return read_file(value["path"])
        check_size(len(value["bytes"]), self._uri)
        return value["bytes"]


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / SAVED[2]).is_file() or all((folder / name).is_file() for name in SAVED[:2])


def open_saved(folder: Path) -> list[Rows]:
    """The splits of a folder that `save_to_disk` wrote; BadInput when it cannot be read or holds no images."""
    import datasets as hf

    try:
        found = hf.load_from_disk(str(folder))
    except Exception as error:  # datasets lets through whatever Arrow and the file system raise
        raise BadInput(f"{folder} cannot be read as a saved dataset: {error}") from error
    return _splits(found, SCHEME + local_uri(folder).removeprefix("file://"))


def open_hub(name: str) -> list[Rows]:
    """The splits of `ORG/NAME` or `ORG/NAME:SPLIT` of the Hugging Face hub, downloaded when not yet cached.

    Raises:
        Unavailable: the hub does not answer, or knows no such dataset.
        BadInput: it holds no images.
    """
    import datasets as hf

    target, _, split = name.partition(":")
    try:
        found = hf.load_dataset(target, split=split or None)
    except Exception as error:
        raise Unavailable(f"dataset {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return _splits(found, SCHEME + target, split or None)


def open_uri(uri: str) -> list[Rows]:
    """The split whose rows have URIs that begin with `uri`, e.g. `hf://ORG/NAME/train`, from where it was read.

    Raises:
        BadInput: it is no longer there, or was in memory only.
        Unavailable: as `open_hub`.
    """
    name = uri.removeprefix(SCHEME)
    if name.startswith(MEMORY):
        raise BadInput(f"{uri} was in memory only")
    if os.path.isabs(name):
        return open_saved(Path(name))
    target, _, split = name.rpartition("/")
    return open_hub(f"{target}:{split}")


def in_memory(dataset: Any) -> list[Rows]:
    """The splits of a `datasets.Dataset` or `DatasetDict`, whose URIs hold as long as its fingerprint."""
    first = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
    return _splits(dataset, f"{SCHEME}{MEMORY}{first._fingerprint}")


def _splits(found: Any, uri: str, split: str | None = None) -> list[Rows]:
    if isinstance(found, dict):
        return [Rows(part, f"{uri}/{name}", str(name)) for name, part in found.items()]
    return [Rows(found, f"{uri}/{split}" if split else uri, split)]


def _is_media(feature: Any) -> bool:
    return type(feature).__name__ in ("Image", "Audio", "Video", "Pdf", "Nifti")
