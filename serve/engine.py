"""What the server can do, apart from HTTP: search, detect, answer and embed with the models and archives it was given.

The API and the demo call the same methods. Models run on threads, never on the event loop, and one call at a time each:
two forward passes at once share the same cores and only lengthen both.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import anyio
import anyio.to_thread
import numpy as np

from distill.labeller import Labelled, Labeller
from foveal.detections import Detections, FloatArray
from foveal.errors import BadImage, BadInput, FingerprintMismatch
from foveal.images import decode
from foveal.models import Detector, Encoder, OpenDetector, VisionLanguageModel
from retrieval.archive import Archive
from retrieval.query import EncodedQuery, SearchQuery
from retrieval.results import Results

if TYPE_CHECKING:
    from PIL.Image import Image

    from serve.metrics import Metrics

T = TypeVar("T")
Model = Encoder | Detector | OpenDetector | VisionLanguageModel | Labeller
Kind = Literal["encoder", "detector", "open-detector", "vlm", "labeller"]
OPTIONS = {"labeller": "prelabels"}  # what an option of `foveal serve` is called where it is not the kind
COLUMNS = ("id", "uri", "content_hash", "width", "height", "metadata")
WHERE = re.compile(r"where (?:is|are) (?:(?:the|an?) )?(?P<phrase>[^?]+?) ?\??", re.IGNORECASE)
ITEM_ID = re.compile(r"[0-9a-f]{1,64}")


class NotFound(BadInput):
    """A model, archive or item that is not here."""


class TooLarge(BadInput):
    """An image or request beyond the server's limits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000  # of one image, checked in its header before a pixel is decoded
    texts: int = 256  # inputs of one embedding request
    prompts: int = 64  # of one open-vocabulary detection
    question: int = 2000  # characters
    k: int = 1000  # hits of one search


