"""Zero-shot classification of images or crops by the text of their class names (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.encoding import encoded
from evals.results import Measured, slices_of
from evals.slicing import quarters
from foveal.dataset import Dataset, Sample
from foveal.detections import FloatArray, IntArray
from foveal.errors import BadInput
from foveal.models import Encoder
from foveal.progress import Progress, track

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATES = ("a photo of a {}", "a {}", "a picture of the {}", "there is a {} here")


def class_embeddings(encoder: Encoder, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> FloatArray:
    """Unit-length (classes, D): the mean over templates of each class's text embedding.

    Raises:
        BadInput: a template has no `{}` or more than one.
    """
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise BadInput("templates cannot be used", expected="exactly one {} in each", received=repr(wrong))
    texts = [template.replace("{}", name) for name in classes for template in templates]
    vectors = encoder.encode_texts(texts).reshape(len(classes), len(templates), -1).mean(axis=1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def evaluate(
    encoder: Encoder,
    images: Sequence[Image],
    labels: Sequence[int],
    classes: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, float]:
    """`top1` and `top5` accuracy, `mean_class_accuracy` (top 1, each class counted alike) and `count`, all floats.

    Args:
        images: upright RGB images or crops.
        labels: index into `classes`, one an image.

    Raises:
        BadInput: nothing to classify, or lengths disagree.
    """
    if not images or len(images) != len(labels):
        raise BadInput("one label per image is needed", expected=f"{len(images)} > 0", received=str(len(labels)))
    return scores(encoder.encode_images(images) @ class_embeddings(encoder, classes, templates).T, labels)


def scores(similarity: FloatArray, labels: Sequence[int]) -> dict[str, float]:
    """`evaluate`'s figures from similarities (N, classes) and the right class of each row; ties count as wrong."""
    return _figures(_ranks(similarity, np.asarray(labels)), np.asarray(labels))


def _figures(ranks: IntArray, truth: IntArray) -> dict[str, float]:
    right = ranks == 1
    return {
        "top1": float(right.mean()),
        "top5": float((ranks <= 5).mean()),
        "mean_class_accuracy": float(np.mean([right[truth == c].mean() for c in np.unique(truth)])),
        "count": float(len(truth)),
    }


def _ranks(similarity: FloatArray, truth: IntArray) -> IntArray:
    """The place (N,) of the right class in each row, 1 for best; ties count against it."""
    own = np.take_along_axis(similarity, truth[:, None], axis=1)
    rivals = similarity >= own
    rivals[np.arange(len(truth)), truth] = False
    return 1 + rivals.sum(axis=1)


@dataclass(frozen=True, slots=True)
class Crop:
    """A labelled image, or the piece of one that a true box marks."""

    id: str  # of the image, with `#` and the number of the box for a piece
    sample: Sample
    label: int  # in the dataset's classes
    image: Image
    side: float | None = None  # square root of the object's pixels, where a box marks it


def each_crop(
    samples: Iterable[Sample], classes: Sequence[str], context: float = 0.1, min_side: int = 8
) -> Iterator[Crop]:
    """Each true box cut out with `context` times its size around it, or whole images where only they have a label.

    Boxes with a side under `min_side` pixels are left out. Images are decoded one at a time.
    """
    index = {name: i for i, name in enumerate(classes)}
    for sample in samples:
        if sample.truth is not None and len(sample.truth):
            whole = sample.image()
            pairs = zip(sample.truth.boxes.tolist(), sample.truth.labels.tolist(), strict=True)
            for number, ((x1, y1, x2, y2), label) in enumerate(pairs):
                width, height = x2 - x1, y2 - y1
                if min(width, height) < min_side:
                    continue
                dx, dy = width * context, height * context
                box = (max(0, x1 - dx), max(0, y1 - dy), min(whole.width, x2 + dx), min(whole.height, y2 + dy))
                piece = whole.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
                yield Crop(f"{sample.id}#{number}", sample, label, piece, (width * height) ** 0.5)
        elif sample.label in index:
            yield Crop(sample.id, sample, index[sample.label], sample.image())


