"""What the search page does with what a visitor asks for, clicks on, marks and uploads."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evals.look import data_uri
from foveal.errors import FovealError
from retrieval.results import Hit
from serve import fragments as show
from serve.demo import search_fragments as drawn
from serve.demo.looking import MOST_MARKS, Looking, region_of
from serve.demo.shared import SKIP, counted, pixels, took
from serve.engine import Engine

SAMPLES = 24  # pictures shown before anything is searched for
SHOWN_SIDE = 640  # pixels of the picture that regions are drawn on


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
        self.names = list(engine.archives)

    def name(self, asked: Looking) -> str:
        """Of the archive that is looked in."""
        return asked.archive or self.names[0]

    async def find(self, asked: Looking) -> Page:
        """Looks for something, from the first page on."""
        if asked.empty:
            return await self._start(asked)
        began = time.perf_counter()
        try:
            name, found = await self.engine.search(await asked.query(self.engine), asked.archive or None)
        except FovealError as error:
            return Shown(asked), "", self._bar(asked), show.problem(error), "", drawn.link(asked.link)
        of = f"of {counted(found.kept, 'picture')}" + (" that fit the filter" if asked.where else "")
        status = [f"{len(found)} best {of}", took(began)]
        status += [f"{counted(found.collapsed, 'near-duplicate')} folded away"] if found.collapsed else []
        status += [f"although {found.reason}"] if found.reason and found.hits else []
        shown = Shown(
            asked, found.hits, found.cursor, (*status, *found.notes), liked=asked.liked, disliked=asked.disliked
        )
        results = self._results(name, shown) if found.hits else drawn.nothing(found.reason)
        return shown, show.status(shown.status), self._bar(asked), results, self._marks(shown), drawn.link(asked.link)

    async def more(self, shown: Shown) -> Page:
        """The next page below what is there."""
        if shown.cursor is None:
            return shown, SKIP, SKIP, SKIP, SKIP, SKIP
        try:
            name, found = await self.engine.search(
                await shown.asked.query(self.engine, shown.cursor), shown.asked.archive or None
            )
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
        text, where, note = shown.asked.text, shown.asked.archive or None, ""
        try:
            if text and keep and on:
                await self.engine.judge(text, [id] if right else [], [] if right else [id], where)
            elif text and keep:
                await self.engine.unjudge(text, [id], where)
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
            return await self.find(
                Looking(archive=asked.archive, like=id, where=asked.where, k=asked.k, fold=asked.fold)
            )
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
            items = await self.engine.sample(SAMPLES, asked.archive or None)
        except FovealError as error:
            return Shown(asked), "", "", show.problem(error), "", drawn.link("?")
        if not items:
            said = "The archive is empty. Add pictures with: foveal archive add FOLDER --archive DIR"
            return Shown(asked), "", "", show.note(said), "", drawn.link("?")
        status = show.status(["a look around; pick a picture to see more like it"])
        cards = show.samples(self.name(asked), items, "more like this one")
        return Shown(asked), status, "", cards, "", drawn.link(asked.link)

    def _bar(self, asked: Looking) -> str:
        if asked.image is not None:
            href = data_uri(asked.image, SHOWN_SIDE)
        elif asked.like:
            href = show.address(self.name(asked), asked.like, SHOWN_SIDE)
        else:
            return ""
        return drawn.query_picture(href, asked.region, uploaded=asked.image is not None)

    def _results(self, name: str, shown: Shown) -> str:
        marks = dict.fromkeys(shown.liked, True) | dict.fromkeys(shown.disliked, False)
        return drawn.hits(name, shown.hits, marks=marks, more=shown.cursor is not None)

    def _marks(self, shown: Shown) -> str:
        changed = (shown.liked, shown.disliked) != (shown.asked.liked, shown.asked.disliked)
        return drawn.marks(len(shown.liked), len(shown.disliked), changed=changed, note=shown.note)
