"""*Ask*: a question about one picture, or about the whole archive with the pictures that the answer rests on."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from evals.look import data_uri
from foveal.detections import Detections
from foveal.errors import FovealError
from retrieval.grounding import GroundedAnswer
from serve import fragments as show
from serve.demo.scripts import PICK, TO_RESULT
from serve.demo.shared import EXAMPLES, NO_PICTURE, QUIET, SKIP, busy, counted, html, picture_field, pixels, told, took
from serve.engine import Engine
from serve.items import Item

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHIVE, PICTURE = "The whole archive", "One picture"
QUESTIONS = {
    ARCHIVE: ("what colour is the barrel", "is there a ladder", "how many drones are there"),
    PICTURE: ("describe the picture", "how many things are there", "where is the ladder"),
}
LOOKED, MOST_LOOKED = 4, 16  # pictures of the archive that an answer rests on
SHOWN_SIDE = 1280  # pixels of the picture on the page
Step = tuple[Any, ...]  # state, status, answers, picture


@dataclass(frozen=True, slots=True)
class Talk:
    """The picture that is asked about, and what was asked and answered so far."""

    image: Image
    href: str
    turns: tuple[tuple[str, str], ...] = ()


class AskPage:
    """What the page does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.model, _ = engine.model("vlm")
        self.modes = [ARCHIVE, PICTURE] if engine.archives else [PICTURE]

    async def choose(self, source: bytes | Item) -> Step:
        """The picture to ask about."""
        try:
            image = await pixels(self.engine, source)
        except FovealError as error:
            return None, "", "", show.problem(error)
        href = data_uri(image, SHOWN_SIDE, quality=88)
        return Talk(image, href), "", "", show.picture(href, image.size, Detections.empty(()))

    async def ask(self, question: str, talk: Talk | None) -> Step:
        """The answer about the picture; boxes where it was asked where something is."""
        if talk is None:
            return SKIP, "", "", show.note(NO_PICTURE)
        if not question:
            return talk, SKIP, SKIP, SKIP
        began = time.perf_counter()
        try:
            answer = await self.engine.ask(talk.image, question)
        except FovealError as error:
            return talk, "", show.talk(talk.turns), show.problem(error)
        talk = replace(talk, turns=(*talk.turns, (question, answer.text)))
        places = answer.places if answer.places is not None else Detections.empty(())
        picture = show.picture(talk.href, talk.image.size, places)
        return talk, show.status([self.model, took(began)]), show.talk(talk.turns), picture

    async def ask_archive(self, question: str, where: str, k: int) -> tuple[str, str]:
        """(status, the answer with the pictures it rests on, or that the archive does not hold it)."""
        if not question:
            return "", show.note("Ask something that the pictures of the archive can answer.")
        began = time.perf_counter()
        try:
            model, archive, answer = await self.engine.ask_archive(question, k=k, filter=where or None)
        except FovealError as error:
            return "", show.problem(error)
        looked = f"looked at {counted(len(answer.citations), 'picture')} for {answer.searched!r}"
        return show.status([model, looked, took(began), *answer.notes]), self._answered(archive, answer)

    @staticmethod
    def _answered(archive: str, answer: GroundedAnswer) -> str:
        cards = [
            show.citation(archive, one.id, one.answer or one.reason or "", supports=one.supports, share=one.weight)
            for one in answer.citations
        ]
        if answer.nothing or not answer.text:
            text = answer.text or "The archive does not hold the answer"
            return show.answer(answer.question, text, answer.reason or "", cards, sure=False)
        agree = sum(one.supports for one in answer.citations)
        said = f"{agree} of {counted(len(answer.citations), 'picture')} say so, with {answer.agreement:.0%} of the vote"
        return show.answer(answer.question, answer.text, said, cards, sure=True)


