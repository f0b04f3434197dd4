"""Adds a folder to an archive and prints how many files are acknowledged: `python adding.py ARCHIVE FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from foveal.progress import SilentProgress
from retrieval.archive import Archive
from tests.retrieval.pixels import PixelEncoder


class Acknowledged(SilentProgress):
    """Prints the running count of durable files, slowly enough to be killed between commits too."""

    def __init__(self) -> None:
        self.count = 0

    def advance(self, n: int = 1) -> None:
        self.count += n
        print(self.count, flush=True)
        time.sleep(0.02)


if __name__ == "__main__":
    path, folder = map(Path, sys.argv[1:])
    encoder = PixelEncoder()
    archive = Archive.open(path) if path.exists() else Archive.create(path, encoder)
    archive.add(folder, encoder, Acknowledged())
    print("done", flush=True)
