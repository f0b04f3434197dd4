import io
import re

import pytest
from rich.console import Console

from foveal.progress import RichProgress, SilentProgress, track


def plain(interval: float = 10.0) -> tuple[RichProgress, io.StringIO]:
    out = io.StringIO()
    return RichProgress(Console(file=out, force_terminal=False, width=200), interval), out


def test_plain_lines_off_a_terminal() -> None:
    progress, out = plain()
    with progress:
        progress.start("embed [red]", 3)
        progress.advance(2)
        progress.note("one file skipped [/]")
        progress.advance()
        progress.finish()
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["embed [red]: started, 3 to do", "one file skipped [/]"]
    assert re.fullmatch(r"embed \[red\]: 3/3, \S+/s, \d+\.\d s", lines[2])
    assert "\x1b" not in out.getvalue()


def test_plain_lines_come_at_an_interval_with_time_left() -> None:
    progress, out = plain(interval=0)
    progress.start("work", 4)
    progress.advance()
    assert re.search(r"work: 1/4, \S+/s, \d+ s left", out.getvalue())
    progress, out = plain(interval=100)
    progress.start("work", None)
    for _ in range(50):
        progress.advance()
    progress.finish()
    assert len(out.getvalue().splitlines()) == 2
    assert "work: 50," in out.getvalue()


def test_tasks_nest_and_stray_calls_do_no_harm() -> None:
    progress, out = plain()
    progress.advance()
    progress.finish()
    progress.start("outer", 2)
    progress.start("inner", 1)
    progress.advance()
    progress.finish()
    progress.advance()
    progress.finish()
    assert [line.split(",")[0] for line in out.getvalue().splitlines()[2:]] == ["inner: 1/1", "outer: 1/2"]


def test_a_terminal_gets_a_bar_and_gets_its_cursor_back() -> None:
    out = io.StringIO()
    show, hide = "\x1b[?25h", "\x1b[?25l"

    def interrupted() -> None:
        with RichProgress(Console(file=out, force_terminal=True, width=100)) as progress:
            progress.start("embed", 10)
            progress.advance(4)
            progress.note("a note")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = out.getvalue()
    assert hide in text
    assert text.rindex(show) > text.rindex(hide)
    assert "4/10" in text
    assert "a note" in text


def test_track_counts_and_closes() -> None:
    progress, out = plain()
    assert list(track(progress, [1, 2], "count")) == [1, 2]
    assert "count: 2/2" in out.getvalue()
    for item in track(progress, iter("ab"), "letters"):
        assert item == "a"
        break
    assert list(track(None, "ab", "quiet")) == ["a", "b"]
    assert list(track(SilentProgress(), "ab", "quiet")) == ["a", "b"]
