"""Where images come from: datasets, folders, files and globs, with the metadata that lies beside them."""

from __future__ import annotations

import csv
import glob
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foveal.dataset import Dataset
from foveal.errors import BadInput
from foveal.images import find_images

Value = str | int | float
Source = Dataset | Path | str
SIDECAR = "metadata.csv"


@dataclass(frozen=True, slots=True)
class Item:
    """An image file to embed, and what is known about it."""

    path: Path  # absolute
    metadata: Mapping[str, Value]


@dataclass(slots=True)
class Sources:
    """The image files named by any mix of sources, each once, in the order given."""

    items: list[Item] = field(default_factory=list[Item])
    notes: list[str] = field(default_factory=list[str])  # sidecars that could not be used
    _sidecars: dict[Path, dict[str, dict[str, Value]]] = field(default_factory=dict[Path, dict[str, dict[str, Value]]])
    _seen: set[Path] = field(default_factory=set[Path])

    @classmethod
    def resolve(cls, sources: Source | Sequence[Source]) -> Sources:
        """Every image the sources name.

        Raises:
            BadInput: a source does not exist or holds no image.
        """
        found = cls()
        for source in [sources] if isinstance(sources, (Dataset, Path, str)) else sources:
            before = len(found._seen)
            if isinstance(source, Dataset):
                for sample in source:
                    extra: dict[str, Value] = {} if sample.label is None else {"label": sample.label}
                    found._append(sample.path, {"sample_id": sample.id, **extra, **sample.metadata})
                count = len(source)
            else:
                count = found._expand(source)
            if not count and before == len(found._seen):
                raise BadInput(
                    f"no images in {source}", expected="image files, or a folder or glob of them", remedy="Check it."
                )
        return found

    def _expand(self, source: Path | str) -> int:
        """Appends the images of one path or glob; returns how many it named, already seen ones included."""
        path = Path(source).expanduser()
        if path.is_dir():
            files = [(file, path) for file in find_images(path)]
        elif path.is_file():
            files = [(path, path.parent)]
        else:
            files = [(file, file.parent) for file in map(Path, sorted(glob.glob(str(path), recursive=True)))]
            files = [(file, root) for file, root in files if file.is_file() and file.name != SIDECAR]
            if not files:
                raise BadInput(f"{source} does not exist", expected="a folder, an image file or a glob")
        for file, root in files:
            file, root = Path(os.path.abspath(file)), Path(os.path.abspath(root))
            self._append(file, self._beside(file, root))
        return len(files)

    def _append(self, path: Path, metadata: Mapping[str, Value]) -> None:
        path = Path(os.path.abspath(path))
        if path not in self._seen:
            self._seen.add(path)
            self.items.append(Item(path, metadata))

    def _beside(self, file: Path, root: Path) -> dict[str, Value]:
        """The row for `file` in the nearest metadata.csv, from its own folder up to the one beside the source."""
        folder = file.parent
        while True:
            rows = self._sidecar(folder / SIDECAR)
            inside = file.relative_to(folder)
            for key in (inside.as_posix(), Path(*inside.parts[1:]).as_posix(), inside.name):
                if key in rows:
                    return rows[key]
            if folder == root.parent or folder == folder.parent:
                return {}
            folder = folder.parent

    def _sidecar(self, path: Path) -> dict[str, dict[str, Value]]:
        if path not in self._sidecars:
            try:
                self._sidecars[path] = read_sidecar(path) if path.is_file() else {}
            except BadInput as error:
                self.notes.append(str(error))
                self._sidecars[path] = {}
        return self._sidecars[path]


def read_sidecar(path: Path) -> dict[str, dict[str, Value]]:
    """file_name -> the other columns of a CSV; a column of numbers only becomes numbers, empty cells are left out.

    Raises:
        BadInput: the file is no CSV with a header that has `file_name`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            fields = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} is ignored: {error}", expected="a UTF-8 CSV file") from error
    if "file_name" not in fields:
        raise BadInput(f"{path} is ignored", expected="a column file_name", received=", ".join(fields) or "no header")
    columns = [name for name in fields if name and name != "file_name"]
    numeric = {name for name in columns if all(_is_number(row[name]) for row in rows if row[name])}
    result: dict[str, dict[str, Value]] = {}
    for row in rows:
        values = {name: row[name] for name in columns if row[name]}
        result[row["file_name"]] = {k: _number(v) if k in numeric else v for k, v in values.items()}
    return result


def _is_number(text: str) -> bool:
    """Whether `text` is a finite number and not a code such as 007 or 12_3."""
    try:
        finite = math.isfinite(_number(text))
    except ValueError:
        return False
    return finite and "_" not in text and not (len(text) > 1 and text[0] == "0" and text[1].isdigit())


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
