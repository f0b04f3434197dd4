"""LoRA for CLIP-style encoders: train on image-caption pairs, check the result, write an adapter folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapt import targets
from adapt.losses import info_nce
from adapt.pairs import Collator, Order, Pairs, load_pairs
from adapt.targets import Tower
from evals import retrieval
from foveal import adapters, artifacts
from foveal.dataset import Dataset
from foveal.encoders import TorchEncoder, adapted_fingerprint
from foveal.errors import BadInput, FovealError
from foveal.models import load_encoder, parse_ref
from foveal.progress import Progress
from foveal.runtime import native_bfloat16

REPORT = "report.json"
ENDLESS = 10_000  # epochs of a run that only the clock ends
MERGE_TOLERANCE = 1e-4  # largest difference of unit-length embeddings between base + adapter and merged


class ClipSettings(BaseModel):
    """What a run is made of; every field can be set as `key=value` on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["lora", "rslora", "dora"] = "lora"  # arXiv 2106.09685, 2312.03732, 2402.09353
    rank: int = Field(default=4, ge=1)
    alpha: float = Field(default=8.0, gt=0)  # the update is scaled by alpha / rank (rslora: alpha / sqrt(rank))
    dropout: float = Field(default=0.0, ge=0, lt=1)
    towers: tuple[Tower, ...] = Field(default=("image", "text"), min_length=1)
    target_modules: tuple[str, ...] | None = None  # last names of modules, e.g. in_proj; None: all linear layers
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)  # share of the run
    batch: int = Field(default=64, ge=2)
    epochs: int | None = Field(default=None, ge=1)  # None: 20, or as many as `max_seconds` allows
    max_seconds: float | None = Field(default=None, gt=0)  # of training steps; the rate anneals to zero by then
    augment: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the hardware has it
    max_skipped: float = Field(default=0.1, ge=0, le=1)  # share of images that may be unreadable
    checkpoint_seconds: float = Field(default=15.0, gt=0)
    seed: int = Field(default=0, ge=0)


class AdaptReport(BaseModel):
    """What a run did, written as report.json into the adapter folder."""

    out: str
    base: str
    base_fingerprint: str
    fingerprint: str  # of base and adapter together, as an archive stores it
    trainable_params: int
    total_params: int  # of the base
    images: int
    captions: int
    skipped: list[tuple[str, str]]  # path, reason
    steps: int
    seconds: float  # of training, over all resumptions
    images_per_second: float
    losses: list[float]  # mean over each ten steps
    recall_at_1_before: float | None = None
    recall_at_1_after: float | None = None
    validation_before: dict[str, float] | None = None
    validation_after: dict[str, float] | None = None
    merge_difference: float  # largest, between base + adapter and merged embeddings
    already_done: bool = False  # the folder held this very run, and nothing was trained


