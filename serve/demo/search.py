"""*Search*: by words, by picture or a part of it, minus what is not meant; marks on hits, pages, and links."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from evals.look import data_uri
from foveal.errors import FovealError
from retrieval.results import Hit
from serve import fragments as show
from serve.demo.looking import MOST_K, MOST_MARKS, K, Looking, region_of
from serve.demo.shared import PICK, QUIET, SKIP, Picture, busy, counted, html, may_write, pixels, told, took
from serve.engine import Engine

SAMPLES = 24  # pictures shown before anything is searched for
SHOWN_SIDE = 640  # pixels of the picture that regions are drawn on
# A press on a mark shows at once; the server is told beside.
MARK = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-do], [data-id]');
  if (!button) return;
  if (button.hasAttribute('aria-pressed')) {
    const on = button.getAttribute('aria-pressed') !== 'true';
    for (const mark of button.parentElement.children) mark.setAttribute('aria-pressed', 'false');
    button.setAttribute('aria-pressed', String(on));
  }
  else if (button.dataset.do !== 'more') scrollTo({top: 0, behavior: 'smooth'});
  trigger('pick', {do: button.dataset.do || 'like', id: button.dataset.id || ''});
});"""
UP = "element.addEventListener('click', () => scrollTo({top: 0, behavior: 'smooth'}));"
# Dragging over the picture, by mouse or finger, draws the region to search with.
REGION = (
    PICK
    + """
let from = null, box = null;
const within = event => {
  const edge = element.querySelector('[data-region]').getBoundingClientRect();
  const share = value => Math.min(1, Math.max(0, value));
  return [share((event.clientX - edge.left) / edge.width), share((event.clientY - edge.top) / edge.height)];
};
element.addEventListener('pointerdown', event => {
  if (!event.target.closest('[data-region]')) return;
  event.preventDefault();
  from = within(event);
});
addEventListener('pointermove', event => {
  if (!from || !element.querySelector('[data-region]')) return;
  const to = within(event), drawn = element.querySelector('.fv-drawn');
  box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
  drawn.hidden = false;
  drawn.style.cssText = `left:${box[0] * 100}%;top:${box[1] * 100}%;width:${(box[2] - box[0]) * 100}%;` +
    `height:${(box[3] - box[1]) * 100}%`;
});
const end = () => {
  if (from && box) trigger('pick', {do: 'region', id: box.map(edge => edge.toFixed(4)).join(',')});
  from = box = null;
};
addEventListener('pointerup', end);
addEventListener('pointercancel', () => { from = box = null; });"""
)
# The page's address follows what is looked for; going back looks for what was there before.
LINK = """watch('value', () => {
  const link = element.querySelector('a');
  if (!link || 'still' in link.dataset || link.search === location.search) return;
  history.pushState(null, '', link.search || location.pathname);
});
addEventListener('popstate', () => trigger('open', {link: location.search}));"""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is on the page: what was looked for, what was found, and what the visitor marked."""

    asked: Looking = field(default_factory=Looking)
    hits: tuple[Hit, ...] = ()
    cursor: str | None = None  # for more
    status: tuple[str, ...] = ()
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    note: str = ""  # on the marks


Page = tuple[Any, ...]  # state, status, query bar, results, marks, link


class SearchPage:
    """What the page does; each method returns the state and the pieces of page that change."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.archive = engine.archive()

    async def find(self, asked: Looking) -> Page:
        """Looks for something, from the first page on."""
        if asked.empty:
            return await self._start(asked)
        began = time.perf_counter()
        try:
            name, found = await self.engine.search(await asked.query(self.engine))
        except FovealError as error:
            return Shown(asked), "", self._bar(asked), show.problem(error), "", show.link(asked.link)
        of = f"of {counted(found.kept, 'picture')}" + (" that fit the filter" if asked.where else "")
        status = [f"{len(found)} best {of}", took(began)]
        status += [f"{counted(found.collapsed, 'near-duplicate')} folded away"] if found.collapsed else []
        status += [f"although {found.reason}"] if found.reason and found.hits else []
        shown = Shown(
            asked, found.hits, found.cursor, (*status, *found.notes), liked=asked.liked, disliked=asked.disliked
        )
        results = self._results(name, shown) if found.hits else show.nothing(found.reason)
        return shown, show.status(shown.status), self._bar(asked), results, self._marks(shown), show.link(asked.link)

    async def more(self, shown: Shown) -> Page:
        """The next page below what is there."""
        if shown.cursor is None:
            return shown, SKIP, SKIP, SKIP, SKIP, SKIP
        try:
            name, found = await self.engine.search(await shown.asked.query(self.engine, shown.cursor))
        except FovealError as error:
            return shown, show.problem(error), SKIP, SKIP, SKIP, SKIP
        shown = replace(shown, hits=(*shown.hits, *found.hits), cursor=found.cursor)
        status = show.status([f"{len(shown.hits)} best", *shown.status[1:]])
        return shown, status, SKIP, self._results(name, shown), SKIP, SKIP

    async def mark(self, shown: Shown, id: str, right: bool, keep: bool) -> Page:
        """Marks a hit right or wrong, or takes the mark back; with `keep` for good, for `foveal archive calibrate`."""
        before = shown.liked if right else shown.disliked
        on = id not in before
        liked, disliked = (tuple(one for one in ids if one != id) for ids in (shown.liked, shown.disliked))
        if on and right:
            liked = (*liked, id)[-MOST_MARKS:]
        elif on:
            disliked = (*disliked, id)[-MOST_MARKS:]
        text, note = shown.asked.text, ""
        try:
            if text and keep and on:
                await self.engine.judge(text, [id] if right else [], [] if right else [id])
            elif text and keep:
                await self.engine.unjudge(text, [id])
            elif text:
                note = "Not kept: this key may not write."
        except FovealError as error:
            note = f"Not kept: {error.message}."
        shown = replace(shown, liked=liked, disliked=disliked, note=note)
        return shown, SKIP, SKIP, SKIP, self._marks(shown), SKIP

    async def act(self, what: str, id: str, shown: Shown, keep: bool) -> Page:
        """A click somewhere on the page."""
        asked = shown.asked
        if what in ("right", "wrong"):
            return await self.mark(shown, id, what == "right", keep)
        if what == "more":
            return await self.more(shown)
        if what == "refine":
            return await self.find(replace(asked, liked=shown.liked, disliked=shown.disliked))
        if what == "forget":
            return await self.find(replace(asked, liked=(), disliked=()))
        if what == "anyway":
            return await self.find(replace(asked, anyway=True))
        if what == "whole":
            return await self.find(replace(asked, region=None))
        if what == "remove":
            return await self.find(replace(asked, like="", image=None, region=None))
        if what == "region":
            region = region_of(id)
            return await self.find(replace(asked, region=region)) if region else self._still(shown)
        if what == "like":  # only that picture, among those that fit the filter
            return await self.find(Looking(like=id, where=asked.where, k=asked.k, fold=asked.fold))
        return self._still(shown)

    async def picture(self, path: str, shown: Shown) -> Page:
        """An uploaded file becomes the picture to be like."""
        try:
            image = await pixels(self.engine, Path(path).read_bytes())
        except FovealError as error:
            return shown, "", SKIP, show.problem(error), SKIP, SKIP
        return await self.find(replace(shown.asked, image=image, like="", region=None, liked=(), disliked=()))

    def _still(self, shown: Shown) -> Page:
        return shown, SKIP, self._bar(shown.asked), SKIP, SKIP, SKIP

    async def _start(self, asked: Looking) -> Page:
        try:
            items = await self.engine.sample(SAMPLES)
        except FovealError as error:
            return Shown(asked), "", "", show.problem(error), "", show.link("?")
        if not items:
            said = "The archive is empty. Add pictures with: foveal archive add FOLDER --archive DIR"
            return Shown(asked), "", "", show.note(said), "", show.link("?")
        status = show.status(["a look around; pick a picture to see more like it"])
        cards = show.samples(self.name, items, "more like this one")
        return Shown(asked), status, "", cards, "", show.link(asked.link)

    def _bar(self, asked: Looking) -> str:
        if asked.image is not None:
            href = data_uri(asked.image, SHOWN_SIDE)
        elif asked.like:
            href = show.address(self.name, asked.like, SHOWN_SIDE)
        else:
            return ""
        return show.query_picture(href, asked.region, uploaded=asked.image is not None)

    def _results(self, name: str, shown: Shown) -> str:
        marks = dict.fromkeys(shown.liked, True) | dict.fromkeys(shown.disliked, False)
        return show.hits(name, shown.hits, marks=marks, more=shown.cursor is not None)

    def _marks(self, shown: Shown) -> str:
        changed = (shown.liked, shown.disliked) != (shown.asked.liked, shown.asked.disliked)
        return show.marks(len(shown.liked), len(shown.disliked), changed=changed, note=shown.note)


