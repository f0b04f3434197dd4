"""Cross-modal retrieval: recall@k, median rank and mean average precision, text to image and back.

Shape letters: Q queries, G gallery items, D embedding dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.encoding import encoded
from evals.results import Measured, slices_of
from foveal.dataset import Dataset, Sample
from foveal.detections import BoolArray, FloatArray, IntArray
from foveal.errors import BadInput
from foveal.models import Encoder
from foveal.progress import Progress, track

if TYPE_CHECKING:
    from PIL.Image import Image

KS = (1, 5, 10)
ROWS = 1024  # queries compared at a time


def recall_at_k(
    query: FloatArray, gallery: FloatArray, positives: Sequence[set[int]], ks: Sequence[int] = KS
) -> dict[str, float]:
    """Share of queries (Q, D) with at least one positive among the k most similar items of `gallery` (G, D).

    Ties count against the query, so an encoder that maps everything to one point gets nothing for it.
    Returns `recall_at_{k}` for each k, `median_rank` (1 is best) and `map` (mean average precision), all floats.

    Raises:
        BadInput: lengths disagree, or a query has no positive.
    """
    _check(query, gallery, positives)
    ranks = first_ranks(query, gallery, positives)
    precisions = [p for block in _rows(query, gallery, positives) for p in _average_precision(*block)]
    scores = {f"recall_at_{k}": float((ranks <= k).mean()) for k in ks}
    return {**scores, "median_rank": float(np.median(ranks)), "map": float(np.mean(precisions))}


def first_ranks(query: FloatArray, gallery: FloatArray, positives: Sequence[set[int]]) -> IntArray:
    """The rank (Q,) of each query's first positive, 1 for best; ties count against it."""
    best: list[IntArray] = []
    for similarity, relevant in _rows(query, gallery, positives):
        others = np.where(relevant, -np.inf, similarity)
        top = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
        best.append(1 + (others >= top).sum(axis=1))
    return np.concatenate(best)


def evaluate(
    encoder: Encoder, dataset: Dataset, ks: Sequence[int] = KS, progress: Progress | None = None
) -> dict[str, float]:
    """Every caption searches the images (`recall_at_1`...), every image the captions (`image_to_text_recall_at_1`...).

    Images that share a caption word for word are all right answers to it.

    Raises:
        BadInput: no image has a caption.
    """
    return measure(encoder, dataset, ks, progress).figures


def measure(encoder: Encoder, dataset: Dataset, ks: Sequence[int] = KS, progress: Progress | None = None) -> Measured:
    """`evaluate`'s figures, and each caption's part in them.

    Items, one a caption: its `image`, its `text`, the `rank` at which it finds a right image, the average `precision`
    of its search, and the image it found first (`said`).

    Raises:
        BadInput: no image has a caption.
    """
    owners: list[int] = []
    texts: list[str] = []
    vectors: list[FloatArray] = []
    captioned = [sample for sample in dataset if sample.captions]
    if not captioned:
        raise BadInput("no image has a caption", expected="a dataset with captions", remedy="Use a caption JSONL file.")
    for _, part in encoded(encoder, track(progress, captioned, "embed images"), _whole):
        vectors.append(part)
    for i, sample in enumerate(captioned):
        owners.extend([i] * len(sample.captions))
        texts.extend(sample.captions)
    images, captions = np.concatenate(vectors), encoder.encode_texts(texts)
    holders: dict[str, set[int]] = {}
    wordings: dict[int, set[str]] = {}
    for owner, text in zip(owners, texts, strict=True):
        holders.setdefault(text, set()).add(owner)
        wordings.setdefault(owner, set()).add(text)
    places: dict[str, set[int]] = {}
    for i, text in enumerate(texts):
        places.setdefault(text, set()).add(i)
    right = [holders[text] for text in texts]
    forward = recall_at_k(captions, images, right, ks)
    answers = [set[int]().union(*(places[text] for text in wordings[i])) for i in range(len(captioned))]
    backward = recall_at_k(images, captions, answers, ks)
    counts = {"images": float(len(captioned)), "captions": float(len(texts))}
    figures = {**forward, **{f"image_to_text_{name}": value for name, value in backward.items()}, **counts}
    samples = [captioned[owner] for owner in owners]
    blocks = list(_rows(captions, images, right))
    items: dict[str, list[Any]] = {
        "id": _caption_ids(owners, captioned),
        "image": [sample.id for sample in samples],
        "text": texts,
        "rank": first_ranks(captions, images, right).tolist(),
        "precision": [p for block in blocks for p in _average_precision(*block)],
        "said": [captioned[int(best)].id for similarity, _ in blocks for best in similarity.argmax(axis=1)],
    }
    return Measured(figures, items, slices_of(samples))


def _whole(sample: Sample) -> Iterator[tuple[str, Image]]:
    yield sample.id, sample.image()


def _caption_ids(owners: Sequence[int], captioned: Sequence[Sample]) -> list[str]:
    """`image`, or `image#1` for the second caption of an image, and so on."""
    before: Counter[int] = Counter()
    ids: list[str] = []
    for owner in owners:
        number = before[owner]
        ids.append(f"{captioned[owner].id}#{number}" if number else captioned[owner].id)
        before[owner] += 1
    return ids


def _check(query: FloatArray, gallery: FloatArray, positives: Sequence[set[int]]) -> None:
    if len(query) != len(positives) or not len(query):
        raise BadInput(
            "one set of positives per query is needed", expected=str(len(query)), received=str(len(positives))
        )
    for i, wanted in enumerate(positives):
        if not wanted or min(wanted) < 0 or max(wanted) >= len(gallery):
            raise BadInput(f"query {i} has no valid positive", expected=f"indices in 0..{len(gallery) - 1}")


def _rows(
    query: FloatArray, gallery: FloatArray, positives: Sequence[set[int]]
) -> Iterator[tuple[FloatArray, BoolArray]]:
    """Similarities (rows, G) and relevance (rows, G), a block of queries at a time."""
    for start in range(0, len(query), ROWS):
        similarity = query[start : start + ROWS] @ gallery.T
        relevant = np.zeros(similarity.shape, dtype=bool)
        for row, wanted in enumerate(positives[start : start + ROWS]):
            relevant[row, list(wanted)] = True
        yield similarity, relevant


def _average_precision(similarity: FloatArray, relevant: BoolArray) -> list[float]:
    """Average precision a row, negatives first among equals."""
    order = np.lexsort((relevant, -similarity), axis=1)
    hits = np.take_along_axis(relevant, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return ((precision * hits).sum(axis=1) / hits.sum(axis=1)).tolist()
