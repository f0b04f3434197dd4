"""`foveal archive add --ray`: images read, decoded and embedded on a Ray cluster, and committed here.

    sources, listed and looked up here -> [tasks: read, hash, decode, prepare] -> [actors: encode] -> committed here

An archive has one writer, so the vectors come back to the process that started the job, some kB an image. **The archive
is the checkpoint**: a job that was killed is started again, and images that were committed are passed over by their
stamp before anything is sent, or by their hash before they are decoded. Ray's own `CheckpointConfig` would be a second
record of what is done, right only while nobody adds or deletes otherwise; it loads every id before the first image, and
its filter's actors starve a cluster of two cores.

Every node needs foveal installed, and sees the sources and the encoder under the names that they have here: a shared
folder, `s3://...`, `hf:NAME`. On one machine the threads of `ingest.embed` are faster (docs/scale.md).
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any

import pyarrow as _pyarrow

from foveal.errors import BadInput, FingerprintMismatch, FovealError, Unavailable
from foveal.models import Encoder, load_encoder
from retrieval.ingest import (
    BATCH,
    HAND_ON,
    HAND_ON_SECONDS,
    Batch,
    Loaded,
    Look,
    Reader,
    Rejected,
    attempt,
    encode,
    encoding,
    is_same,
    looked_up,
    receive,
)
from retrieval.sources_item import Item
from retrieval.table import Known, batched

pa: Any = _pyarrow

WAVE = 65_536  # images listed and sent at a time, so that a listing of any length fits into memory here
MOST = 64 * 2**20  # bytes of a chunk of items
DECODING = 2**30  # bytes of memory that a decoding task asks for: PyTorch alone takes 0.6 GB. As the actors ask for
# other resources, Ray does not run these tasks inside them, one after the other.
Work = tuple[Item, Known | None]


@dataclass(frozen=True, slots=True)
class RayJob:
    """`ingest.embed` on a Ray cluster: pass one as `through` to an archive's `add`."""

    load: Callable[[], Encoder]  # the archive's encoder, in the actors
    actors: int | None = None  # that encode; None: one a GPU of the cluster, or on half of its cores
    address: str | None = None  # of the cluster; None: the one named by RAY_ADDRESS, or a new one on this machine
    waves: int = field(default=WAVE, repr=False)

    @classmethod
    def of(cls, reference: str, *, actors: int | None = None, address: str | None = None) -> RayJob:
        """A job with the encoder of a model reference."""
        return cls(partial(load_encoder, reference), actors, address)

    def __call__(self, items: Iterable[Item], encoder: Encoder, known: Look) -> Generator[Batch]:
        """Batches of rows, as `ingest.embed` gives them but in any order.

        Raises:
            Unavailable: Ray is not installed, or its cluster does not answer or stops the job.
            BadInput: the cluster is too small, or a source lies in this process's memory.
            FingerprintMismatch: the actors load another encoder.
        """
        remaining = looked_up(items, known)
        with cluster(self.address) as ray:
            pipeline = self._pipeline(ray, encoder)
            while piece := list(islice(remaining, self.waves)):
                batch, work = Batch(), list[Work]()
                for item, stored in piece:
                    if is_same(item, stored):
                        receive(item.uri, None, batch, [])
                    else:
                        work.append((item, stored))
                if batch.files:
                    yield batch
                if work:
                    yield from _handed_on(pipeline([_packed(part) for part in batched(work, BATCH)]))

    def _pipeline(self, ray: Any, encoder: Encoder) -> Callable[[Sequence[bytes]], Iterator[Batch]]:
        """From chunks of items to their batches."""
        there: dict[str, float] = ray.cluster_resources()
        cores, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
        actors = self.actors or gpus or max(1, cores // 2)
        if cores < actors + 1 or 0 < gpus < actors:
            raise BadInput(
                f"the Ray cluster is too small for {actors} encoding actors",
                expected=f"{actors + 1} CPUs{f' and {actors} GPUs' if gpus else ''}",
                received=f"{cores} CPUs and {gpus} GPUs",
                remedy="Use fewer actors, or leave --ray out.",
            )
        decoding = partial(_decoded, reader=replace(Reader.of(encoder), prepare=_preparation(encoder)))
        strategy = ray.data.ActorPoolStrategy(size=actors)
        options = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 1}

        def run(chunks: Sequence[bytes]) -> Iterator[Batch]:
            data = ray.data.from_arrow([pa.table({"chunk": pa.array([chunk], pa.large_binary())}) for chunk in chunks])
            data = data.map_batches(decoding, memory=DECODING, **options).map_batches(
                _Encoding,
                fn_constructor_args=(self.load, encoder.fingerprint),
                compute=strategy,
                num_gpus=1 if gpus else 0,
                **options,
            )
            try:
                for block in data.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for batch in _unpacked(block):
                        if isinstance(batch, FovealError):
                            raise batch
                        yield batch
            except ray.exceptions.RayError as error:
                raise Unavailable(
                    f"the Ray job stopped: {str(error).strip().splitlines()[-1][:300]}",
                    remedy="Run the same command again: what was committed is not embedded again.",
                ) from error

        return run


