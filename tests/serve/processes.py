"""A server as a process of its own, whose disk can be made full."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.serve.conftest import draw

ROOT = Path(__file__).parents[2]
UNLIMITED = resource.RLIM_INFINITY
SERVER = """
import sys
from pathlib import Path
from retrieval.archive import Archive
from serve.app import create_app
from serve.audit import Audit
from serve.corrections import Corrections
from serve.server import serve
from tests.serve.conftest import ColourEncoder
archive, state = sys.argv[1:]
app = create_app(
    archive=Archive.open(Path(archive)), encoder=ColourEncoder(),
    corrections=Corrections(Path(state) / "corrections.sqlite"), audit=Audit(Path(state) / "audit.jsonl"),
)
serve(app, port=0, on_ready=lambda url: print(url, flush=True))
"""


def png(width: int = 30) -> bytes:
    """A picture of something red, of this width."""
    file = io.BytesIO()
    draw(("red", (4, 4, width, 30))).save(file, "png")
    return file.getvalue()


def program(code: str, *words: object) -> subprocess.Popen[str]:
    """Runs Python code."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextmanager
def served(depot: Path, state: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """A server as a process of its own, and its address."""
    process = program(SERVER, depot, state)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@contextmanager
def full(process: subprocess.Popen[str], size: int) -> Generator[None]:
    """The process may write no file beyond a size: as on a full disk, some of a write may go through."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
