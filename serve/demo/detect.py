"""*Detect*: what the student, the teacher and the labeller see in one picture, side by side."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from evals.look import data_uri
from foveal.detections import Detections
from foveal.errors import FovealError
from serve import fragments as show
from serve.calls import kind_of
from serve.demo.scripts import PICK, TO_RESULT
from serve.demo.shared import (
    EXAMPLES,
    NO_PICTURE,
    QUIET,
    SKIP,
    busy,
    counted,
    html,
    picture_field,
    pixels,
    told,
    took,
)  # fmt: skip
from serve.engine import Engine
from serve.items import Item

if TYPE_CHECKING:
    from PIL.Image import Image

FLOOR = 0.05  # lowest score kept, so that the slider can go down without asking the models again
SHOWN_SIDE = 1280  # pixels of the picture on the page
Step = tuple[Any, ...]  # picture, state, status, canvas, columns
# kind of model -> what its column is called
COLUMNS = {"detector": "Student", "open-detector": "Teacher", "labeller": "Labeller"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What one model said of the picture on the page."""

    kind: str
    model: str = ""
    found: Detections | None = None  # None: it has not answered yet, or could not
    said: str = ""  # how long it took, or why it could not


@dataclass(frozen=True, slots=True)
class Looked:
    """The picture on the page, and what each model said of it."""

    href: str
    size: tuple[int, int]
    seen: tuple[Seen, ...]


