"""Fits an archive's relevance model to what the archive says of itself, and to what its users said of hits.

Phrases of its captions, labels and tags are asked as queries whose answers are known: the images they were said of. To
learn what a query looks like that nothing answers, the same phrases are asked of the images they were not said of.
Where there are too few of them, the prior stands: what the bundled encoder showed on the sample world.

Shape letters: N images, D embedding dimensions, F features.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from evals.calibration import Calibrator
from foveal.detections import BoolArray, FloatArray
from foveal.models import Encoder
from retrieval.archive import Archive
from retrieval.candidates import located
from retrieval.curate.naming import SAYING
from retrieval.evidence import BACKGROUND, CONTRAST, TOP, Backdrop, Evidence
from retrieval.feedback import Feedback, Judgement
from retrieval.logistic import Logistic
from retrieval.relevance import Model
from retrieval.relevance_prior import HIT, PRESENCE
from retrieval.snapshot import Snapshot

Array = npt.NDArray[np.float64]

ROWS = 5_000  # images that phrases are taken from and asked of
PHRASES = 150  # asked, the most frequent
UNSAID = 50  # phrases that were not said, as many at most
LEAST_PHRASES = 12  # below which the prior stands
LEAST_IMAGES = 4  # that a phrase is said of ...
MOST_SHARE = 0.5  # ... and share of the images; more say nothing
LONGEST = 3  # words of a phrase
ROUNDS = 3  # times that each phrase is asked, of other images
SMALLEST = 100  # images that a phrase is asked of
DEEP = 50  # hits of a query that are learnt from
FOLDS = 5
SEEN = 0.6  # area under the ROC curve below which the encoder does not know a phrase, or its images are not told apart
JUDGED = 5.0  # what one judgement of a person weighs against one hit of a phrase
KEPT = 0.94  # of the phrases that something answers which must be answered
EASIEST = (-3.0, 0.0)  # log-odds between which the threshold lies
NOWHERE = (  # invented words, which no image shows
    "a blorvik", "a quindle", "a frasp", "a mivet", "a tromble", "a gluvit", "a snarkle", "a dorvish", "a pliffin",
    "a wozzle", "a red blorvik", "a tall quindle", "two frasps on a mivet", "a tromble eating a gluvit",
    "an old snarkle by the dorvish", "a pliffin and a wozzle", "zanquil", "brevomat", "hustrick", "yellow ombraz",
    "the grilph at night", "a close view of a vantrop", "kestwine in the morning", "a crowd of ulmits",
)  # fmt: skip
_WORD = re.compile(r"[^\W\d_][\w'-]*")
_BREAK = re.compile(
    r"[^\w\s'-]|\b(?:a|an|and|are|at|by|for|from|has|in|into|is|it|its|of|on|onto|or|that|the|there|this|to|with|above|below|"
    r"behind|beside|between|front|left|near|next|over|right|under)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One query whose answers are known."""

    fold: int
    answered: bool  # whether anything answers it
    evidence: Evidence
    right: BoolArray  # (N,) whether each hit does


def calibrate(archive: Archive, encoder: Encoder, contrast: Sequence[str] = CONTRAST) -> Model:
    """Fits the model that `Archive.search` uses from now on, writes it beside the table and returns it.

    Args:
        contrast: texts that would fit any image a little.

    Raises:
        FingerprintMismatch: another encoder than the archive's.
    """
    archive.require(encoder)
    judged = Feedback(archive.path / "feedback.sqlite").read()
    model = fit(archive.snapshot(), encoder, judged, contrast)
    model.write(archive.folder / "relevance.json")
    return model


def fit(
    view: Snapshot, encoder: Encoder, judged: Sequence[Judgement] = (), contrast: Sequence[str] = CONTRAST
) -> Model:
    """The model for an archive as `view` shows it, from its own texts and from judgements."""
    vectors, texts = _sample(view)
    against = encoder.encode_texts(list(contrast))
    said = phrases(texts)
    said, embedded = seen(said, encoder.encode_texts(list(said)), vectors) if said else ({}, against)
    asked: list[Asked] = []
    if len(said) >= LEAST_PHRASES:
        nowhere = dict.fromkeys((*NOWHERE, *unsaid(said)), np.zeros(len(vectors), dtype=bool))
        embedded = np.concatenate([embedded, encoder.encode_texts(list(nowhere))])
        asked = ask(vectors, {**said, **nowhere}, embedded, against, encoder.logit_scale)
    basis: dict[str, Any] = {"phrases": len(said) if asked else 0, "images": len(vectors), "judgements": 0}
    presence, threshold, hit, calibrator = PRESENCE, None, HIT, None  # a prior of other scenes refuses nothing here
    if asked:
        presence, threshold, hit, calibrator = learn(asked, PRESENCE, HIT)
    model = Model(encoder.fingerprint, against, encoder.logit_scale, presence, threshold, hit, calibrator, basis)
    return _told(model, view, encoder, judged) if judged else model


