"""LoRA by Foveal against open_clip's own loop for full fine-tuning: samples a second and memory, in one run.

    python benchmarks/bench_adapt.py --batch 32 --steps 4 --repeats 3 --out runs/bench_adapt.json

Both sides train the same model on the same batches in the same precision with the same threads; the peer is
`open_clip_train.train.train_one_epoch` with `open_clip.ClipLoss` and AdamW over all parameters. Every case runs in a
process of its own, in turn, forwards and backwards; ratios are of medians. Memory is the peak resident size less what
was resident before the first step (the model and the data).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import adapt.trainer  # noqa: F401  (loaded before memory is measured)
from adapt.clip import ClipSettings, adaptable, make_job
from adapt.job import Order
from adapt.pairs import Collator, load_pairs
from adapt.run import train
from foveal.dataset import Dataset, Sample
from foveal.models import parse_ref
from foveal.runtime import describe_machine, peak_memory_mb

CASES = {"full": (), "lora": ("image", "text"), "lora_image": ("image",), "lora_text": ("text",)}
PEERS_NAME = {"float32": "fp32", "bfloat16": "amp_bf16"}
WORDS = ("red", "blue", "crate", "drum", "shelf", "floor", "lamp", "box")


def vit_b32(folder: Path) -> str:
    """ViT-B/32 with random weights as an open_clip folder."""
    import open_clip
    from safetensors.torch import save_file

    from adapt.tokenizer import build_tokenizer

    if not (folder / "open_clip_model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        build_tokenizer(WORDS * 4, folder, vocab_size=600, context_length=77)
        torch.manual_seed(0)
        model = open_clip.create_model("ViT-B-32")
        config: Any = open_clip.get_model_config("ViT-B-32")
        config["text_cfg"]["hf_tokenizer_name"] = "."
        described = {"model_cfg": config, "preprocess_cfg": {"size": 224}}
        (folder / "open_clip_config.json").write_text(json.dumps(described))
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"


def pictures(folder: Path, count: int) -> Dataset:
    """Noise with a caption each."""
    folder.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    for i in range(count):
        path, rng = folder / f"{i}.png", np.random.default_rng(i)
        if not path.is_file():
            Image.fromarray(rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)).save(path)
        text = f"number {i} {' '.join(rng.choice(WORDS, 6))}"
        samples.append(Sample(id=str(i), path=path, width=224, height=224, captions=(text,)))
    return Dataset.build(samples, [])


class Loader:
    """Batches as open_clip_train reads them; notes when each is asked for."""

    def __init__(self, collate: Collator, batch: int, steps: int) -> None:
        self.collate, self.batch = collate, batch
        self.num_batches, self.num_samples = steps, steps * batch
        self.dataloader, self.asked = self, list[float]()

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes from one epoch to the next."""

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.num_batches):
            self.asked.append(time.perf_counter())
            batch: Any = self.collate([(step * self.batch + i, i) for i in range(self.batch)])
            yield batch["image"]["image"], batch["text"]["text"]
        self.asked.append(time.perf_counter())


def full(base: str, data: Dataset, batch: int, steps: int, precision: str) -> tuple[float, float, float]:
    """open_clip's own loop: seconds a step after the first, memory before (MB), trained parameters."""
    import open_clip
    from open_clip_train.train import train_one_epoch

    encoder = adaptable(base, "cpu")
    model = encoder.model.requires_grad_(True)
    pairs = load_pairs(encoder, data)
    loader = Loader(Collator(pairs, Order(batch, batch, steps + 1, 0), augment=False), batch, steps + 1)
    model.output_dict = True  # pyright: ignore
    args = Namespace(
        device="cpu", precision=PEERS_NAME[precision], distill=False, accum_freq=1, skip_scheduler=True, horovod=False,
        grad_clip_norm=1.0, log_every_n_steps=10**6, batch_size=batch, world_size=1, rank=0, local_rank=0, wandb=False,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
    before = resident_mb()
    train_one_epoch(model, {"train": loader}, open_clip.ClipLoss(), 0, optimizer, None, None, None, args)
    return statistics.median(np.diff(loader.asked)[1:]), before, sum(p.numel() for p in model.parameters())


def lora(base: str, data: Dataset, batch: int, steps: int, towers: Any, precision: Any):
    """`foveal adapt clip`'s loop; the same figures."""
    settings = ClipSettings(
        batch=batch, epochs=steps + 2, towers=towers, augment=False, precision=precision, trackers=(),
        objective="infonce", checkpoint_seconds=1e9,
    )  # fmt: skip
    job = make_job(base, adaptable(base, "cpu"), data.subset(range(batch)), settings)
    asked: list[float] = []
    collate = job.collate

    def noting(items: Any) -> Any:
        asked.append(time.perf_counter())
        return collate(items)

    job.collate = noting
    before = resident_mb()
    with tempfile.TemporaryDirectory() as work:
        train(job, settings, Path(work), None, None)
    trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    # Two batches are drawn ahead of the first step, which is not counted.
    return statistics.median(np.diff(asked)[2:]), before, trained


def resident_mb() -> float:
    """Resident memory now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def case(name: str, base: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """One case in this process."""
    torch.set_num_threads(options.threads)
    batch, steps, precision = options.batch, options.steps, options.precision
    data = pictures(folder, batch)
    if name == "full":
        seconds, before, trained = full(base, data, batch, steps, precision)
    else:
        seconds, before, trained = lora(base, data, batch, steps, CASES[name], precision)
    return {"samples_per_second": batch / seconds, "extra_mb": peak_memory_mb() - before, "trained": float(trained)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bundled:clip", "vit_b32"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="after a first one that is not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of both sides")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("NAME", "REF", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, base, folder = options.case
        found = case(name, base, Path(folder), options)
        print("\n" + json.dumps(found))
        return
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "case")},
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for model in options.models:
            base = vit_b32(work / "vit_b32") if model == "vit_b32" else str(parse_ref(model))
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
            for repeat in range(options.repeats):
                for name in list(CASES)[:: -1 if repeat % 2 else 1]:
                    command = [sys.executable, __file__, "--case", name, base, str(work / "pictures")]
                    for option in ("batch", "steps", "threads", "precision"):
                        command += [f"--{option}", str(getattr(options, option))]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(done.stderr[-2000:])
                    runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                    print(f"{model} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
            middle = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in runs.items()}
            report[model] = {
                name: {
                    **figures,
                    "speed_ratio": figures["samples_per_second"] / middle["full"]["samples_per_second"],
                    "memory_ratio": figures["extra_mb"] / middle["full"]["extra_mb"],
                }
                for name, figures in middle.items()
            }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
