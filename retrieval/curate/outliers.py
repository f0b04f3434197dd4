"""Images that lie apart from their own neighbours: wrong files, broken cameras, and the rare ones worth a look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveal.detections import FloatArray, IntArray
from foveal.errors import BadInput
from foveal.progress import Progress, SilentProgress
from retrieval.archive import Archive
from retrieval.curate.neighbours import Neighbourhood
from retrieval.curate.selection import Picture, Selection, distance

FLOOR = 0.1  # of the median distance: closer neighbours count as that far, so that copies are not infinitely dense
PIECE = 65_536  # images scored at a time


@dataclass(frozen=True, slots=True)
class Outlier:
    """One image and how far it lies from the rest."""

    image: Picture
    score: float  # local outlier factor
    distance: float  # mean to its k nearest, Euclidean between unit vectors, [0, 2]
    nearest: Picture
    cosine: float  # to the nearest


@dataclass(frozen=True, slots=True)
class Outliers:
    """The images with the highest scores, highest first."""

    images: int  # looked at
    k: int  # neighbours each was compared with
    found: tuple[Outlier, ...]
    scores: FloatArray = field(repr=False)  # (N,) of all images, in the order in which they were added

    def rows(self) -> list[dict[str, Any]]:
        """A plain record an outlier."""
        return [
            {
                "score": outlier.score,
                "distance": outlier.distance,
                "id": outlier.image.id,
                "uri": outlier.image.uri,
                "nearest_id": outlier.nearest.id,
                "nearest_uri": outlier.nearest.uri,
                "cosine": outlier.cosine,
            }
            for outlier in self.found
        ]


def find_outliers(
    archive: Archive, top: int = 20, *, k: int = 20, filter: str | None = None, progress: Progress | None = None
) -> Outliers:
    """The `top` images by local outlier factor (Breunig, Kriegel, Ng and Sander, doi 10.1145/342009.335388).

    The score compares how far an image lies from its k nearest neighbours with how far these lie from theirs. About 1:
    it lies among its like, be that a dense heap or a loose one. 2: it lies about twice as far from its neighbours as
    they lie from each other. A score is no verdict, as the rarest true object scores as high as a broken file; and more
    than k images that are odd in the same way are no outliers but a cluster.

    Raises:
        BadInput: the filter is not one or keeps nothing, or k or top is less than 1.
    """
    for name, value in (("k", k), ("top", top)):
        if value < 1:
            raise BadInput(f"{name} lies outside its range", expected="1 or more", received=str(value))
    progress = progress or SilentProgress()
    images = Selection.of(archive, filter)
    vectors = images.vectors(progress)
    cosine, place = Neighbourhood(images, vectors, len(images)).nearest(vectors, k, progress, own=True)
    if not cosine.shape[1]:
        return Outliers(len(images), 0, (), np.ones(len(images), np.float32))
    apart = distance(cosine)
    scores = local_outlier_factor(apart, place)
    best = np.argsort(-scores, kind="stable")[:top]
    pictures = zip(images.pictures(best), images.pictures(place[best, 0]), strict=True)
    found = tuple(
        Outlier(image, float(scores[i]), float(apart[i].mean()), nearest, float(cosine[i, 0]))
        for i, (image, nearest) in zip(best.tolist(), pictures, strict=True)
    )
    return Outliers(len(images), cosine.shape[1], found, scores)


def local_outlier_factor(apart: FloatArray, place: IntArray) -> FloatArray:
    """The factor (N,) of points from the distances (N, k) and places (N, k) of their nearest neighbours, best first."""
    reach = apart[:, -1]
    floor = FLOOR * float(np.median(reach)) or 1.0  # 1 where all points are equal
    density = np.empty(len(apart), np.float32)
    for start in range(0, len(apart), PIECE):
        part = slice(start, start + PIECE)
        density[part] = 1 / np.maximum(np.maximum(apart[part], reach[place[part]]), floor).mean(axis=1)
    factor = np.empty(len(apart), np.float32)
    for start in range(0, len(apart), PIECE):
        part = slice(start, start + PIECE)
        factor[part] = density[place[part]].mean(axis=1) / density[part]
    return factor