def phrases(texts: Sequence[str], most: int = PHRASES) -> dict[str, BoolArray]:
    """The most frequent phrases of up to three words in the texts of N images -> which images (N,) they are said of."""
    spoken = [set(_said(text)) for text in texts]
    known = set[str]().union(*spoken)
    said: defaultdict[str, list[int]] = defaultdict(list)
    for number, mine in enumerate(spoken):
        for phrase in {_singular(phrase, known) for phrase in mine}:
            said[phrase].append(number)
    usual = {
        phrase: places
        for phrase, places in said.items()
        if LEAST_IMAGES <= len(places) <= MOST_SHARE * len(texts) and len(phrase) > 2
    }
    found: dict[str, BoolArray] = {}
    taken: set[tuple[int, ...]] = set()
    for phrase in sorted(usual, key=lambda phrase: (-len(usual[phrase]), -len(phrase), phrase)):
        places = tuple(usual[phrase])
        if len(found) < most and places not in taken:  # `loading` and `bay` say no more than `loading bay`
            taken.add(places)
            found[phrase] = np.isin(np.arange(len(texts)), places)
    return found


def unsaid(said: Collection[str], most: int = UNSAID) -> list[str]:
    """Phrases made of the words of two others that were said of no image: of `red crate` and `blue tyre`, `blue crate`.

    What looks likely but is not there is what a query is most easily wrong about.
    """
    pairs = [phrase.rsplit(" ", 1) for phrase in said if " " in phrase]
    first, last = sorted({pair[0] for pair in pairs}), sorted({pair[1] for pair in pairs})
    ends = {phrase.split()[-1] for phrase in said}
    made = [f"{a} {b}" for a in first for b in last if a not in ends and f"{a} {b}" not in said]
    return [made[n] for n in np.random.default_rng(0).permutation(len(made))[:most].tolist()]


def seen(
    said: Mapping[str, BoolArray], embedded: FloatArray, vectors: FloatArray
) -> tuple[dict[str, BoolArray], FloatArray]:
    """The phrases, and their vectors, that tell the images (N, D) they are said of from the others at all."""
    kept: dict[str, BoolArray] = {}
    rows: list[int] = []
    for row, (phrase, mask) in enumerate(said.items()):
        ranks = rankdata(vectors @ embedded[row])
        count = int(mask.sum())
        area = (float(ranks[mask].sum()) - count * (count + 1) / 2) / (count * (len(mask) - count))
        if area >= SEEN:
            kept[phrase] = mask
            rows.append(row)
    return kept, embedded[rows]


def ask(
    vectors: FloatArray,
    said: Mapping[str, BoolArray],
    embedded: FloatArray,
    contrast: FloatArray,
    scale: float,
    seed: int = 0,
) -> list[Asked]:
    """Each phrase asked of random samples of the images (N, D): of all, and of those it is not said of."""
    rng = np.random.default_rng(seed)
    asked: list[Asked] = []
    for (text, mask), vector, fold in zip(said.items(), embedded, _folds(said), strict=True):
        similarity = vectors @ vector
        for answered in [True, False] * ROUNDS:
            pool = np.arange(len(vectors)) if answered else np.flatnonzero(~mask)
            # Half of them of all images, as most queries are, half of fewer, as with a filter.
            size = round(len(pool) * min(1.0, SMALLEST / len(pool)) ** max(0.0, rng.uniform(-1, 1)))
            some = rng.choice(pool, size, replace=False)
            if answered and not mask[some].any():
                continue
            hits = some[np.argsort(-similarity[some], kind="stable")][:DEEP]
            large = rng.choice(some, min(BACKGROUND, size), replace=False)
            backdrop = Backdrop(vectors[large], contrast, scale)
            evidence = backdrop.look(text, vector, vectors[hits], vectors[hits[:TOP]], size)
            asked.append(Asked(fold, answered, evidence, mask[hits]))
    return asked


def learn(
    asked: Sequence[Asked], presence: Logistic, hit: Logistic
) -> tuple[Logistic, float, Logistic, Calibrator | None]:
    """Presence, its threshold, hits and their calibration; the last two judged on phrases that were not learnt from."""
    outside = np.zeros(len(asked))
    for inside, fold in _split(asked):
        fitted = _presence([asked[n] for n in inside], presence)
        outside[fold] = [float(fitted(asked[n].evidence.query[None])[0]) for n in fold]
    answered = np.array([one.answered for one in asked])
    threshold = float(np.clip(np.quantile(outside[answered], 1 - KEPT), *EASIEST))
    scores: list[Array] = []
    right: list[BoolArray] = []
    for inside, fold in _split(asked):
        fitted = _hit([asked[n] for n in inside], outside[inside], hit)
        for n in fold:
            if outside[n] >= threshold:  # nobody sees the others
                scores.append(1 / (1 + np.exp(-fitted(_stacked(asked[n].evidence, outside[n])))))
                right.append(asked[n].right)
    calibrator = Calibrator.fit(np.concatenate(scores), np.concatenate(right)) if scores else None
    return _presence(asked, presence), threshold, _hit(asked, outside, hit), calibrator


