"""How good are a model's answers: exact match, ANLS, and how well boxes it names overlap the true ones.

Shape letters: N boxes answered, M true boxes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from foveal.detections import FloatArray, pairwise_iou

LOCATED = 0.5  # IoU from which a box counts as found
ARTICLES = frozenset(("a", "an", "the"))
WORDS = {
    word: str(i)
    for i, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}


def normalised(text: str) -> str:
    """Lower case, no articles or punctuation, small numbers as digits: what counts in an answer (arXiv 1505.00468)."""
    bare = re.sub(r"(?<!\d)[.,](?!\d)|(?<=\d)[.,](?!\d)|[^\w\s.,%-]|_", " ", text.lower())
    words = (WORDS.get(word, word) for word in bare.split() if word not in ARTICLES)
    return " ".join(words)


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 if `answer` is one of `truths` once both are `normalised`, else 0."""
    return float(normalised(answer) in {normalised(truth) for truth in truths})


def anls(answer: str, truths: Sequence[str], threshold: float = 0.5) -> float:
    """Similarity in [0, 1] to the nearest of `truths` by edit distance, 0 if below `threshold` (arXiv 1907.00490).

    Case and white space around the words do not count, everything else does.
    """
    best = max((_similarity(_plain(answer), _plain(truth)) for truth in truths), default=0.0)
    return best if best >= threshold else 0.0


def grounding_iou(boxes: FloatArray, truth: FloatArray) -> float:
    """Mean IoU of `boxes` (N, 4) with `truth` (M, 4) matched one to one as well as can be; what is unmatched counts 0.

    Both xyxy in the same unit. 1 when both are empty.
    """
    from scipy.optimize import linear_sum_assignment

    larger = max(len(boxes), len(truth))
    if larger == 0:
        return 1.0
    overlap = pairwise_iou(boxes.reshape(-1, 4), truth.reshape(-1, 4))
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return float(overlap[rows, columns].sum() / larger)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: single letters inserted, removed or replaced to make `b` of `a`."""
    row = np.arange(len(b) + 1)
    letters = np.array([ord(letter) for letter in b])
    for i, letter in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))
        # An insertion costs one more than the place to its left: a running minimum once that slope is taken out.
        steps = np.arange(len(b) + 1)
        row = np.minimum.accumulate(np.concatenate([[i], best]) - steps) + steps
    return int(row[-1])


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    return 1.0 if longest == 0 else 1 - edit_distance(a, b) / longest
