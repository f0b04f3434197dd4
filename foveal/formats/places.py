"""Finding the image files that annotations name, and copying them beside annotations that are written."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from foveal.dataset import Dataset
from foveal.errors import BadInput
from foveal.images import SUFFIXES

IMAGES = "images"


class Locator:
    """Finds named image files below a few likely folders, and remembers which are missing."""

    def __init__(self, base: Path, *hints: str) -> None:
        around = [base, base / IMAGES, base.parent, base.parent / IMAGES]
        splits = [folder / hint for hint in hints for folder in around]
        self.folders: list[Path] = [*around, *splits]
        self.missing: list[str] = []

    def find(self, *names: str) -> Path | None:
        """The first file called by one of `names`, or None, counted as missing."""
        spellings = [spelling for given in names for spelling in (given, given.replace("\\", "/"))]
        for name in dict.fromkeys(spellings):
            for folder in self.folders:
                path = folder / name
                if path.is_file():
                    if folder != self.folders[0]:  # the next one most likely lies there too
                        self.folders.remove(folder)
                        self.folders.insert(0, folder)
                    return path
        self.missing.append(names[0])
        return None

    def settle(self, source: Path, listed: int, skip: bool) -> tuple[tuple[Path, str], ...]:
        """What was skipped.

        Raises:
            BadInput: images are missing and `skip` is false, or none was found at all.
        """
        if self.missing and (not skip or len(self.missing) == listed):
            raise BadInput(
                f"{source} names {len(self.missing)} of {listed} images that are missing, the first {self.missing[0]}",
                expected=f"them in {source.parent} or {source.parent / IMAGES}",
                remedy="Put the images there, or read with skip_missing to go on without them.",
            )
        return tuple((Path(name), "missing") for name in self.missing)


def read_json(path: Path) -> Any:
    """Parsed JSON.

    Raises:
        BadInput: the file is not JSON or not readable; names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON: {error.msg} at line {error.lineno}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


def first_character(path: Path) -> str:
    """The first character of a text file that is not white space, or an empty string."""
    try:
        with path.open("rb") as stream:
            return stream.read(256).decode("utf-8-sig", errors="ignore").lstrip()[:1]
    except OSError:
        return ""


def file_names(dataset: Dataset) -> list[str]:
    """A relative file name for each sample, their stems unique, since labels are found by stem.

    Ids that are relative paths to images are kept, so that reading a folder and writing it changes nothing; otherwise a
    file keeps its own name where no other has it.
    """
    paths = [Path(path) for path in dataset.arrow.column("path").to_pylist()]
    if all(_is_file_name(name, path) for name, path in zip(dataset.ids, paths, strict=True)) and (
        len({str(PurePosixPath(name).with_suffix("")).casefold() for name in dataset.ids}) == len(dataset)
    ):
        return list(dataset.ids)
    taken = Counter(path.stem.casefold() for path in paths)
    used: set[str] = {stem for stem, count in taken.items() if count == 1}
    names: list[str] = []
    for path, sample_id in zip(paths, dataset.ids, strict=True):
        if taken[path.stem.casefold()] == 1:
            names.append(path.name)
            continue
        stem = re.sub(r"[^\w.-]+", "_", f"{path.stem}-{sample_id}").strip("._")
        unique, count = stem, 1
        while unique.casefold() in used:
            count += 1
            unique = f"{stem}-{count}"
        used.add(unique.casefold())
        names.append(unique + path.suffix)
    return names


def _is_file_name(name: str, path: Path) -> bool:
    relative = PurePosixPath(name)
    plain = not relative.is_absolute() and "\\" not in name and str(relative) == name
    visible = not any(part.startswith(".") for part in relative.parts)
    return plain and visible and relative.suffix == path.suffix and path.suffix.lower() in SUFFIXES


def copy_images(dataset: Dataset, names: Sequence[str], folder: Path) -> None:
    """Copy each sample's file to `folder` under its name.

    Raises:
        BadInput: a source file has gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in zip(dataset.arrow.column("path").to_pylist(), names, strict=True):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise BadInput(f"{error.filename} cannot be copied: {error.strerror}") from error


def scalars(record: dict[str, Any], known: Iterable[str]) -> dict[str, str | int | float]:
    """The entries of a record, other than `known`, that can be metadata."""
    skip = set(known)
    return {
        key: value
        for key, value in record.items()
        if key not in skip and isinstance(value, str | int | float) and not isinstance(value, bool)
    }