def adapt(
    base_ref: str,
    dataset: Dataset,
    out: Path,
    settings: ClipSettings | None = None,
    progress: Progress | None = None,
    *,
    validation: Dataset | None = None,
    device: str | None = None,
    fresh: bool = False,
) -> AdaptReport:
    """Train a LoRA adapter for the encoder `base_ref` on the captions of `dataset` and write it to `out`.

    Interrupted at any moment, the next call with the same arguments goes on from the last checkpoint (kept beside
    `out` until the end); a finished `out` is reported as done. `fresh` starts over.

    Raises:
        BadInput: `out` holds another run, the base already carries an adapter, or the data cannot be used.
        FovealError: the loss is not finite, or merging the adapter would change what it says.
    """
    settings, out = settings or ClipSettings(), Path(out)
    if parse_ref(base_ref).adapter is not None:
        raise BadInput(
            f"{base_ref} already carries an adapter", expected="a base model", remedy="Leave the + part out."
        )
    encoder: Any = load_encoder(base_ref, device)
    if not isinstance(encoder, TorchEncoder):
        raise BadInput(f"{base_ref} cannot be adapted", expected="an open_clip or transformers encoder")
    run = {
        "settings": settings.model_dump(mode="json"),
        "base_fingerprint": encoder.base_fingerprint,
        "data_fingerprint": dataset.fingerprint,
    }
    work = out.parent / f".{out.name}.run"
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    elif (done := _finished(out, run)) is not None:
        return done
    checkpoint = _resume_point(work, run)
    before = retrieval.evaluate(encoder, validation, progress=progress) if validation is not None else None
    pairs = load_pairs(encoder, dataset, settings.max_skipped, progress)
    total = sum(p.numel() for p in encoder.model.parameters())
    model = _wrap(encoder, settings)
    history, seconds, steps = _train(model, encoder, pairs, settings, work, checkpoint, progress)
    with artifacts.staged(out) as folder:
        adapters.save(model, folder)
        difference, merged = _check_merge(model, encoder, base_ref, folder, pairs)
        after = retrieval.evaluate(merged, validation, progress=progress) if validation is not None else None
        report = AdaptReport(
            out=str(out),
            base=base_ref,
            base_fingerprint=encoder.base_fingerprint,
            fingerprint=merged.fingerprint,
            trainable_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
            total_params=total,
            images=len(pairs),
            captions=len(pairs.wording),
            skipped=[(str(path), reason) for path, reason in pairs.skipped],
            steps=steps,
            seconds=seconds,
            images_per_second=steps * min(settings.batch, len(pairs)) / max(seconds, 1e-9),
            losses=history,
            recall_at_1_before=before["recall_at_1"] if before else None,
            recall_at_1_after=after["recall_at_1"] if after else None,
            validation_before=before,
            validation_after=after,
            merge_difference=difference,
        )
        (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n")
        artifacts.seal(
            folder,
            name=out.name,
            kind="adapter",
            parents=[base_ref],
            data={"fingerprint": run["data_fingerprint"], "images": len(pairs), "captions": len(pairs.wording)},
            config={**run, "base": base_ref},
            metrics=report.model_dump(include={"recall_at_1_before", "recall_at_1_after", "merge_difference"}),
        )
    shutil.rmtree(work, ignore_errors=True)
    return report


def _finished(out: Path, run: dict[str, Any]) -> AdaptReport | None:
    """The report of a folder that holds this very run, None when there is nothing yet."""
    if not (out / artifacts.MANIFEST).is_file():
        return None
    manifest = artifacts.read(out)
    differing = [name for name, value in run.items() if manifest.config.get(name) != value]
    if differing:
        raise BadInput(
            f"{out} holds another run; it differs in {', '.join(differing)}",
            remedy="Choose another --out, or start over with --fresh.",
        )
    return AdaptReport.model_validate_json((out / REPORT).read_text()).model_copy(update={"already_done": True})


def _resume_point(work: Path, run: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from; a run that was begun with other settings or data is discarded."""
    from adapt.trainer import last_checkpoint

    record = work / "run.json"
    if record.is_file() and json.loads(record.read_text()) == run:
        return last_checkpoint(work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    artifacts.write_text(record, json.dumps(run))
    return None


def _wrap(encoder: TorchEncoder, settings: ClipSettings) -> Any:
    from peft import LoraConfig

    chosen = targets.choose(encoder.model, settings.towers, settings.target_modules)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        target_modules=targets.pattern(chosen),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return adapters.wrap(encoder.model, config, encoder.name)


def contrastive_loss(encoder: TorchEncoder) -> Callable[[Any, dict[str, Any]], Tensor]:
    """InfoNCE of a batch made by `Collator`, at the encoder's own temperature."""

    def loss(model: Any, batch: dict[str, Any]) -> Tensor:
        images = functional.normalize(encoder.image_features(model, batch["image"]).float(), dim=-1)
        texts = functional.normalize(encoder.text_features(model, batch["text"]).float(), dim=-1)
        return info_nce(images, texts, encoder.logit_scale, batch["same"])

    return loss


def _train(
    model: Any,
    encoder: TorchEncoder,
    pairs: Pairs,
    settings: ClipSettings,
    work: Path,
    checkpoint: Path | None,
    progress: Progress | None,
) -> tuple[list[float], float, int]:
    """Losses of each ten steps, seconds and steps of the run."""
    from adapt.trainer import AdapterTrainer, Budget, ProgressReport, arguments

    epochs = settings.epochs or (ENDLESS if settings.max_seconds else 20)
    batch = min(settings.batch, len(pairs))
    order = Order(len(pairs), batch, epochs, settings.seed)
    budget = Budget(settings.max_seconds, len(order) // batch, settings.checkpoint_seconds)
    if checkpoint is not None:
        budget.restore(checkpoint)
    trainer = AdapterTrainer(
        contrastive_loss(encoder),
        budget,
        settings.warmup,
        model=model,
        args=arguments(
            work,
            batch=batch,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=settings.seed,
            device=encoder.device,
            bf16=native_bfloat16(encoder.device) if settings.precision == "auto" else settings.precision == "bfloat16",
        ),
        train_dataset=order,
        data_collator=Collator(pairs, settings.seed, settings.augment),
    )
    if progress is not None:
        trainer.add_callback(ProgressReport(progress, None if epochs == ENDLESS else budget.total_steps))
    # On CPUs the fused kernel's backward pass is slower than plain matrix products at these lengths
    # (docs/decisions/0002-eager-attention-on-cpu.md).
    with sdpa_kernel(SDPBackend.MATH) if encoder.device == "cpu" else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    means = [float(np.mean(budget.losses[i : i + 10])) for i in range(0, len(budget.losses), 10)]
    return means, budget.spent, trainer.state.global_step


def _check_merge(
    model: Any, encoder: TorchEncoder, base_ref: str, folder: Path, pairs: Pairs
) -> tuple[float, TorchEncoder]:
    """Load what was saved the way a user will, and compare: largest difference, and the merged encoder."""
    base: Any = load_encoder(base_ref, encoder.device)
    base.model = adapters.apply(base.model, folder, base.base_fingerprint)
    base.fingerprint = adapted_fingerprint(base.base_fingerprint, folder)
    base.name = f"{base_ref}+{folder}"
    count = min(32, len(pairs))
    image = {pairs.image_key: (pairs.pixels[:count].float() / 255 - pairs.mean) / pairs.deviation}
    text = {name: tokens[:count] for name, tokens in pairs.tokens.items()}
    differences: list[float] = []
    with torch.inference_mode():
        for embed, inputs in ((encoder.image_features, image), (encoder.text_features, text)):
            placed = {name: value.to(encoder.device) for name, value in inputs.items()}
            one, other = (functional.normalize(embed(m, placed).float(), dim=-1) for m in (model, base.model))
            differences.append(float((one - other).abs().max()))
    worst = float(np.max(differences))
    if not worst <= MERGE_TOLERANCE:
        raise FovealError(
            "the merged adapter does not say what base + adapter says",
            expected=f"embeddings within {MERGE_TOLERANCE:g}",
            received=f"a difference of {worst:.2g}",
            remedy="Train in float32, with a lower learning rate or alpha.",
        )
    return worst, base
