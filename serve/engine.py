"""What the server can do, apart from HTTP: search, detect, answer and embed with the models and archives it was given.

The API and the demo call the same methods. Models run on threads of their own, never on the event loop, and answer
together what waits together, see `serve.lanes`.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import anyio.to_thread
import numpy as np

from distill.labeller import Labelled
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput, FingerprintMismatch, Unavailable
from foveal.generation import Asking, Converses, Reply, Style
from foveal.models import Encoder
from retrieval.archive import Archive
from retrieval.blur import Blur
from retrieval.feedback import Feedback, Judgement
from retrieval.grounding import GroundedAnswer, answer
from retrieval.query import EncodedQuery, SearchQuery, encode_together
from retrieval.results import Results
from retrieval.retention import Retained, Rule, retain
from retrieval.sources_web import Web
from retrieval.stores import AnyArchive
from retrieval.uploaded import drop
from serve import calls
from serve.archives import Archives, maker_of
from serve.audit import note
from serve.calls import Box, Kind, Model, kind_of
from serve.drift import Drift
from serve.items import COLUMNS, Item, decoded, item_of, pixels, spread
from serve.lanes import Lane
from serve.limits import Limits, NotFound
from serve.result_cache import Key, ResultCache, Seen
from serve.tracing import Traces
from serve.uploads import Kept, Upload, take
from serve.versions import Answerer, Rollout, warm

if TYPE_CHECKING:
    from PIL.Image import Image

    from serve.metrics import Metrics

log = logging.getLogger("foveal.serve")
T = TypeVar("T")
OPTIONS = {"labeller": "prelabels"}  # what an option of `foveal serve` is called where it is not the kind
WHERE = re.compile(r"where (?:is|are) (?:(?:the|an?) )?(?P<phrase>[^?]+?) ?\??", re.IGNORECASE)
ITEM_ID = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a vision-language model said; `places` where it was asked for them, named by the phrase and unscored."""

    model: str
    text: str
    places: Detections | None = None


