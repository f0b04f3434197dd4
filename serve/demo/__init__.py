"""The pages to click on, in Gradio, mounted in the same application as the API.

Pages call the engine directly and show pictures through the API's own addresses. Nothing is loaded from elsewhere and
nothing is reported anywhere; all work without a network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import gradio as gr
from fastapi import FastAPI

from serve import fragments as show
from serve import look
from serve.calls import kind_of
from serve.demo import ask, curate, detect, models, review, search
from serve.demo.shared import facts, html
from serve.engine import Engine
from serve.reviewing import ReviewJob

Draw = Callable[[gr.Blocks], None]  # puts a page into what is being built


def mount(app: FastAPI, engine: Engine, job: ReviewJob | None = None) -> None:
    """Adds the pages to `app`, those that can work; the first at `/`."""
    blocks = build(engine, job)
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


def build(engine: Engine, job: ReviewJob | None = None) -> gr.Blocks:
    """The pages over an engine, and over a labelling job to review."""
    pages = _pages(engine, job)
    paths = {"/" if number == 0 else f"/{title.lower()}": title for number, title in enumerate(pages)}
    with gr.Blocks(title="Foveal", analytics_enabled=False, fill_width=True) as blocks:
        for title, draw in list(pages.items())[:1]:
            html(show.header(title, paths, facts(engine)))
            draw(blocks)
        if not pages:
            html(show.note("This server has nothing to show yet; see /openapi.json for its API."))
    for path, title in list(paths.items())[1:]:
        with blocks.route(title, path):
            html(show.header(title, paths, facts(engine)))
            pages[title](blocks)
    return blocks


def _pages(engine: Engine, job: ReviewJob | None) -> dict[str, Draw]:
    """The pages that can work, by title, in the order of the bar on top."""
    kinds = {kind_of(model) for model in engine.models.values()}
    found: dict[str, Draw] = {}
    if engine.archives:
        found["Search"] = lambda page: search.draw(engine, page)
    if kinds & {"detector", "open-detector"}:
        found["Detect"] = lambda page: detect.draw(engine, page)
    if "vlm" in kinds:
        found["Ask"] = lambda page: ask.draw(engine, page)
    if job is not None:
        found["Review"] = lambda page: review.draw(job, page)
    if engine.archives and next(iter(engine.archives)) in engine.archives.folders:
        found["Curate"] = lambda page: curate.draw(engine, page)
    if engine.models:
        found["Models"] = lambda page: models.draw(engine, page)
    return found