def draw(engine: Engine, page: gr.Blocks) -> None:
    """Puts the page into what is being built."""
    it = AskPage(engine)
    first = it.modes[0]
    html(show.heading("Ask", "A question in words, and the pictures that the answer rests on."))
    mode = gr.Radio(
        it.modes, value=first, show_label=False, container=False, visible=len(it.modes) > 1, elem_id="fv-mode"
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300, visible=first == PICTURE) as chosen:
            image = picture_field()
            strip = html(js=PICK, elem_id="fv-strip")
        with gr.Column(scale=7, min_width=300):
            with gr.Row(elem_classes="fv-ask", equal_height=True):
                words = gr.Textbox(
                    placeholder="Ask in plain words", show_label=False, container=False, scale=8, elem_id="fv-words",
                    max_lines=1,
                )  # fmt: skip
                go = gr.Button("Ask", variant="primary", scale=1, min_width=90)
            chips = html(show.chips(QUESTIONS[first]), js=PICK, elem_id="fv-chips")
            with gr.Accordion("Refine", open=False, visible=first == ARCHIVE, elem_classes="fv-refine") as drawer:
                where = gr.Textbox(
                    label="Only where", placeholder="conditions as on the search page", max_lines=1,
                    elem_id="fv-filter", elem_classes="fv-field",
                )  # fmt: skip
                k = gr.Slider(1, MOST_LOOKED, LOOKED, step=1, label="Pictures to look at")
            said = html()
            answers = html(elem_id="fv-talk", js=PICK)
            boxes = html(show.note(NO_PICTURE) if first == PICTURE else "", elem_id="fv-boxes")
    talk = gr.State(None)
    shown = [talk, said, answers, boxes]

    async def upload(path: str | None) -> Step:
        if path is None:
            return None, "", "", show.note(NO_PICTURE)
        return await it.choose(Path(path).read_bytes())

    async def example(event: gr.EventData) -> Step:
        """A picture of the archive becomes the one to ask about."""
        try:
            item = await engine.item(told(event, "id"))
        except FovealError as error:
            return *(SKIP,) * 6, "", "", show.problem(error)
        return *_mode(PICTURE), None, *(await it.choose(item))

    async def ask(question: str | None, now: Talk | None, how: str, condition: str | None, count: float) -> Step:
        asked = (question or "").strip()
        if how == PICTURE:
            return await it.ask(asked, now)
        return SKIP, *(await it.ask_archive(asked, (condition or "").strip(), int(count))), ""

    async def suggested(event: gr.EventData, now: Talk | None, how: str, condition: str, count: float) -> Step:
        question = told(event, "id")
        return question, *(await ask(question, now, how, condition, count))

    async def switch(how: str, now: Talk | None) -> Step:
        if how == ARCHIVE:
            return *_mode(how)[1:], SKIP, "", "", ""
        if now is None and engine.archives and (items := await engine.sample(1)):
            return *_mode(how)[1:], *(await it.choose(items[0]))  # one is there to be asked about
        picture = show.note(NO_PICTURE)
        if now is not None:
            picture = show.picture(now.href, now.image.size, Detections.empty(()))
        return *_mode(how)[1:], SKIP, "", show.talk(now.turns) if now else "", picture

    async def start() -> str:
        """The archive's pictures to try."""
        return show.strip(engine.archives.named()[0], await engine.sample(EXAMPLES)) if engine.archives else ""

    at_work = busy(answers)
    manner = [mode, chosen, drawer, chips]
    asked: list[Any] = [talk, mode, where, k]
    image.upload(upload, [image], shown, **QUIET).then(js=TO_RESULT)
    image.clear(upload, [image], shown, **QUIET)
    for piece in (strip, answers):
        piece.pick(example, None, [*manner, image, *shown], **QUIET).then(js=TO_RESULT)
    mode.input(switch, [mode, talk], [*manner[1:], *shown], **QUIET)
    words.submit(ask, [words, *asked], shown, **at_work)
    go.click(ask, [words, *asked], shown, **at_work)
    where.submit(ask, [words, *asked], shown, **at_work)
    chips.pick(suggested, asked, [words, *shown], **at_work)
    page.load(start, None, strip, **QUIET)


def _mode(how: str) -> tuple[Any, Any, Any, Any]:
    """The switch, the choice of a picture, what refines, and the questions to try."""
    one = how == PICTURE
    return how, gr.Column(visible=one), gr.Accordion(visible=not one), show.chips(QUESTIONS[how])
