"""Is LoRA worth it: zero-shot, Tip-Adapter, linear probe and LoRA from a few labelled images, in one run.

    python benchmarks/few_shot.py --train data/clothes/train --test data/clothes/test --out runs/few_shot.json
    python benchmarks/few_shot.py --train data/boards/train.json --test data/boards/test.json --context 0.5

Prints a table of top-1 accuracy on the test images, mean and standard deviation over seeds, for each number of shots a
class. Images are those of class folders, or the crops of a dataset with boxes. Every row of the table is what
`foveal adapt clip --data SHOTS --validation TEST` writes into its report.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from adapt.clip import ClipSettings, adapt
from evals import few_shot, zero_shot
from foveal.dataset import Dataset
from foveal.progress import RichProgress
from foveal.runtime import describe_machine

METHODS = ("zero-shot", "Tip-Adapter", "linear probe", "LoRA")


def labelled(source: str, folder: Path, context: float, most: int | None, seed: int = 0) -> Dataset:
    """Up to `most` images or crops a class of `source`; crops are written to `folder`."""
    dataset = Dataset.open(source)
    labels = [dataset.classes.index(s.label) if s.label else -1 for s in dataset]
    if min(labels) < 0:
        images, classes = zero_shot.crops(dataset, context)
        for i in few_shot.draw(classes, most or len(classes), seed):
            place = folder / dataset.classes[classes[i]] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            images[i].save(place)
        return Dataset.open(folder)
    return dataset if most is None else dataset.subset(sorted(few_shot.draw(labels, most, seed)))


def one(base: str, train: Dataset, test: Dataset, settings: ClipSettings, out: Path) -> dict[str, float]:
    """Top-1 accuracy on `test` by method."""
    report = adapt(base, train, out, settings, validation=test)
    if report.baselines is None or report.after is None:
        raise SystemExit("the shots and the test images have no two classes in common")
    found = {method: figures["top1"] for method, figures in report.baselines.items()}
    return {**found, "LoRA": report.after["top1"]}


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """The results as Markdown, in per cent."""
    lines = [f"| shots a class | {' | '.join(METHODS)} |", f"| --- |{' ---: |' * len(METHODS)}"]
    for shots, found in rows.items():
        cells = [_cell(found[m]) for m in METHODS]
        lines.append(f"| {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    """Mean in %, and the deviation where there is more than one seed."""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="bundled:clip")
    parser.add_argument("--train", required=True, help="class folders, or a dataset with boxes")
    parser.add_argument("--test", required=True)
    parser.add_argument("--shots", type=int, nargs="*", default=[1, 4, 16], help="a class; all images follow always")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of training, each LoRA run")
    parser.add_argument("--context", type=float, default=0.1, help="around a box, in parts of its size")
    parser.add_argument("--most", type=int, help="images a class that `all` means")
    parser.add_argument("--most-test", type=int, help="test images a class")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of `adapt clip`")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from foveal.config import load

    progress = RichProgress()
    began = time.monotonic()
    rows: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        train = labelled(options.train, work / "train", options.context, options.most)
        test = labelled(options.test, work / "test", options.context, options.most_test)
        labels = [train.classes.index(str(sample.label)) for sample in train]
        for shots in (*options.shots, None):
            name = f"all ({len(train)} images)" if shots is None else str(shots)
            for seed in range(options.seeds):
                words = [f"max_seconds={options.seconds}", f"seed={seed}", *options.set]
                settings = load(ClipSettings, None, words)
                chosen = train if shots is None else train.subset(few_shot.draw(labels, shots, seed))
                found = one(options.base, chosen, test, settings, work / f"{shots}-{seed}")
                progress.note(f"{name}, seed {seed}: {', '.join(f'{m} {v:.3f}' for m, v in found.items())}")
                for method, value in found.items():
                    rows.setdefault(name, {}).setdefault(method, []).append(value)
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "settings": {k: v for k, v in vars(options).items() if k != "out"},
        "classes": train.classes,
        "train": len(train),
        "test": len(test),
        "minutes": (time.monotonic() - began) / 60,
        "top1": rows,
    }
    print(table(rows))
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
