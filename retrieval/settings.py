"""`archive.json`: what an archive is, fixed when it is made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveal.artifacts import write_text
from foveal.errors import BadInput, IntegrityError
from retrieval.index import IndexSettings

FORMAT = 2
FILE = "archive.json"


class NoArchive(BadInput):
    """Nothing is where an archive was looked for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The encoder that an archive is bound to, and how it is indexed."""

    encoder: str  # model reference
    fingerprint: str
    dimension: int
    index: IndexSettings
    generation: int = 1  # which of `generations/` is served

    def folder(self, archive: Path) -> Path:
        """Where the table and index of this generation lie."""
        return archive / "generations" / f"{self.generation:04d}"

    def write(self, folder: Path) -> None:
        """Writes `archive.json` into `folder`, atomically."""
        write_text(folder / FILE, json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """The settings of the archive in `folder`.

        Raises:
            BadInput: there is none, or a newer Foveal wrote it.
            IntegrityError: the file is damaged.
        """
        file = folder / FILE
        if not file.is_file():
            raise NoArchive(
                f"no archive at {folder}", remedy=f"Build one: foveal archive add IMAGES --archive {folder}"
            )
        try:
            data: dict[str, Any] = json.loads(file.read_text("utf-8"))
            version = data.pop("format")
            if version == FORMAT:
                index = IndexSettings(**data.pop("index"))
                return cls(**data, index=index)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{file} is damaged: {error}", remedy="Restore it from a backup.") from error
        remedy = "Update foveal." if version > FORMAT else "Add the images to a new archive."
        raise BadInput(f"{file} has format {version}", expected=f"format {FORMAT}", remedy=remedy)
