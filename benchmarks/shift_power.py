"""How often the two tests of `foveal eval shift` cry wolf, and how small a shift they see, on bundled CLIP embeddings.

    python -m benchmarks.shift_power --out runs/shift_power.json

Halves of one pool of rendered site images give the false alarms; blurred ones, and base against site, give the power.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFilter

from evals.two_samples import classifier_test, kernel_test
from foveal.dataset import Dataset
from foveal.models import Encoder, load_encoder
from foveal.world import write

if TYPE_CHECKING:
    from PIL.Image import Image

Vectors = NDArray[np.float32]
Draw = Callable[[np.random.Generator, int], tuple[Vectors, Vectors]]
LEVEL, PERMUTATIONS, BATCH = 0.05, 99, 64
BLURS = (0.5, 1.0, 2.0)


def embed(encoder: Encoder, images: Sequence[Image]) -> Vectors:
    """Embeddings (N, D)."""
    return np.concatenate([encoder.encode_images(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def rejected(name: str, draw: Draw, images: int, runs: int) -> dict[str, Any]:
    """The share of `runs` draws of `images` a set that each test, and both together, reject at 5%."""
    p: list[tuple[float, float]] = []
    for run in range(runs):
        first, second = draw(np.random.default_rng(run), images)
        looks = kernel_test(first, second, PERMUTATIONS, run)
        p.append((looks.p, classifier_test(first, second, None, PERMUTATIONS, run).p))
    told = np.array(p)
    together = np.minimum(1, 2 * told.min(axis=1))
    kernel, classifier = (float((told[:, test] <= LEVEL).mean()) for test in (0, 1))
    row = {"case": name, "images": images, "runs": runs, "kernel": kernel, "classifier": classifier}
    row["both"] = float((together <= LEVEL).mean())
    print(row, flush=True)
    return row


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/shift_power.json"))
    out = parser.parse_args().out
    encoder = load_encoder("bundled:clip")
    with tempfile.TemporaryDirectory() as folder:
        site = [s.image() for s in Dataset.open(write(Path(folder) / "site", "site", 400, seed=21))]
        base = embed(encoder, [s.image() for s in Dataset.open(write(Path(folder) / "base", "base", 200, seed=22))])
    clean = embed(encoder, site)
    blurred = {r: embed(encoder, [image.filter(ImageFilter.GaussianBlur(r)) for image in site]) for r in BLURS}

    def against(other: Vectors) -> Draw:
        """Different images of the pool, the second half of them as in `other`."""

        def draw(rng: np.random.Generator, n: int) -> tuple[Vectors, Vectors]:
            order = rng.permutation(len(clean))
            return clean[order[:n]], other[order[n : 2 * n]]

        return draw

    def domains(rng: np.random.Generator, n: int) -> tuple[Vectors, Vectors]:
        return base[rng.permutation(len(base))[:n]], clean[rng.permutation(len(clean))[:n]]

    rows = [rejected("halves of one set", against(clean), n, runs) for n, runs in ((50, 300), (150, 200))]
    for n in (25, 50, 100):
        rows += [rejected(f"blur of {r:g} px", against(vectors), n, 40) for r, vectors in blurred.items()]
        rows.append(rejected("base against site", domains, n, 40))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
