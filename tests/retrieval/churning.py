"""Changes an archive at random until it is killed: `python churning.py ARCHIVE WORK SEED`; begins at a line on stdin.

Says what it is about to do and what is done, a JSON line each, so that whoever kills it knows what was acknowledged.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import faiss
import numpy as np

from foveal.progress import SilentProgress
from retrieval.archive import Archive
from retrieval.ingest import identity
from retrieval.reembed import reembed
from tests.retrieval.pixels import PixelEncoder, write_images

CROWDED = 6000  # images from which a deletion takes half, so that one search can list them all


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


class Churn:
    """Random work on one archive, whichever encoder it has by now."""

    def __init__(self, path: Path, work: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.work, self.seed, self.count = work, seed, 0
        self.path = path

    def run(self) -> None:
        while True:
            archive = Archive.open(self.path)
            encoder = PixelEncoder(seed=int(archive.encoder.rpartition("-")[2]))
            name = self.random.choices(
                ["add", "vectors", "change", "delete", "compact", "rebuild", "reembed"], [8, 3, 3, 5, 2, 2, 1]
            )[0]
            getattr(self, name)(archive, encoder)
            self.count += 1

    def add(self, archive: Archive, encoder: PixelEncoder) -> None:
        folder = self.work / f"{self.seed}-{self.count}" / "images"
        files = write_images(folder, self.random.randint(1, 90), seed=self.seed * 1000 + self.count)
        ids = [identity(str(file)) for file in files]
        say(start="add", ids=ids)
        acknowledged = 0

        class Counting(SilentProgress):
            def advance(self, n: int = 1) -> None:
                nonlocal acknowledged
                say(done="add", ids=ids[acknowledged : acknowledged + n])
                acknowledged += n

        archive.add(folder, encoder, Counting())

    def vectors(self, archive: Archive, encoder: PixelEncoder) -> None:
        rows = np.random.default_rng(self.random.randrange(2**32)).standard_normal((300, encoder.dimension))
        uris = [f"mem://{self.seed}/{self.count}/{i}" for i in range(300)]
        say(start="add", ids=[identity(uri) for uri in uris])
        ids = archive.add_vectors(uris, rows.astype(np.float32), fingerprint=encoder.fingerprint)
        say(done="add", ids=ids)

    def change(self, archive: Archive, encoder: PixelEncoder) -> None:
        files = sorted(self.work.glob("*/images/*.png"))
        if not files:
            return
        file = self.random.choice(files)
        other = self.random.choice(files)
        say(start="add", ids=[identity(str(file))])
        file.write_bytes(other.read_bytes())
        # A kill while images were written has left some cut short, and those are not taken.
        if not archive.add(file, encoder).quarantined:
            say(done="add", ids=[identity(str(file))])

    def delete(self, archive: Archive, encoder: PixelEncoder) -> None:
        table = archive.snapshot().table
        ids = [key for batch in table.scan(["id"]) for key in batch["id"].to_pylist()]
        many = self.random.choice([1, 5, 60, 400]) if len(ids) < CROWDED else CROWDED // 2
        chosen = self.random.sample(ids, min(len(ids), many))
        say(start="delete", ids=chosen)
        archive.delete(chosen)
        say(done="delete", ids=chosen)

    def compact(self, archive: Archive, encoder: PixelEncoder) -> None:
        archive.compact()

    def rebuild(self, archive: Archive, encoder: PixelEncoder) -> None:
        archive.rebuild()

    def reembed(self, archive: Archive, encoder: PixelEncoder) -> None:
        other = PixelEncoder(seed=1 - int(encoder.name.rpartition("-")[2]))
        lost = [key for key, uri in self._uris(archive) if uri.startswith("mem://")]
        say(start="delete", ids=lost)  # vectors without a picture cannot be made anew
        reembed(archive, other, other.name, SilentProgress())
        say(done="delete", ids=lost)

    def _uris(self, archive: Archive) -> list[tuple[str, str]]:
        return [
            pair
            for batch in archive.snapshot().table.scan(["id", "uri"])
            for pair in zip(batch["id"].to_pylist(), batch["uri"].to_pylist(), strict=True)
        ]


if __name__ == "__main__":
    faiss.omp_set_num_threads(1)
    churn = Churn(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    say(ready=True)
    sys.stdin.readline()
    churn.run()
