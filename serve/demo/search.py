"""*Search*: by words, by picture or a part of it, minus what is not meant; marks on hits, pages, and links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from retrieval.stores import AnyArchive
from serve import fragments as show
from serve.demo import search_fragments as drawn
from serve.demo.finding import Page, SearchPage, Shown
from serve.demo.looking import MOST_K, K, Looking
from serve.demo.scripts import LINK, MARK, PICK, REGION, UP
from serve.demo.shared import QUIET, SKIP, Picture, busy, html, may_write, note_change, told
from serve.engine import Engine


def draw(engine: Engine, page: gr.Blocks) -> None:
    """Puts the page into what is being built."""
    it = SearchPage(engine)
    many = len(it.names) > 1
    count = sum(len(store) for store in engine.archives.values())
    html(show.heading("Search", f"{count:,} pictures: describe one, or show one like it."))
    with gr.Row(elem_classes="fv-ask", equal_height=True):
        words = gr.Textbox(
            placeholder="Describe what you are looking for", show_label=False, container=False, scale=8, autofocus=True,
            elem_id="fv-words", max_lines=1,
        )  # fmt: skip
        go = gr.Button("Search", variant="primary", scale=1, min_width=110)
    bar = html(js=REGION, elem_id="fv-query")
    here = it.names[0] in engine.archives.folders
    example, columns = filters(engine.archives[it.names[0]])
    drawer = gr.Accordion("Refine, or search with a picture", open=False, elem_classes="fv-refine")
    with drawer, gr.Row():
        image = Picture(
            label="Like this picture", type="filepath", sources=["upload", "clipboard"], height=230, min_width=220,
            buttons=[], elem_id="fv-image",
        )  # fmt: skip
        with gr.Column(min_width=220):
            minus = _line("But not", "what it should not show", "fv-minus")
            exact = _line("With the words", "in names, captions and labels", "fv-exact", visible=here)
            where = _line("Only where", example, "fv-filter", columns)
        with gr.Column(min_width=220):
            archive = gr.Dropdown(
                [(name, "" if number == 0 else name) for number, name in enumerate(it.names)], value="",
                label="Archive", visible=many, elem_id="fv-archive",
            )  # fmt: skip
            k = gr.Slider(1, MOST_K, K, step=1, label="How many at a time")
            share = gr.Slider(0, 1, 0.5, step=0.05, label="Words or picture", info="0 is all words, 1 all picture")
            fold = gr.Checkbox(label="Show one of near-duplicates", elem_id="fv-fold", visible=here)
    said = html()
    results = html(js=MARK, elem_id="fv-results")
    marks = html(js=PICK + UP, elem_id="fv-marks")
    link = html(js=LINK, elem_id="fv-link")
    opened = gr.Textbox(visible=False)
    state = gr.State(Shown())
    fields: list[Any] = [words, minus, exact, where, k, share, fold, archive]
    shown = [state, said, bar, results, marks, link]

    async def find(
        text: str, without: str, matching: str, condition: str, count: float, picture: float, folded: bool,
        place: str | None, now: Shown,
    ) -> Page:  # fmt: skip
        asked = replace(
            now.asked, text=_clean(text), minus=_clean(without), words=_clean(matching), where=_clean(condition),
            k=int(count), share=picture, fold=folded, anyway=False, archive=place or "",
        )  # fmt: skip
        if asked.text != now.asked.text:  # marks say what is right for a text
            asked = replace(asked, liked=(), disliked=())
        return await it.find(asked)

    def values(asked: Looking) -> Page:
        """Of the fields; with several archives also what those can do that is looked in."""
        found = list(_fields(asked))
        if not many or it.name(asked) not in it.names:
            return *found[:-1], SKIP
        example, columns = filters(engine.archives[it.name(asked)])
        here = it.name(asked) in engine.archives.folders
        found[2] = gr.Textbox(asked.words, visible=here)
        found[3] = gr.Textbox(asked.where, placeholder=example, info=columns)
        found[6] = gr.Checkbox(asked.fold, visible=here)
        return tuple(found)

    async def turn(place: str | None, now: Shown) -> Page:
        """To another archive, with what can be looked for there too."""
        asked = replace(now.asked, archive=place or "", like="", region=None, liked=(), disliked=())
        if it.name(asked) not in engine.archives.folders:
            asked = replace(asked, words="", fold=False)
        return *values(asked), *(await it.find(asked))

    async def upload(path: str, now: Shown) -> Page:
        return None, *(await it.picture(path, now))

    async def act(event: gr.EventData, now: Shown, request: gr.Request) -> Page:
        do, id, may = told(event, "do"), told(event, "id"), may_write(request)
        found = await it.act(do, id, now, may)
        if do in ("right", "wrong") and may and now.asked.text and not found[0].note:
            await note_change(request, f"/search/{do}", it.name(now.asked), [id])
        return *_fields(found[0].asked)[:1], *found

    async def restore(address: str) -> Page:
        asked = _looking(address)
        usual = _fields(Looking())
        # What stays as it is isn't sent: fields in the drawer take a value once it opens, over what is typed by then.
        told = tuple(SKIP if value == usual[i] else value for i, value in enumerate(_fields(asked)))
        opened = SKIP if _fields(asked)[1:] == usual[1:] else gr.Accordion(open=True)
        return opened, *(values(asked) if asked.archive else told), *(await it.find(asked))

    async def back(event: gr.EventData) -> Page:
        asked = _looking(told(event, "link"))
        found = await it.find(asked)
        return *values(asked), *found[:-1], drawn.link(asked.link, still=True)

    at_work = busy(results)
    for event in (
        words.submit,
        go.click,
        minus.submit,
        exact.submit,
        where.submit,
        k.release,
        share.release,
        fold.input,
    ):
        event(find, [*fields, state], shown, **at_work)
    archive.input(turn, [archive, state], [*fields, *shown], **at_work)
    image.upload(upload, [image, state], [image, *shown], **at_work)
    for piece in (results, bar, marks):
        piece.pick(act, [state], [words, *shown], **at_work)
    link.open(back, None, [*fields, *shown], trigger_mode="multiple", **at_work)
    page.load(restore, [opened], [drawer, *fields, *shown], js="() => [location.search]", **QUIET)


def filters(store: AnyArchive) -> tuple[str, str]:
    """(A filter over columns that an archive has, which those are)."""
    kinds = store.columns
    columns = [key for key in kinds if key not in ("id", "uri", "content_hash")]
    return filter_example(kinds, columns), f"columns: {', '.join(columns)}"


def filter_example(kinds: Mapping[str, str], columns: Sequence[str]) -> str:
    """A filter over columns that are there."""
    own = [name for name in columns if name not in ("width", "height")]
    words = [f"{name} = '...'" for name in own if kinds[name] == "text"]
    numbers = [f"{name} >= ..." for name in own if kinds[name] == "number"]
    return " AND ".join([*words[:1], *numbers[:1]]) or "width >= 640"


def _line(label: str, placeholder: str, id: str, info: str | None = None, *, visible: bool = True) -> gr.Textbox:
    return gr.Textbox(
        label=label, placeholder=placeholder, max_lines=1, info=info, elem_id=id, elem_classes="fv-field",
        visible=visible,
    )  # fmt: skip


def _clean(text: str | None) -> str:
    return (text or "").strip()


def _looking(address: str) -> Looking:
    return Looking.of_link(dict(parse_qsl(address.lstrip("?"))))


def _fields(asked: Looking) -> Page:
    """The values of the page's fields."""
    return asked.text, asked.minus, asked.words, asked.where, asked.k, asked.share, asked.fold, asked.archive
