"""`foveal archive add` against its own encoder on ready tensors, and against clip-retrieval's inference loop.

    python -m benchmarks.bench_embed --models bundled:clip vit_b32 --runtimes torch bf16 --out runs/bench_embed.json

Images a second over folders of JPEGs of 12 megapixels and of 512 px, on the same open_clip model, every case
in a process of its own, in turn, forwards and backwards; ratios are of medians, CPU seconds are of all processes.

- `encoder`: the model alone, as Foveal calls it, on inputs that are in memory already. On a CPU decoding shares its
  cores, so that the two add up and a share of 1 is out of reach where decoding is much of the work.
- `foveal`: `Archive.add` into a new archive: reading, hashing, EXIF, thumbnail, perceptual hash, commits and all.
  Both once for each of `--runtimes` of `foveal archive add`; the peer has float32 only.
- `peer`: clip-retrieval 2.45 pins numpy < 2, open_clip < 3 and pyarrow < 16, so it cannot be installed beside this.
  Its loop stands here as its reader, mapper and runner have it (`clip_inference/*.py`): a `DataLoader` with its default
  of 4 workers, the model's own preprocessing on `Image.open`, the encoder called between batches, float16 rows. In its
  favour its writing of npy and parquet is left out, and batches are of 32 instead of 256, since a worker makes a whole
  batch and fewer batches than workers would leave some idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from PIL import Image

from foveal.encoders import OpenClipEncoder
from foveal.images import decode
from foveal.models import Encoder, PreparingEncoder, Runtime, load_encoder, parse_ref
from foveal.runtime import describe_machine

SIZES = {"12MP": (4000, 3000), "512px": (512, 384)}
PEER_BATCH, PEER_WORKERS = 32, 4


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """`count` JPEGs like a camera's: smooth shapes under sensor noise, quality 90."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    width, height = size
    noise = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    for i in range(count):
        cells = rng.integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), dtype=np.uint8)
        smooth = Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(smooth) + np.roll(noise, i * 7, axis=1), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05d}.jpg", quality=90)


def encoder_alone(encoder: Encoder, folder: Path) -> int:
    """Encodes as many ready inputs as the folder has files."""
    assert isinstance(encoder, PreparingEncoder)
    files = sorted(folder.iterdir())
    prepared = [encoder.prepare_image(decode(file)) for file in files[:64]]
    return len(started(encoder.encode_prepared, [prepared[i % len(prepared)] for i in range(len(files))]))


def foveal(encoder: Encoder, folder: Path) -> int:
    """Adds the folder to a new archive."""
    from retrieval.archive import Archive

    with tempfile.TemporaryDirectory() as temporary:
        archive = Archive.create(Path(temporary) / "archive", encoder)
        return started(archive.add, folder, encoder).added


class Files(torch.utils.data.Dataset[dict[str, Any]]):
    """clip-retrieval's `ImageDataset` (reader.py)."""

    def __init__(self, folder: Path, preprocess: Any) -> None:
        self.files, self.preprocess = sorted(folder.iterdir()), preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image_filename": str(self.files[index]),
            "image_tensor": self.preprocess(Image.open(self.files[index])),
        }


def peer(encoder: Encoder, folder: Path) -> int:
    """clip-retrieval's `Runner` (runner.py) with its `ClipMapper` (mapper.py)."""
    assert isinstance(encoder, OpenClipEncoder)

    def run() -> list[np.ndarray]:
        loader = torch.utils.data.DataLoader(
            Files(folder, encoder._transform), PEER_BATCH, num_workers=PEER_WORKERS, prefetch_factor=2, pin_memory=False
        )
        rows: list[np.ndarray] = []
        for batch in loader:
            with torch.no_grad():
                features = encoder.model.encode_image(batch["image_tensor"].to(encoder.device))
                features /= features.norm(dim=-1, keepdim=True)
                rows.append(features.cpu().to(torch.float16).numpy())
        return rows

    return sum(map(len, started(run)))


def started(work: Any, *arguments: Any) -> Any:
    """The result of `work`, timed from its start; what is printed last is what was measured."""
    before, began = os.times(), time.perf_counter()
    result = work(*arguments)
    seconds, after = time.perf_counter() - began, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}))
    return result


def case(name: str, reference: str, folder: Path) -> None:
    """Measures one case in this process and prints what it took."""
    work, runtime = name.split()
    encoder = load_encoder(reference, runtime=cast(Runtime, runtime))
    encoder.encode_images([Image.new("RGB", (512, 384))] * 8)  # warm
    count = {"encoder": encoder_alone, "foveal": foveal, "peer": peer}[work](encoder, folder)
    assert count == len(list(folder.iterdir())), count


def measure(name: str, reference: str, folder: Path) -> dict[str, float]:
    """Images a second and CPU milliseconds an image of one case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_embed", "--case", name, reference, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    took, count = json.loads(done.stdout.splitlines()[-1]), len(list(folder.iterdir()))
    return {"images_per_second": count / took["seconds"], "cpu_ms": took["cpu_seconds"] / count * 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bundled:clip"], help="references, or vit_b32: random weights")
    parser.add_argument("--runtimes", nargs="+", default=["torch"], choices=get_args(Runtime))
    parser.add_argument("--large", type=int, default=192, help="photos of 12 megapixels")
    parser.add_argument("--small", type=int, default=768, help="photos of 512 px")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("NAME", "REF", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, reference, folder = options.case
        case(name, reference, Path(folder))
        return
    pairs = [(f"encoder {one}", f"foveal {one}") for one in options.runtimes]
    cases = [*sum(pairs, ()), "peer torch"]
    report: dict[str, Any] = {"machine": describe_machine(), "settings": {"repeats": options.repeats}}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for size, count in (("12MP", options.large), ("512px", options.small)):
            write_photos(work / size, count, SIZES[size])
        for model in options.models:
            if model == "vit_b32":
                from benchmarks.bench_adapt import vit_b32

                reference = vit_b32(work / model)
            else:
                reference = str(parse_ref(model))
            for size in SIZES:
                runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
                for repeat in range(options.repeats):
                    for name in cases[:: -1 if repeat % 2 else 1]:
                        runs[name].append(measure(name, reference, work / size))
                        print(f"{model} {size} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
                found = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in runs.items()}
                speed = {name: figures["images_per_second"] for name, figures in found.items()}
                ratios = {
                    whole: {
                        "of_encoder": speed[whole] / speed[alone],
                        "of_peer": speed[whole] / speed["peer torch"],
                        "cpu_of_peer": found[whole]["cpu_ms"] / found["peer torch"]["cpu_ms"],
                    }
                    for alone, whole in pairs
                }
                report.setdefault(model, {})[size] = {"cases": found, "ratios": ratios}
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