@dataclass(frozen=True, slots=True)
class Item:
    """One image of an archive."""

    id: str
    uri: str
    content_hash: str
    width: int
    height: int
    metadata: Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a vision-language model said; `places` where it was asked for them, named by the phrase and unscored."""

    model: str
    text: str
    places: Detections | None = None


def kind_of(model: Model) -> Kind:
    """`encoder`, `detector` (fixed classes), `open-detector` (classes given as prompts), `vlm` (answers in words) or
    `labeller` (a labelling job's judgement of each box)."""
    if hasattr(model, "label"):
        return "labeller"
    if hasattr(model, "answer"):
        return "vlm"
    if hasattr(model, "encode_images"):
        return "encoder"
    return "detector" if hasattr(model, "classes") else "open-detector"


class Engine:
    """Models and archives behind async methods.

    Args:
        models: by the name that requests use; the first of each kind is the default of that kind.
        archives: by name; the first is the default.

    Raises:
        FingerprintMismatch: no encoder here made an archive's vectors.
    """

    def __init__(
        self, models: Mapping[str, Model], archives: Mapping[str, Archive], limits: Limits, metrics: Metrics
    ) -> None:
        self.models, self.archives, self.limits, self.metrics = dict(models), dict(archives), limits, metrics
        self.warm = False
        self.failure: str | None = None  # why it will never be warm
        # One token: a model is busy with one call at a time. Decoding has a pool of its own.
        self._lanes = {name: anyio.CapacityLimiter(1) for name in self.models}
        self._decoding = anyio.CapacityLimiter(4)
        self._searching = anyio.CapacityLimiter(4)
        self._encoder_of = {name: self._maker(name, archive) for name, archive in self.archives.items()}

    def _maker(self, name: str, archive: Archive) -> str:
        encoders = {key: model for key, model in self.models.items() if kind_of(model) == "encoder"}
        for key, model in encoders.items():
            if model.fingerprint == archive.fingerprint:
                return key
        raise FingerprintMismatch(
            f"archive {name!r} was built with another encoder than the server has",
            expected=f"{archive.encoder}, fingerprint {archive.fingerprint[:12]}",
            received=", ".join(f"{key}, {model.fingerprint[:12]}" for key, model in encoders.items()) or "no encoder",
            remedy=f"Load {archive.encoder} as it was, or embed the images anew.",
        )

    # Finding things.

    def model(self, kind: Kind, name: str | None = None) -> tuple[str, Any]:
        """(name, model) of a kind: the named one, else the default.

        Raises:
            NotFound: there is none.
        """
        choices = {key: model for key, model in self.models.items() if kind_of(model) == kind}
        if name is None and choices:
            return next(iter(choices.items()))
        for key, model in choices.items():
            if name in (key, model.name):
                return key, model
        what = kind.replace("-", " ")
        if not choices:
            option = OPTIONS.get(kind, kind)
            raise NotFound(f"this server has no {what}", remedy=f"Start it with one: foveal serve --{option} REF")
        raise NotFound(f"no {what} {name!r}", expected=f"one of {', '.join(choices)}")

    def archive(self, name: str | None = None) -> tuple[str, Archive]:
        """(name, archive): the named one, else the default; NotFound when there is none."""
        if name is None and self.archives:
            return next(iter(self.archives.items()))
        if name in self.archives:
            return name, self.archives[name]
        if not self.archives:
            raise NotFound("this server has no archive", remedy="Start it with one: foveal serve --archive DIR")
        raise NotFound(f"no archive {name!r}", expected=f"one of {', '.join(self.archives)}")

    async def item(self, id: str, archive: str | None = None) -> Item:
        """One image of an archive by its id; NotFound when no such image is in it."""
        name, store = self.archive(archive)
        if not ITEM_ID.fullmatch(id):
            raise NotFound(f"archive {name!r} has no item {id[:80]!r}")
        found = await anyio.to_thread.run_sync(_records, store, f"id = '{id}'", limiter=self._searching)
        if not found:
            raise NotFound(f"archive {name!r} has no item {id!r}")
        return found[0]

    async def sample(self, count: int, archive: str | None = None) -> list[Item]:
        """Up to `count` images spread evenly over the archive, the same ones as long as it does not change."""
        _, store = self.archive(archive)
        return await anyio.to_thread.run_sync(_spread, store, count, limiter=self._searching)

    async def looked_up(self, read: Callable[[Archive], T], archive: str | None = None) -> T:
        """What `read` makes of an archive, off the event loop."""
        _, store = self.archive(archive)
        return await anyio.to_thread.run_sync(read, store, limiter=self._searching)

    # Doing things.

    async def decode(self, data: bytes) -> Image:
        """Bytes of an image file as upright RGB.

        Raises:
            TooLarge: more pixels than the limit, by its header.
            BadImage: not an image, or a damaged one.
        """
        return await self._run("decode", self._decoding, _decode, data, self.limits.pixels)

    async def picture(self, item: Item, min_side: int | None = None) -> Image:
        """The pixels of an archive's item; NotFound when its file is gone."""
        try:
            load = functools.partial(decode, min_side=min_side)
            return await self._run("decode", self._decoding, load, Path(item.uri))
        except BadImage as error:
            if Path(item.uri).is_file():
                raise
            raise NotFound(
                f"the file of item {item.id} is no longer where it was", remedy="Run `foveal archive check`."
            ) from error

    async def search(self, query: SearchQuery | EncodedQuery, archive: str | None = None) -> tuple[str, Results]:
        """(name of the archive, hits best first)."""
        k = query.k if isinstance(query, SearchQuery) else query.query.k
        if k > self.limits.k:
            raise BadInput("k lies outside its range", expected=f"1 to {self.limits.k}", received=str(k))
        name, store = self.archive(archive)
        if isinstance(query, EncodedQuery):
            return name, await self._run("search", self._searching, store.answer, query)
        key = self._encoder_of[name]
        encoder: Encoder = self.model("encoder", key)[1]
        asked = await self._run("encode", self._lanes[key], query.encoded, encoder)
        return name, await self._run("search", self._searching, store.answer, asked)

    async def detect(
        self, image: Image, *, model: str | None = None, prompts: Sequence[str] | None = None, threshold: float = 0.3
    ) -> tuple[str, Detections]:
        """(name of the model, detections best first); with `prompts` an open-vocabulary detector answers."""
        if prompts is not None:
            cleaned = _prompts(prompts, self.limits.prompts)
            name, detector = self.model("open-detector", model)
            call = functools.partial(detector.detect, [image], cleaned, threshold)
        else:
            if model is None and not any(kind_of(m) == "detector" for m in self.models.values()):
                self._explain_no_detector()
            name, detector = self.model("detector", model)
            call = functools.partial(detector.detect, [image], threshold)
        found: list[Detections] = await self._run("detect", self._lanes[name], call)
        return name, found[0]

    async def prelabel(self, image: Image, *, model: str | None = None) -> tuple[str, Labelled]:
        """(name of the labeller, the image's judged boxes, most probable first)."""
        name, labeller = self.model("labeller", model)
        found: list[Labelled] = await self._run("prelabel", self._lanes[name], labeller.label, [image])
        return name, found[0]

    async def ask(self, image: Image, question: str, *, model: str | None = None) -> Answer:
        """One question about one picture; "where is the ..." is answered with boxes, in the way the model writes them.

        Raises:
            NotFound: there is no vision-language model here.
            BadInput: the question is empty or too long.
        """
        name, vlm = self.model("vlm", model)
        words = question.strip()
        if not 1 <= len(words) <= self.limits.question:
            raise BadInput(
                "the question cannot be used",
                expected=f"1 to {self.limits.question} characters",
                received=f"{len(words)}",
            )
        if (where := WHERE.fullmatch(words)) is None:
            return Answer(name, await self._run("answer", self._lanes[name], vlm.answer, image, words))
        phrase = where["phrase"]
        boxes: FloatArray = await self._run("answer", self._lanes[name], vlm.locate, image, phrase)
        said = "nowhere" if not len(boxes) else "here" if len(boxes) == 1 else f"in {len(boxes)} places"
        return Answer(name, said, Detections.build(boxes, np.ones(len(boxes)), np.zeros(len(boxes)), [phrase]))

    async def embed(
        self, texts: Sequence[str] = (), images: Sequence[Image] = (), *, model: str | None = None
    ) -> tuple[str, FloatArray]:
        """(name of the encoder, unit vectors (N, D) of the texts, then of the images)."""
        name, encoder = self.model("encoder", model)
        parts: list[FloatArray] = []
        if texts:
            parts.append(await self._run("encode", self._lanes[name], encoder.encode_texts, list(texts)))
        if images:
            parts.append(await self._run("encode", self._lanes[name], encoder.encode_images, list(images)))
        return name, np.concatenate(parts) if parts else np.zeros((0, encoder.dimension), dtype=np.float32)

    async def count_tokens(self, texts: Sequence[str], model: str) -> int:
        """Tokens of the texts, by the encoder where it can count them, else as words."""
        count: Callable[[Sequence[str]], int] | None = getattr(self.models[model], "count_tokens", None)
        if count is None:
            return sum(len(text.split()) for text in texts)
        return await anyio.to_thread.run_sync(count, list(texts), limiter=self._decoding)

    async def warm_up(self) -> None:
        """Runs each model once, so that the first request does not pay for lazy initialisation."""
        from PIL import Image as pillow

        grey = pillow.new("RGB", (64, 64), (127, 127, 127))
        for name, model in self.models.items():
            kind = kind_of(model)
            call: Callable[[], Any]
            if kind == "encoder":
                call = functools.partial(_both, cast(Encoder, model), grey)
            elif kind in ("detector", "labeller"):
                call = functools.partial(cast(Detector, model).detect, [grey])
            elif kind == "vlm":
                call = functools.partial(cast(VisionLanguageModel, model).answer, grey, "what is this", 2)
            else:
                call = functools.partial(cast(OpenDetector, model).detect, [grey], ["a photo"])
            await anyio.to_thread.run_sync(call, limiter=self._lanes[name])
        self.warm = True

    @asynccontextmanager
    async def _timed(self, stage: str) -> AsyncGenerator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.metrics.stage.labels(stage).observe(time.perf_counter() - start)

    async def _run(self, stage: str, limiter: anyio.CapacityLimiter, function: Callable[..., T], *args: Any) -> T:
        async with limiter, self._timed(stage):
            # The lane is held here, so that waiting for it is not counted as the stage's own time.
            return await anyio.to_thread.run_sync(function, *args, limiter=anyio.CapacityLimiter(1))

    def _explain_no_detector(self) -> None:
        if any(kind_of(model) == "open-detector" for model in self.models.values()):
            raise BadInput(
                "this server detects by prompts only", expected="`prompts`", remedy='Send e.g. "prompts": ["a crate"].'
            )


def _both(encoder: Encoder, image: Image) -> None:
    encoder.encode_texts(["a photo"])
    encoder.encode_images([image])


def _decode(data: bytes, max_pixels: int) -> Image:
    try:
        return decode(data, max_pixels=max_pixels)
    except BadImage as error:
        if error.expected is None or "pixels" not in error.expected:
            raise
        raise TooLarge(
            "the image has too many pixels", expected=error.expected, received=error.received,
            remedy="Send a smaller image.",
        ) from error  # fmt: skip


def _prompts(prompts: Sequence[str], most: int) -> list[str]:
    cleaned = [prompt.strip() for prompt in prompts]
    if not 1 <= len(cleaned) <= most or not all(0 < len(prompt) <= 200 for prompt in cleaned):
        raise BadInput(
            "the prompts cannot be used",
            expected=f"1 to {most} prompts of 1 to 200 characters",
            received=f"{len(cleaned)} of them",
        )
    twice = sorted({prompt for prompt in cleaned if cleaned.count(prompt) > 1})
    if twice:
        raise BadInput(f"the prompt {twice[0]!r} is given twice", remedy="Give each prompt once.")
    return cleaned


def _records(store: Archive, condition: str | None, every: int = 1, most: int | None = None) -> list[Item]:
    table = store.snapshot().table
    _, rows = table.keys(condition)
    records = table.take(rows[::every][:most], COLUMNS).to_pylist()
    return [Item(**{**record, "metadata": json.loads(record["metadata"])}) for record in records]


def _spread(store: Archive, count: int) -> list[Item]:
    return _records(store, None, max(1, len(store) // max(count, 1)), count)
