"""The pages to click on: *Search*, *Detect* and *Ask*, in Gradio, mounted in the same application as the API.

Pages call the engine directly and show pictures through the API's own addresses. Nothing is loaded from elsewhere and
nothing is reported anywhere; all work without a network.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import FastAPI
from gradio.data_classes import ImageData

from evals.look import data_uri
from foveal.detections import Detections
from foveal.errors import FovealError
from retrieval.query import SearchQuery
from serve import fragments as show
from serve import look
from serve.engine import Engine, Item, NotFound, kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES = 24  # pictures shown before anything is searched for
EXAMPLES = 10  # pictures to try detection and questions on
QUESTIONS = ("describe the picture", "how many things are there", "where is the ladder")
FLOOR = 0.05  # lowest score kept, so that the slider can go down without asking the model again
NO_PICTURE = "Choose a picture, or try one of the archive's."
# Clicks on pictures, wherever they are drawn inside the component.
PICK = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-id]');
  if (button) trigger('pick', {id: button.dataset.id});
});"""
# On a phone the result lies below the controls.
TO_RESULT = """() => {
  if (innerWidth < 700) document.querySelector('#fv-boxes').scrollIntoView({behavior: 'smooth', block: 'start'});
}"""
SKIP: Any = gr.skip()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True, slots=True)
class Looked:
    """What the detector said about the picture on the page."""

    href: str
    size: tuple[int, int]
    found: Detections
    model: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Talk:
    """The picture that is asked about, and what was asked and answered so far."""

    image: Image
    href: str
    turns: tuple[tuple[str, str], ...] = ()


class Picture(gr.Image):
    """An image field that hands on the uploaded file as it is: decoding, with its limits, is the engine's."""

    is_template = True  # the browser draws it as Gradio's own image field

    def preprocess(self, payload: ImageData | None) -> Any:
        if payload is not None and payload.path is not None and not (payload.url or "").startswith("data:"):
            return payload.path  # Gradio has checked that it lies in its upload folder
        return super().preprocess(payload)


def mount(app: FastAPI, engine: Engine) -> None:
    """Adds the pages to `app`: *Search*, *Detect* and *Ask*, those that can work; the first at `/`."""
    blocks = build(engine)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SSR mode", UserWarning)  # said even where it is switched off
        gr.mount_gradio_app(  # pyright: ignore[reportUnknownMemberType]
            app,
            blocks,
            path="/",
            theme=look.theme(),
            css=look.css(),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            show_error=False,
            max_file_size=engine.limits.body_bytes,
        )


def build(engine: Engine) -> gr.Blocks:
    """The pages over an engine."""
    titles = ["Search"] if engine.archives else []
    kinds = {kind_of(model) for model in engine.models.values()}
    titles += ["Detect"] if kinds & {"detector", "open-detector"} else []
    titles += ["Ask"] if "vlm" in kinds else []
    draw = {"Search": _search, "Detect": _detect, "Ask": _ask}
    paths = {"/" if number == 0 else f"/{title.lower()}": title for number, title in enumerate(titles)}
    with gr.Blocks(title="Foveal", analytics_enabled=False, fill_width=True) as blocks:
        if titles:
            _html(show.header(titles[0], paths, _facts(engine)))
            draw[titles[0]](engine, blocks)
        else:
            _html(show.note("This server only embeds; see /openapi.json for its API."))
    for path, title in list(paths.items())[1:]:
        with blocks.route(title, path):
            _html(show.header(title, paths, _facts(engine)))
            draw[title](engine, blocks)
    return blocks


