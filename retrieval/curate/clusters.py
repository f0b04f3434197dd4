"""What an archive is made of: clusters, the images that stand for each, and what they may be called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from foveal.detections import FloatArray, IntArray
from foveal.errors import BadInput
from foveal.models import Encoder
from foveal.progress import Progress, SilentProgress
from retrieval.archive import Archive
from retrieval.curate.kcenter import farthest_first
from retrieval.curate.kmeans import Partition, choose_k, partition
from retrieval.curate.naming import Name, from_metadata, from_vocabulary, text_columns
from retrieval.curate.selection import Picture, Selection, distance
from retrieval.index import Vectors

SHOWN = 6  # images that stand for a cluster
CORE = 0.8  # of a cluster's images, the nearest to its centre, that may stand for it
CORE_MOST = 4096  # of them that are looked at


@dataclass(frozen=True, slots=True)
class Cluster:
    """Images that look alike."""

    size: int
    share: float  # of all images
    cohesion: float  # mean cosine to the centre: 1 when all are equal
    images: tuple[Picture, ...]  # the one nearest to the centre, then others of its core that differ most
    names: tuple[Name, ...]  # what it may be called, from metadata before from a vocabulary; empty when nothing fits


@dataclass(frozen=True, slots=True)
class Clusters:
    """The clusters, the largest first, and which of them each image is in."""

    images: int
    clusters: tuple[Cluster, ...]
    tried: dict[int, float]  # numbers of clusters and their silhouettes, when the number was chosen
    selection: Selection = field(repr=False)
    label: IntArray = field(repr=False)  # (N,) of each place of the selection

    def rows(self) -> list[dict[str, Any]]:
        """A plain record a cluster; their numbers count from 1."""
        return [{"cluster": number, **asdict(cluster)} for number, cluster in enumerate(self.clusters, 1)]


@dataclass(frozen=True, slots=True)
class Naming:
    """Where names come from."""

    columns: Sequence[str] | None = None  # of text; None: captions and labels, else any text
    vocabulary: Sequence[str] = ()  # texts to choose from
    encoder: Encoder | None = None  # of the archive, to read them

    def __post_init__(self) -> None:
        if self.vocabulary and self.encoder is None:
            raise BadInput("a vocabulary needs the encoder that can read it", remedy="Pass the archive's encoder.")


def find_clusters(
    archive: Archive,
    k: int | None = None,
    *,
    naming: Naming | None = None,
    filter: str | None = None,
    progress: Progress | None = None,
) -> Clusters:
    """The images that `filter` keeps in k clusters by spherical k-means; k is chosen by `kmeans.choose_k` when None.

    Raises:
        BadInput: the filter is not one or keeps nothing, k lies outside [1, images], or there is no such text column.
        FingerprintMismatch: the naming encoder is not the archive's.
    """
    progress = progress or SilentProgress()
    images = Selection.of(archive, filter)
    if k is not None and not 1 <= k <= len(images):
        raise BadInput("k lies outside its range", expected=f"1 to {len(images)}", received=str(k))
    vectors = images.vectors(progress)
    tried: dict[int, float] = {}
    if k is None:
        k, tried = choose_k(vectors, progress)
    parted = partition(vectors, k)
    found = described(archive, images, vectors, parted, naming or Naming())
    return Clusters(len(images), found, tried, images, parted.label)


def described(
    archive: Archive, images: Selection, vectors: Vectors, parted: Partition, naming: Naming
) -> tuple[Cluster, ...]:
    """The clusters of a partition of `images`, with names and the images that stand for them."""
    count, sizes = len(parted.centres), parted.sizes
    said = from_metadata(images, parted.label, count, text_columns(images, naming.columns))
    names: list[tuple[Name, ...]] = [() if name is None else (name,) for name in said]
    cohesion = np.bincount(parted.label, parted.cosine, minlength=count) / sizes
    if naming.encoder is not None and naming.vocabulary:
        read = from_vocabulary(archive, naming.encoder, naming.vocabulary, parted.centres, _mean(vectors))
        names = [(*before, name) for before, name in zip(names, read, strict=True)]
    found: list[Cluster] = []
    for cluster in range(count):
        places = np.flatnonzero(parted.label == cluster)
        shown = representatives(vectors, places, parted.cosine[places])
        share, near = float(sizes[cluster] / len(images)), float(cohesion[cluster])
        pictures = tuple(images.pictures(shown))
        found.append(Cluster(int(sizes[cluster]), share, near, pictures, names[cluster]))
    return tuple(found)


def representatives(vectors: Vectors, places: IntArray, cosine: FloatArray) -> IntArray:
    """Places that stand for a cluster, given by its places (S,) and their cosines to its centre: the medoid, then what
    differs most from it and from each other among the most central images, so that no outlier stands for all.
    """
    order = np.argsort(-cosine, kind="stable")
    core = order[: max(SHOWN, round(CORE * len(order)))]
    if len(core) > CORE_MOST:
        core = core[np.linspace(0, len(core) - 1, CORE_MOST).astype(np.int64)]
    near = Vectors.of(vectors.at(places[core]))
    bound = distance(near.at(np.arange(len(core))) @ near.at(np.zeros(1, np.int64))[0])
    others = farthest_first(near, SHOWN - 1, bound=bound).places
    return places[core[np.concatenate([[0], others])]]


def _mean(vectors: Vectors) -> FloatArray:
    """The mean (D,) of unit vectors."""
    total = np.zeros(vectors.dimension)
    for _, chunk in vectors.chunks():
        total += chunk.sum(axis=0)
    return (total / len(vectors)).astype(np.float32)
