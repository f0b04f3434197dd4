"""Who labels the chunks of a job: this process, several processes, or the actors of a Ray cluster.

All of them call `label`, with batches cut at the same places, so that who did what shows nowhere.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict as plain
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any

from distill.labeller import Labelled, Labeller
from distill.records import Record
from foveal.dataset import Sample
from foveal.errors import BadImage, Unavailable
from foveal.runtime import usable_cores
from retrieval.ray_job import cluster

Load = Callable[[], Labeller]
Work = tuple[int, list[Sample]]  # number of the chunk, its images
Done = tuple[int, list[Record]]
AHEAD = 2  # chunks a worker that are handed out
KILLED = "the process that looked at it died each time: out of memory, or a defect in a decoder"


def label(labeller: Labeller, samples: Sequence[Sample]) -> list[Record]:
    """A record an image; what cannot be read is told in its record."""
    records: list[Record] = []
    for start in range(0, len(samples), labeller.settings.batch):
        records += _batch(labeller, samples[start : start + labeller.settings.batch])
    return records


def in_turn(load: Load, work: Iterable[Work]) -> Iterator[Done]:
    """The chunks, one after the other, in this process."""
    labeller = load()
    for chunk, samples in work:
        yield chunk, label(labeller, samples)


@dataclass(frozen=True, slots=True)
class Processes:
    """`count` processes on this machine, each with its own models and its share of the cores.

    A process that dies takes no chunk with it: those in its hands are tried again one at a time, then image by image;
    an image that kills its process even alone is recorded as an error and the job goes on.
    """

    count: int

    def __call__(self, load: Load, work: Iterable[Work]) -> Iterator[Done]:
        """Chunks as they are finished, in any order."""
        waiting, suspects = iter(work), deque[Work]()
        more = True
        while more:
            more = False
            with self._pool(load, self.count) as pool:
                held: dict[Future[list[Record]], Work] = {}
                try:
                    while True:
                        while len(held) < AHEAD * self.count and (piece := next(waiting, None)) is not None:
                            held[pool.submit(_label_here, piece[1])] = piece
                        if not held:
                            break
                        for future in wait(held, return_when=FIRST_COMPLETED).done:
                            records = future.result()
                            yield held.pop(future)[0], records
                except BrokenProcessPool:
                    suspects.extend(held.values())
                    more = True
            while suspects:
                chunk, samples = suspects.popleft()
                yield chunk, self._alone(load, samples)

    def _alone(self, load: Load, samples: list[Sample]) -> list[Record]:
        """A chunk that may kill its process: as a whole, then image by image."""
        with self._pool(load, 1) as pool:
            try:
                return pool.submit(_label_here, samples).result()
            except BrokenProcessPool:
                pass
        records: list[Record] = []
        while len(records) < len(samples):
            with self._pool(load, 1) as pool:
                try:
                    for sample in samples[len(records) :]:
                        records += pool.submit(_label_here, [sample]).result()
                except BrokenProcessPool:
                    records.append(_described(samples[len(records)]) | {"error": KILLED})
        return records

    def _pool(self, load: Load, count: int) -> ProcessPoolExecutor:
        threads = max(1, usable_cores() // self.count)
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(count, context, initializer=_start, initargs=(load, threads))


@dataclass(frozen=True, slots=True)
class RayActors:
    """Actors of a Ray cluster; every node needs foveal installed and sees the images and models under the same names.

    Args:
        count: of actors; None: one a GPU, or one a core less the driver's.
        address: of the cluster; None: RAY_ADDRESS, or a new one on this machine.
    """

    count: int | None = None
    address: str | None = None

    def __call__(self, load: Load, work: Iterable[Work]) -> Iterator[Done]:
        """Chunks as they are finished, in any order.

        Raises:
            Unavailable: Ray is not installed, or its cluster does not answer or stops the job.
        """
        with cluster(self.address) as ray:
            there: dict[str, float] = ray.cluster_resources()
            gpus = int(there.get("GPU", 0))
            count = self.count or gpus or max(1, int(there.get("CPU", 1)) - 1)
            remote = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=3)(_Actor)
            pool: Any = import_module("ray.util").ActorPool([remote.remote(load) for _ in range(count)])
            waiting = iter(work)
            try:
                for piece in islice(waiting, AHEAD * count):
                    pool.submit(_label_there, piece)
                while pool.has_next():
                    yield pool.get_next_unordered()
                    for piece in islice(waiting, 1):
                        pool.submit(_label_there, piece)
            except ray.exceptions.RayError as error:
                raise Unavailable(
                    f"the Ray job stopped: {str(error).strip().splitlines()[-1][:300]}",
                    remedy="Run the same command again: finished chunks are not labelled again.",
                ) from error


class _Actor:
    """Labels chunks on a node of the cluster."""

    def __init__(self, load: Load) -> None:
        self.labeller = load()

    def label(self, piece: Work) -> Done:
        """One chunk."""
        return piece[0], label(self.labeller, piece[1])


def _label_there(actor: Any, piece: Work) -> Any:
    return actor.label.remote(piece)


_here: Labeller | None = None  # of a worker process


def _start(load: Load, threads: int) -> None:
    import torch

    global _here
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    _here = load()


def _label_here(samples: list[Sample]) -> list[Record]:
    assert _here is not None
    return label(_here, samples)


def _batch(labeller: Labeller, samples: Sequence[Sample]) -> list[Record]:
    records = [_described(sample) for sample in samples]
    images: dict[int, Any] = {}
    for i, sample in enumerate(samples):
        try:
            images[i] = sample.image()
        except BadImage as error:
            records[i]["error"] = str(error)
    for i, found in zip(images, labeller.label(list(images.values())), strict=True):
        records[i]["boxes"] = [_box(found, row) for row in range(len(found.detections))]
    return records


def _described(sample: Sample) -> Record:
    return {"image": sample.id, "file": sample.path.name, "width": sample.width, "height": sample.height}


def _box(found: Labelled, row: int) -> Record:
    kept = found.detections
    assert kept.probabilities is not None
    assert kept.provenance is not None
    provenance = kept.provenance[row]
    names = kept.names
    said = {} if kept.attributes is None else kept.attributes[row]
    mask = "" if kept.masks is None else kept.masks[row]
    return {
        "box": [round(float(v), 2) for v in kept.boxes[row]],
        "label": names[kept.labels[row]],
        "score": round(float(kept.scores[row]), 5),
        "probability": round(float(kept.probabilities[row]), 5),
        "route": provenance.route,
        "value": round(float(found.values[row]), 5),
        "model": provenance.model,
        "teachers": list(provenance.teachers),
        **({"attributes": said} if said else {}),
        **({"mask": mask} if mask else {}),
        "neighbours": [plain(n) for n in provenance.neighbours],
        "without_memory": {
            "label": names[found.plain_labels[row]],
            "probability": round(float(found.plain_probabilities[row]), 5),
        },
        "teacher": {
            "label": names[found.teacher_labels[row]],
            "score": round(float(found.teacher_scores[row]), 5),
        },
    }