def _search(engine: Engine, page: gr.Blocks) -> None:
    name, archive = engine.archive()
    columns = [key for key in archive.columns if key not in ("id", "uri", "content_hash")]
    _html(show.heading("Search", f"{len(archive):,} pictures: describe one, or show one like it."))
    with gr.Row(elem_classes="fv-ask", equal_height=True):
        words = gr.Textbox(
            placeholder="Describe what you are looking for", show_label=False, container=False, scale=8, autofocus=True,
            elem_id="fv-words", max_lines=1,
        )  # fmt: skip
        go = gr.Button("Search", variant="primary", scale=1, min_width=110)
    with gr.Accordion("Refine", open=False, elem_classes="fv-refine"), gr.Row():
        image = Picture(
            label="Like this picture", type="filepath", sources=["upload", "clipboard"], height=190, min_width=220,
            buttons=[], elem_id="fv-image",
        )  # fmt: skip
        with gr.Column(min_width=220):
            negative = gr.Textbox(
                label="But not", placeholder="what it should not show", max_lines=1, elem_classes="fv-field"
            )
            filter = gr.Textbox(
                label="Only where", placeholder=_filter_example(archive.columns, columns), max_lines=1,
                info=f"columns: {', '.join(columns)}", elem_id="fv-filter", elem_classes="fv-field",
            )  # fmt: skip
        with gr.Column(min_width=220):
            k = gr.Slider(1, 60, 24, step=1, label="How many")
            weight = gr.Slider(0, 1, 0.5, step=0.05, label="Words or picture", info="0 is all words, 1 all picture")
    said = _html()
    results = _html(pick=True, elem_id="fv-results")

    async def find(text: str, path: str | None, minus: str, where: str, count: float, share: float) -> tuple[str, str]:
        wanted, unwanted, condition = ((field or "").strip() or None for field in (text, minus, where))
        if wanted is None and path is None:
            return await start()
        began = time.perf_counter()
        try:
            query = SearchQuery(
                text=wanted,
                image=None if path is None else await engine.decode(Path(path).read_bytes()),
                negative=unwanted,
                filter=condition,
                k=int(count),
                image_weight=share,
            )
            archive_name, hits = await engine.search(query)
        except FovealError as error:
            return "", show.problem(error)
        took = f"{(time.perf_counter() - began) * 1000:.0f} ms"
        return show.status([f"{len(hits)} best of {len(archive):,}", took]), show.hits(archive_name, hits, hits.reason)

    async def similar(event: gr.EventData, where: str | None, count: float) -> tuple[str, str]:
        began = time.perf_counter()
        try:
            item = await engine.item(str(getattr(event, "id", "")))
            query = SearchQuery(image=await engine.picture(item), filter=(where or "").strip() or None, k=int(count))
            archive_name, hits = await engine.search(query)
        except FovealError as error:
            return "", show.problem(error)
        took = f"{(time.perf_counter() - began) * 1000:.0f} ms"
        return show.status(["like the picture you picked", took]), show.hits(archive_name, hits, hits.reason)

    async def start() -> tuple[str, str]:
        try:
            items = await engine.sample(SAMPLES)
        except FovealError as error:
            return "", show.problem(error)
        if not items:
            return "", show.note("The archive is empty. Add pictures with: foveal archive add FOLDER --archive DIR")
        return show.status(["a look around; pick a picture to see more like it"]), show.samples(
            name, items, "more like this one"
        )

    asked: list[Any] = [words, image, negative, filter, k, weight]
    for event in (words.submit, go.click, negative.submit, filter.submit, k.release, weight.release, image.change):
        event(find, asked, [said, results], **QUIET)
    results.pick(similar, [filter, k], [said, results], **QUIET)
    page.load(start, None, [said, results], **QUIET)


