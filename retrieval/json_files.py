"""JSON that carries a checksum of its content: whole files, and lines of files that are only appended to.

What has none is of an earlier Foveal: it is taken as it is, and gets one when it is next written. A checksum tells what
has changed, not what is gone: a file of lines that ends early, between two of them, looks whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveal.artifacts import write_text
from foveal.errors import IntegrityError

SUM = "checksum"


def write(file: Path, record: Mapping[str, Any]) -> None:
    """Writes a record into a file of its own, atomically."""
    write_text(file, json.dumps(_summed(record), indent=1))


def read(file: Path, *, remedy: str) -> dict[str, Any]:
    """The record in a file; OSError where there is no such file, IntegrityError with `remedy` where it is damaged."""
    try:
        return parse(file.read_text("utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{file} is damaged: {error}", remedy=remedy) from error


def line(record: Mapping[str, Any]) -> str:
    """A record as one line of ASCII, without the line break."""
    return json.dumps(_summed(record))


def parse(text: str) -> dict[str, Any]:
    """The record that `text` holds; ValueError when it is none, or not the one that was written."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    found: dict[str, Any] = record
    if SUM in found and found.pop(SUM) != _digest(found):
        raise ValueError("its content has changed since it was written")
    return found


def _summed(record: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(record)))  # as it will be read: tuples as lists, keys as text
    return {**plain, SUM: _digest(plain)}


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
