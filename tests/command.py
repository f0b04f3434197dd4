"""The `foveal` command as a test calls it: the real `main()` in this process, with its output and exit code."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

import typer

from foveal.cli import app, main

COMMAND: Any = typer.main.get_command(app)
ENTRY = (sys.executable, "-c", "from foveal.cli import main; main()")  # for a process of its own


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line, as `--json` promises."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def error(self) -> str:
        """The line that says what is wrong: the last one, and the only one that begins with `error:`."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.err
        assert "Traceback" not in self.err + self.out
        return lines[-1]


def foveal(*args: str) -> Outcome:
    """Run one command line."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["foveal", *args]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def shell(*args: str) -> Sequence[str]:
    """The argument list that runs one command line in a process of its own."""
    return [*ENTRY, *args]


def parse(line: Sequence[str]) -> Any:
    """The innermost context of a command line that is parsed and type-checked but not run."""
    context = COMMAND.make_context("foveal", list(line))
    while hasattr(context.command, "commands"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context