def _detect(engine: Engine, page: gr.Blocks) -> None:
    kinds = {kind_of(model) for model in engine.models.values()}
    closed, open_ = "detector" in kinds, "open-detector" in kinds
    _html(show.heading("Detect", _ability(engine) if closed else "Boxes around whatever you name."))
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            image = _picture()
            prompts = gr.Textbox(
                label="Look for" if not closed else "Or look for something else",
                placeholder="a red crate, a drone", info="classes, with commas between them", max_lines=2,
                visible=open_, elem_id="fv-prompts", elem_classes="fv-field",
            )  # fmt: skip
            threshold = gr.Slider(FLOOR, 0.95, 0.45, step=0.01, label="Threshold", elem_id="fv-threshold")
            strip = _html(pick=True, elem_id="fv-strip")
        with gr.Column(scale=7, min_width=300):
            said = _html()
            boxes = _html(show.note(NO_PICTURE), elem_id="fv-boxes")
            rows = _html(elem_id="fv-rows")
    looked = gr.State(None)
    shown = [said, boxes, rows]

    async def look_at(data: bytes | Item, wanted: str | None, least: float) -> tuple[Looked | None, str, str, str]:
        names = [name.strip() for name in (wanted or "").split(",") if name.strip()] or None
        if names is None and not closed:
            return None, "", show.note("Name what to look for."), ""
        try:
            picture = await _pixels(engine, data)
            began = time.perf_counter()
            made, found = await engine.detect(picture, prompts=names, threshold=FLOOR)
        except FovealError as error:
            return None, "", show.problem(error), ""
        seconds = time.perf_counter() - began
        state = Looked(data_uri(picture, 1280, quality=88), picture.size, found, made.name, seconds)
        return state, *_drawn(state, least)

    async def upload(path: str | None, wanted: str | None, least: float) -> tuple[Looked | None, str, str, str]:
        if path is None:
            return None, "", show.note(NO_PICTURE), ""
        return await look_at(Path(path).read_bytes(), wanted, least)

    async def example(event: gr.EventData, wanted: str | None, least: float) -> tuple[Any, ...]:
        try:
            item = await engine.item(str(getattr(event, "id", "")))
        except NotFound as error:
            return SKIP, None, "", show.problem(error), ""
        return item.uri, *(await look_at(item, wanted, least))

    async def examples() -> str:
        if not engine.archives:
            return ""
        name, _ = engine.archive()
        return show.strip(name, await engine.sample(EXAMPLES))

    busy: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": boxes}
    asked: list[Any] = [image, prompts, threshold]
    image.upload(upload, asked, [looked, *shown], **busy).then(js=TO_RESULT)
    image.clear(upload, asked, [looked, *shown], **QUIET)
    prompts.submit(upload, asked, [looked, *shown], **busy).then(js=TO_RESULT)
    threshold.input(_redrawn, [looked, threshold], shown, trigger_mode="always_last", **QUIET)
    strip.pick(example, [prompts, threshold], [image, looked, *shown], **busy).then(js=TO_RESULT)
    page.load(examples, None, strip, **QUIET)