@contextmanager
def cluster(address: str | None) -> Generator[Any]:
    """The module `ray`, connected; a cluster that this started is stopped at the end."""
    try:
        ray: Any = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise Unavailable("--ray needs the package ray", remedy="Install it: pip install 'foveal[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it would report to its makers
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Unavailable(f"the Ray cluster does not answer: {error}", remedy="Check the address.") from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield ray
    finally:
        context.enable_progress_bars = before
        if ours:
            ray.shutdown()


def _handed_on(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Fewer and larger batches, each of which will be one commit."""
    gathered, began = Batch(), time.monotonic()
    for batch in batches:
        gathered.take(batch)
        if gathered.files >= HAND_ON or time.monotonic() - began > HAND_ON_SECONDS:
            yield gathered
            gathered, began = Batch(), time.monotonic()
    if gathered.files:
        yield gathered


def _preparation(encoder: Encoder) -> Callable[[Any], Any]:
    """`Reader.prepare` without the encoder's weights, which decoding tasks would have to be sent."""
    from foveal.encoders import TorchEncoder

    if not isinstance(encoder, TorchEncoder):
        return Reader.of(encoder).prepare
    light: Any = copy.copy(encoder)
    light.model = None
    return light.prepare_image


# In Ray's workers. A chunk is one row of one column: Ray passes it on without looking inside.


def _decoded(table: Any, reader: Reader) -> Any:
    """Chunks of items to chunks of what their images are."""
    return _table(
        [(item.uri, attempt(item, partial(reader.load, item, known))) for item, known in work]
        for work in _unpacked(table)
    )


class _Encoding:
    """An actor: chunks of decoded images to batches."""

    def __init__(self, load: Callable[[], Encoder], fingerprint: str) -> None:
        self._wrong: FovealError | None = None
        try:
            encoder = load()
            if encoder.fingerprint != fingerprint:
                raise FingerprintMismatch(
                    f"{encoder.name} is another encoder on a node of the cluster than where the job was started",
                    expected=f"fingerprint {fingerprint[:12]}",
                    received=encoder.fingerprint[:12],
                    remedy="Give every node the same files.",
                )
            self._encode = encoding(encoder)
        except FovealError as error:  # raised here, it would reach the driver as an actor that died
            self._wrong = error

    def __call__(self, table: Any) -> Any:
        return _table(self._wrong or self._batch(chunk) for chunk in _unpacked(table))

    def _batch(self, chunk: Sequence[tuple[str, Loaded | Rejected]]) -> Batch:
        batch, loaded = Batch(), list[Loaded]()
        for uri, outcome in chunk:
            receive(uri, outcome, batch, loaded)
        encode(loaded, self._encode, batch)
        return batch


def _packed(value: Any) -> bytes:
    """A value for another process, whose functions it need not be able to import.

    Raises:
        BadInput: it holds what cannot leave this one.
    """
    cloudpickle: Any = import_module("ray.cloudpickle")

    try:
        data: bytes = cloudpickle.dumps(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"a source cannot be sent to a cluster: {error}", remedy="Leave --ray out.") from error
    if len(data) > MOST:
        raise BadInput(
            "a source lies in this process's memory",
            expected="files that every node can read",
            remedy="Save it, e.g. with `save_to_disk`, or leave --ray out.",
        )
    return data


def _table(values: Iterable[Any]) -> Any:
    cloudpickle: Any = import_module("ray.cloudpickle")

    return pa.table({"chunk": pa.array([cloudpickle.dumps(value) for value in values], pa.large_binary())})


def _unpacked(table: Any) -> Iterator[Any]:
    cloudpickle: Any = import_module("ray.cloudpickle")

    for data in table["chunk"]:
        yield cloudpickle.loads(data.as_buffer())
