"""One image to embed, wherever its bytes lie, and what every kind of source offers."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote, unquote_to_bytes

from foveal.errors import BadImage

Value = str | int | float
MAX_BYTES = 512 * 2**20  # of an encoded image
MAX_TEXT = 4096  # characters of one metadata value: longer ones are payloads, not facts
_INSIDE = re.compile(r"\.(tar|parquet)!/", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Item:
    """An image to embed, and what is known about it before it is read."""

    uri: str  # absolute path of a local file, or s3://..., https://..., hf://..., file.tar!/member, table.parquet!/row
    metadata: Mapping[str, Value]
    stamp: str | None  # changes when the bytes may have, e.g. `size:mtime_ns`; None: unknown, so it must be read
    reader: Callable[[], bytes] = field(repr=False, compare=False)

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: it cannot be read, or no longer.
            FovealError: it is too large, or may not be fetched.
        """
        return self.reader()


@dataclass(frozen=True, slots=True)
class Blob:
    """A file that images are inside of, on this machine or elsewhere."""

    uri: str
    stamp: str | None
    opener: Callable[[], BinaryIO] = field(repr=False, compare=False)
    reader: Callable[[int, int], bytes] = field(repr=False, compare=False)  # (start, length)

    @classmethod
    def local(cls, path: str) -> Blob:
        """The local file at `path`."""
        return cls(local_uri(path), stamp_of(path), partial(open, path, "rb"), partial(_read_part, path))

    def member(self, name: str) -> str:
        """The URI of what is called `name` inside."""
        return f"{self.uri}!/{name if is_unicode(name) else quote(os.fsencode(name))}"


def _read_part(path: str, start: int, length: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(start)
        return stream.read(length)


class Origin(Protocol):
    """One source, resolved: it exists, and its images are listed or counted without their pixels."""

    total: int | None  # images, where that is known without reading
    notes: list[str]  # metadata that could not be used; grows while `items` is consumed

    def items(self) -> Iterator[Item]:
        """The images in an order that stays the same from run to run."""
        ...

    def covers(self, uri: str) -> bool:
        """Whether an image at `uri` would be among `items` if it were still there; asked once these are consumed."""
        ...


def local_uri(path: str | os.PathLike[str]) -> str:
    """The URI of a local file: its absolute path, or `file://` with percent signs when its name is no valid Unicode."""
    text = os.path.abspath(path)
    return text if is_unicode(text) else Path(text).as_uri()


def local_path(uri: str) -> Path | None:
    """The file behind a URI that `local_uri` made; None when it lies elsewhere or inside another file."""
    if _INSIDE.search(uri):
        return None
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return None if "://" in uri or not os.path.isabs(uri) else Path(uri)


def outer(uri: str) -> str:
    """The file or dataset that an image is inside of, or its own URI."""
    if uri.startswith("hf://"):
        return uri.rpartition("!/")[0] or uri
    inside = _INSIDE.search(uri)
    return uri if inside is None else uri[: inside.end() - 2]


def stamp_of(path: str) -> str | None:
    """`size:mtime_ns` of a regular file; None when it cannot be told, for reading the file then says why."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return f"{status.st_size}:{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else None


def read_file(path: str) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be read.
        BadImage: it is too large, or a pipe or device.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer for ever
        raise BadImage(f"{path} is not a file", expected="a regular file")
    check_size(status.st_size, path)
    with open(path, "rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    check_size(len(data), path)
    return data


def check_size(count: int, name: str) -> None:
    """Raises BadImage when an encoded image of `count` bytes is larger than any needs to be."""
    if count > MAX_BYTES:
        raise BadImage(f"{name} is too large", expected=f"at most {MAX_BYTES:,} bytes", received=f"{count:,}")


def flat(record: Mapping[str, Any], skip: Iterable[str] = ()) -> dict[str, Value]:
    """What of a JSON-like record can be metadata.

    Lists of scalars are joined with `; `, one level of nesting becomes `outer.inner`, true is 1; what is nested deeper,
    absent, not finite or longer than `MAX_TEXT` is left out.
    """
    left_out = set(skip)
    result: dict[str, Value] = {}
    for key, value in record.items():
        if key in left_out:
            continue
        inner = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        for name, one in inner.items():
            scalar = _scalar(one)
            if scalar is not None:
                result[clean(str(name))] = scalar
    return result


def clean(text: str) -> str:
    """Text that any store takes: what has no UTF-8 form becomes replacement characters."""
    return text if is_unicode(text) else text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def is_unicode(text: str) -> bool:
    """Whether `text` has a UTF-8 form; file names with other bytes, and some JSON, do not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _scalar(value: Any) -> Value | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return clean(value) if 0 < len(value) <= MAX_TEXT else None
    if isinstance(value, date):  # or a datetime, which is one
        return value.isoformat()
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, (str, int, float)) for one in value):
        return _scalar("; ".join(one if isinstance(one, str) else json.dumps(one) for one in value))
    return None
