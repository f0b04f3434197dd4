"""Slices that nobody named: where a model errs more than elsewhere, found among the embeddings of its mistakes.

Found on one half of the pictures, tested on the other, so that what was found by looking is not also proven by it; the
p-values are corrected for the number of slices tried (Holm). The idea of slices in embedding space is Domino's (arXiv
2203.14960); a slice here is a ball around a centre of mistakes.

Shape letters: N items, D embedding dimensions, S slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evals.clusters import centres_of, nearest_texts, telling_terms
from evals.encoding import encoded
from evals.measures import measures_of
from evals.results import Measured, Result
from evals.slicing import Words
from evals.zero_shot import each_crop
from foveal.dataset import Dataset, Sample
from foveal.detections import BoolArray, FloatArray
from foveal.errors import BadInput
from foveal.models import Encoder
from foveal.progress import Progress, track

if TYPE_CHECKING:
    from PIL.Image import Image

Doubles = NDArray[np.float64]

# Columns of items that say how right each was, and the error that follows, 0 to 1; the first that a result has counts.
ERRORS: dict[str, Callable[[float], float]] = {
    "right": lambda value: 1 - value,
    "passed": lambda value: 1 - value,
    "exact_match": lambda value: 1 - value,
    "corrupted": lambda value: 1 - value,
    "image_corrupted": lambda value: 1 - value,
    "rank": lambda value: float(value > 1),
}
FEWEST = 10  # items of a slice, in either half
PICTURES = 5  # that they come from
LARGEST = 4  # a slice is a fourth of the items at most
AS_GOOD = 0.95  # of the best separation
MISTAKES_EACH = 6  # of the half that is searched, for each centre
MOST_CENTRES = 12
TRIED = 6  # slices at most, those that set themselves apart most
APART = 2.0  # standard errors by which the searched half must differ for a slice to be tried
OVERLAP = 0.5  # of the smaller slice's items, from which on two are one
SAYS = 0.6  # share of a slice's items of which a known word names it, where the rest has half as much or less
SHUFFLES = 9999
LEVEL = 0.05
ROWS = 256  # images whose AP50 is worked out at once
TEXTS = 2000  # words of captions that may name a slice
SEED = 1


@dataclass(frozen=True, slots=True)
class Slice:
    """Items near to one another among which the model errs more than among the rest."""

    members: BoolArray  # (N,) of both halves
    centre: FloatArray  # (D,)
    error: float  # of its items in the half that it was not found on
    rest: float  # of the others there
    low: float  # 95% interval of the difference, by pictures
    high: float
    p: float  # one-sided, corrected for all slices tried


@dataclass(frozen=True, slots=True)
class Found:
    """The slices that stand out, worst first, and how many were tried."""

    slices: tuple[Slice, ...]
    tried: int


def errors_of(result: Result) -> Doubles:
    """The error (N,) of each item in [0, 1]; NaN where nothing is known.

    Of detections it is what an image's own boxes lack to an AP50 of 1.

    Raises:
        BadInput: the result keeps no items, or nothing that says which were right.
    """
    for column, error in ERRORS.items():
        if column in result.items:
            return np.array([np.nan if value is None else error(float(value)) for value in result.items[column]])
    known = measures_of(result)
    if "AP50" in known:
        count = len(result)
        blocks = [np.eye(ROWS, count, k=start)[: count - start] for start in range(0, count, ROWS)]
        return 1 - np.concatenate([known["AP50"].of(result.items, block) for block in blocks])
    raise BadInput(
        f"the result {result.name!r} does not say which of its items are wrong",
        expected=f"a column {', '.join(ERRORS)}",
        received=", ".join(result.items) or "no items",
        remedy="Measure again with `foveal eval ... --out FILE.json`.",
    )


def find(vectors: FloatArray, errors: Doubles, pictures: Sequence[object], seed: int = SEED) -> Found:
    """Slices of unit vectors (N, D) with errors (N,) in [0, 1] of items that come from `pictures` (N,).

    Pictures, not items, are halved, as the items of one err together. A slice's p-value is the larger of two: that of
    shuffled errors, exact for independent items, and that of a difference with errors clustered by picture.

    Raises:
        BadInput: too few items, or none of them wrong.
    """
    _, picture = np.unique(np.array([str(p) for p in pictures]), return_inverse=True)
    if picture.max(initial=-1) + 1 < 4 * FEWEST or not errors.sum():
        raise BadInput(
            "nothing to find slices in",
            expected=f"{4 * FEWEST} pictures or more, and a mistake",
            received=f"{picture.max(initial=-1) + 1} pictures, {int((errors > 0).sum())} mistakes",
        )
    rng = np.random.default_rng(seed)
    searched = (rng.permutation(picture.max() + 1) % 2 == 0)[picture]
    tried = _candidates(vectors, errors, searched)
    told: list[tuple[tuple[float, float, float], FloatArray, BoolArray]] = []
    p: list[float] = []
    for centre, members in tried:
        inside = members[~searched]
        enough = inside.sum() >= FEWEST and len(set(picture[~searched][inside])) >= PICTURES and (~inside).any()
        difference = _difference(errors[~searched], inside, picture[~searched]) if enough else (0.0, 0.0, 1.0)
        told.append((difference, centre, members))
        p.append(max(difference[2], _shuffled(errors[~searched], inside, rng)) if enough else 1.0)
    found: list[Slice] = []
    for (difference, centre, members), corrected in zip(told, holm(p), strict=True):
        if corrected <= LEVEL:
            inside = members[~searched]
            here, rest = (float(errors[~searched][chosen].mean()) for chosen in (inside, ~inside))
            reach = 1.96 * difference[1]
            found.append(Slice(members, centre, here, rest, here - rest - reach, here - rest + reach, corrected))
    found.sort(key=lambda one: one.p - (one.error - one.rest) * int(one.members.sum()) / len(errors))
    return Found(tuple(found), len(tried))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given."""
    corrected = [1.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, p[i] * (len(p) - rank)))
        corrected[i] = largest
    return corrected