def piece(sample: Sample, item: str) -> Image:
    """What an item of `measure` shows: the crop that its id numbers, or the whole image."""
    if item == sample.id or sample.truth is None:
        return sample.image()
    return next(crop.image for crop in each_crop([sample], sample.truth.names) if crop.id == item)


def crops(dataset: Dataset, context: float = 0.1, min_side: int = 8) -> tuple[list[Image], list[int]]:
    """All of `each_crop` and their labels.

    Raises:
        BadInput: nothing in the dataset has a class.
    """
    found = list(each_crop(dataset, dataset.classes, context, min_side))
    _something(len(found))
    return [crop.image for crop in found], [crop.label for crop in found]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Crops or labelled images as vectors."""

    ids: list[str]
    samples: list[Sample]
    labels: IntArray  # (N,) in the classes
    sides: list[float | None]  # as `Crop.side`
    vectors: FloatArray  # (N, D)

    @property
    def slices(self) -> dict[str, list[str | None]]:
        """By size of the object, where all are boxes, and by what the metadata of the images says."""
        sizes = {} if None in self.sides else {"object size": quarters(self.sides, " px")}
        return {**sizes, **slices_of(self.samples)}


def embedded(
    encoder: Encoder,
    dataset: Iterable[Sample],
    classes: Sequence[str],
    context: float = 0.1,
    progress: Progress | None = None,
    *,
    after: FloatArray | None = None,
) -> Embedded:
    """All of `each_crop` through the encoder, and then through the matrix `after` (D, M); memory stays flat.

    Raises:
        BadInput: nothing in the dataset has a class.
    """
    ids: list[str] = []
    samples: list[Sample] = []
    labels: list[int] = []
    sides: list[float | None] = []
    blocks: list[FloatArray] = []

    def cut(sample: Sample) -> Iterator[tuple[Crop, Image]]:
        return ((crop, crop.image) for crop in each_crop([sample], classes, context))

    for keys, vectors in encoded(encoder, track(progress, dataset, "embed crops"), cut):
        blocks.append(vectors if after is None else vectors @ after)
        ids.extend(crop.id for crop in keys)
        samples.extend(crop.sample for crop in keys)
        labels.extend(crop.label for crop in keys)
        sides.extend(crop.side for crop in keys)
    _something(len(ids))
    return Embedded(ids, samples, np.array(labels, np.int64), sides, np.concatenate(blocks))


def measure(
    encoder: Encoder,
    dataset: Dataset,
    templates: Sequence[str] = TEMPLATES,
    context: float = 0.1,
    progress: Progress | None = None,
) -> Measured:
    """`evaluate`'s figures on the crops (or labelled images) of a dataset, over its own classes, and each crop's part.

    Items: `image`, `class`, `said` (the nearest class), `right` (0 or 1), `rank` of the right class, and `confidence`
    in the answer, the softmax at the encoder's own scale. Memory stays flat, whatever the number of crops.

    Raises:
        BadInput: nothing in the dataset has a class.
    """
    names = class_embeddings(encoder, dataset.classes, templates)
    found = embedded(encoder, dataset, dataset.classes, context, progress, after=names.T)
    truth, cosine = found.labels, found.vectors
    ranks, said = _ranks(cosine, truth), cosine.argmax(axis=1)
    logits = encoder.logit_scale * (cosine - cosine.max(axis=1, keepdims=True)).astype(np.float64)
    kinds = [dataset.classes[label] for label in truth]
    items: dict[str, list[Any]] = {
        "id": found.ids,
        "image": [sample.id for sample in found.samples],
        "class": kinds,
        "said": [dataset.classes[label] for label in said],
        "right": (ranks == 1).astype(int).tolist(),
        "rank": ranks.tolist(),
        "confidence": (1 / np.exp(logits).sum(axis=1)).tolist(),
    }
    return Measured(dict(_figures(ranks, truth)), items, {"class": [*kinds], **found.slices})


def evaluate_dataset(
    encoder: Encoder, dataset: Dataset, templates: Sequence[str] = TEMPLATES, context: float = 0.1
) -> dict[str, float]:
    """The figures of `measure` alone."""
    return measure(encoder, dataset, templates, context).figures


def _something(count: int) -> None:
    if not count:
        raise BadInput("no image or box has a class", expected="a labelled dataset")