class DetectPage:
    """What the page does: asks each model once, then draws what it said at any threshold."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        there = {kind_of(model) for model in engine.models.values()}
        self.kinds = [kind for kind in COLUMNS if kind in there]

    @property
    def classes(self) -> tuple[str, ...]:
        """What the student finds; empty without one."""
        return tuple(self.engine.model("detector")[1].classes) if "detector" in self.kinds else ()

    async def look(self, image: Image, prompts: str | None) -> AsyncGenerator[Looked]:
        """The picture, then again with each model's answer, one after the other: their times would disturb each other.

        The teacher looks for `prompts`, names with commas between them; without them for what the student finds.
        """
        names = [name.strip() for name in (prompts or "").split(",") if name.strip()]
        names = names or list(self.classes[: self.engine.limits.prompts])
        waiting = tuple(Seen(kind, said="looking") for kind in self.kinds)
        looked = Looked(data_uri(image, SHOWN_SIDE, quality=88), image.size, waiting)
        yield looked
        for place, kind in enumerate(self.kinds):
            one = await self._seen(kind, image, names)
            looked = replace(looked, seen=(*looked.seen[:place], one, *looked.seen[place + 1 :]))
            yield looked

    async def _seen(self, kind: str, image: Image, names: list[str]) -> Seen:
        if kind == "open-detector" and not names:
            return Seen(kind, said="Name what to look for.")
        began, version = time.perf_counter(), None
        try:
            if kind == "labeller":
                model, labelled = await self.engine.prelabel(image)
                found = labelled.detections
            else:
                asked = names if kind == "open-detector" else None
                made, found = await self.engine.detect(image, prompts=asked, threshold=FLOOR)
                model, version = made.name, made.version
        except FovealError as error:
            return Seen(kind, said=f"{error}")
        name = self.engine.models[model].name
        return Seen(kind, name if version is None else f"{name}, version {version}", found, took(began))

    @staticmethod
    def drawn(looked: Looked | None, least: float) -> tuple[str, str]:
        """(status, columns) of what is at least this likely."""
        if looked is None:
            return "", show.note(NO_PICTURE)
        columns: list[str] = []
        total = 0
        for one in looked.seen:
            if one.found is None:
                columns.append(show.column(COLUMNS[one.kind], one.model, "", show.note(one.said), ""))
                continue
            sure = one.found.probabilities if one.found.probabilities is not None else one.found.scores
            found = one.found[sure >= least]
            total += len(found)
            facts = f"{counted(len(found), 'object')}, {one.said}"
            picture = show.picture(None, looked.size, found)
            columns.append(show.column(COLUMNS[one.kind], one.model, facts, picture, show.table(found)))
        status = show.status([f"{counted(total, 'box', 'boxes')} of {least:.2f} or more"])
        return status, show.columns(columns)


def draw(engine: Engine, page: gr.Blocks) -> None:
    """Puts the page into what is being built."""
    it = DetectPage(engine)
    open_ = "open-detector" in it.kinds
    html(show.heading("Detect", ability(it)))
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            image = picture_field()
        with gr.Column(scale=7, min_width=300):
            prompts = gr.Textbox(
                label="The teacher looks for" if it.classes else "Look for", placeholder="a red crate, a drone",
                info="commas between names" + ("; without any, what the student finds" if it.classes else ""),
                max_lines=2, visible=open_, elem_id="fv-prompts", elem_classes="fv-field",
            )  # fmt: skip
            threshold = gr.Slider(
                FLOOR, 0.95, 0.45, step=0.01, label="Threshold", elem_id="fv-threshold",
                info="of scores; of probabilities, where they are calibrated",
            )  # fmt: skip
            strip = html(js=PICK, elem_id="fv-strip")
    said = html()
    canvas = html()
    boxes = html(show.note(NO_PICTURE), elem_id="fv-boxes")
    picture, looked = gr.State(None), gr.State(None)
    shown = [looked, said, canvas, boxes]

    async def look(source: bytes | Item | Image, wanted: str | None, least: float) -> AsyncGenerator[Step]:
        """The picture to remember, then what is shown of it."""
        try:
            now = await pixels(engine, source) if isinstance(source, (bytes, Item)) else source
        except FovealError as error:
            yield None, None, "", "", show.problem(error)
            return
        first = True
        async for state in it.look(now, wanted):
            drawn = show.canvas(state.href, state.size) if first else SKIP
            status, columns = it.drawn(state, least)
            yield now if first else SKIP, state, status, drawn, columns
            first = False

    async def upload(path: str | None, wanted: str | None, least: float) -> AsyncGenerator[Step]:
        if path is None:
            yield None, None, "", "", show.note(NO_PICTURE)
            return
        async for step in look(Path(path).read_bytes(), wanted, least):
            yield step

    async def again(now: Image | None, wanted: str | None, least: float) -> AsyncGenerator[Step]:
        if now is None:
            yield None, None, "", "", show.note(NO_PICTURE)
            return
        async for step in look(now, wanted, least):
            yield step

    async def example(event: gr.EventData, wanted: str | None, least: float) -> AsyncGenerator[Step]:
        try:
            item = await engine.item(told(event, "id"))
        except FovealError as error:
            yield SKIP, None, None, "", "", show.problem(error)
            return
        async for step in look(item, wanted, least):
            yield None, *step

    async def examples() -> str:
        if not engine.archives:
            return ""
        return show.strip(engine.archives.named()[0], await engine.sample(EXAMPLES))

    at_work = busy(boxes)
    asked: list[Any] = [image, prompts, threshold]
    image.upload(upload, asked, [picture, *shown], **at_work).then(js=TO_RESULT)
    image.clear(upload, asked, [picture, *shown], **QUIET)
    prompts.submit(again, [picture, prompts, threshold], [picture, *shown], **at_work).then(js=TO_RESULT)
    threshold.input(it.drawn, [looked, threshold], [said, boxes], trigger_mode="always_last", **QUIET)
    strip.pick(example, [prompts, threshold], [image, picture, *shown], **at_work).then(js=TO_RESULT)
    page.load(examples, None, strip, **QUIET)


def ability(it: DetectPage) -> str:
    """One sentence on what can be found here."""
    if not it.classes:
        return "Boxes around whatever you name."
    more = f" and {len(it.classes) - 8} more" if len(it.classes) > 8 else ""
    beside = " The teacher, beside it, finds what you name." if "open-detector" in it.kinds else ""
    return f"The student finds {', '.join(it.classes[:8])}{more}.{beside}"
