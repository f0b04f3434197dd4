"""`archive.json`: what an archive is, fixed when it is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from foveal.errors import BadInput, IntegrityError
from retrieval import json_files
from retrieval.index import IndexSettings

FORMAT = 3
SAME = (2, FORMAT)  # formats that differ only in whether there is a checksum
FILE = "archive.json"
REMEDY = "Restore it from a backup, or from the other: archive and served generation hold the same archive.json."


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
        json_files.write(folder / FILE, {"format": FORMAT, **asdict(self)})

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
        data = json_files.read(file, remedy=REMEDY)
        try:
            version = int(data.pop("format"))
            if version in SAME:
                index = IndexSettings(**data.pop("index"))
                return cls(**data, index=index)
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{file} is damaged: {error}", remedy=REMEDY) from error
        remedy = "Update foveal." if version > FORMAT else "Add the images to a new archive."
        raise BadInput(f"{file} has format {version}", expected=f"format {FORMAT}", remedy=remedy)
