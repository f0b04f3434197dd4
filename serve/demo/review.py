"""*Review*: a labelling job's doubtful boxes, one after the other, by keyboard, mouse or finger."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import gradio as gr

from evals.look import data_uri
from foveal.errors import BadInput, FovealError
from serve import fragments as show
from serve.demo import review_fragments as drawn
from serve.demo.scripts import REVIEW
from serve.demo.shared import OURS, counted, html, may_write, note_change, told
from serve.reviewing import Case, ReviewJob

SHOWN_SIDE = 1280  # pixels of the picture on the page
THUMBNAIL_SIDE = 128
AWAY = 180.0  # seconds after which somebody who does nothing no longer holds a picture
Step = tuple[Any, ...]  # place in the queue, status, picture and panel


@dataclass(frozen=True, slots=True)
class Said:
    """What the browser tells of the box at hand."""

    do: str
    number: int = -1
    label: str | None = None
    place: tuple[float, ...] | None = None

    @classmethod
    def of(cls, do: str, text: str) -> Said:
        """From what came with the event; BadInput where it is not what the page sends."""
        try:
            data: dict[str, Any] = json.loads(text or "{}")
            place = data.get("box")
            return cls(
                do,
                int(data.get("case", -1)),
                None if data.get("label") is None else str(data["label"]),
                None if place is None else tuple(float(edge) for edge in place),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInput("what the page sent cannot be read", remedy="Reload the page.") from error


class ReviewPage:
    """What the page does; decisions are kept before the next box is shown."""

    def __init__(self, job: ReviewJob) -> None:
        self.job = job
        self._at_work: dict[str, tuple[str, float]] = {}  # visitor -> the picture shown last, and when

    async def start(self, who: str = "") -> Step:
        """The first open box, of a picture that nobody else is at."""
        return await self._next(0, who)

    async def act(self, said: Said, at: int, keep: bool, who: str = "") -> Step:
        """A decision, or a step through the queue.

        Args:
            keep: whether the visitor's key may write.
            who: the visitor, so that two are not shown the same picture.
        """
        cases = self.job.cases
        if said.do in ("next", "back"):
            step = 1 if said.do == "next" else -1
            return await self._at(cases[(at + step) % len(cases)], who) if cases else await self._next(0, who)
        if not keep:
            return await self._still(at, BadInput("this key may look at the queue, and not decide", remedy=_WRITE))
        try:
            if said.do == "undo":
                case = await anyio.to_thread.run_sync(self.job.undo)
                return await (self._next(at, who) if case is None else self._at(case, who))
            if not 0 <= said.number < len(cases):
                raise BadInput("there is no such box in the queue", remedy="Reload the page.")
            case = cases[said.number]
            await anyio.to_thread.run_sync(
                lambda: self.job.decide(case, keep=said.do == "accept", label=said.label, place=said.place)
            )
        except FovealError as error:
            return await self._still(at, error)
        return await self._next(said.number + 1, who)

    async def _next(self, number: int, who: str) -> Step:
        now = time.monotonic()
        self._at_work = {name: held for name, held in self._at_work.items() if now - held[1] < AWAY}
        case = self.job.open_after(number, {image for name, (image, _) in self._at_work.items() if name != who})
        if case is not None:
            return await self._at(case, who)
        what = "Every doubtful box is decided" if self.job.cases else "This job left nothing in doubt"
        back = "foveal prelabel import takes finished pictures back."
        undo = drawn.undo() if self.job.cases else ""
        return number, self._status(), show.note(f"{what}. {back}") + undo

    async def _still(self, at: int, error: FovealError) -> Step:
        if not 0 <= at < len(self.job.cases):
            return at, show.problem(error), ""
        panel = await anyio.to_thread.run_sync(self._panel, self.job.cases[at])
        return at, show.problem(error), panel

    async def _at(self, case: Case, who: str = "") -> Step:
        self._at_work[who] = case.image, time.monotonic()
        panel = await anyio.to_thread.run_sync(self._panel, case)
        return case.number, self._status(), panel

    def _status(self) -> str:
        now = self.job.progress
        return drawn.progress(
            now.decided / now.boxes if now.boxes else 1.0,
            [
                f"{now.decided:,} of {counted(now.boxes, 'box', 'boxes')} decided",
                f"{now.finished:,} of {counted(now.pictures, 'picture')} finished",
            ],
        )

    def _panel(self, case: Case) -> str:
        record, said = self.job.record(case), self.job.decision(case)
        try:
            href = data_uri(self.job.picture(case), SHOWN_SIDE, quality=88)
        except FovealError as error:
            return drawn.missing(show.problem(error))
        near = [
            drawn.Near(
                one["label"], one["similarity"], one["supports"],
                None if (crop := self.job.thumbnail(one["id"])) is None else data_uri(crop, THUMBNAIL_SIDE),
            )
            for one in record["neighbours"]
        ]  # fmt: skip
        return drawn.panel(
            case.number, case.image, href, self.job.size(case),
            record["box"] if said is None else said.place, record["label"] if said is None else said.label,
            record, None if said is None else ("kept" if said.keep else "rejected"),
            self.job.classes, self.job.others(case), near,
        )  # fmt: skip


_WRITE = "A key with the verb write decides."


def draw(job: ReviewJob, page: gr.Blocks) -> None:
    """Puts the page into what is being built."""
    it = ReviewPage(job)
    html(show.heading("Review", "What the labelling job was not sure of, the most valuable pictures first."))
    said = html()
    panel = html(js=REVIEW, elem_id="fv-review")
    at = gr.State(0)
    shown = [at, said, panel]
    at_work: dict[str, Any] = {**OURS, "show_progress": "minimal", "show_progress_on": said}

    async def act(event: gr.EventData, number: int, request: gr.Request) -> Step:
        try:
            asked = Said.of(told(event, "do"), told(event, "said"))
        except FovealError as error:
            return number, show.problem(error), gr.skip()  # pyright: ignore[reportUnknownMemberType]
        before = job.changes
        found = await it.act(asked, number, may_write(request), request.session_hash or "")
        if may_write(request) and job.changes != before and asked.do in ("accept", "reject", "undo"):
            place = asked.number if asked.do != "undo" else found[0]
            await note_change(request, f"/review/{asked.do}", job.project, [job.cases[place].image])
        return found

    async def start(request: gr.Request) -> Step:
        return await it.start(request.session_hash or "")

    panel.pick(act, [at], shown, trigger_mode="multiple", **at_work)
    page.load(start, None, shown, **at_work)
