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
    reason: str | None = None  # why it could not be looked at


@dataclass(frozen=True, slots=True)
class GroundedAnswer:
    """An answer, and the images that it rests on."""

    question: str
    searched: str  # what the archive was searched for
    text: str  # empty when nothing can be said
    citations: tuple[Citation, ...]  # best match first
    agreement: float = 0.0  # share of the vote for `text`, [0, 1]
    nothing: bool = False  # whether the archive holds nothing that the question could be about
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
        about: what to search for instead of the question's own words.
        filter: which images may be used, over their metadata.
        anyway: look at the best images even where nothing is thought to match; the answer still says so.
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
    results = archive.search(SearchQuery(text=searched, k=k, filter=filter, anyway=anyway), encoder)
    if not len(results):
        reason = results.reason or "no image was found"
        no = "no" if _EXISTENCE.match(asked) else ""
        return GroundedAnswer(asked, searched, no, (), nothing=True, reason=reason, notes=results.notes)
    get = picture or (lambda hit: _picture(archive, hit))
    looked, unread = _looked(results, get)
    said = _said(vlm, [image for _, image in looked], asked, max_tokens)
    answers = {hit.id: text for (hit, _), text in zip(looked, said, strict=True)}
    weights = _weights([hit for hit, _ in looked], encoder.logit_scale)
    text, agreement = combined([answers[hit.id] for hit, _ in looked], weights, anywhere=bool(_EXISTENCE.match(asked)))
    share = {hit.id: weight for (hit, _), weight in zip(looked, weights, strict=True)}
    citations = tuple(
        Citation(
            hit.id,
            hit.uri,
            hit.similarity,
            hit.probability,
            answers.get(hit.id),
            share.get(hit.id, 0.0),
            hit.id in answers and normalised(answers[hit.id]) == normalised(text),
            unread.get(hit.id),
        )
        for hit in results
    )
    lost = None if looked else "none of the images that match could be looked at"
    return GroundedAnswer(
        asked, searched, text, citations, agreement, results.nothing, results.reason or lost, results.notes
    )


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
        yes = [key for key in votes if key.split()[:1] == ["yes"]] if anywhere else []
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
    path, missing = local_path(hit.uri), f"{hit.uri} is not a file of this machine"
    if path is not None:
        try:
            return decode(path)
        except BadImage as error:
            missing = str(error)
    row: dict[str, Any] = archive.items([hit.id], ["thumbnail"]).get(hit.id, {})
    if row.get("thumbnail") is None:
        raise BadImage(missing, remedy="Pass `picture`, or run `foveal archive check`.")
    return decode(row["thumbnail"])
