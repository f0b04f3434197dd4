"""Pictures that were sent to an archive: files in a folder of it, named by their content, gone when the item goes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foveal.artifacts import staged, write_text
from foveal.images import MAX_PIXELS, format_of
from retrieval.ingest import identity
from retrieval.uploaded import BESIDE, FOLDER

if TYPE_CHECKING:
    from foveal.models import Encoder
    from retrieval.archive import Archive
    from retrieval.blur import Blur

SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "GIF": ".gif",
          "PPM": ".ppm", "AVIF": ".avif", "JPEG2000": ".jp2"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture that somebody sent; decoded once already, so that it can be."""

    name: str  # the file name it came with
    data: bytes
    metadata: Mapping[str, str | int | float]
    blurred: Mapping[str, str | int | float] = field(default_factory=dict[str, str | int | float])  # what `blur` says

    def through(self, blur: Blur | None, max_pixels: int = MAX_PIXELS) -> Upload:
        """The picture blurred, unless it has been; raises as `Blur.file`."""
        if blur is None or self.blurred:
            return self
        data, said = blur.file(self.data, max_pixels)
        return replace(self, data=data, blurred=said)


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of an upload."""

    name: str
    id: str
    status: Literal["added", "updated", "unchanged"]  # updated: its metadata


def take(
    store: Archive, encoder: Encoder, uploads: list[Upload], blur: Blur | None = None
) -> tuple[list[Kept], list[str]]:
    """Adds pictures, durably when this returns; what became of each, and notes on their metadata.

    With `blur` nothing is written of a picture that is not blurred.

    Raises:
        NotBlurred: one of them could not be; then none is taken in.
        Unavailable: another process is writing to the archive.
        FovealError: no space is left.
    """
    uploads = [upload.through(blur) for upload in uploads]
    paths = [_written(store.path / FOLDER, upload) for upload in uploads]
    ids = [identity(str(path)) for path in paths]
    before = store.items(ids, ("metadata",))
    report = store.add(list(dict.fromkeys(paths)), encoder)
    after = store.items(ids, ("metadata",))
    kept = [
        Kept(
            upload.name,
            id,
            "added" if id not in before else "unchanged" if before[id] == after[id] else "updated",
        )
        for upload, id in zip(uploads, ids, strict=True)
    ]
    return kept, report.notes


def id_of(store: Archive, data: bytes) -> str:
    """The id that a picture has in an archive, once it was sent there; BadImage where it is none."""
    return identity(str(_path(store.path / FOLDER, data)))


def _path(folder: Path, data: bytes) -> Path:
    digest = hashlib.sha256(data).hexdigest()
    return (folder / digest[:2] / f"{digest}{SUFFIX[format_of(data)]}").absolute()


def _written(folder: Path, upload: Upload) -> Path:
    path = _path(folder, upload.data)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with staged(path, folder=False) as part:
            part.write_bytes(upload.data)
    said = {"name": upload.name, **upload.metadata, **upload.blurred}
    write_text(path.with_name(path.name + BESIDE), json.dumps(said))
    return path
