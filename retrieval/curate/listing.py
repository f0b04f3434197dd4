"""Lists of images for other tools: CSV, JSON, or a line an image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveal.artifacts import write_text
from foveal.errors import BadInput

SUFFIXES = (".csv", ".json", ".txt")


def check_suffix(path: Path) -> Path:
    """The path, before hours of work are spent on what could not be written.

    Raises:
        BadInput: its name ends in none of SUFFIXES.
    """
    if path.suffix.casefold() not in SUFFIXES:
        raise BadInput(f"cannot write {path}", expected=f"a name that ends in {', '.join(SUFFIXES)}")
    return path


def write_rows(path: Path, rows: Sequence[dict[str, Any]], line: str = "uri") -> None:
    """Records of the same fields, whole or not at all, in the form that the suffix of `path` says: .csv, .json, or .txt
    with the field `line` of each.

    Raises:
        BadInput: another suffix.
    """
    kind = check_suffix(path).suffix.casefold()
    if kind == ".json":
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    elif kind == ".txt":
        text = "".join(f"{row[line]}\n" for row in rows)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