def _candidates(vectors: FloatArray, errors: Doubles, searched: BoolArray) -> list[tuple[FloatArray, BoolArray]]:
    """Centres of mistakes of the searched half, and the items in the ball around each that sets them apart best."""
    wrong = vectors[searched & (errors > 0.5)]
    most = min(MOST_CENTRES, len(wrong) // MISTAKES_EACH)
    scored: list[tuple[float, FloatArray, BoolArray]] = []
    for k in range(1, most + 1):
        for centre in centres_of(wrong, k):
            near = vectors @ centre
            score, radius = _best_radius(near[searched], errors[searched])
            if score >= APART:
                scored.append((score, centre, near >= radius))
    kept: list[tuple[FloatArray, BoolArray]] = []
    for _, centre, members in sorted(scored, key=lambda one: -one[0]):
        shared = [(members & other).sum() / min(members.sum(), other.sum()) for _, other in kept]
        if max(shared, default=0.0) < OVERLAP and len(kept) < TRIED:
            kept.append((centre, members))
    return kept


def _best_radius(near: FloatArray, errors: Doubles) -> tuple[float, float]:
    """The standard errors by which the items nearest to a centre differ at best, and how near they have to be.

    Of numbers of items that are about as good the largest is taken: what looks best of all is narrower than the truth.
    """
    order = np.argsort(-near, kind="stable")
    n = len(order)
    count = np.arange(1, n + 1)
    inside = np.cumsum(errors[order])
    rest = (errors.sum() - inside) / np.maximum(n - count, 1)
    spread = max(float(errors.std()), 1e-9)
    score = (inside / count - rest) / (spread * np.sqrt(1 / count + 1 / np.maximum(n - count, 1)))
    score[: FEWEST - 1] = score[n // LARGEST :] = -np.inf
    best = float(score.max())
    last = int(np.flatnonzero(score >= AS_GOOD * best)[-1]) if best > 0 else 0
    return best, float(near[order[last]])


def _difference(errors: Doubles, inside: BoolArray, picture: NDArray[Any]) -> tuple[float, float, float]:
    """(difference of mean errors, its standard error by pictures, one-sided p-value), by Liang and Zeger's sandwich."""
    from scipy.stats import t

    here, rest = errors[inside].mean(), errors[~inside].mean()
    pull = np.where(inside, (errors - here) / inside.sum(), -(errors - rest) / (~inside).sum())
    groups = len(np.unique(picture))
    by_picture = np.bincount(picture, pull)
    error = float(np.sqrt((by_picture**2).sum() * groups / (groups - 1)))
    own = len(np.unique(picture[inside]))
    p = float(t.sf((here - rest) / error, own - 1)) if error > 0 else float(here <= rest)
    return float(here - rest), error, p


def _shuffled(errors: Doubles, inside: BoolArray, rng: np.random.Generator) -> float:
    """How often as many items drawn at random err as much: Fisher's exact test where errors are 0 or 1."""
    from scipy.stats import hypergeom

    size, here = int(inside.sum()), float(errors[inside].sum())
    if set(np.unique(errors)) <= {0.0, 1.0}:
        return float(hypergeom.sf(here - 1, len(errors), errors.sum(), size))
    sums = np.array([rng.choice(errors, size, replace=False, shuffle=False).sum() for _ in range(SHUFFLES)])
    return float((1 + (sums >= here - 1e-9).sum()) / (1 + SHUFFLES))


def measure(
    result: Result, dataset: Dataset, encoder: Encoder, progress: Progress | None = None, seed: int = SEED
) -> Measured:
    """The slices of a result's items that stand out, named and described.

    Figures: `found`, `tried`, `error` of all items, and `slices` by name with `items`, `error` and `rest` (on the half
    on which the slice was not found), the interval `low` to `high` of their difference, `p`, and `described`: the
    known words that are most over-represented in it. Items: `error`, and the `slice` that each belongs to, if any.

    Raises:
        BadInput: see `errors_of` and `find`, or the dataset lacks the result's pictures.
    """
    errors = errors_of(result)
    rows = np.flatnonzero(np.isfinite(errors))
    vectors = _vectors(result, rows, dataset, encoder, progress)
    pictures = [result.images[i] for i in rows]
    found = find(vectors, errors[rows], pictures, seed)
    columns = {name: [column[i] for i in rows] for name, column in result.slices.items()}
    names = _names(encoder, vocabulary(dataset), columns, found, vectors)
    label: Words = [None] * len(rows)
    told: dict[str, Any] = {}
    for name, one in zip(names, found.slices, strict=True):
        for i in np.flatnonzero(one.members).tolist():
            label[i] = label[i] or name
        told[name] = {
            "items": int(one.members.sum()),
            "error": one.error,
            "rest": one.rest,
            "low": one.low,
            "high": one.high,
            "p": one.p,
            "described": described(columns, one.members),
        }
    figures = {
        "found": len(found.slices),
        "tried": found.tried,
        "error": float(errors[rows].mean()),
        "count": len(rows),
        "slices": told,
    }
    kept = {
        name: [column[i] for i in rows] for name, column in result.items.items() if name in ("class", "said", "text")
    }
    items = {"id": [result.items["id"][i] for i in rows], "image": pictures, **kept, "error": errors[rows].tolist()}
    return Measured(figures, items, {"slice": label, **columns})


def _vectors(
    result: Result, rows: NDArray[Any], dataset: Dataset, encoder: Encoder, progress: Progress | None
) -> FloatArray:
    """Embeddings of what each item shows: its crop, where it is a box of its picture, else the picture."""
    wanted = {result.items["id"][i]: n for n, i in enumerate(rows)}
    by_picture: dict[str, list[int]] = {}
    for n, i in enumerate(rows):
        by_picture.setdefault(result.images[i], []).append(n)
    missing = sorted(set(by_picture) - set(dataset.ids))
    if missing:
        raise BadInput(
            f"{len(missing)} pictures of the result {result.name!r} are not in the data, the first {missing[0]!r}",
            remedy=f"Give the data that it was measured on: {result.data.source}.",
        )
    crops = "class" in result.items and all(name in wanted for name in result.items["id"])

    def shown(sample: Sample) -> Iterator[tuple[list[int], Image]]:
        own = by_picture.get(sample.id, [])
        if crops and own and sample.truth is not None and len(sample.truth):
            yield from (([wanted[c.id]], c.image) for c in each_crop([sample], dataset.classes) if c.id in wanted)
        elif own:
            yield own, sample.image()

    vectors = np.zeros((len(rows), encoder.dimension), dtype=np.float32)
    for places, found in encoded(encoder, track(progress, dataset, "embed items"), shown):
        for own, vector in zip(places, found, strict=True):
            vectors[own] = vector
    return vectors


def vocabulary(dataset: Dataset) -> list[str]:
    """Texts that may name a slice: classes, what metadata says in words, and the commonest terms of captions."""
    said: Counter[str] = Counter()
    for sample in dataset:
        said.update({term for caption in sample.captions for term in telling_terms(caption.casefold())})
    words = {value for sample in dataset for value in sample.metadata.values() if isinstance(value, str)}
    known = [word for word in sorted(words) if any(character.isalpha() for character in word)][:TEXTS]
    common = sorted((term for term, count in said.items() if count > 1), key=lambda term: (-said[term], term))[:TEXTS]
    return list(dict.fromkeys([*dataset.classes, *known, *common]))


def _names(
    encoder: Encoder, texts: Sequence[str], columns: Mapping[str, Words], found: Found, vectors: FloatArray
) -> list[str]:
    """A name for each slice, no two alike: a word known of most of its items, else the nearest text.

    What is known comes first, as an encoder that errs on a slice can hardly name it.
    """
    if not found.slices:
        return []
    centres = np.stack([vectors[one.members].mean(axis=0) for one in found.slices])
    near = nearest_texts(encoder, texts, centres, vectors.mean(axis=0)) if texts else []
    names: list[str] = []
    for i, one in enumerate(found.slices):
        known = [word for word, here, rest in _told(columns, one.members) if here >= SAYS and rest <= here / 2]
        name = known[0].removeprefix("class ") if known else near[i].text if near else "slice"
        names.append(name if name not in names else f"{name} ({i + 1})")
    return names


def described(columns: Mapping[str, Words], members: BoolArray, most: int = 3) -> list[str]:
    """The words of columns that are most over-represented among the members: `camera cam-3: 80% against 20%`."""
    return [f"{word}: {here:.0%} against {rest:.0%}" for word, here, rest in _told(columns, members)[:most]]


def _told(columns: Mapping[str, Words], members: BoolArray) -> list[tuple[str, float, float]]:
    """For the word that tells most in each column: (column and word, its share of the members, and of the rest)."""
    told: list[tuple[str, float, float]] = []
    for name, column in columns.items():
        words = np.array([word or "" for word in column])
        shares = [
            (f"{name} {word}", float((words[members] == word).mean()), float((words[~members] == word).mean()))
            for word in np.unique(words[members]).tolist()
            if word
        ]
        told += [max(shares, key=lambda one: one[1] - one[2])] if shares else []
    return sorted((one for one in told if one[1] - one[2] >= 0.2), key=lambda one: one[2] - one[1])