def draw(engine: Engine, page: gr.Blocks) -> None:
    """Puts the page into what is being built."""
    it = SearchPage(engine)
    columns = [key for key in it.archive.columns if key not in ("id", "uri", "content_hash")]
    html(show.heading("Search", f"{len(it.archive):,} pictures: describe one, or show one like it."))
    with gr.Row(elem_classes="fv-ask", equal_height=True):
        words = gr.Textbox(
            placeholder="Describe what you are looking for", show_label=False, container=False, scale=8, autofocus=True,
            elem_id="fv-words", max_lines=1,
        )  # fmt: skip
        go = gr.Button("Search", variant="primary", scale=1, min_width=110)
    bar = html(js=REGION, elem_id="fv-query")
    drawer = gr.Accordion("Refine, or search with a picture", open=False, elem_classes="fv-refine")
    with drawer, gr.Row():
        image = Picture(
            label="Like this picture", type="filepath", sources=["upload", "clipboard"], height=230, min_width=220,
            buttons=[], elem_id="fv-image",
        )  # fmt: skip
        with gr.Column(min_width=220):
            minus = _line("But not", "what it should not show", "fv-minus")
            exact = _line("With the words", "in names, captions and labels", "fv-exact")
            where = _line(
                "Only where", filter_example(it.archive.columns, columns), "fv-filter", f"columns: {', '.join(columns)}"
            )
        with gr.Column(min_width=220):
            k = gr.Slider(1, MOST_K, K, step=1, label="How many at a time")
            share = gr.Slider(0, 1, 0.5, step=0.05, label="Words or picture", info="0 is all words, 1 all picture")
            fold = gr.Checkbox(label="Show one of near-duplicates", elem_id="fv-fold")
    said = html()
    results = html(js=MARK, elem_id="fv-results")
    marks = html(js=PICK + UP, elem_id="fv-marks")
    link = html(js=LINK, elem_id="fv-link")
    opened = gr.Textbox(visible=False)
    state = gr.State(Shown())
    fields: list[Any] = [words, minus, exact, where, k, share, fold]
    shown = [state, said, bar, results, marks, link]

    async def find(
        text: str, without: str, matching: str, condition: str, count: float, picture: float, folded: bool, now: Shown
    ) -> Page:
        asked = replace(
            now.asked, text=_clean(text), minus=_clean(without), words=_clean(matching), where=_clean(condition),
            k=int(count), share=picture, fold=folded, anyway=False,
        )  # fmt: skip
        if asked.text != now.asked.text:  # marks say what is right for a text
            asked = replace(asked, liked=(), disliked=())
        return await it.find(asked)

    async def upload(path: str, now: Shown) -> Page:
        return None, *(await it.picture(path, now))

    async def act(event: gr.EventData, now: Shown, request: gr.Request) -> Page:
        found = await it.act(told(event, "do"), told(event, "id"), now, may_write(request))
        return *_fields(found[0].asked)[:1], *found

    async def restore(address: str) -> Page:
        asked = _looking(address)
        usual = _fields(Looking())
        # What stays as it is isn't sent: fields in the drawer take a value once it opens, over what is typed by then.
        values = tuple(SKIP if value == usual[i] else value for i, value in enumerate(_fields(asked)))
        opened = SKIP if _fields(asked)[1:] == usual[1:] else gr.Accordion(open=True)
        return opened, *values, *(await it.find(asked))

    async def back(event: gr.EventData) -> Page:
        asked = _looking(told(event, "link"))
        found = await it.find(asked)
        return *_fields(asked), *found[:-1], show.link(asked.link, still=True)

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
    image.upload(upload, [image, state], [image, *shown], **at_work)
    for piece in (results, bar, marks):
        piece.pick(act, [state], [words, *shown], **at_work)
    link.open(back, None, [*fields, *shown], trigger_mode="multiple", **at_work)
    page.load(restore, [opened], [drawer, *fields, *shown], js="() => [location.search]", **QUIET)


def filter_example(kinds: Mapping[str, str], columns: Sequence[str]) -> str:
    """A filter over columns that are there."""
    own = [name for name in columns if name not in ("width", "height")]
    words = [f"{name} = '...'" for name in own if kinds[name] == "text"]
    numbers = [f"{name} >= ..." for name in own if kinds[name] == "number"]
    return " AND ".join([*words[:1], *numbers[:1]]) or "width >= 640"


def _line(label: str, placeholder: str, id: str, info: str | None = None) -> gr.Textbox:
    return gr.Textbox(label=label, placeholder=placeholder, max_lines=1, info=info, elem_id=id, elem_classes="fv-field")


def _clean(text: str | None) -> str:
    return (text or "").strip()


def _looking(address: str) -> Looking:
    return Looking.of_link(dict(parse_qsl(address.lstrip("?"))))


def _fields(asked: Looking) -> Page:
    """The values of the page's fields."""
    return asked.text, asked.minus, asked.words, asked.where, asked.k, asked.share, asked.fold
