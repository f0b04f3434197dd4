"""A server of several processes over the colour models, as a program of its own."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI

from foveal.errors import BadInput
from retrieval.archive import Archive
from serve.app import create_app
from serve.keys import Keys
from serve.spending import Spending
from serve.workers import serve_many
from tests.serve.conftest import ColourDetector, ColourEncoder


@dataclass(frozen=True)
class Crew:
    """What each process serves."""

    depot: Path
    keys: Path
    together: Path

    @contextmanager
    def application(self) -> Generator[FastAPI]:
        if not self.depot.exists():
            raise BadInput(f"there is no archive {self.depot}")
        keys = Keys(self.keys, Spending(self.together / "spending.sqlite"))
        store = Archive.open(self.depot)
        yield create_app(archive=store, encoder=ColourEncoder(), detector=ColourDetector(), keys=keys)


def main(depot: str, keys: str) -> None:
    with TemporaryDirectory() as folder:
        together = Path(folder)
        build = Crew(Path(depot), Path(keys), together).application
        serve_many(build, 2, port=0, together=together, on_ready=lambda url: print(url, flush=True))
    print("ended", flush=True)


if __name__ == "__main__":
    from tests.serve import crew  # by this name the processes find it

    crew.main(*sys.argv[1:])
