"""Progress that long loops report to: a live bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import ProgressColumn, TaskID
    from rich.progress import Task as RichTask

T = TypeVar("T")


class Progress(Protocol):
    """What a long loop tells whoever watches; a `start` inside a running task opens a nested one."""

    def start(self, task: str, total: int | None) -> None:
        """Open a task of `total` steps, or of unknown length."""
        ...

    def advance(self, n: int = 1) -> None:
        """Count `n` more steps of the task opened last."""
        ...

    def note(self, text: str) -> None:
        """Say something once without disturbing the display."""
        ...

    def finish(self) -> None:
        """Close the task opened last."""
        ...


class SilentProgress:
    """Says nothing."""

    def start(self, task: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, n: int = 1) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


@dataclass(slots=True)
class _Task:
    name: str
    total: int | None
    started: float
    done: int = 0
    reported: float = field(default=0.0)
    bar: TaskID | None = None

    def summary(self, now: float) -> str:
        """`embed: 120/400, 38.2/s, 7 s left`."""
        seconds = max(now - self.started, 1e-9)
        rate = self.done / seconds
        parts = [f"{self.done}/{self.total}" if self.total is not None else str(self.done)]
        if self.done:
            parts.append(f"{rate:.3g}/s")
        if self.total is not None and 0 < self.done < self.total:
            parts.append(f"{(self.total - self.done) / rate:.0f} s left")
        return f"{self.name}: " + ", ".join(parts)


class RichProgress:
    """A live bar with rate and time left on a terminal; elsewhere one plain line every `interval` seconds.

    Writes to standard error, so that standard output stays free for results. Use it as a context manager: leaving it
    closes whatever an exception or Ctrl-C left open and gives the terminal back.
    """

    def __init__(self, console: Console | None = None, interval: float = 10.0) -> None:
        from rich.console import Console

        self.console = console or Console(file=sys.stderr, emoji=False)  # `bundled:owl: ` is a name
        self.interval = interval
        self._tasks: list[_Task] = []
        self._bars: RichBars | None = None

    def __enter__(self) -> RichProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self, task: str, total: int | None) -> None:
        """Open a task and show it."""
        now = time.monotonic()
        opened = _Task(task, total, started=now, reported=now)
        self._tasks.append(opened)
        if self.console.is_terminal:
            opened.bar = self._live().add_task(task, total=total)
        else:
            self._line(f"{task}: started" + (f", {total} to do" if total is not None else ""))

    def advance(self, n: int = 1) -> None:
        """Count `n` more steps of the task opened last; ignored when none is open."""
        if not self._tasks:
            return
        task = self._tasks[-1]
        task.done += n
        if self._bars is not None and task.bar is not None:
            self._bars.advance(task.bar, n)
        elif (now := time.monotonic()) - task.reported >= self.interval:
            task.reported = now
            self._line(task.summary(now))

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._line(text)

    def finish(self) -> None:
        """Close the task opened last, leaving one line with its rate and time."""
        if not self._tasks:
            return
        task = self._tasks.pop()
        if self._bars is not None and task.bar is not None:
            self._bars.remove_task(task.bar)
        now = time.monotonic()
        self._line(f"{task.summary(now)}, {now - task.started:.1f} s")
        if not self._tasks:
            self._stop()

    def close(self) -> None:
        """Drop every open task and give the terminal back."""
        self._tasks.clear()
        self._stop()

    def _live(self) -> RichBars:
        if self._bars is None:
            from rich.progress import Progress

            self._bars = Progress(*_columns(), console=self.console, transient=True)
            self._bars.start()
        return self._bars

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _columns() -> list[ProgressColumn]:
    """Name, bar, count, rate and time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: RichTask) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.3g}/s", style="progress.data.speed")

    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    ]


def track(progress: Progress | None, items: Iterable[T], task: str, total: int | None = None) -> Iterator[T]:
    """The items, each counted on `progress` once the caller is done with it; `None` counts nowhere."""
    if progress is None:
        yield from items
        return
    size = getattr(items, "__len__", None)
    progress.start(task, total if total is not None or size is None else size())
    try:
        for item in items:
            yield item
            progress.advance()
    finally:
        progress.finish()
