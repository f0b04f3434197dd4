"""What a search tells of its hits, kept so that reading a few of millions costs a microsecond each.

Shape letters: N rows, S some of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as _pyarrow  # pyright: ignore[reportMissingTypeStubs]

from foveal.detections import IntArray

pa: Any = _pyarrow

COLUMNS = ("id", "uri", "metadata")  # of the table
TYPE = pa.large_binary()  # a million rows can hold more than the 2 GB that short offsets reach


class Told:
    """id, URI and metadata of N rows: an Arrow array of JSON, mapped from a file or in memory."""

    def __init__(self, array: Any) -> None:
        self.array = array
        _, offsets, data = array.buffers()
        self._offsets = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        self._data = memoryview(b"" if data is None else data)

    @classmethod
    def of(cls, rows: Any) -> Told:
        """Those of an Arrow table with the `COLUMNS`."""
        columns = (rows[name].to_pylist() for name in COLUMNS)
        lines = [
            b'["%b",%b,%b]' % (key.encode(), orjson.dumps(uri), metadata.encode())
            for key, uri, metadata in zip(*columns, strict=True)
        ]
        return cls(pa.array(lines, TYPE))

    def __len__(self) -> int:
        return len(self.array)

    def at(self, positions: IntArray) -> list[Any]:
        """[id, URI, metadata] of each of the positions (S,)."""
        data = self._data
        starts, ends = self._offsets[positions].tolist(), self._offsets[positions + 1].tolist()
        lines = [data[start:end] for start, end in zip(starts, ends, strict=True)]
        return orjson.loads(b"[%b]" % b",".join(lines))  # parsed at once: a quarter less time than line by line

    def chosen(self, positions: IntArray) -> Told:
        """A copy of the rows at the positions (S,)."""
        return Told(self.array.take(pa.array(positions)))

    def followed_by(self, other: Told) -> Told:
        """These rows, then those."""
        return Told(pa.concat_arrays([self.array, other.array]))
