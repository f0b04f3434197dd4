"""Files of an archive's own: pictures that were sent to it, in a folder of it, each with what is told of it beside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

FOLDER = "uploads"
BESIDE = ".json"  # behind the name of a picture's file


def drop(archive: Path, uri: str) -> bool:
    """Removes the file of an item that was sent here; whether there was one. Files elsewhere are somebody else's."""
    path = Path(uri)
    if path.parent.parent != (archive / FOLDER).absolute():
        return False
    there = path.is_file()
    for each in (path, path.with_name(path.name + BESIDE)):
        each.unlink(missing_ok=True)
    return there


def uploaded(archive: Path) -> Iterator[Path]:
    """The pictures' files."""
    for path in sorted((archive / FOLDER).absolute().glob("??/*")):
        if path.suffix != BESIDE and path.is_file():
            yield path
