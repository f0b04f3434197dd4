"""Images in parquet files: as bytes in a column, or named by one; the other columns are metadata."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import pyarrow as _pyarrow
import pyarrow.parquet as _parquet

from foveal.errors import BadImage, BadInput, FovealError
from retrieval.sources_item import Blob, Item, check_size, flat

pa: Any = _pyarrow  # not typed throughout
pq: Any = _parquet

NAMING = ("uri", "path", "url", "file_name")  # columns that may say where an image lies
HELD = 256 * 2**20  # bytes of row groups kept for the reads that follow
ROWS = 1024


class Parquet:
    """An `Origin`: a row an image; pixels are read a row group at a time, and only when they are asked for."""

    def __init__(self, blob: Blob, locate: Callable[[str], Item]) -> None:
        """Reads the footer; `locate` turns a name in a column into the image it means, or raises why not.

        Raises:
            BadInput: it is no parquet file, or has no column of images.
        """
        self._blob, self._locate, self._whole = blob, locate, True
        self.notes: list[str] = []
        try:
            self._file = pq.ParquetFile(blob.opener())
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BadInput(f"{blob.uri} cannot be read as parquet: {error}") from error
        schema = self._file.schema_arrow
        self._pixels = "image" if "image" in schema.names and _holds_bytes(schema.field("image").type) else None
        self._naming = next((n for n in NAMING if n in schema.names and _is_text(schema.field(n).type)), None)
        if self._pixels is None and self._naming is None:
            raise BadInput(
                f"{blob.uri} has no column of images",
                expected=f"image (bytes), or one of {', '.join(NAMING)}",
                received=", ".join(schema.names),
            )
        self._told = [f.name for f in schema if f.name != self._pixels and not _holds_bytes(f.type)]
        self.total: int | None = self._file.metadata.num_rows
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., Parquet], tuple[Blob, Callable[[str], Item]]]:
        return _reopened, (self._blob, self._locate)  # in another process

    def items(self) -> Iterator[Item]:
        first = 0
        for group in range(self._file.metadata.num_row_groups):
            try:
                for within, record in enumerate(self._records(group)):
                    yield self._item(first + within, group, within, record)
            except (pa.ArrowException, OSError) as error:
                self._whole = False  # what is damaged has not gone
                self.notes.append(f"{self._blob.uri}: row group {group} cannot be read: {error}")
            first += self._file.metadata.row_group(group).num_rows

    def covers(self, uri: str) -> bool:
        return self._whole and uri.startswith(self._blob.member(""))

    def _records(self, group: int) -> Iterator[dict[str, Any]]:
        if not self._told:
            yield from ({} for _ in range(self._file.metadata.row_group(group).num_rows))
            return
        with self._blob.opener() as stream:
            for batch in pq.ParquetFile(stream).iter_batches(ROWS, row_groups=[group], columns=self._told):
                yield from batch.to_pylist()

    def _item(self, row: int, group: int, within: int, record: dict[str, Any]) -> Item:
        name = record.get(self._naming) if self._naming else None
        if self._pixels is not None:
            reader = partial(self._read, group, within)
            return Item(self._blob.member(str(row)), flat(record), self._blob.stamp, reader)
        metadata = flat(record, skip=(self._naming or "",))
        try:
            if not name:
                raise BadImage(f"row {row} of {self._blob.uri} names no image", expected=f"a value of {self._naming}")
            found = self._locate(name)
        except FovealError as error:
            return Item(self._blob.member(str(row)), metadata, None, partial(_fail, error))
        return Item(found.uri, metadata, found.stamp, found.reader)

    def _read(self, group: int, within: int) -> bytes:
        try:
            value = self._group(group)[within].as_py()
        except pa.ArrowException as error:
            raise BadImage(f"row group {group} of {self._blob.uri} is damaged: {error}") from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise BadImage(f"{self._blob.uri} has no bytes in column {self._pixels}", expected="an encoded image")
        check_size(len(data), self._blob.uri)
        return data

    def _group(self, group: int) -> Any:
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self._file.read_row_group(group, columns=[self._pixels]).column(0)
                while len(self._groups) > 2 and sum(held.nbytes for held in self._groups.values()) > HELD:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            return self._groups[group]


@lru_cache(2)
def _place(uri: str, stamp: str | None) -> list[Parquet]:
    """Where the file of that name and state is kept once it is open."""
    return []


def _reopened(blob: Blob, locate: Callable[[str], Item]) -> Parquet:
    """The file, opened once for all the rows of it that come to this process."""
    place = _place(blob.uri, blob.stamp)
    if not place:
        place.append(Parquet(blob, locate))
    return place[0]


def _fail(error: FovealError) -> bytes:
    raise error


def _holds_bytes(kind: Any) -> bool:
    """Whether a column is bytes, or Hugging Face's {bytes, path}."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
