"""Names for clusters, from the words that their images come with or from texts that an encoder knows.

Shape letters: N images, C clusters, W terms, T texts, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evals.clusters import nearest_texts, telling_terms
from foveal.detections import FloatArray, IntArray
from foveal.errors import BadInput, FingerprintMismatch
from foveal.models import Encoder
from retrieval.archive import Archive
from retrieval.curate.selection import Selection

SAYING = (
    "caption",
    "captions",
    "label",
    "labels",
    "class",
    "category",
    "title",
    "description",
    "tags",
    "keywords",
    "text",
)
READ_EACH = 2000  # images of a cluster whose words are counted
WORDS = 3  # or pairs of them, of a name
AS_OFTEN = 0.8  # of a word's images that a pair with it must occur with to replace it
SURE = 1.96  # standard deviations that a word must be over-represented by
SHARE = 0.1  # of the cluster's images that a word of its name must occur with


@dataclass(frozen=True, slots=True)
class Name:
    """What a cluster may be called, and why."""

    text: str
    source: Literal["metadata", "vocabulary"]
    evidence: str


def text_columns(images: Selection, asked: Sequence[str] | None = None) -> list[str]:
    """The columns to take words from: those asked for, else those that are usually text about the image, else all text.

    Raises:
        BadInput: a column asked for is not there or holds numbers.
    """
    there = images.metadata_columns("text")
    if asked is not None:
        for name in asked:
            if name not in there:
                raise BadInput(
                    f"there is no text in a column {name!r}", expected=f"one of {', '.join(there) or 'none'}"
                )
        return list(asked)
    return [name for name in there if name.casefold() in SAYING] or there


def from_metadata(images: Selection, label: IntArray, count: int, columns: Sequence[str]) -> list[Name | None]:
    """For each of `count` clusters the terms most over-represented among its images (N,), None where none stands out.

    Terms are words and pairs of words. Log-odds against all other clusters under a Dirichlet prior drawn from all terms
    (Monroe, Colaresi and Quinn, doi 10.1093/pan/mpn018), which counts as much as an average cluster; a term counts once
    an image.
    """
    if not columns or count < 2:
        return [None] * count
    places = np.concatenate([_some(np.flatnonzero(label == cluster)) for cluster in range(count)])
    terms, counts = _counted(images.table(columns, places), label[places], count)
    if not terms:
        return [None] * count
    score = _log_odds(counts)
    read = np.bincount(label[places], minlength=count)
    names: list[Name | None] = []
    for cluster in range(count):
        share = counts[cluster] / max(read[cluster], 1)
        elsewhere = (counts.sum(axis=0) - counts[cluster]) / max(read.sum() - read[cluster], 1)
        told = np.flatnonzero((score[cluster] >= SURE) & (share >= SHARE))
        best = _distinct(terms, told[np.argsort(-score[cluster][told], kind="stable")], share)
        if not best:
            names.append(None)
            continue
        evidence = ", ".join(f"{terms[t]} {share[t]:.0%} against {elsewhere[t]:.0%}" for t in best)
        names.append(Name(", ".join(terms[t] for t in best), "metadata", f"{', '.join(columns)}: {evidence}"))
    return names


def from_vocabulary(
    archive: Archive, encoder: Encoder, texts: Sequence[str], centres: FloatArray, mean: FloatArray
) -> list[Name]:
    """For each cluster centre (C, D) the text that says most of it, see `evals.clusters.nearest_texts`.

    `mean` (D,) is the mean of all images.

    Raises:
        FingerprintMismatch: another encoder than the archive's.
        BadInput: no texts.
    """
    if encoder.fingerprint != archive.fingerprint:
        raise FingerprintMismatch(
            f"{archive.path} was built with {archive.encoder}, not with {encoder.name}",
            expected=f"fingerprint {archive.fingerprint[:12]}",
            received=encoder.fingerprint[:12],
            remedy="Name clusters with that encoder.",
        )
    if not texts:
        raise BadInput("the vocabulary is empty", expected="one text or more")
    return [
        Name(near.text, "vocabulary", f"cosine {near.cosine:.3f}, {near.gain:+.3f} to its mean over all images")
        for near in nearest_texts(encoder, texts, centres, mean)
    ]


def _some(places: IntArray) -> IntArray:
    return np.sort(np.random.default_rng(0).permutation(places)[:READ_EACH])


def _counted(table: Any, label: IntArray, count: int) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The terms (W,) of the columns, and in how many images of each cluster they occur (C, W)."""
    index: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for cluster, row in zip(label.tolist(), table.to_pylist(), strict=True):
        said = {term for value in row.values() if value for term in telling_terms(value.casefold())}
        pairs += [(cluster, index.setdefault(term, len(index))) for term in said]
    counts = np.zeros((count, len(index)))
    if pairs:
        np.add.at(counts, tuple(np.array(pairs).T), 1)
    order = sorted(index)  # whatever the order in which a set is walked
    return order, counts[:, [index[term] for term in order]]


def _distinct(terms: list[str], ranked: IntArray, share: npt.NDArray[np.float64]) -> list[int]:
    """The first terms of a ranking, none of which says what another does.

    A pair takes the place of its own words where it is said nearly as often.
    """
    chosen: list[int] = []
    for term in ranked.tolist():
        words = set(terms[term].split())
        same = [other for other in chosen if words & set(terms[other].split())]
        if not same and len(chosen) < WORDS:
            chosen.append(term)
        elif same and set(terms[same[0]].split()) < words and share[term] >= AS_OFTEN * share[same[0]]:
            place = chosen.index(same[0])
            chosen = [other for other in chosen if other not in same]
            chosen.insert(place, term)
    return chosen


def _log_odds(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """z-scores (C, W) of each term in each cluster against all others, from counts (C, W)."""
    total = counts.sum(axis=0)
    prior = total / len(counts)
    here, rest = counts + prior, total - counts + prior
    odds = np.log(here / (here.sum(axis=1, keepdims=True) - here + 1e-9))
    against = np.log(rest / (rest.sum(axis=1, keepdims=True) - rest + 1e-9))
    return (odds - against) / np.sqrt(1 / here + 1 / rest)
