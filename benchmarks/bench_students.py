"""A student in every runtime: milliseconds an image and accuracy, in one run and in turns.

    python -m benchmarks.bench_students --student runs/quickstart/student --data runs/quickstart/world/test \\
        --int8 runs/quickstart/world/unlabelled/images --out runs/students.json

Times are of raw calls on prepared pixels (preparation is the same for all), medians over rounds in which every form
takes its turn; accuracy is measured with the runtime's own outputs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.export import export
from distill.students import restore
from evals.detection import evaluate
from foveal.dataset import Dataset
from foveal.detections import FloatArray
from foveal.detectors import decode, load_onnx, load_openvino, stretched
from foveal.models import ModelRef
from foveal.progress import RichProgress
from foveal.runtime import describe_machine

Run = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
BATCHES, THREADS = (1, 8), (1, 2)


def forms(student: Path, int8: Dataset, check: Dataset, work: Path, threads: int) -> dict[str, Run]:
    """The student behind every runtime, each on `threads` threads."""
    net, _ = restore(student)

    def eager(images: FloatArray) -> tuple[FloatArray, FloatArray]:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            boxes, scores = net.predict(torch.from_numpy(images))
        return boxes.numpy(), scores.numpy()

    found: dict[str, Run] = {"PyTorch": eager}
    for runtime, load in (("onnx", load_onnx), ("openvino", load_openvino)):
        for precision in ("fp32", "int8"):
            out = work / f"{runtime}-{precision}"
            if not out.is_dir():
                quantise = int8 if precision == "int8" else None
                export(student, out, runtime, int8=quantise, check=check, progress=RichProgress())  # type: ignore[arg-type]
            found[f"{runtime} {precision}"] = load(ModelRef(runtime, str(out)), threads).raw
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--data", required=True, help="labelled images")
    parser.add_argument("--int8", required=True, help="images to calibrate INT8 on")
    parser.add_argument("--seconds", type=float, default=4.0, help="a form, batch size and number of threads")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data, int8 = Dataset.open(options.data), Dataset.open(options.int8)
    net, _ = restore(options.student)
    samples = [sample for sample in data if sample.truth is not None]
    pixels = np.stack([stretched(sample.image(), net.size) for sample in samples])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for threads in THREADS:
            runs = forms(options.student, int8, data, Path(temporary), threads)
            for batch in BATCHES:
                times = _in_turns(runs, pixels, batch, options.seconds)
                rows += [{"form": f, "threads": threads, "batch": batch, "ms": ms} for f, ms in times.items()]
                print(rows[-len(runs) :], file=sys.stderr, flush=True)
        accuracy: dict[str, dict[str, float | None]] = {}
        for form, run in forms(options.student, int8, data, Path(temporary), 2).items():
            found = []
            for start in range(0, len(samples), 8):
                boxes, scores = run(pixels[start : start + 8])
                sizes = [(s.width, s.height) for s in samples[start : start + 8]]
                found += decode(boxes, scores, sizes, net.classes, 0.001, net.nms_iou)
            scored = evaluate([s.truth for s in samples if s.truth is not None], found)
            accuracy[form] = {"mAP": scores_of(scored, "AP"), "mAP50": scores_of(scored, "AP50")}
    eager = {(r["threads"], r["batch"]): r["ms"] for r in rows if r["form"] == "PyTorch"}
    print("| form | mAP | mAP50 | " + " | ".join(f"{t} thr., batch {b}" for t in THREADS for b in BATCHES) + " |")
    print("| --- |" + " ---: |" * (2 + len(THREADS) * len(BATCHES)))
    for form, told in accuracy.items():
        cells = []
        for t in THREADS:
            for b in BATCHES:
                ms = next(r["ms"] for r in rows if (r["form"], r["threads"], r["batch"]) == (form, t, b))
                cells.append(f"{ms:.2f} ms ({eager[t, b] / ms:.1f}x)")
        print(f"| {form} | {told['mAP']:.3f} | {told['mAP50']:.3f} | {' | '.join(cells)} |")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": describe_machine(), "times": rows, "accuracy": accuracy}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def scores_of(scored: Any, name: str) -> float:
    """A figure of the evaluation; 0 where there is none."""
    return float(scored[name] or 0.0)


def _in_turns(runs: dict[str, Run], pixels: FloatArray, batch: int, seconds: float) -> dict[str, float]:
    """Median milliseconds an image of each form."""
    times: dict[str, list[float]] = {form: [] for form in runs}
    for run in runs.values():
        for _ in range(3):
            run(pixels[:batch])
    began, turn = time.perf_counter(), 0
    while time.perf_counter() - began < seconds * len(runs):
        part = pixels[(turn * batch) % (len(pixels) - batch) :][:batch]
        for form, run in runs.items():
            start = time.perf_counter()
            run(part)
            times[form].append(time.perf_counter() - start)
        turn += 1
    return {form: 1000 * float(np.median(values)) / batch for form, values in times.items()}


if __name__ == "__main__":
    main()
