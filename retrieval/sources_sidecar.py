"""What lies beside images about them: `metadata.csv`, `metadata.jsonl`, and a JSON file an image."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TypeVar

from foveal.errors import BadInput
from retrieval.sources_item import Value, clean, flat

T = TypeVar("T")
Rows = dict[str, dict[str, Value]]  # file_name -> what is said about it

TABLES = ("metadata.csv", "metadata.jsonl")
MAX_JSON = 2**20  # bytes of a JSON file about one image; annotation tools write larger ones, with the image inside


class Sidecars:
    """Metadata for the files of one source, each table read once.

    For `a/b/photo.jpg`, later ones winning: its row in the nearest folder's `metadata.csv` and `metadata.jsonl` that
    have one, then `photo.json`, then `photo.jpg.json`. What cannot be used is said in `notes`.
    """

    def __init__(self, notes: list[str], exists: Callable[[str], bool], read: Callable[[str, int], bytes]) -> None:
        """`read` gives at most so many bytes of a file, all of it for -1."""
        self._notes, self._exists, self._read = notes, exists, read
        self._tables: dict[str, Rows] = {}

    def beside(self, file: str, root: str) -> dict[str, Value]:
        """What is said about `file`, in folders from its own up to the one beside the source `root`; whole paths."""
        merged = dict(self._row(file, root))
        for path in (os.path.splitext(file)[0] + ".json", file + ".json"):
            merged |= self._parsed(path, parse_json, MAX_JSON) or {}
        return merged

    def _row(self, file: str, root: str) -> dict[str, Value]:
        folder, last = os.path.dirname(file), os.path.dirname(root)
        while True:
            if rows := self._table(folder):
                inside = PurePosixPath(os.path.relpath(file, folder))
                for key in (str(inside), str(PurePosixPath(*inside.parts[1:])), inside.name):
                    if key in rows:
                        return rows[key]
            if folder == last or folder == os.path.dirname(folder):
                return {}
            folder = os.path.dirname(folder)

    def _table(self, folder: str) -> Rows:
        if folder not in self._tables:
            merged: Rows = {}
            for name, parse in zip(TABLES, (parse_csv, parse_jsonl), strict=True):
                for key, row in (self._parsed(os.path.join(folder, name), parse) or {}).items():
                    merged[key] = merged.get(key, {}) | row
            self._tables[folder] = merged
        return self._tables[folder]

    def _parsed(self, path: str, parse: Callable[[bytes, str], T], limit: int | None = None) -> T | None:
        if not self._exists(path):
            return None
        try:
            data = self._read(path, -1 if limit is None else limit + 1)
            if limit is not None and len(data) > limit:
                raise BadInput(f"{path} is ignored", expected=f"at most {limit:,} bytes about one image")
            return parse(data, path)
        except OSError as error:
            self._notes.append(clean(f"{path} is ignored: {error.strerror or error}"))
        except BadInput as error:
            self._notes.append(clean(str(error)))
        return None


def parse_csv(data: bytes, name: str) -> Rows:
    """The columns beside `file_name` of a CSV; a column of numbers only becomes numbers, empty cells are left out.

    Raises:
        BadInput: it is no CSV with a header that has `file_name`.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows = list(reader)
        fields = reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{name} is ignored: {error}", expected="a UTF-8 CSV file") from error
    if "file_name" not in fields:
        raise BadInput(f"{name} is ignored", expected="a column file_name", received=", ".join(fields) or "no header")
    columns = [column for column in fields if column and column != "file_name"]
    numeric = {column for column in columns if all(_is_number(row[column]) for row in rows if row[column])}
    result: Rows = {}
    for row in rows:
        values = {column: row[column] for column in columns if row[column]}
        result[row["file_name"]] = {k: _number(v) if k in numeric else v for k, v in values.items()}
    return result


def parse_jsonl(data: bytes, name: str) -> Rows:
    """The entries beside `file_name` of JSON lines, as the imagefolder of Hugging Face `datasets` has them.

    Raises:
        BadInput: a line is no JSON object with `file_name`; says which.
    """
    result: Rows = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            file = record["file_name"] + ""
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise BadInput(
                f"{name} is ignored: line {number} is no JSON object with file_name",
                received=line[:80].decode("utf-8", "replace"),
            ) from error
        result[file] = flat(record, skip=("file_name",))
    return result


def parse_json(data: bytes, name: str) -> dict[str, Value]:
    """What a JSON object says, as far as it can be metadata.

    Raises:
        BadInput: it is none.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name} is ignored: {error}", expected="a JSON object") from error
    if not isinstance(record, dict):
        raise BadInput(f"{name} is ignored", expected="a JSON object", received=type(record).__name__)
    return flat(record)


def _is_number(text: str) -> bool:
    """Whether `text` is a finite number and not a code such as 007 or 12_3."""
    try:
        finite = math.isfinite(_number(text))
    except (ValueError, OverflowError):
        return False
    return finite and "_" not in text and not (len(text) > 1 and text[0] == "0" and text[1].isdigit())


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
