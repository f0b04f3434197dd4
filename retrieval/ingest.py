"""Images to rows: threads read, hash, decode and prepare them ahead, while the encoder works on full batches.

    sources -> known? -> [threads: read, hash, decode, facts, prepare] -> [one thread: encode] -> caller commits

Each arrow is a bounded queue, so that memory does not grow with the archive and no stage waits for the one behind it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import PurePosixPath
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.detections import FloatArray
from foveal.errors import BadImage, FovealError
from foveal.images import decode, size
from foveal.models import Encoder, PreparingEncoder
from foveal.runtime import usable_cores
from retrieval.ahead import ahead
from retrieval.blur import FILE, WHERE, kept, secret
from retrieval.facts import as_jpeg, camera_facts, perceptual_hash, thumbnail
from retrieval.query import decode_side
from retrieval.sources_item import Item, clean
from retrieval.table import Known, Row, canonical

if TYPE_CHECKING:
    from PIL.Image import Image

    from retrieval.blur import Blur

BATCH = 64  # images a call of the encoder, and at most this many more prepared ahead
LOOK_UP = 1024  # ids looked up in the archive at a time
HAND_ON = 1024  # files after which a batch is handed on,
HAND_ON_SECONDS = 5.0  # or seconds, so that little is lost by a kill and progress shows
READERS = 16  # files read at a time
FACTS = 1  # raise it when `facts` learns to find more, so that files are read again
RACY_NS = 2 * 10**9  # a file younger than this may be written again without its stamp showing it

Look = Callable[[Sequence[str]], Mapping[str, Known]]
Embedding = Callable[[Iterable[Item], Encoder, Look], "Generator[Batch]"]  # `embed`, and others that give the same


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
    restamped: dict[str, str] = field(default_factory=dict[str, str])  # id -> new stamp of an unchanged image
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    seen: list[str] = field(default_factory=list[str])  # URIs of every file in it

    @property
    def files(self) -> int:
        return len(self.seen)

    def take(self, other: Batch) -> None:
        """Adds what became of other files."""
        self.rows += other.rows
        self.unchanged += other.unchanged
        self.restamped |= other.restamped
        self.rejected += other.rejected
        self.seen += other.seen


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that has been read."""

    row: Row  # without its vector
    prepared: Any = None  # what the encoder takes; None: the stored vector is still right
    unchanged: bool = False


def identity(uri: str) -> str:
    """The id of the image at `uri`: the same for as long as it stays there, whatever its pixels."""
    return hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def embed(items: Iterable[Item], encoder: Encoder, known: Look, blur: Blur | None = None) -> Generator[Batch]:
    """Batches of rows in the order of `items`; images whose bytes and metadata are `known` are only counted.

    An item with the stamp and metadata it was stored with is not even read. Closing the iterator stops every thread.
    With `blur` nothing is made of a picture before it is blurred; give `partial(embed, blur=blur)` to an archive.
    """
    return ahead(_embed(items, encoder, known, blur), depth=1)


def _embed(items: Iterable[Item], encoder: Encoder, known: Look, blur: Blur | None) -> Generator[Batch]:
    remaining = looked_up(items, known)
    waiting: deque[tuple[Item, Future[Loaded] | None]] = deque()
    loader = _Loader(encoder, blur)
    with closing(loader):
        batch, loaded, ready, began = Batch(), list[Loaded](), 0, time.monotonic()
        while True:
            for item, stored in islice(remaining, BATCH - len(waiting)):
                waiting.append((item, None if is_same(item, stored, blur) else loader.submit(item, stored)))
            if not waiting:
                break
            item, future = waiting.popleft()
            outcome = None if future is None else attempt(item, future.result)
            ready += receive(item.uri, outcome, batch, loaded)
            if ready == BATCH or batch.files >= HAND_ON:
                encode(loaded, loader.encode, batch)
                loaded, ready = [], 0
                if batch.files >= HAND_ON or time.monotonic() - began > HAND_ON_SECONDS:
                    yield batch
                    batch, began = Batch(), time.monotonic()
        if batch.files:
            encode(loaded, loader.encode, batch)
            yield batch


def looked_up(items: Iterable[Item], known: Look) -> Iterator[tuple[Item, Known | None]]:
    """Each item with what the archive holds of it, asked for in large pieces because an archive may hold millions."""
    remaining = iter(items)
    while piece := list(islice(remaining, LOOK_UP)):
        ids = [identity(item.uri) for item in piece]
        found = known(ids)
        yield from ((item, found.get(key)) for item, key in zip(piece, ids, strict=True))


def attempt(item: Item, load: Callable[[], Loaded]) -> Loaded | Rejected:
    """What `load` gives for an item, or why it cannot be embedded."""
    try:
        return load()
    except (FovealError, OSError) as error:
        return Rejected(item.uri, clean(str(error)))


def receive(uri: str, outcome: Loaded | Rejected | None, batch: Batch, loaded: list[Loaded]) -> bool:
    """Notes what became of an item, None being unchanged and not even read; whether it waits in `loaded`, prepared."""
    batch.seen.append(uri)
    if isinstance(outcome, Rejected):
        batch.rejected.append(outcome)
        return False
    if outcome is None or outcome.unchanged:
        batch.unchanged += 1
        if outcome is not None and outcome.row.stamp:
            batch.restamped[outcome.row.id] = outcome.row.stamp
        return False
    loaded.append(outcome)
    return outcome.prepared is not None


