"""*Detect*: boxes in a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from serve.engine import Engine, Item, NotFound, kind_of

FLOOR = 0.05  # lowest score kept, so that the slider can go down without asking the model again


@dataclass(frozen=True, slots=True)
class Looked:
    """What the detector said about the picture on the page."""

    href: str
    size: tuple[int, int]
    found: Detections
    model: str
    seconds: float


def draw(engine: Engine, page: gr.Blocks) -> None:
    kinds = {kind_of(model) for model in engine.models.values()}
    closed, open_ = "detector" in kinds, "open-detector" in kinds
    html(show.heading("Detect", _ability(engine) if closed else "Boxes around whatever you name."))
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            image = picture_field()
            prompts = gr.Textbox(
                label="Look for" if not closed else "Or look for something else",
                placeholder="a red crate, a drone", info="classes, with commas between them", max_lines=2,
                visible=open_, elem_id="fv-prompts", elem_classes="fv-field",
            )  # fmt: skip
            threshold = gr.Slider(FLOOR, 0.95, 0.45, step=0.01, label="Threshold", elem_id="fv-threshold")
            strip = html(js=PICK, elem_id="fv-strip")
        with gr.Column(scale=7, min_width=300):
            said = html()
            boxes = html(show.note(NO_PICTURE), elem_id="fv-boxes")
            rows = html(elem_id="fv-rows")
    looked = gr.State(None)
    shown = [said, boxes, rows]

    async def look_at(data: bytes | Item, wanted: str | None, least: float) -> tuple[Looked | None, str, str, str]:
        names = [name.strip() for name in (wanted or "").split(",") if name.strip()] or None
        if names is None and not closed:
            return None, "", show.note("Name what to look for."), ""
        try:
            picture = await pixels(engine, data)
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
            item = await engine.item(told(event, "id"))
        except NotFound as error:
            return SKIP, None, "", show.problem(error), ""
        return item.uri, *(await look_at(item, wanted, least))

    async def examples() -> str:
        if not engine.archives:
            return ""
        name, _ = engine.archive()
        return show.strip(name, await engine.sample(EXAMPLES))

    at_work = busy(boxes)
    asked: list[Any] = [image, prompts, threshold]
    image.upload(upload, asked, [looked, *shown], **at_work).then(js=TO_RESULT)
    image.clear(upload, asked, [looked, *shown], **QUIET)
    prompts.submit(upload, asked, [looked, *shown], **at_work).then(js=TO_RESULT)
    threshold.input(_redrawn, [looked, threshold], shown, trigger_mode="always_last", **QUIET)
    strip.pick(example, [prompts, threshold], [image, looked, *shown], **at_work).then(js=TO_RESULT)
    page.load(examples, None, strip, **QUIET)


def _redrawn(looked: Looked | None, least: float) -> tuple[Any, Any, Any]:
    return (SKIP, SKIP, SKIP) if looked is None else _drawn(looked, least)


def _drawn(looked: Looked, least: float) -> tuple[str, str, str]:
    """Status, picture and table of what is at least this likely."""
    shown = looked.found.probabilities if looked.found.probabilities is not None else looked.found.scores
    found = looked.found[shown >= least]
    count = f"{len(found)} {'object' if len(found) == 1 else 'objects'}"
    line = show.status([count, looked.model, f"{looked.seconds * 1000:.0f} ms"])
    return line, show.picture(looked.href, looked.size, found), show.table(found)


def _ability(engine: Engine) -> str:
    classes = list(engine.model("detector")[1].classes)
    more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
    return f"Finds {', '.join(classes[:8])}{more}."
