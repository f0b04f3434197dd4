"""How far one set of images is from another: by look, by what a model says of them, and by what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evals.drift import drift, psi
from evals.encoding import encoded
from evals.results import Measured
from evals.slicing import Words, columns_of
from evals.two_samples import PERMUTATIONS, classifier_test, kernel_test
from evals.zero_shot import class_embeddings
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections, FloatArray
from foveal.images import content_hash
from foveal.models import Encoder
from foveal.profile import FLOOR, Profile
from foveal.progress import Progress, track

if TYPE_CHECKING:
    from PIL.Image import Image

REFERENCE, DATA = "reference", "data"
Detect = Callable[[Sequence["Image"], float], list[Detections]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sets side by side: their images in one dataset, ids as `reference/ID` and `data/ID`."""

    both: Dataset
    second: NDArray[np.bool_]  # (N,) whether an image is of the second set
    hashes: tuple[str, ...]  # of the files, by which copies are known
    copies: int  # left out, as the same file was in the same set before

    @property
    def shared(self) -> int:
        """How many files are in both sets."""
        names = np.array(self.hashes)
        return len(set(names[self.second]) & set(names[~self.second]))


def pair(reference: Dataset, data: Dataset) -> Pair:
    """The two sets together; of several copies of a file in one set the first is kept.

    Copies would count as so many images that agree, and find a shift where one picture was stored often.

    Raises:
        BadImage: a file cannot be read.
    """
    samples: list[Sample] = []
    second: list[bool] = []
    hashes: list[str] = []
    for name, dataset in ((REFERENCE, reference), (DATA, data)):
        seen: set[str] = set()
        for sample in dataset:
            content = content_hash(sample.path)
            if content not in seen:
                seen.add(content)
                samples.append(replace(sample, id=f"{name}/{sample.id}"))
                second.append(name == DATA)
                hashes.append(content)
    classes = tuple(dict.fromkeys((*reference.classes, *data.classes)))
    copies = len(reference) + len(data) - len(samples)
    return Pair(Dataset.build(samples, classes), np.array(second, dtype=bool), tuple(hashes), copies)


def measure(
    encoder: Encoder,
    images: Pair,
    detect: Detect | None = None,
    permutations: int = PERMUTATIONS,
    progress: Progress | None = None,
) -> Measured:
    """Whether the second set differs from the first, by how much, and which of its images stand out.

    Figures: `p`, the smaller p-value of the two tests times two (Bonferroni); `mmd_squared` and `mmd_p`; `auc`,
    `accuracy` and `classifier_p` of the classifier; `classes_psi`, how much the shares of zero-shot classes differ (of
    whole images, where the sets have classes); `scores_psi` and `boxes_psi` of a detector's answers; `fields`, for each
    metadata field its `psi` and the shares of its values in each set. A population has shifted from a psi of about 0.25
    on. Items: `set`, `log_ratio` (how much likelier such an image is in the second set, natural logarithm, out of
    fold), its place `x`, `y` on the map, and `said`, the nearest class.

    Args:
        detect: images and a threshold -> detections, of a detector whose answers are to be compared.

    Raises:
        BadInput: fewer than ten images in a set.
    """
    samples = list(images.both)
    stream = encoded(encoder, track(progress, samples, "embed images"), lambda sample: [(sample.id, sample.image())])
    vectors = np.concatenate([found for _, found in stream])
    first, second = vectors[~images.second], vectors[images.second]
    looks = kernel_test(first, second, permutations)
    told = classifier_test(first, second, images.hashes, permutations)
    place = _map(vectors)
    figures: dict[str, Any] = {
        "p": min(1.0, 2 * min(looks.p, told.p)),
        "mmd_squared": looks.squared,
        "mmd_p": looks.p,
        "auc": told.auc,
        "accuracy": told.accuracy,
        "classifier_p": told.p,
        "reference_images": len(first),
        "data_images": len(second),
        "shared_files": images.shared,
        "copies_left_out": images.copies,
    }
    items: dict[str, list[Any]] = {
        "id": [sample.id for sample in samples],
        "set": [DATA if other else REFERENCE for other in images.second],
        "log_ratio": told.log_ratio.tolist(),
        "x": place[:, 0].tolist(),
        "y": place[:, 1].tolist(),
    }
    columns = columns_of(samples)
    fields = {name: _shares(column, images.second) for name, column in columns.items()}
    if images.both.classes:
        said = (vectors @ class_embeddings(encoder, images.both.classes).T).argmax(axis=1)
        items["said"] = [images.both.classes[i] for i in said]
        classes = _shares(items["said"], images.second)
        figures["classes_psi"] = classes["psi"]
        fields = {"class said": classes, **fields}
    if detect is not None:
        figures |= _answers(detect, samples, images.second, progress)
    figures["fields"] = fields
    return Measured(figures, items, columns)


def _map(vectors: FloatArray) -> NDArray[np.float64]:
    """The first two principal components (N, 2) of all images."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, [-1, -2]]


def _shares(column: Words, second: NDArray[np.bool_]) -> dict[str, Any]:
    """`psi`, and the share of each word in both sets; images of which nothing is known count as a word of their own."""
    words = np.array([word if word is not None else "unknown" for word in column])
    names = np.unique(words)
    counts = [np.array([(words[chosen] == name).sum() for name in names]) for chosen in (~second, second)]
    shares = [count / max(count.sum(), 1) for count in counts]
    return {
        "psi": psi(counts[0], counts[1]),
        REFERENCE: dict(zip(names.tolist(), shares[0].tolist(), strict=True)),
        DATA: dict(zip(names.tolist(), shares[1].tolist(), strict=True)),
    }


def _answers(
    detect: Detect, samples: Sequence[Sample], second: NDArray[np.bool_], progress: Progress | None
) -> dict[str, float]:
    scores = [detect([sample.image()], FLOOR)[0].scores for sample in track(progress, samples, "detect")]
    profiles = [
        Profile.of([s for s, other in zip(scores, second, strict=True) if other == chosen]) for chosen in (0, 1)
    ]
    told = drift(*profiles)
    return {"scores_psi": told["score"], "boxes_psi": told["boxes"]}
