"""Pictures of a dataset as vectors: threads decode, cut and prepare ahead, while the encoder works on full batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from foveal.detections import FloatArray
from foveal.models import Encoder, PreparingEncoder
from foveal.runtime import usable_cores

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 64  # pictures encoded at once
S = TypeVar("S")
K = TypeVar("K")


def encoded(
    encoder: Encoder, samples: Iterable[S], cut: Callable[[S], Iterable[tuple[K, Image]]], batch: int = BATCH
) -> Iterator[tuple[list[K], FloatArray]]:
    """What `cut` takes out of each sample, in order: `batch` keys at a time, with their vectors (batch, D).

    Memory stays flat: about a batch of samples is worked on ahead. Threads call `cut`; what it raises is raised here.
    """
    ready = _ready(encoder, samples, cut, batch)
    encode = encoder.encode_prepared if isinstance(encoder, PreparingEncoder) else encoder.encode_images
    while part := list(islice(ready, batch)):
        yield [key for key, _ in part], encode([picture for _, picture in part])


def _ready(
    encoder: Encoder, samples: Iterable[S], cut: Callable[[S], Iterable[tuple[K, Image]]], ahead: int
) -> Iterator[tuple[K, Any]]:
    prepare: Callable[[Image], Any] = encoder.prepare_image if isinstance(encoder, PreparingEncoder) else _as_it_is

    def work(sample: S) -> list[tuple[K, Any]]:
        return [(key, prepare(image)) for key, image in cut(sample)]

    pool = _pool(encoder)
    waiting: deque[Future[list[tuple[K, Any]]]] = deque()
    try:
        stream = iter(samples)
        for sample in islice(stream, ahead):
            waiting.append(pool.submit(work, sample))
        while waiting:
            done = waiting.popleft().result()
            for sample in islice(stream, 1):
                waiting.append(pool.submit(work, sample))
            yield from done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(encoder: Encoder) -> ThreadPoolExecutor:
    if isinstance(encoder, PreparingEncoder):
        from foveal.cores import soloists  # it imports PyTorch, which such an encoder has done

        return soloists(usable_cores(), "decode")
    return ThreadPoolExecutor(usable_cores(), "decode")


def _as_it_is(image: Image) -> Image:
    return image
