"""Labelling: images a second beside loops over transformers, and memory as the number of images grows.

    python -m benchmarks.bench_labelling --images 300 --turns 3 --out runs/labelling.json
    python -m benchmarks.bench_labelling --memory 1000 20000

The same OWLv2 and the same prompts label the sample world's site scenes from files to a JSON file, each contestant in a
process of its own, in turns:

    pipeline      transformers' zero-shot-object-detection pipeline, image by image, as its documentation shows it
    by hand       the model itself, eight images and all prompts a call, what the pipeline could be replaced with
    foveal        a labelling job without a memory: candidates judged by calibrated evidence, routed, resumable
    with memory   the same with each candidate's crop compared with the gold set's (a second model)

Seconds leave out what is done once a job however long: imports, loading, calibrating on the gold set. Memory is the
largest resident size of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from foveal import world
from foveal.dataset import Dataset
from foveal.images import decode
from foveal.models import load_encoder, load_open_detector, parse_ref
from foveal.runtime import describe_machine

TEACHER, ENCODER = "bundled:owl", "bundled:clip"
FLOOR = 0.05  # score from which a box is written, for all
GOLD = 40
TIMED = ("pipeline", "by hand", "foveal", "with memory")


def by_pipeline(images: list[Path], prompts: list[str], out: Path) -> float:
    """Seconds of the documented loop."""
    from transformers import pipeline

    folder = parse_ref(TEACHER).target
    detector: Any = pipeline("zero-shot-object-detection", model=folder)
    detector(decode(images[0]), candidate_labels=prompts, threshold=FLOOR)
    began = time.perf_counter()
    found = {p.name: detector(decode(p), candidate_labels=prompts, threshold=FLOOR) for p in images}
    out.write_text(json.dumps(found))
    return time.perf_counter() - began


def by_hand(images: list[Path], prompts: list[str], out: Path, batch: int = 8) -> float:
    """Seconds of a loop over the model in batches."""
    import torch
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    folder = parse_ref(TEACHER).target
    processor: Any = Owlv2Processor.from_pretrained(folder)
    model: Any = Owlv2ForObjectDetection.from_pretrained(folder).eval()
    found: dict[str, Any] = {}

    def look(paths: list[Path]) -> None:
        pictures = [decode(path) for path in paths]
        inputs = processor(text=[prompts] * len(paths), images=pictures, return_tensors="pt")
        with torch.inference_mode():
            answer = model(**inputs)
        sizes = torch.tensor([[p.height, p.width] for p in pictures])
        boxes = processor.post_process_grounded_object_detection(answer, threshold=FLOOR, target_sizes=sizes)
        for path, one in zip(paths, boxes, strict=True):
            found[path.name] = {key: one[key].tolist() for key in ("boxes", "scores", "labels")}

    look(images[:batch])
    began = time.perf_counter()
    for start in range(0, len(images), batch):
        look(images[start : start + batch])
    out.write_text(json.dumps(found))
    return time.perf_counter() - began


def by_foveal(images: list[Path], gold: Path, out: Path, remember: bool) -> float:
    """Seconds of a labelling job after its calibration."""
    from distill.ontology import Ontology
    from distill.prelabel import prelabel
    from distill.workers import in_turn
    from retrieval.memory import ExemplarMemory

    labelled = Dataset.open(gold)
    memory = ExemplarMemory.build(load_encoder(ENCODER), labelled) if remember else None
    began = time.perf_counter()

    def noting(load: Any, work: Any) -> Any:
        nonlocal began
        began = time.perf_counter()
        return in_turn(load, work)

    source, teacher = Dataset.open(images[0].parent), load_open_detector(TEACHER)
    ontology, parts = Ontology.of(labelled.classes), lambda: (teacher, memory, None)
    prelabel(source, ontology, teacher, labelled, memory, out, through=noting, parts=parts)
    return time.perf_counter() - began


def contest(name: str, folder: Path, gold: Path, out: Path) -> dict[str, float]:
    """One contestant in this process."""
    images, prompts = sorted(folder.iterdir()), list(Dataset.open(gold).classes)
    if name == "pipeline":
        seconds = by_pipeline(images, prompts, out)
    elif name == "by hand":
        seconds = by_hand(images, prompts, out)
    else:
        seconds = by_foveal(images, gold, out, name == "with memory")
    return {
        "images": len(images),
        "seconds": seconds,
        "images_per_second": len(images) / seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measured(name: str, folder: Path, gold: Path) -> dict[str, float]:
    """One contestant in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "benchmarks.bench_labelling", "--contest", name]
        command += ["--folder", str(folder), "--labels", str(gold), "--out", str(Path(temporary) / "out")]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def linked(images: Path, count: int, into: Path) -> Path:
    """A folder with `count` names for the pictures in `images`."""
    into.mkdir()
    pictures = sorted(images.iterdir())
    for number in range(count):
        picture = pictures[number % len(pictures)]
        os.link(picture, into / f"{number:06d}{picture.suffix}")
    return into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", help="measure memory at these numbers of images instead")
    parser.add_argument("--out", type=Path)
    for internal in ("--contest", "--folder", "--labels"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contest:
        print(json.dumps(contest(options.contest, Path(options.folder), Path(options.labels), options.out)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        site = Path(temporary) / "site"
        pictures = min(options.images, 1000)
        world.write(site, "site", pictures, seed=78, workers=2)
        world.write(Path(temporary) / "gold", "site", GOLD, seed=79, workers=2)
        gold = Path(temporary) / "gold" / "instances.json"
        rows: list[dict[str, Any]] = []
        if options.memory:
            for count in options.memory:
                folder = linked(site / "images", count, Path(temporary) / f"of-{count}")
                rows.append({"contestant": "with memory", **measured("with memory", folder, gold)})
                print(rows[-1], file=sys.stderr, flush=True)
        else:
            for _ in range(options.turns):
                for name in TIMED:
                    rows.append({"contestant": name, **measured(name, site / "images", gold)})
                    print(rows[-1], file=sys.stderr, flush=True)
    print(_table(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


def _table(rows: list[dict[str, Any]]) -> str:
    """Medians over the turns, and beside the first contestant."""
    lines = ["| contestant | images | images/s | beside the first | peak memory |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    first: float | None = None
    for key in dict.fromkeys((row["contestant"], row["images"]) for row in rows):
        mine = [row for row in rows if (row["contestant"], row["images"]) == key]
        rate, peak = (float(np.median([row[name] for row in mine])) for name in ("images_per_second", "peak_mib"))
        first = first or rate
        lines.append(f"| {key[0]} | {key[1]:,} | {rate:.1f} | {rate / first:.2f}x | {peak:,.0f} MiB |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
