"""Questions answered from an archive: what a vision-language model says of the images that match, with citations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from evals.vqa import normalised
from foveal.errors import BadImage, BadInput
from foveal.images import decode
from foveal.models import Encoder, VisionLanguageModel
from retrieval.blur import open_file
from retrieval.query import SearchQuery
from retrieval.results import Hit, Results
from retrieval.sources import local_path
from retrieval.stores import AnyArchive

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_QUESTION = 2000  # characters
MAX_LOOKED = 64  # images that a model is asked about

_AUXILIARY = r"(?:is|are|was|were|does|do|did|has|have|can|could|will)"
_ASPECT = r"(?:colou?r|state|condition|number|kind|type|size|shape|material|name)s?"
_ASKING = re.compile(
    rf"^(?:(?:what|which) {_ASPECT} {_AUXILIARY}\b|how (?:many|much)\b"
    rf"|{_AUXILIARY}(?: (?:there|you see|we see|anyone see))?\b"
    rf"|(?:what|which|who|whose|where|when|why|how)(?:'s)?\b(?: {_AUXILIARY}\b)?)\s*",
    re.IGNORECASE,
)
_ASKED = re.compile(rf"^(?:the )?{_ASPECT} of\s+", re.IGNORECASE)
_ENDING = re.compile(
    rf"\s*\b(?:{_AUXILIARY} )?(?:there|in|visible|shown|present|you see|made of|like|anywhere)$", re.IGNORECASE
)
_DETERMINER = re.compile(r"^(?:the|an?|any|some|all|these|those|this|that)\s+", re.IGNORECASE)
_EXISTENCE = re.compile(r"^(?:is|are|was|were) there\b|^(?:do|can|could) (?:you|we) see\b", re.IGNORECASE)
_MANY = re.compile(r"^how (?:many|much)\b", re.IGNORECASE)
_INNER = re.compile(
    rf"^((?!in |on |at )\S+(?: \S+)??) {_AUXILIARY} (?=(?:in|on|at|under|behind|left|right|above|below)\b)"
)


@runtime_checkable
class AnswersMany(Protocol):
    """A vision-language model that takes several questions in one call."""

    def replies(self, asked: Sequence[tuple[Image, Sequence[tuple[str, str]], str]], max_tokens: int = 64) -> list[str]:
        """The answer to each (image, earlier turns, question)."""
        ...


@dataclass(frozen=True, slots=True)
class Citation:
    """An image that was looked at."""

    id: str
    uri: str
    similarity: float  # cosine to what was searched for, [-1, 1]
    probability: float | None  # that it shows that; None where the archive cannot tell
    answer: str | None  # what the model says of it; None when it could not be looked at
    weight: float  # its share of the vote, [0, 1]; those of all citations add up to 1
    supports: bool  # whether it says what the whole answer says
    shows: bool | None = None  # whether the model sees in it what was searched for; None when it was not asked
    reason: str | None = None  # why it could not be looked at


@dataclass(frozen=True, slots=True)
class GroundedAnswer:
    """An answer, and the images that it rests on."""

    question: str
    searched: str  # what the archive was searched for
    text: str  # empty when nothing can be said
    citations: tuple[Citation, ...]  # best match first
    agreement: float = 0.0  # share of the vote for `text`, [0, 1]
    nothing: bool = False  # whether the archive seems to hold nothing that the question could be about
    reason: str | None = None  # why there is no answer
    notes: tuple[str, ...] = ()  # what could not be done as asked


def subject(question: str) -> str:
    """What an English question is about, to search for: `red crate` of `how many red crates are there`.

    The question itself where nothing is left, and in other languages.
    """
    words = " ".join(question.split()).rstrip(" ?!.")
    rest = _ASKING.sub("", words, count=1)
    rest = _ASKED.sub("", rest, count=1)
    rest = _ENDING.sub("", rest)
    rest = _DETERMINER.sub("", rest.strip())
    rest = _INNER.sub(r"\1 ", rest).strip()
    return rest or words


def answer(
    question: str,
    archive: AnyArchive,
    encoder: Encoder,
    vlm: VisionLanguageModel,
    *,
    k: int = 4,
    about: str | None = None,
    filter: str | None = None,
    check: bool = True,
    anyway: bool = False,
    max_tokens: int = 64,
    picture: Callable[[Hit], Image] | None = None,
) -> GroundedAnswer:
    """What `vlm` answers about the `k` images of the archive that match the question best, put together.

    Each image is asked on its own, in one call where the model takes several. Their answers vote with the probability
    that an image matches, or where the archive cannot tell that (see `foveal archive calibrate`) with the softmax of
    similarity under the encoder's own temperature, see `combined`. Whether something is there at all is answered yes
    once one image has it, and no when nothing matches.

    Args:
        k: the more, the likelier the right image is among them, and the more chances the model has to see what is not
            there: `benchmarks/bench_grounding.py` measures both.
        about: what to search for instead of the question's own words.
        filter: which images may be used, over their metadata.
        check: let the model say what matches: it looks at the best images whatever the search thinks of them, and where
            the question is about one thing it is asked of each first whether that is there; those without have no vote.
            On the sample world the model tells this far better than the search, at up to twice the questions.
        anyway: without `check`, look at the best images even where nothing is thought to match; the answer still says
            so.
        picture: gives the pixels of a hit; when None its local file, else its thumbnail.

    Raises:
        BadInput: the question is empty or too long, k is out of range, or the filter is not one.
        FingerprintMismatch: another encoder than the archive's.
    """
    asked = question.strip()
    if not 1 <= len(asked) <= MAX_QUESTION:
        raise BadInput(
            "the question cannot be used", expected=f"1 to {MAX_QUESTION} characters", received=str(len(asked))
        )
    if not 1 <= k <= MAX_LOOKED:
        raise BadInput("k lies outside its range", expected=f"1 to {MAX_LOOKED}", received=str(k))
    searched = subject(asked) if about is None else about
    results = archive.search(SearchQuery(text=searched, k=k, filter=filter, anyway=anyway or check), encoder)
    exists = bool(_EXISTENCE.match(asked))
    if not len(results):
        reason = results.reason or "no image was found"
        text = "no" if exists else ""
        return GroundedAnswer(asked, searched, text, (), nothing=True, reason=reason, notes=results.notes)
    looked, unread = _looked(results, picture or (lambda hit: _picture(archive, hit)))
    shows = _shows(vlm, looked, asked, searched, about is not None, max_tokens) if check else {}
    voting = [(hit, image) for hit, image in looked if shows.get(hit.id, True)]
    said = _said(vlm, [image for _, image in voting], asked, max_tokens)
    answers = {hit.id: text for (hit, _), text in zip(voting, said, strict=True)}
    if check and exists:
        shows = {id: sees for id, text in answers.items() if (sees := _affirmed(text)) is not None}
    weights = _weights([hit for hit, _ in voting], encoder.logit_scale)
    text, agreement = combined(list(answers.values()), weights, anywhere=exists)
    share = {hit.id: weight for (hit, _), weight in zip(voting, weights, strict=True)}
    citations = tuple(
        Citation(
            hit.id,
            hit.uri,
            hit.similarity,
            hit.probability,
            answers.get(hit.id),
            share.get(hit.id, 0.0),
            hit.id in answers and normalised(answers[hit.id]) == normalised(text),
            shows.get(hit.id),
            unread.get(hit.id),
        )
        for hit in results
    )
    nothing, reason = results.nothing, results.reason
    if not looked:
        nothing, reason = False, "none of the images that match could be looked at"
    elif check and shows:
        nothing = not any(shows.values()) and len(shows) == len(looked)
        reason = f"the model sees no {searched!r} in the {len(looked)} images that match best" if nothing else None
    return GroundedAnswer(asked, searched, text, citations, agreement, nothing, reason, results.notes)


def _shows(
    vlm: VisionLanguageModel,
    looked: Sequence[tuple[Hit, Image]],
    question: str,
    searched: str,
    told: bool,
    max_tokens: int,
) -> dict[str, bool]:
    """By id whether the model sees one of what was searched for; empty where the question is not about one thing."""
    name = _DETERMINER.sub("", searched)
    one = told or re.search(rf"\b(?:the|an?) {re.escape(name)}\b", question, re.IGNORECASE)
    if not one or _EXISTENCE.match(question) or _MANY.match(question):
        return {}
    article = "an" if name[:1].lower() in "aeiou" else "a"
    said = _said(vlm, [image for _, image in looked], f"is there {article} {name}", max_tokens)
    seen = {hit.id: _affirmed(text) for (hit, _), text in zip(looked, said, strict=True)}
    return {id: sees for id, sees in seen.items() if sees is not None}


def _affirmed(text: str) -> bool | None:
    """Whether an answer is a yes; None when it is neither that nor a no."""
    first = normalised(text).split()[:1]
    return first == ["yes"] if first in (["yes"], ["no"]) else None


def combined(answers: Sequence[str], weights: Sequence[float], *, anywhere: bool = False) -> tuple[str, float]:
    """One answer out of several, as its strongest voice put it, and its share of the vote; "" of none.

    Answers are the same once `normalised`. Numbers give their weighted median, so that one wild count moves nothing,
    others the one with most of the vote; with `anywhere` a yes wins over any number of no.
    """
    votes: defaultdict[str, float] = defaultdict(float)
    for text, weight in zip(answers, weights, strict=True):
        votes[normalised(text)] += weight
    if not votes:
        return "", 0.0
    total = sum(votes.values())
    if all(key.isdecimal() for key in votes):
        ordered = sorted(votes, key=int)
        passed = np.cumsum([votes[key] for key in ordered])
        chosen = ordered[int(np.searchsorted(passed, total / 2))]
    else:
        yes = [key for key in votes if _affirmed(key)] if anywhere else []
        chosen = max(yes or votes, key=lambda key: votes[key])
    voices = [(weight, text) for text, weight in zip(answers, weights, strict=True) if normalised(text) == chosen]
    return max(voices, key=lambda voice: voice[0])[1], votes[chosen] / total if total > 0 else 0.0


def _weights(hits: Sequence[Hit], scale: float) -> list[float]:
    """Shares of the vote, which add up to 1."""
    if not hits:
        return []
    chances = [hit.probability for hit in hits]
    if any(chance is None for chance in chances) or not any(chances):
        similarity = np.array([hit.similarity for hit in hits])
        weight = np.exp(scale * (similarity - similarity.max()))
    else:
        weight = np.array(chances, dtype=np.float64)
    return (weight / weight.sum()).tolist()


def _said(vlm: VisionLanguageModel, images: Sequence[Image], question: str, max_tokens: int) -> list[str]:
    if not images:
        return []
    if isinstance(vlm, AnswersMany):
        return vlm.replies([(image, (), question) for image in images], max_tokens)
    return [vlm.answer(image, question, max_tokens) for image in images]


def _looked(results: Results, picture: Callable[[Hit], Image]) -> tuple[list[tuple[Hit, Image]], dict[str, str]]:
    """The hits with their pixels, and by id why those of others could not be had."""
    looked: list[tuple[Hit, Image]] = []
    unread: dict[str, str] = {}
    for hit in results:
        try:
            looked.append((hit, picture(hit)))
        except (BadImage, OSError) as error:
            unread[hit.id] = str(error)
    return looked, unread


def _picture(archive: AnyArchive, hit: Hit) -> Image:
    """The local file of a hit, else the archive's thumbnail; nothing is fetched because a URI says so."""
    path, missing = open_file(local_path(hit.uri), hit.metadata), f"{hit.uri} is not a file of this machine"
    if path is not None:
        try:
            return decode(path)
        except BadImage as error:
            missing = str(error)
    row: dict[str, Any] = archive.items([hit.id], ["thumbnail"]).get(hit.id, {})
    if row.get("thumbnail") is None:
        raise BadImage(missing, remedy="Pass `picture`, or run `foveal archive check`.")
    return decode(row["thumbnail"])
