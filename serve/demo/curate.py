"""*Curate*: copies, odd ones out and clusters of an archive; pictures leave it only once that is confirmed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from foveal.errors import FovealError
from retrieval.curate.clusters import Clusters
from retrieval.curate.duplicates import Duplicates
from retrieval.curate.outliers import Outliers
from serve import fragments as show
from serve.curating import Curated, Found, What
from serve.demo import curate_fragments as drawn
from serve.demo.scripts import PICK
from serve.demo.shared import OURS, QUIET, SKIP, counted, html, may_write, note_change, told
from serve.engine import ITEM_ID, Engine

WHATS: dict[str, What] = {"Copies": "duplicates", "Odd ones out": "outliers", "Clusters": "clusters"}
PAGE = 24  # groups shown at first, and more each time
MOST_AT_ONCE = 200  # pictures taken out by one confirmation


@dataclass(frozen=True, slots=True)
class Seen:
    """What is on the page, and what is to be confirmed."""

    what: What = "duplicates"
    found: Found | None = None
    shown: int = PAGE
    gone: frozenset[str] = frozenset()  # taken out since it was worked out
    asked: tuple[str, ...] = ()  # to be taken out, once confirmed


Step = tuple[Any, ...]  # state, status, question, findings


class CuratePage:
    """What the page does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.curated = Curated(engine)
        self.name, self.archive = engine.archives.folder()

    async def look(self, what: What) -> AsyncGenerator[Step]:
        """That it is being worked out, then what was found."""
        count = counted(len(self.archive), "picture")
        yield (
            Seen(what),
            show.status([f"going through {count}; this is done once, until the archive changes"]),
            "",
            SKIP,
        )
        try:
            found = await self.curated.find(what)
        except FovealError as error:
            yield Seen(what), "", "", show.problem(error)
            return
        seen = Seen(what, found)
        yield seen, show.status(self._summary(found)), "", self._drawn(seen)

    async def act(self, do: str, id: str, seen: Seen, may: bool) -> Step:
        """A click: more, to ask whether pictures shall leave the archive, and to do so or not.

        Args:
            id: the pictures to ask about, ids with commas between them.
            may: whether the visitor's key may write.
        """
        if do == "more":
            seen = replace(seen, shown=seen.shown + PAGE)
            return seen, SKIP, SKIP, self._drawn(seen)
        if do == "ask":
            ids = tuple(one for one in id.split(",") if ITEM_ID.fullmatch(one) and one in self._known(seen))
            asked = replace(seen, asked=ids[:MOST_AT_ONCE])
            return asked, SKIP, drawn.question(self.name, asked.asked, may) if ids else "", SKIP
        if do == "yes" and seen.asked:
            return await self._take_out(seen, may)
        return replace(seen, asked=()), SKIP, "", SKIP

    async def _take_out(self, seen: Seen, may: bool) -> Step:
        if not may:
            return replace(seen, asked=()), SKIP, drawn.question(self.name, seen.asked, may), SKIP
        gone: list[str] = []
        problem = ""
        for id in seen.asked:
            try:
                await self.engine.delete(id)
            except FovealError as error:
                problem = show.problem(error)
                break
            gone.append(id)
        seen = replace(seen, asked=(), gone=seen.gone | set(gone))
        said = show.status([f"{counted(len(gone), 'picture')} taken out of the archive"])
        return seen, said, problem, self._drawn(seen)

    def _known(self, seen: Seen) -> set[str]:
        """What may be asked about: what is on the page."""
        if isinstance(seen.found, Duplicates):
            return set(seen.found.extra) - seen.gone
        if isinstance(seen.found, Outliers):
            return {outlier.image.id for outlier in seen.found.found} - seen.gone
        return set()

    @staticmethod
    def _summary(found: Found) -> Sequence[str]:
        of = f"in {counted(found.images, 'picture')}"
        if isinstance(found, Duplicates):
            groups = counted(len(found.groups), "group")
            return [f"{groups} of copies {of}", f"{counted(len(found.extra), 'picture')} more than needed"]
        if isinstance(found, Outliers):
            return [
                f"the {counted(len(found.found), 'picture')} that lie apart the most {of}",
                "1 is usual; 2 is twice as far from its neighbours as they are from each other",
            ]
        return [f"{counted(len(found.clusters), 'cluster')} {of}"]

    def _drawn(self, seen: Seen) -> str:
        found, end = seen.found, seen.shown
        if isinstance(found, Duplicates):
            groups = [(g.keep.id, [c.id for c in g.rest if c.id not in seen.gone], g.exact) for g in found.groups]
            left = [group for group in groups if group[1]]
            none = "No picture is there twice."
            return drawn.findings([drawn.copies(self.name, *group) for group in left[:end]], len(left) > end, none)
        if isinstance(found, Outliers):
            odd = [one for one in found.found if one.image.id not in seen.gone]
            cards = [drawn.odd(self.name, one.image.id, one.nearest.id, one.score) for one in odd[:end]]
            return drawn.findings(cards, len(odd) > end, "Nothing lies apart.", grid=True)
        if isinstance(found, Clusters):
            made = [
                drawn.cluster(self.name, [p.id for p in c.images], [n.text for n in c.names], c.size, c.share)
                for c in found.clusters
            ]
            return drawn.findings(made[:end], len(made) > end, "There are no clusters.")
        return ""


def draw(engine: Engine, page: gr.Blocks) -> None:
    """Puts the page into what is being built."""
    it = CuratePage(engine)
    html(show.heading("Curate", "What is there twice, what lies apart, and what the archive is made of."))
    choice = gr.Radio(list(WHATS), value="Copies", show_label=False, container=False, elem_id="fv-mode")
    said = html()
    question = html(js=PICK, elem_id="fv-question")
    findings = html(js=PICK, elem_id="fv-findings")
    state = gr.State(Seen())
    shown = [state, said, question, findings]
    at_work: dict[str, Any] = {**OURS, "show_progress": "minimal", "show_progress_on": said}

    async def look(what: str) -> AsyncGenerator[Step]:
        async for step in it.look(WHATS.get(what, "duplicates")):
            yield step

    async def act(event: gr.EventData, seen: Seen, request: gr.Request) -> Step:
        do = told(event, "do")
        found = await it.act(do, told(event, "id"), seen, may_write(request))
        await note_change(request, f"/curate/{do}", it.name, found[0].gone - seen.gone)
        return found

    choice.input(look, [choice], shown, **at_work)
    for piece in (findings, question):
        piece.pick(act, [state], shown, **QUIET)
    page.load(look, [choice], shown, **at_work)
