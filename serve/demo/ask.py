"""*Ask*: questions about a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from evals.look import data_uri
from foveal.detections import Detections
from foveal.errors import FovealError
from serve import fragments as show
from serve.demo.shared import (
    EXAMPLES,
    NO_PICTURE,
    PICK,
    QUIET,
    SKIP,
    TO_RESULT,
    busy,
    html,
    picture_field,
    pixels,
    told,
)
from serve.engine import Engine, Item, NotFound

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTIONS = ("describe the picture", "how many things are there", "where is the ladder")


@dataclass(frozen=True, slots=True)
class Talk:
    """The picture that is asked about, and what was asked and answered so far."""

    image: Image
    href: str
    turns: tuple[tuple[str, str], ...] = ()


def draw(engine: Engine, page: gr.Blocks) -> None:
    name, _ = engine.model("vlm")
    html(show.heading("Ask", "A picture, a question, and what the model answers; ask where something is for boxes."))
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            image = picture_field()
            strip = html(js=PICK, elem_id="fv-strip")
        with gr.Column(scale=7, min_width=300):
            with gr.Row(elem_classes="fv-ask", equal_height=True):
                words = gr.Textbox(
                    placeholder="Ask about the picture", show_label=False, container=False, scale=8,
                    elem_id="fv-words", max_lines=1,
                )  # fmt: skip
                go = gr.Button("Ask", variant="primary", scale=1, min_width=90)
            chips = html(show.chips(QUESTIONS), js=PICK, elem_id="fv-chips")
            said = html()
            answers = html(elem_id="fv-talk")
            boxes = html(show.note(NO_PICTURE), elem_id="fv-boxes")
    talk = gr.State(None)
    shown = [talk, said, answers, boxes]

    async def choose(data: bytes | Item) -> tuple[Talk | None, str, str, str]:
        try:
            picture = await pixels(engine, data)
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
            item = await engine.item(told(event, "id"))
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
        question = told(event, "id")
        return question, *(await ask(question, state))

    async def start() -> tuple[Any, ...]:
        """The archive's pictures to try, the first of them already there to be asked about."""
        if not engine.archives or not (items := await engine.sample(EXAMPLES)):
            return "", SKIP, SKIP, SKIP, SKIP
        return show.strip(engine.archive()[0], items), *(await choose(items[0]))

    at_work = busy(answers)
    image.upload(upload, [image], shown, **QUIET).then(js=TO_RESULT)
    image.clear(upload, [image], shown, **QUIET)
    strip.pick(example, None, [image, *shown], **QUIET).then(js=TO_RESULT)
    words.submit(ask, [words, talk], shown, **at_work)
    go.click(ask, [words, talk], shown, **at_work)
    chips.pick(suggested, [talk], [words, *shown], **at_work)
    page.load(start, None, [strip, *shown], **QUIET)
