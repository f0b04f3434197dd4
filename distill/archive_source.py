"""Images to label from wherever they lie: files as any dataset, or the items of an archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput
from retrieval.archive import Archive
from retrieval.curate.selection import Selection

PAGE = 10_000  # items looked up at a time
MANIFEST = "archive.json"


def open_source(source: str | Path, filter: str | None = None) -> Dataset:
    """The dataset at `source`; of an archive the items that `filter` keeps, as far as their files lie on this machine.

    Raises:
        BadInput: there is nothing, nothing that the filter keeps, or a filter without an archive.
        UnknownName: the filter names a field that the archive lacks.
    """
    path = Path(source).expanduser()
    if (path / MANIFEST).is_file():
        return of_archive(Archive.open(path), filter)
    if filter is not None:
        raise BadInput("only an archive can be filtered", expected=f"a folder with {MANIFEST}", received=str(source))
    return Dataset.open(path)


def of_archive(archive: Archive, filter: str | None = None) -> Dataset:
    """An archive's items as a dataset; `skipped` lists those whose file is not here.

    Raises:
        BadInput: no item is left.
    """
    skipped: list[tuple[Path, str]] = []
    chosen = Selection.of(archive, filter)

    def samples() -> Iterator[Sample]:
        for start in range(0, len(chosen), PAGE):
            places = np.arange(start, min(start + PAGE, len(chosen)))
            for row in chosen.table(["id", "uri", "width", "height"], places).to_pylist():
                path = Path(row["uri"].removeprefix("file://"))
                if path.is_file():
                    yield Sample(id=row["id"], path=path, width=row["width"], height=row["height"])
                else:
                    skipped.append((path, "its file is not on this machine"))

    found = Dataset.build(samples(), ())
    found.skipped = tuple(skipped)
    if not len(found):
        raise BadInput(
            "there is nothing to label",
            expected="an archive with images that lie on this machine",
            received=f"{len(skipped)} whose file is not here" if skipped else "no image that the filter keeps",
        )
    return found
