"""Zero-shot classification of images or crops by the text of their class names (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from foveal.dataset import Dataset
from foveal.detections import FloatArray
from foveal.errors import BadInput
from foveal.models import Encoder

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
    truth = np.asarray(labels)
    own = np.take_along_axis(similarity, truth[:, None], axis=1)
    rivals = similarity >= own
    rivals[np.arange(len(truth)), truth] = False
    ranks = rivals.sum(axis=1)
    right = ranks == 0
    return {
        "top1": float(right.mean()),
        "top5": float((ranks < 5).mean()),
        "mean_class_accuracy": float(np.mean([right[truth == c].mean() for c in np.unique(truth)])),
        "count": float(len(truth)),
    }


def crops(dataset: Dataset, context: float = 0.1, min_side: int = 8) -> tuple[list[Image], list[int]]:
    """Each true box cut out with `context` times its size around it, or whole images where only they have a label.

    Boxes with a side under `min_side` pixels are left out. Labels index `dataset.classes`.

    Raises:
        BadInput: nothing in the dataset has a class.
    """
    images: list[Image] = []
    labels: list[int] = []
    index = {name: i for i, name in enumerate(dataset.classes)}
    for sample in dataset:
        if sample.truth is not None and len(sample.truth):
            whole = sample.image()
            for (x1, y1, x2, y2), label in zip(sample.truth.boxes.tolist(), sample.truth.labels.tolist(), strict=True):
                width, height = x2 - x1, y2 - y1
                if min(width, height) < min_side:
                    continue
                dx, dy = width * context, height * context
                box = (max(0, x1 - dx), max(0, y1 - dy), min(whole.width, x2 + dx), min(whole.height, y2 + dy))
                images.append(whole.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3]))))
                labels.append(label)
        elif sample.label in index:
            images.append(sample.image())
            labels.append(index[sample.label])
    if not images:
        raise BadInput("no image or box has a class", expected="a labelled dataset")
    return images, labels


def evaluate_dataset(
    encoder: Encoder, dataset: Dataset, templates: Sequence[str] = TEMPLATES, context: float = 0.1
) -> dict[str, float]:
    """`evaluate` on the crops (or labelled images) of a dataset, over its own classes."""
    images, labels = crops(dataset, context)
    return evaluate(encoder, images, labels, dataset.classes, templates)
