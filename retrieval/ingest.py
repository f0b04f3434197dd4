"""Files to vectors: threads read, hash and decode ahead while the encoder works on full batches.

Shape letters: D embedding dimensions.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveal.errors import BadImage, BadInput
from foveal.images import decode, size
from foveal.models import Encoder
from retrieval.query import MIN_SIDE
from retrieval.sources import Item
from retrieval.table import Known, Row, canonical

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 64  # images a call of the encoder, and at most this many more decoded ahead
FLUSH = 1024  # files after which a batch is handed on although few of them needed encoding
MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that could not be embedded."""

    uri: str
    reason: str


@dataclass(slots=True)
class Batch:
    """What became of some consecutive files; commit `rows`, then acknowledge `files`."""

    rows: list[Row] = field(default_factory=list[Row])
    unchanged: int = 0
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    seen: list[str] = field(default_factory=list[str])  # URIs of every file in it

    @property
    def files(self) -> int:
        return len(self.seen)


@dataclass(frozen=True, slots=True)
class _Loaded:
    item: Item
    content_hash: str
    size: tuple[int, int]
    image: Image | None  # None: the stored vector is still right
    unchanged: bool = False


def identity(uri: str) -> str:
    """The id of the image at `uri`: the same for as long as it stays there, whatever its pixels."""
    return hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def embed(items: Sequence[Item], encoder: Encoder, known: Mapping[str, Known]) -> Iterator[Batch]:
    """Batches of rows in the order of `items`; files whose bytes and metadata are `known` are only counted."""
    workers = min(8, os.cpu_count() or 1)
    waiting: deque[tuple[Item, Future[_Loaded]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    remaining = iter(items)
    try:
        batch, loaded = Batch(), list[_Loaded]()
        while True:
            while len(waiting) < BATCH and (item := next(remaining, None)) is not None:
                waiting.append((item, pool.submit(_load, item, known.get(identity(str(item.path))))))
            if not waiting:
                break
            item, future = waiting.popleft()
            _receive(item, future, batch, loaded)
            if sum(one.image is not None for one in loaded) == BATCH or batch.files == FLUSH:
                _encode(loaded, encoder, batch)
                yield batch
                batch, loaded = Batch(), []
        if batch.files:
            _encode(loaded, encoder, batch)
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _receive(item: Item, future: Future[_Loaded], batch: Batch, loaded: list[_Loaded]) -> None:
    uri = str(item.path)
    batch.seen.append(uri)
    try:
        one = future.result()
    except (BadInput, OSError) as error:
        batch.rejected.append(Rejected(uri, str(error)))
        return
    if one.unchanged:
        batch.unchanged += 1
    else:
        loaded.append(one)


def _load(item: Item, known: Known | None) -> _Loaded:
    """Reads the file once, so that hash and pixels are of the same bytes."""
    data = _read(item.path)
    digest = hashlib.sha256(data).hexdigest()
    same = known is not None and known.content_hash == digest
    if same and known is not None and known.metadata == canonical(item.metadata):
        return _Loaded(item, digest, (0, 0), None, unchanged=True)
    try:
        return _Loaded(item, digest, size(data), None if same else decode(data, min_side=MIN_SIDE))
    except BadImage as error:
        raise BadImage(
            str(error).replace(f"image of {len(data)} bytes", item.path.name, 1), remedy=error.remedy
        ) from error


def _read(path: Path) -> bytes:
    length = path.stat().st_size
    if length > MAX_BYTES:
        raise BadImage(f"{path.name} is too large", expected=f"at most {MAX_BYTES} bytes", received=str(length))
    return path.read_bytes()


def _encode(loaded: Sequence[_Loaded], encoder: Encoder, batch: Batch) -> None:
    """Fills `batch.rows`, encoding the images among `loaded` in one call."""
    images = [one.image for one in loaded if one.image is not None]
    vectors = iter(encoder.encode_images(images) if images else ())
    for one in loaded:
        vector = None if one.image is None else next(vectors)
        uri = str(one.item.path)
        if vector is not None and not np.isfinite(vector).all():
            batch.rejected.append(Rejected(uri, "the encoder's vector for it is not finite"))
            continue
        batch.rows.append(Row(identity(uri), uri, one.content_hash, *one.size, one.item.metadata, vector))
