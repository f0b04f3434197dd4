"""How often the drift figures cry wolf, and how often they see a change, with a real student.

    python -m benchmarks.drift_power onnx:runs/quickstart/int8-onnx --out runs/drift.json

The reference is what the student finds in 60 images of the sample site (a gold set's size). Windows of further images
are drawn at random, as they are and changed; a window is a shift where an index passes 0.25. The embeddings are the
bundled CLIP's, held beside the regions of 400 other images of the site.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageEnhance, ImageFilter

from evals.drift import SHIFT, drift, psi
from foveal import world
from foveal.images import decode
from foveal.models import load_detector, load_encoder
from foveal.profile import FLOOR, Profile
from retrieval.regions import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

GOLD, POOL, WINDOWS = 60, 400, 200
CHANGES: dict[str, Callable[[Image], Image]] = {
    "as it was": lambda image: image,
    "half as bright": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "a quarter as bright": lambda image: ImageEnhance.Brightness(image).enhance(0.25),
    "blurred, 2 px": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "a lens half the resolution": lambda image: image.resize((image.width // 2, image.height // 2)).resize(image.size),
    "upside down": lambda image: image.rotate(180),
}


def rendered(folder: Path, domain: str, count: int, seed: int) -> list[Image]:
    world.write(folder, domain, count, seed)
    return [decode(path) for path in sorted((folder / "images").iterdir())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    detector = load_detector(asked.detector)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        gold = rendered(Path(scratch) / "gold", "site", GOLD, 101)
        pool = rendered(Path(scratch) / "pool", "site", POOL, 102)
        usual = rendered(Path(scratch) / "usual", "site", POOL, 104)
        other = rendered(Path(scratch) / "other", "base", POOL, 103)
    scores = {name: [one.scores for one in detector.detect([change(image) for image in pool], FLOOR)]
              for name, change in CHANGES.items()}  # fmt: skip
    scores["another place (base scenes)"] = [one.scores for one in detector.detect(other, FLOOR)]
    encoder = load_encoder("bundled:clip")
    regions = Regions.fit(encoder.encode_images(usual))
    places = {name: encoder.encode_images([change(image) for image in pool]) for name, change in CHANGES.items()}
    places["another place (base scenes)"] = encoder.encode_images(other)
    reference = Profile.of([one.scores for one in detector.detect(gold, FLOOR)])
    result: dict[str, Any] = {}
    for name, found in scores.items():
        for size in (100, 300):
            drawn = [rng.choice(POOL, size, replace=False) for _ in range(WINDOWS)]
            told = [
                drift(reference, Profile.of([found[row] for row in rows]))
                | {"embedding": psi(regions.usual, regions.counts(places[name][rows]))}
                for rows in drawn
            ]
            result[f"{name}, {size} images"] = {
                signal: {
                    "median": round(float(np.median([one[signal] for one in told])), 3),
                    "shifted": round(float(np.mean([one[signal] > SHIFT for one in told])), 3),
                }
                for signal in ("score", "boxes", "embedding")
            }
            print(name, size, result[f"{name}, {size} images"], flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