class Engine:
    """Models and archives behind async methods.

    Args:
        models: by the name that requests use; the first of each kind is the default of that kind.
        archives: by name; the first is the default.

    Raises:
        FingerprintMismatch: no encoder here made an archive's vectors.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        archives: Mapping[str, AnyArchive],
        limits: Limits,
        metrics: Metrics,
        traces: Traces | None = None,
        blur: Blur | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.results = ResultCache(cache_bytes, metrics) if cache_bytes else None
        self.blur = blur  # what is done to each picture that is taken in
        self.models, self.limits, self.metrics = dict(models), limits, metrics
        self.archives = Archives(archives)
        self.web = Web(())  # where pictures that requests name by address come from
        self.fetching = anyio.CapacityLimiter(8)
        self.warm = False
        self.failure: str | None = None  # why it will never be warm
        self._traces = traces or Traces()
        self.encoder_of = {name: maker_of(name, archive, self.models) for name, archive in self.archives.items()}
        usual = {self.encoder_of[name]: store for name, store in reversed(self.archives.folders.items())}
        self.drift = Drift(usual, metrics)
        self.background: set[asyncio.Task[Any]] = set()
        self.lanes: dict[str, Lane] = {}
        self.rollouts: dict[str, Rollout] = {}
        for name, model in self.models.items():
            if isinstance(model, Rollout):
                model.attach(name, self.lane, metrics, self.drift)
                self.rollouts[name] = model
            else:
                self.lanes[name] = self.lane(name)
        self._decoding = anyio.CapacityLimiter(4)
        self._searching = anyio.CapacityLimiter(4)
        self._writing = anyio.CapacityLimiter(1)

    def lane(self, name: str) -> Lane:
        """A new lane for a model of this name."""
        return Lane(name, self.metrics, self.limits.seconds, self._traces)

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

    async def item(self, id: str, archive: str | None = None) -> Item:
        """One image of an archive by its id; NotFound when no such image is in it."""
        name, store = self.archives.named(archive)
        if not ITEM_ID.fullmatch(id):
            raise NotFound(f"archive {name!r} has no item {id[:80]!r}")
        found = await anyio.to_thread.run_sync(store.items, [id], COLUMNS, limiter=self._searching)
        if not found:
            raise NotFound(f"archive {name!r} has no item {id!r}")
        note(name, [id])
        return item_of(name, id, found[id])

    async def sample(self, count: int, archive: str | None = None) -> list[Item]:
        """Up to `count` images spread evenly over the archive, the same ones as long as it does not change."""
        name, store = self.archives.named(archive)
        return await anyio.to_thread.run_sync(spread, name, store, count, limiter=self._searching)

    async def looked_up(self, read: Callable[[Archive], T], archive: str | None = None) -> T:
        """What `read` makes of an archive in a folder, off the event loop; raises as `Archives.folder`."""
        _, store = self.archives.folder(archive)
        return await anyio.to_thread.run_sync(read, store, limiter=self._searching)

    # Doing things.

    async def decode(self, data: bytes) -> Image:
        """Bytes of an image file as upright RGB.

        Raises:
            TooLarge: more pixels than the limit, by its header.
            BadImage: not an image, or a damaged one.
        """
        return await self._run("decode", self._decoding, decoded, data, self.limits.pixels)

    async def picture(self, item: Item, min_side: int | None = None) -> Image:
        """The pixels of an archive's item.

        Args:
            min_side: what is enough of its shorter side, to show it: then the archive's thumbnail stands in for a file
                that is no longer there.

        Raises:
            NotFound: its file is gone.
            BadImage: it cannot be decoded.
        """
        _, store = self.archives.named(item.archive)
        return await self._run("decode", self._decoding, pixels, store, item, min_side, self.blur)

    async def search(self, query: SearchQuery | EncodedQuery, archive: str | None = None) -> tuple[str, Results]:
        """(name of the archive, hits best first)."""
        k = query.k if isinstance(query, SearchQuery) else query.query.k
        if k > self.limits.k:
            raise BadInput("k lies outside its range", expected=f"1 to {self.limits.k}", received=str(k))
        name, store = self.archives.named(archive)
        if isinstance(query, SearchQuery):
            key = self.encoder_of[name]
            call = functools.partial(encode_together, encoder=cast(Encoder, self.models[key]))
            weight = len(query.parts_to_encode)
            kind = "queries" if any(part.image is not None for part in query.parts_to_encode) else calls.TEXT_QUERIES
            query = await self.lanes[key].run("encode", call, query, key=kind, weight=weight)
        found = await self._run("search", self._searching, store.answer, query)
        note(name, [hit.id for hit in found])
        return name, found

    async def judge(self, text: str, right: Sequence[str], wrong: Sequence[str], archive: str | None = None) -> int:
        """Keeps what people said of a text's hits, durably; returns how many judgements that were.

        Raises:
            NotFound: an item is not in the archive.
            BadInput: as `Archives.folder`.
        """
        name, store = self.archives.folder(archive)
        judged = [Judgement(text, id, True) for id in right] + [Judgement(text, id, False) for id in wrong]

        def keep() -> None:
            ids = [one.id for one in judged]
            known = store.items([id for id in ids if ITEM_ID.fullmatch(id)], ("uri",))
            if missing := [id for id in ids if id not in known]:
                raise NotFound(f"archive {name!r} has no item {missing[0][:80]!r}")
            Feedback(store.path / "feedback.sqlite").add(judged)
            note(name, ids)

        await anyio.to_thread.run_sync(keep, limiter=self._writing)
        return len(judged)

    async def unjudge(self, text: str, ids: Sequence[str], archive: str | None = None) -> int:
        """Takes back what people said of a text's hits; returns how many judgements that were."""
        name, store = self.archives.folder(archive)
        feedback = Feedback(store.path / "feedback.sqlite")
        gone = await anyio.to_thread.run_sync(feedback.remove, text, list(ids), limiter=self._writing)
        note(name, ids)
        return gone

    async def received(self, upload: Upload) -> Upload:
        """A picture that is to be added: decoded once, so that it can be, and blurred where this server does that.

        Raises:
            TooLarge, BadImage: as `decode`.
            NotBlurred: what must not be seen could not be looked for.
        """
        await self.decode(upload.data)
        if self.blur is None:
            return upload
        return await self._run("blur", self._decoding, upload.through, self.blur, self.limits.pixels)

    async def add(self, uploads: Sequence[Upload], archive: str | None = None) -> tuple[str, list[Kept], list[str]]:
        """(name of the archive, what became of each picture, notes on their metadata); they are kept once this returns.

        Raises:
            NotBlurred: one was not `received` and could not be blurred; then none is taken in.
            Unavailable: another process is writing to the archive.
            BadInput: as `Archives.folder`.
        """
        name, store = self.archives.folder(archive)
        encoder = cast(Encoder, self.models[self.encoder_of[name]])
        written = _writable(store)
        try:
            kept, notes = await self._run("add", self._writing, take, written, encoder, list(uploads), self.blur)
        except FingerprintMismatch as error:
            raise _moving(name) from error
        note(name, [one.id for one in kept])
        return name, kept, notes

    async def delete(self, id: str, archive: str | None = None) -> None:
        """Takes an image out; from the moment this returns no search returns it. NotFound when it is not there.

        Raises:
            Unavailable: another process is writing to the archive.
        """
        item = await self.item(id, archive)
        _, store = self.archives.named(item.archive)

        def remove() -> None:
            if not isinstance(store, Archive):
                store.delete([item.id])
                return
            try:
                _writable(store).delete([item.id])
            except FingerprintMismatch as error:
                raise _moving(item.archive) from error
            drop(store.path, item.uri)

        await self._run("delete", self._writing, remove)

    async def retain(self, archive: str, rule: Rule, tell: Callable[[Sequence[str]], None]) -> Retained:
        """Removes for good what an archive has kept too long; see `retrieval.retention.retain`."""
        call = functools.partial(retain, _writable(self.archives.folders[archive]), rule, tell=tell)
        return await self._run("retain", self._writing, call)

    async def detect(
        self, image: Image, *, model: str | None = None, prompts: Sequence[str] | None = None, threshold: float = 0.3
    ) -> tuple[Answerer, Detections]:
        """(the model, detections best first); with `prompts` an open-vocabulary detector answers."""
        asked, name, detector = self._asked(prompts, model)
        if self.drift.due():
            self._embed_too(image)
        if name in self.rollouts:
            return await self.rollouts[name].ask(image, threshold)
        call = functools.partial(calls.detected, detector, asked)
        found = await self.lanes[name].run("detect", call, (image, threshold), key=asked)
        if prompts is None:
            self.drift.answered(name, detector, found, threshold)
        return Answerer(name, detector.fingerprint), found

    async def detect_file(
        self, data: bytes, *, model: str | None = None, prompts: Sequence[str] | None = None, threshold: float = 0.3
    ) -> Seen:
        """`detect` in the picture of a file, which is not even decoded where the answer is kept.

        Raises:
            TooLarge, BadImage: as `decode`.
            Otherwise as `detect`.
        """
        asked, name, detector = self._asked(prompts, model)

        async def look() -> Seen:
            image = await self.decode(data)
            made, found = await self.detect(image, model=name, prompts=prompts, threshold=threshold)
            return Seen(made, found, image.size)

        rollout = self.rollouts.get(name)
        if self.results is None or not (rollout is None or rollout.settled):
            return await look()
        digest = await anyio.to_thread.run_sync(hashlib.sha256, data) if len(data) > 2**18 else hashlib.sha256(data)
        version = None if rollout is None else rollout.production.number
        fingerprint = detector.fingerprint if rollout is None else rollout.production.model.fingerprint
        return await self.results.get(Key(digest.hexdigest(), name, fingerprint, version, asked), threshold, look)

    def _asked(self, prompts: Sequence[str] | None, model: str | None) -> tuple[tuple[str, ...] | None, str, Any]:
        """(the prompts, name of the detector, the detector) of a request."""
        if prompts is not None:
            return tuple(_prompts(prompts, self.limits.prompts)), *self.model("open-detector", model)
        if model is None and not any(kind_of(m) == "detector" for m in self.models.values()):
            self._explain_no_detector()
        return None, *self.model("detector", model)

    def _embed_too(self, image: Image) -> None:
        """Has a picture embedded as well, where nobody waits for the encoder: does it lie where the archive's do?"""
        for name in list(dict.fromkeys(self.encoder_of.values()))[:1]:
            if not self.lanes[name].ahead():
                task = asyncio.create_task(self.embed(images=[image], model=name))
                self.background.add(task)
                task.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[Any]) -> None:
        self.background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a picture was not embedded to watch for drift: %r", task.exception())

    async def prelabel(self, image: Image, *, model: str | None = None) -> tuple[str, Labelled]:
        """(name of the labeller, the image's judged boxes, most probable first)."""
        name, labeller = self.model("labeller", model)
        call: Callable[[list[Image]], list[Labelled]] = labeller.label
        return name, await self.lanes[name].run("prelabel", call, image)

    async def classify(
        self, image: Image, boxes: Sequence[Box], *, model: str | None = None
    ) -> tuple[str, tuple[str, ...], FloatArray]:
        """(name of the memory, its classes, probabilities (N, C + 1) of each box, the last that it is none of them)."""
        name, memory = self.model("memory", model)
        call = functools.partial(calls.classified, memory)
        return name, memory.classes, await self.lanes[name].run("classify", call, (image, calls.inside(image, boxes)))

    async def verify(
        self, image: Image, boxes: Sequence[Box], labels: Sequence[str], *, model: str | None = None
    ) -> tuple[str, Detections, FloatArray]:
        """(name of the memory, the labelled boxes with their neighbours, the support (N,) of each label)."""
        name, memory = self.model("memory", model)
        names = list(dict.fromkeys(labels))
        numbers = [names.index(label) for label in labels]
        proposed = Detections.build(calls.inside(image, boxes), np.ones(len(labels)), numbers, names)
        found, support = await self.lanes[name].run(
            "verify", functools.partial(calls.verified, memory), (image, proposed)
        )
        return name, found, support

    async def ask_archive(
        self,
        question: str,
        *,
        k: int = 4,
        about: str | None = None,
        filter: str | None = None,
        archive: str | None = None,
        model: str | None = None,
    ) -> tuple[str, str, GroundedAnswer]:
        """(name of the model, name of the archive, what the model says of the images that match, with citations).

        Raises:
            NotFound: there is no vision-language model, or no archive.
            BadInput: see `retrieval.grounding.answer`.
        """
        (name, vlm), (place, store) = self.model("vlm", model), self.archives.named(archive)
        encoder = self.models[self.encoder_of[place]]

        def say(questions: list[str]) -> list[GroundedAnswer]:
            return [
                answer(one, store, cast(Encoder, encoder), vlm, k=k, about=about, filter=filter) for one in questions
            ]

        said = await self.lanes[name].run("ask", say, question, key=(place, k, about, filter), weight=k)
        note(place, [citation.id for citation in said.citations])
        return name, place, said

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
            return Answer(
                name, await self.lanes[name].run("answer", functools.partial(calls.said, vlm), (image, words))
            )
        phrase = where["phrase"]
        boxes = await self.lanes[name].run("locate", functools.partial(calls.located, vlm), (image, phrase))
        said = "nowhere" if not len(boxes) else "here" if len(boxes) == 1 else f"in {len(boxes)} places"
        return Answer(name, said, Detections.build(boxes, np.ones(len(boxes)), np.zeros(len(boxes)), [phrase]))

    async def chat(self, asked: Asking, style: Style, *, model: str | None = None) -> tuple[str, Reply]:
        """(name of the model, its answer); those of one style are answered together.

        Raises:
            NotFound: there is no vision-language model here.
            BadInput: it cannot hold a conversation, or follow the style's schema.
        """
        name, vlm = self.model("vlm", model)
        if not isinstance(vlm, Converses):
            raise BadInput(f"{name} answers single questions only", remedy="Ask it with /v1/ask.")
        return name, await self.lanes[name].run("chat", functools.partial(calls.replied, vlm, style), asked, key=style)

    async def embed(
        self, texts: Sequence[str] = (), images: Sequence[Image] = (), *, model: str | None = None
    ) -> tuple[str, FloatArray]:
        """(name of the encoder, unit vectors (N, D) of the texts, then of the images)."""
        name, encoder = self.model("encoder", model)
        call = functools.partial(calls.embedded, encoder)
        weight = max(1, len(texts) + len(images))
        vectors = await self.lanes[name].run(
            "encode", call, (texts, images), key=None if images else calls.TEXT_INPUTS, weight=weight
        )
        self.drift.embedded(name, vectors[len(texts) :])
        return name, vectors

    async def count_tokens(self, texts: Sequence[str], model: str) -> int:
        """Tokens of the texts, by the encoder where it can count them, else as words."""
        count: Callable[[Sequence[str]], int] | None = getattr(self.models[model], "count_tokens", None)
        if count is None:
            return sum(len(text.split()) for text in texts)
        return await anyio.to_thread.run_sync(count, list(texts), limiter=self._decoding)

    async def warm_up(self) -> None:
        """Runs each model, so that the first request does not pay for lazy initialisation, and measures what batches
        are worth."""
        for name, lane in self.lanes.items():
            await calls.warm_up(lane, self.models[name])
            apart = f", {lane.sizes[calls.TEXT_INPUTS]} texts" if calls.TEXT_INPUTS in lane.sizes else ""
            log.info("%s is warm, %d to a batch%s", name, lane.most, apart)
        for rollout in self.rollouts.values():
            await warm(rollout.production.lane, rollout.production.model)
        # Millions of objects of the libraries stay for good: a full collection that walks them stops all for 0.3 s.
        gc.collect()
        gc.freeze()
        self.warm = True
        self.metrics.ready.set(1)

    def figures(self) -> bytes:
        """All figures in Prometheus' text form."""
        for name, archive in self.archives.items():
            try:
                self.metrics.items.labels(name).set(len(archive))
            except Unavailable as error:  # the other figures are told all the same
                log.warning("archive %s is not counted: %s", name, error)
        self.drift.collect()
        return self.metrics.exposition()

    def close(self) -> None:
        """Lets the models' threads go."""
        for one in (*self.lanes.values(), *self.rollouts.values()):
            one.close()

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
            with self._traces.span(stage):
                return await anyio.to_thread.run_sync(function, *args, limiter=anyio.CapacityLimiter(1))

    def _explain_no_detector(self) -> None:
        if any(kind_of(model) == "open-detector" for model in self.models.values()):
            raise BadInput(
                "this server detects by prompts only", expected="`prompts`", remedy='Send e.g. "prompts": ["a crate"].'
            )


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


def _writable(store: Archive) -> Archive:
    """The archive, which refuses to be written once another generation is served."""
    return Archive(store.path, store.settings)


def _moving(name: str) -> Unavailable:
    return Unavailable(f"archive {name} is moving to another encoder", remedy="Try again in a moment.")
