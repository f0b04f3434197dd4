"""Two generations of an archive asked the same: do they find the same, and which finds what it should?

Shape letters: Q queries.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foveal.errors import BadInput
from foveal.models import Encoder
from retrieval.archive import Archive

SAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True, slots=True)
class Question:
    """A text to search for, and the URIs that should be found, where that is known; none where nothing should be."""

    text: str
    relevant: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One query whose answers differ."""

    text: str
    overlap: float  # share of the first k that both found
    before: list[str]  # URIs, best first
    after: list[str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Generation `before` against `after` on the same queries."""

    queries: int
    overlap: float  # mean share of the first k that both found
    judged: int  # queries that say what should be found
    recall_before: float | None = None  # recall@k over the judged ones
    recall_after: float | None = None
    gain: tuple[float, float] | None = None  # 95% interval of after - before, paired bootstrap over queries
    changed: list[Difference] = field(default_factory=list[Difference])  # most changed first


def compare(
    before: tuple[Archive, Encoder], after: tuple[Archive, Encoder], questions: Sequence[Question], k: int = 10
) -> Comparison:
    """Searches both for every question.

    Raises:
        BadInput: there is no question.
        FingerprintMismatch: an encoder is not its archive's.
    """
    if not questions:
        raise BadInput("nothing to ask", expected="at least one query")
    texts = [question.text for question in questions]
    answers = [_answers(archive, encoder, texts, k) for archive, encoder in (before, after)]
    differences = [
        Difference(text, len(set(old) & set(new)) / max(len(old), len(new), 1), old, new)
        for text, old, new in zip(texts, *answers, strict=True)
    ]
    overlap = float(np.mean([difference.overlap for difference in differences]))
    judged = [place for place, question in enumerate(questions) if question.relevant]
    changed = sorted((one for one in differences if one.before != one.after), key=lambda one: one.overlap)
    if not judged:
        return Comparison(len(texts), overlap, 0, changed=changed)
    old, new = (np.array([_recall(found[i], questions[i].relevant or (), k) for i in judged]) for found in answers)
    picks = np.random.default_rng(0).integers(len(judged), size=(SAMPLES, len(judged)))
    low, high = np.percentile((new - old)[picks].mean(axis=1), [2.5, 97.5]).tolist()
    return Comparison(len(texts), overlap, len(judged), float(old.mean()), float(new.mean()), (low, high), changed)


def read_questions(path: Path) -> list[Question]:
    """One query a line: a text, or JSON with `text` and the URIs that are `relevant`.

    Raises:
        BadInput: the file cannot be read, or a line of JSON has no `text`.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}", expected="a UTF-8 text file") from error
    found: list[Question] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            found.append(Question(line.strip()))
            continue
        try:
            record = json.loads(line)
            relevant = record.get("relevant")
            if isinstance(relevant, str):
                raise TypeError("relevant is a text")
            found.append(Question(record["text"], None if relevant is None else frozenset(relevant)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wanted = '{"text": "...", "relevant": [URI, ...]}'
            raise BadInput(f"{path}, line {number}: {error}", expected=wanted) from error
    return found


def _answers(archive: Archive, encoder: Encoder, texts: Sequence[str], k: int) -> list[list[str]]:
    archive.require(encoder)
    return [[hit.uri for hit in hits] for hits in archive.nearest(encoder.encode_texts(texts), k)]


def _recall(found: Sequence[str], relevant: Collection[str], k: int) -> float:
    return len(set(found) & set(relevant)) / min(k, len(relevant))