def encode(loaded: Sequence[Loaded], call: Callable[[Sequence[Any]], FloatArray], batch: Batch) -> None:
    """Adds to `batch.rows`, encoding what is prepared in one `call` of the encoder."""
    prepared = [one.prepared for one in loaded if one.prepared is not None]
    vectors = iter(call(prepared) if prepared else ())
    for one in loaded:
        vector = None if one.prepared is None else next(vectors)
        if vector is not None and not np.isfinite(vector).all():
            batch.rejected.append(Rejected(one.row.uri, "the encoder's vector for it is not finite"))
        else:
            batch.rows.append(replace(one.row, vector=vector))


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns items into rows and the encoder's inputs; other processes may be sent one."""

    side: int  # shorter side below which a large JPEG is not shrunk, pixels
    prepare: Callable[[Image], Any]
    blur: Blur | None = None

    @classmethod
    def of(cls, encoder: Encoder, blur: Blur | None = None) -> Reader:
        prepare = encoder.prepare_image if isinstance(encoder, PreparingEncoder) else _as_it_is
        return cls(decode_side(encoder), prepare, blur)

    def load(self, item: Item, known: Known | None) -> Loaded:
        """Reads the bytes once, so that hash, facts and pixels are all of the same; raises what `attempt` catches."""
        return self.look(item, item.read(), known)

    def look(self, item: Item, data: bytes, known: Known | None) -> Loaded:
        """`load` of bytes that have been read."""
        try:
            return self._look(item, data, known)
        except BadImage as error:
            said = error.message.replace(f"image of {len(data)} bytes", PurePosixPath(item.uri).name, 1)
            raise BadImage(said, expected=error.expected, received=error.received, remedy=error.remedy) from error
        except MemoryError as error:
            raise BadImage(f"{item.uri} does not fit into memory") from error

    def _look(self, item: Item, data: bytes, known: Known | None) -> Loaded:
        digest = hashlib.sha256(data).hexdigest()
        width, height = size(data)
        metadata = camera_facts(data) | dict(item.metadata)
        before: dict[str, Any] = {} if known is None else json.loads(known.metadata)
        if self.blur is None and secret(before) and metadata.get(WHERE) != FILE:
            raise BadImage(
                "it was blurred when it was taken in, and would not be now", remedy="Add it with the same --blur."
            )
        stamp = _stamp(item, self.blur)
        row = Row(identity(item.uri), item.uri, digest, width, height, metadata, None, stamp=stamp, bytes=len(data))
        if known is not None and known.content_hash == digest and (self.blur is None or self.blur.made(before)):
            metadata = metadata if self.blur is None else metadata | kept(before)
            return Loaded(replace(row, metadata=metadata), unchanged=known.metadata == canonical(metadata))
        if self.blur is None:
            image = decode(data, min_side=self.side)
        else:  # at its full size, in which small faces can be found
            image, facts = self.blur(decode(data))
            row = replace(row, metadata=metadata | facts)
        small = thumbnail(image)
        row = replace(row, phash=perceptual_hash(small), thumbnail=as_jpeg(small))
        return Loaded(row, self.prepare(image))


class _Loader:
    """Threads that turn items into rows and the encoder's inputs.

    Many may wait for a disk or a network at a time, but only one a core works on pixels: more would only need memory.
    """

    def __init__(self, encoder: Encoder, blur: Blur | None) -> None:
        threads = max(READERS, usable_cores())
        self._cores = BoundedSemaphore(usable_cores())
        self._reader = Reader.of(encoder, blur)
        self.encode = encoding(encoder)
        if isinstance(encoder, PreparingEncoder):
            from foveal.cores import soloists  # it imports PyTorch, which such an encoder has done

            self._pool = soloists(threads, "decode")
        else:
            self._pool = ThreadPoolExecutor(threads, "decode")

    def submit(self, item: Item, known: Known | None) -> Future[Loaded]:
        return self._pool.submit(self._load, item, known)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, item: Item, known: Known | None) -> Loaded:
        data = item.read()
        with self._cores:
            return self._reader.look(item, data, known)


def encoding(encoder: Encoder) -> Callable[[Sequence[Any]], FloatArray]:
    """What turns the inputs that a `Reader` prepares into vectors."""
    return encoder.encode_prepared if isinstance(encoder, PreparingEncoder) else encoder.encode_images


def _as_it_is(image: Image) -> Image:
    return image


def is_same(item: Item, known: Known | None, blur: Blur | None = None) -> bool:
    """Whether stamp and metadata say that nothing has changed, so that the bytes need not be read."""
    return known is not None and item.stamp is not None and known.stamp == _seal(item, blur)


def _seal(item: Item, blur: Blur | None) -> str:
    """The item's stamp together with what is told about it, and the way it is looked at."""
    way = FACTS if blur is None else f"{FACTS} {blur.seal}"
    told = hashlib.sha256(f"{way} {canonical(item.metadata)}".encode()).hexdigest()
    return f"{item.stamp}#{told[:16]}"


def _stamp(item: Item, blur: Blur | None) -> str:
    """The seal to store, empty where it may not be relied on.

    A file that is written twice within one tick of its file system's clock keeps its stamp (git calls such entries
    racily clean), so the stamp of a file that young when it is read is not kept: it is read once more next time.
    """
    if item.stamp is None:
        return ""
    local = re.fullmatch(r"\d+:(\d+)", item.stamp)
    young = local is not None and time.time_ns() - int(local[1]) < RACY_NS
    return "" if young else _seal(item, blur)