def _presence(asked: Sequence[Asked], prior: Logistic) -> Logistic:
    features = np.stack([one.evidence.query for one in asked])
    outcomes = np.array([one.answered for one in asked], np.float64)
    return prior.fitted(features, outcomes, np.ones(len(asked)))


def _hit(asked: Sequence[Asked], present: Array, prior: Logistic) -> Logistic:
    features = [_stacked(one.evidence, odds) for one, odds in zip(asked, present, strict=True)]
    right = np.concatenate([one.right for one in asked]).astype(np.float64)
    return prior.fitted(np.concatenate(features), right, np.ones(len(right)))


def _told(model: Model, view: Snapshot, encoder: Encoder, judged: Sequence[Judgement]) -> Model:
    """The model after people's judgements on hits that are still there."""
    rows: dict[str, dict[str, Any]] = view.table.find(sorted({one.id for one in judged}), ["vector"])
    known = [one for one in judged if one.id in rows]
    if not known:
        return model
    everything, _ = _sample(view)
    backdrop = Backdrop(everything[:: max(1, len(everything) // BACKGROUND)][:BACKGROUND], model.contrast, model.scale)
    texts = sorted({one.text for one in known})
    features: list[Array] = []
    right: list[float] = []
    for text, vector in zip(texts, encoder.encode_texts(texts), strict=True):
        mine = [one for one in known if one.text == text]
        hits = np.stack([np.asarray(rows[one.id]["vector"], np.float32) for one in mine])
        found = view.nearest(vector[None], TOP)
        best = located(view, vector, view.seqs_of(found)[0], None, int(view.seqs[-1])).vectors
        evidence = backdrop.look(text, vector, hits, best, len(view.seqs))
        features.append(_stacked(evidence, model.present(evidence)))
        right += [float(one.relevant) for one in mine]
    weights = np.full(len(right), JUDGED)
    hit = model.hit.fitted(np.concatenate(features), np.array(right), weights, pull=_firmness(model))
    basis = {**model.basis, "judgements": len(known)}
    return Model(
        model.fingerprint, model.contrast, model.scale, model.presence, model.threshold, hit, model.calibrator, basis
    )


def _firmness(model: Model) -> float:
    """How strongly what is fitted already holds against judgements: as a tenth of its phrases' first hits do."""
    return 1.0 + model.basis["phrases"] * TOP / 10


def _stacked(evidence: Evidence, present: float) -> Array:
    return np.concatenate([evidence.hits, np.full((len(evidence.hits), 1), present)], axis=1)


def _split(asked: Sequence[Asked]) -> list[tuple[list[int], list[int]]]:
    """(learnt from, judged on), a pair a fold that has queries."""
    folds = sorted({one.fold for one in asked})
    places = {fold: [n for n, one in enumerate(asked) if one.fold == fold] for fold in folds}
    return [([n for n, one in enumerate(asked) if one.fold != fold], mine) for fold, mine in places.items()]


def _folds(found: Iterable[str]) -> list[int]:
    """A fold for each phrase; those that end in the same word share it, so that no fold is judged on what it learnt."""
    ends = {phrase: phrase.split()[-1] for phrase in found}
    order = {word: n % FOLDS for n, word in enumerate(dict.fromkeys(ends.values()))}
    return [order[word] for word in ends.values()]


def _said(text: str) -> Iterable[str]:
    """The ends of its noun phrases, as far as small words and punctuation show them: `blue crate` and `crate`."""
    for piece in _BREAK.split(text):
        words = [word.lower() for word in _WORD.findall(piece)]
        for length in range(1, min(LONGEST, len(words)) + 1):
            yield " ".join(words[-length:])


def _singular(phrase: str, known: Container[str]) -> str:
    """`two red crates` were said to show a `red crate`; English only, and only where that is said elsewhere."""
    for ending in ("es", "s"):
        if phrase.endswith(ending) and (shorter := phrase.removesuffix(ending)) in known:
            return shorter
    return phrase


def _sample(view: Snapshot) -> tuple[FloatArray, list[str]]:
    """Vectors (N, D) of up to `ROWS` images and what is said of each."""
    spread = view.seqs[np.linspace(0, len(view.seqs) - 1, min(ROWS, len(view.seqs))).astype(np.int64)]
    last = int(view.seqs[-1]) if len(view.seqs) else -1
    rows = located(view, np.zeros(view.table.dimension, np.float32), spread, None, last)
    told: list[tuple[str, str, Mapping[str, Any]]] = view.told(rows.found()) if len(rows) else []
    usual = {name.casefold() for name in SAYING}
    texts = [
        ". ".join(str(value) for key, value in metadata.items() if key.casefold() in usual) for _, _, metadata in told
    ]
    return rows.vectors, texts
