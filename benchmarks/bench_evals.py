"""How fast are evaluations? COCO AP beside pycocotools, and zero-shot beside the encoder with nothing around it.

    python -m benchmarks.bench_evals --out runs/bench_evals.json                 # 5,000 images x 100 boxes, 80 classes
    python -m benchmarks.bench_evals --images 500 --models bundled:clip          # minutes less

`ap`: the same truth and results files, read from disk and evaluated end to end by `evals.detection.evaluate` and by
`COCO`, `loadRes` and `COCOeval`, in turn, in one process; the twelve numbers have to agree to 1e-9. About a third of
the boxes lie on an object; besides, 1,000 bootstrap draws of AP on a fifth of the images.

`zero_shot`: images a second of `evals.zero_shot.measure` on JPEG files of 512 px, beside the same encoder on inputs
that are in memory: as tensors, and as decoded pictures that it still has to prepare. What the class names take, once an
evaluation, is measured apart and taken off. On a CPU decoding and the model share the cores, so that their times add
up: a share of 1 is out of reach where decoding is much of the work. Where other jobs run beside this, CPU times say
more than the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.bench_embed import write_photos
from evals.detection import evaluate, measure
from evals.measures import MEASURES
from evals.zero_shot import class_embeddings
from evals.zero_shot import measure as name_images
from foveal.dataset import Dataset
from foveal.models import load_encoder
from foveal.runtime import describe_machine

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIDE = 512


def write_boxes(folder: Path, images: int, boxes: int, classes: int) -> tuple[Path, Path]:
    """A truth file of 7 objects an image, and results of which two fifths lie near one, a fifth of those misnamed."""
    rng = np.random.default_rng(0)
    pictures = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, images + 1)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        count = int(rng.integers(1, 14))
        objects = np.concatenate([rng.uniform(0, 400, (count, 2)), rng.uniform(8, 220, (count, 2))], axis=1)
        kinds = rng.integers(1, classes + 1, count)
        for box, kind in zip(objects.round(2).tolist(), kinds.tolist(), strict=True):
            known = {"image_id": image, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **known})
        found = np.concatenate([rng.uniform(0, 400, (boxes, 2)), rng.uniform(8, 220, (boxes, 2))], axis=1)
        said = rng.integers(1, classes + 1, boxes)
        near, own = rng.random(boxes) < 0.4, rng.integers(0, count, boxes)
        found[near] = objects[own[near]] + rng.normal(0, 6, (near.sum(), 4))
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        named = near & (rng.random(boxes) < 0.8)
        said[named] = kinds[own[named]]
        scores = rng.random(boxes).round(4)
        for box, kind, score in zip(found.round(2).tolist(), said.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image, "category_id": kind, "bbox": box, "score": score})
    names = [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)]
    truth, predictions = folder / "truth.json", folder / "results.json"
    truth.write_text(json.dumps({"images": pictures, "annotations": annotations, "categories": names}))
    predictions.write_text(json.dumps(results))
    return truth, predictions


def pycoco(truth: Path, predictions: Path) -> list[float]:
    """Pycocotools' twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        asked = COCOeval(known, known.loadRes(str(predictions)), "bbox")
        asked.evaluate()
        asked.accumulate()
        asked.summarize()
    return asked.stats.tolist()


def ours(truth: Path, predictions: Path) -> list[float]:
    """The same of `evals`, None as pycocotools has it."""
    figures: dict[str, Any] = dict(evaluate(truth, predictions))
    return [-1.0 if figures[name] is None else figures[name] for name in NAMES]


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[dict[str, float], Any]:
    """Seconds on the clock and of the cores, and the result."""
    began, before = time.perf_counter(), time.process_time()
    result = work(*arguments)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - before}, result


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def average_precision(images: int, boxes: int, classes: int, repeats: int) -> dict[str, Any]:
    """Seconds of both, the largest difference of their numbers, and seconds of a bootstrap."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_boxes(Path(folder), images, boxes, classes)
        runs: dict[str, list[dict[str, float]]] = {"foveal": [], "pycocotools": []}
        numbers: dict[str, list[float]] = {}
        for _ in range(repeats):
            for name, work in (("foveal", ours), ("pycocotools", pycoco)):
                took, numbers[name] = timed(work, *files)
                runs[name].append(took)
                print(f"{name}: {took}", file=sys.stderr, flush=True)
        fewer = max(images // 5, 1)
        with_items, measured = timed(measure, *write_boxes(Path(folder), fewer, boxes, classes))
    draws = np.random.default_rng(0).multinomial(fewer, np.full(fewer, 1 / fewer), size=1000).astype(np.float64)
    bootstrap = {name: timed(one.of, measured.items, draws)[0] for name, one in MEASURES["detection"].items()}
    middle = {name: medians(values) for name, values in runs.items()}
    apart = max(abs(a - b) for a, b in zip(numbers["foveal"], numbers["pycocotools"], strict=True))
    assert apart < 1e-9, apart
    return {
        "images": images,
        "boxes": images * boxes,
        "classes": classes,
        **middle,
        "times_faster": {key: middle["pycocotools"][key] / value for key, value in middle["foveal"].items()},
        "largest_difference": apart,
        "AP": numbers["foveal"][0],
        "bootstrap_of_1000_draws": {"images": fewer, "measure": with_items, **bootstrap},
    }


def zero_shot(reference: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Images a second and CPU time an image from files, and of the encoder alone; medians of runs in turn."""
    encoder: Any = load_encoder(reference)
    dataset = Dataset.open(folder)
    pictures = [dataset[i].image() for i in range(min(64, len(dataset)))]
    pictures = [pictures[i % len(pictures)] for i in range(len(dataset))]
    tensors = [encoder.prepare_image(picture) for picture in pictures[:64]]
    tensors = [tensors[i % len(tensors)] for i in range(len(dataset))]
    encoder.encode_images(pictures[:8])  # warm
    cases: dict[str, Callable[[], Any]] = {
        "tensors": lambda: encoder.encode_prepared(tensors),
        "pictures": lambda: encoder.encode_images(pictures),
        "files": lambda: name_images(encoder, dataset),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for repeat in range(repeats):
        for name in list(cases)[:: -1 if repeat % 2 else 1]:
            took, _ = timed(cases[name])
            if name == "files":
                texts, _ = timed(class_embeddings, encoder, dataset.classes)
                took = {key: value - texts[key] for key, value in took.items()}
            runs[name].append(
                {
                    "images_per_second": len(dataset) / took["seconds"],
                    "cpu_ms": 1000 * took["cpu_seconds"] / len(dataset),
                }
            )
            print(f"{reference} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    middle = {name: medians(values) for name, values in runs.items()}
    files = middle["files"]
    ratios = {
        f"of_{name}": {
            "images_per_second": files["images_per_second"] / middle[name]["images_per_second"],
            "cpu": middle[name]["cpu_ms"] / files["cpu_ms"],
        }
        for name in ("tensors", "pictures")
    }
    return {**middle, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--models", nargs="*", default=["bundled:clip", "vit_b32"], help="references, or vit_b32")
    parser.add_argument("--files", type=int, default=256, help="JPEGs of 512 px")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine(), "zero_shot": {}}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for kind in ("one", "two"):
            write_photos(work / "photos" / kind, options.files // 2, (SIDE, SIDE * 3 // 4))
        for model in options.models:
            reference = model
            if model == "vit_b32":
                from benchmarks.bench_adapt import vit_b32

                reference = vit_b32(work / model)
            report["zero_shot"][model] = zero_shot(reference, work / "photos", options.repeats)
    report["ap"] = average_precision(options.images, options.boxes, options.classes, options.repeats)
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