def _ask(engine: Engine, page: gr.Blocks) -> None:
    name, _ = engine.model("vlm")
    _html(show.heading("Ask", "A picture, a question, and what the model answers; ask where something is for boxes."))
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            image = _picture()
            strip = _html(pick=True, elem_id="fv-strip")
        with gr.Column(scale=7, min_width=300):
            with gr.Row(elem_classes="fv-ask", equal_height=True):
                words = gr.Textbox(
                    placeholder="Ask about the picture", show_label=False, container=False, scale=8,
                    elem_id="fv-words", max_lines=1,
                )  # fmt: skip
                go = gr.Button("Ask", variant="primary", scale=1, min_width=90)
            chips = _html(show.chips(QUESTIONS), pick=True, elem_id="fv-chips")
            said = _html()
            answers = _html(elem_id="fv-talk")
            boxes = _html(show.note(NO_PICTURE), elem_id="fv-boxes")
    talk = gr.State(None)
    shown = [talk, said, answers, boxes]

    async def choose(data: bytes | Item) -> tuple[Talk | None, str, str, str]:
        try:
            picture = await _pixels(engine, data)
        except FovealError as error:
            return None, "", "", show.problem(error)
        href = data_uri(picture, 1280, quality=88)
        return Talk(picture, href), "", "", show.picture(href, picture.size, Detections.empty(()))

    async def upload(path: str | None) -> tuple[Talk | None, str, str, str]:
        if path is None:
            return None, "", "", show.note(NO_PICTURE)
        return await choose(Path(path).read_bytes())

    async def example(event: gr.EventData) -> tuple[Any, ...]:
        try:
            item = await engine.item(str(getattr(event, "id", "")))
        except NotFound as error:
            return SKIP, None, "", "", show.problem(error)
        return item.uri, *(await choose(item))

    async def ask(question: str | None, state: Talk | None) -> tuple[Any, ...]:
        asked = (question or "").strip()
        if state is None:
            return SKIP, SKIP, SKIP, show.note(NO_PICTURE)
        if not asked:
            return SKIP, SKIP, SKIP, SKIP
        began = time.perf_counter()
        try:
            answer = await engine.ask(state.image, asked)
        except FovealError as error:
            return state, "", show.talk(state.turns), show.problem(error)
        line = show.status([name, f"{(time.perf_counter() - began) * 1000:.0f} ms"])
        state = replace(state, turns=(*state.turns, (asked, answer.text)))
        places = answer.places if answer.places is not None else Detections.empty(())
        return state, line, show.talk(state.turns), show.picture(state.href, state.image.size, places)

    async def suggested(event: gr.EventData, state: Talk | None) -> tuple[Any, ...]:
        question = str(getattr(event, "id", ""))
        return question, *(await ask(question, state))

    async def start() -> tuple[Any, ...]:
        """The archive's pictures to try, the first of them already there to be asked about."""
        if not engine.archives or not (items := await engine.sample(EXAMPLES)):
            return "", SKIP, SKIP, SKIP, SKIP
        return show.strip(engine.archive()[0], items), *(await choose(items[0]))

    busy: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": answers}
    image.upload(upload, [image], shown, **QUIET).then(js=TO_RESULT)
    image.clear(upload, [image], shown, **QUIET)
    strip.pick(example, None, [image, *shown], **QUIET).then(js=TO_RESULT)
    words.submit(ask, [words, talk], shown, **busy)
    go.click(ask, [words, talk], shown, **busy)
    chips.pick(suggested, [talk], [words, *shown], **busy)
    page.load(start, None, [strip, *shown], **QUIET)


def _picture() -> Picture:
    """The field for the picture that a page is about."""
    return Picture(
        label="Picture", type="filepath", sources=["upload", "clipboard"], height=230, buttons=[], elem_id="fv-image"
    )


async def _pixels(engine: Engine, source: bytes | Item) -> Image:
    """An uploaded file, or an item of the archive."""
    return await engine.decode(source) if isinstance(source, bytes) else await engine.picture(source)


def _redrawn(looked: Looked | None, least: float) -> tuple[Any, Any, Any]:
    return (SKIP, SKIP, SKIP) if looked is None else _drawn(looked, least)


def _drawn(looked: Looked, least: float) -> tuple[str, str, str]:
    """Status, picture and table of what is at least this likely."""
    shown = looked.found.probabilities if looked.found.probabilities is not None else looked.found.scores
    found = looked.found[shown >= least]
    count = f"{len(found)} {'object' if len(found) == 1 else 'objects'}"
    line = show.status([count, looked.model, f"{looked.seconds * 1000:.0f} ms"])
    return line, show.picture(looked.href, looked.size, found), show.table(found)


def _filter_example(kinds: Mapping[str, str], columns: Sequence[str]) -> str:
    """A filter over columns that are there."""
    own = [name for name in columns if name not in ("width", "height")]
    words = [f"{name} = '...'" for name in own if kinds[name] == "text"]
    numbers = [f"{name} >= ..." for name in own if kinds[name] == "number"]
    return " AND ".join([*words[:1], *numbers[:1]]) or "width >= 640"


def _ability(engine: Engine) -> str:
    classes = list(engine.model("detector")[1].classes)
    more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
    return f"Finds {', '.join(classes[:8])}{more}."


def _html(value: str = "", *, pick: bool = False, elem_id: str | None = None) -> Any:
    """A piece of page; with `pick` a click on a picture in it triggers the event of that name."""
    return gr.HTML(value, js_on_load=PICK if pick else None, apply_default_css=False, elem_id=elem_id)


def _facts(engine: Engine) -> list[str]:
    return [f"{len(archive):,} pictures in {name}" for name, archive in engine.archives.items()]
