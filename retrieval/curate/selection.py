"""The images that a curation looks at: those of one snapshot that a filter keeps.

A place is an image's position in a selection. Distances are Euclidean between unit vectors, so they lie in [0, 2] and
obey the triangle inequality, which a cosine does not: distance² = 2 - 2 · cosine.

Shape letters: N images of the selection, D embedding dimensions, S some of the places.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from foveal.detections import BoolArray, FloatArray, IntArray
from foveal.errors import BadInput
from foveal.progress import Progress, SilentProgress
from retrieval.archive import Archive
from retrieval.index import IndexSettings, Vectors, contained
from retrieval.snapshot import Snapshot
from retrieval.table import HalfArray

PIECE = 32_768  # rows read at a time
FIELDS = ("id", "uri", "content_hash", "width", "height", "bytes")  # columns that are no metadata


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the archive, as reports name it."""

    id: str
    uri: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Images of one snapshot, in the order in which they were added."""

    path: str  # of the archive, for messages
    index: IndexSettings
    view: Snapshot = field(repr=False)
    seqs: IntArray = field(repr=False)  # (N,) ascending
    rows: IntArray = field(repr=False)  # (N,) Lance row ids

    @classmethod
    def of(cls, archive: Archive, filter: str | None = None, view: Snapshot | None = None) -> Selection:
        """The images that `filter` keeps, of the newest snapshot unless a `view` is given.

        Raises:
            BadInput: the filter is not one, or nothing is left.
        """
        view = view or archive.snapshot()
        seqs, rows = view.seqs, view.rows
        if filter is not None:
            seqs, rows = view.table.keys(filter)
        if not len(seqs):
            if not len(view.seqs):
                raise BadInput(f"{archive.path} holds no images", remedy=f"Add some: foveal archive add {_ADD}")
            raise BadInput(
                f"the filter {filter!r} keeps none of {len(view.seqs):,} images",
                expected="a filter that keeps some",
                remedy="Loosen it; `foveal archive search` shows the metadata of what is there.",
            )
        return cls(str(archive.path), archive.settings.index, view, seqs, rows)

    def __len__(self) -> int:
        return len(self.seqs)

    @property
    def is_whole(self) -> bool:
        """Whether these are all images of the snapshot."""
        return len(self) == len(self.view.seqs)

    def at(self, places: IntArray) -> Selection:
        """Those at the ascending `places` (S,)."""
        return Selection(self.path, self.index, self.view, self.seqs[places], self.rows[places])

    def within(self, other: Selection) -> BoolArray:
        """Which of these images are in `other` too -> (N,)."""
        return contained(self.seqs, other.seqs)

    def without(self, other: Selection) -> Selection:
        """These images less those of `other`; may be empty."""
        return self.at(np.flatnonzero(~self.within(other)))

    # Reading.

    def vectors(self, progress: Progress | None = None) -> Vectors:
        """Their vectors at unit length; read once, and kept in half precision."""
        progress = progress or SilentProgress()
        dimension = self.view.table.dimension
        half: HalfArray = np.empty((len(self), dimension), np.float16)
        progress.start("read vectors", len(self))
        for start in range(0, len(self), PIECE):
            rows = self.rows[start : start + PIECE]
            half[start : start + PIECE] = self.view.table.vectors(rows)
            progress.advance(len(rows))
        progress.finish()
        return Vectors(len(self), dimension, lambda places: unit(half[places].astype(np.float32)))

    def column(self, name: str, places: IntArray | None = None) -> list[Any]:
        """The values of a column, None where missing, of all places or of some.

        Raises:
            BadInput: the archive has no such column.
        """
        if name not in self.view.table.columns:
            close = difflib.get_close_matches(name, self.view.table.columns, n=1)
            raise BadInput(
                f"there is no column {name!r}",
                expected=f"one of {', '.join(self.view.table.columns)}",
                remedy=f"Did you mean {close[0]}?" if close else None,
            )
        return self.table([name], places)[name].to_pylist()

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """The values (N,) of a numeric column, NaN where missing.

        Raises:
            BadInput: there is no such column, or it holds text.
        """
        values = self.column(name)
        if self.view.table.columns[name] != "number":
            raise BadInput(f"column {name!r} holds text", expected="a column of numbers", received=repr(values[0]))
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def table(self, columns: Sequence[str], places: IntArray | None = None) -> Any:
        """An Arrow table of the named columns, of all places or of some, in their order."""
        return self.view.table.take(self.rows if places is None else self.rows[places], columns)

    def pictures(self, places: IntArray) -> list[Picture]:
        """The images at `places` (S,), in that order."""
        found = self.table(["id", "uri"], places)
        return [Picture(*pair) for pair in zip(found["id"].to_pylist(), found["uri"].to_pylist(), strict=True)]

    def metadata_columns(self, *kinds: str) -> list[str]:
        """The metadata columns of the given kinds: "text", "number", "time"."""
        return [name for name, kind in self.view.table.columns.items() if name not in FIELDS and kind in kinds]


def unit(vectors: FloatArray) -> FloatArray:
    """The vectors (S, D) at unit length; half precision leaves them off by up to 5e-4."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def distance(cosine: FloatArray) -> FloatArray:
    """The Euclidean distance of unit vectors from their cosine, of any shape."""
    return np.sqrt(np.maximum(2 - 2 * cosine, 0))


def cosine_at(distance: float) -> float:
    """The cosine of unit vectors that far apart."""
    return 1 - distance**2 / 2


_ADD = "IMAGES --archive DIR"
