"""LoRA and QLoRA for vision-language models: what a run of `foveal adapt vlm` trains, on which dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from adapt import run, targets
from adapt.dialogues import Dialogues, open_dialogues
from adapt.job import ENDLESS, Job, Order
from adapt.run import AdaptReport
from adapt.settings import Settings
from adapt.vlm_lessons import Lesson, LessonCollator, answer_loss, grouped, lessons
from adapt.vlm_score import score
from foveal import adapters
from foveal.errors import BadInput, FovealError, UnknownName
from foveal.models import licence_of, load_vlm, parse_ref
from foveal.progress import Progress
from foveal.quantised import to_nf4
from foveal.vlms import FAMILIES, Part, TransformersVLM, linear_layers, part_of

# Largest difference of logits between base + adapter and merged, as a share of the largest logit. It holds for 4-bit
# weights too, against an adapter merged into what they stand for: 1e-6 was measured on every family, in float32.
MERGE_TOLERANCE = 1e-4
COMPARED = 8  # examples that the two are compared on


class VlmSettings(Settings):
    """Settings of `foveal adapt vlm`."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
    batch: int = Field(default=16, ge=2)
    towers: tuple[Part, ...] = Field(default=("language",), min_length=1)  # parts that get adapter layers
    language_rate: float = Field(default=1.0, gt=0)  # of each part, as a multiple of learning_rate
    projector_rate: float = Field(default=1.0, gt=0)
    vision_rate: float = Field(default=1.0, gt=0)
    pack: int = Field(default=1, ge=1)  # most dialogues about an image that learn behind one reading of it
    quantise: bool = False  # QLoRA, arXiv 2305.14314: the language model's frozen weights in 4 bits
    image_side: int | None = Field(default=None, ge=28)  # the model sees about this many pixels squared of an image
    max_length: int | None = Field(default=None, ge=16)  # tokens of an example, image included; longer ones are cut
    max_new_tokens: int = Field(default=64, ge=1)  # of an answer in validation


def adapt(
    base_ref: str,
    sources: Sequence[str | Path],
    out: Path,
    settings: VlmSettings | None = None,
    progress: Progress | None = None,
    *,
    validation: Sequence[str | Path] | None = None,
    device: str | None = None,
    fresh: bool = False,
) -> AdaptReport:
    """Train a LoRA adapter for the model `base_ref` on the dialogues of `sources` and write it to `out`.

    Interrupted at any moment, the next call with the same arguments goes on from the last checkpoint (kept beside
    `out` until the end); a finished `out` is reported as done. `fresh` starts over.

    Raises:
        BadInput: `out` holds another run, the base already carries an adapter, or the data cannot be used.
        FovealError: the loss is not finite, memory ran out, or merging the adapter would change what it says.
    """
    settings, out = settings or VlmSettings(), Path(out)
    vlm = adaptable(base_ref, device)
    taught = open_dialogues(sources, progress)
    held = open_dialogues(validation, progress) if validation else None
    described = run.identity(settings, vlm.base_fingerprint, taught.fingerprint, held.fingerprint if held else None)
    described["conditions"] = {"nf4": settings.quantise, "image_side": settings.image_side}
    if (done := run.finished(out, described, fresh)) is not None:
        return done
    job = make_job(base_ref, vlm, taught, settings, held)
    return run.execute(job, out, described, settings, progress)


def adaptable(base_ref: str, device: str | None = None) -> TransformersVLM:
    """The model to adapt, in float32.

    Raises:
        BadInput: the reference already carries an adapter, or names something that LoRA cannot attach to.
    """
    if parse_ref(base_ref).adapter is not None:
        raise BadInput(
            f"{base_ref} already carries an adapter", expected="a base model", remedy="Leave the + part out."
        )
    vlm: Any = load_vlm(base_ref, device)
    if not isinstance(vlm, TransformersVLM):
        raise BadInput(f"{base_ref} cannot be adapted", expected="a transformers image-text-to-text model")
    return vlm


def make_job(
    base_ref: str, vlm: TransformersVLM, dialogues: Dialogues, settings: VlmSettings, held: Dialogues | None = None
) -> Job:
    """Put the dialogues in the model's words, and fresh adapter layers on the model."""
    run.check_share(dialogues.skipped, dialogues.images, settings.max_skipped)
    total = sum(p.numel() for p in vlm.model.parameters())
    if settings.image_side is not None:
        vlm.see(settings.image_side)
    if settings.pack > 1 and not FAMILIES[vlm.family].packs:
        able = ", ".join(name for name, family in FAMILIES.items() if family.packs)
        raise BadInput(f"{base_ref} cannot be packed", expected=f"one of {able}", remedy="Set pack=1.")
    if settings.pack > 1 and settings.max_length is not None:
        raise BadInput("packed questions cannot be cut", expected="pack=1, or no max_length")
    taught = grouped(lessons(vlm, dialogues), settings.pack, settings.seed)
    tested = lessons(vlm, held) if held is not None else []
    names = choose(vlm.model, settings.towers, settings.target_modules)
    if settings.quantise:
        to_nf4(vlm.model, linear_layers(vlm.model, "language"), vlm.device)
    # The layers are put into the model itself, so that `vlm` answers with them from here on.
    model = adapters.fresh(vlm.model.float(), targets.lora_config(settings, names), settings.seed, base_ref)
    order = Order(len(taught), settings.batch, ENDLESS, settings.seed)
    collator = LessonCollator(vlm, taught, order, settings.max_length)
    notes: list[str] = []
    if held is not None and held.skipped:
        path, reason = held.skipped[0]
        notes.append(f"{len(held.skipped)} validation images cannot be read, the first {path}: {reason}")
    if settings.max_length is not None:
        cut = _overlong(collator)
        notes += [f"{cut} of {len(taught)} dialogues are longer than max_length and were cut"] if cut else []
    rates: dict[Part | None, float] = {
        "language": settings.language_rate,
        "projector": settings.projector_rate,
        "vision": settings.vision_rate,
    }
    return Job(
        kind="vlm",
        base=base_ref,
        base_fingerprint=vlm.base_fingerprint,
        base_licence=licence_of(base_ref),
        data_fingerprint=dialogues.fingerprint,
        device=vlm.device,
        model=model,
        total_params=total,
        loss=answer_loss,
        count=len(taught),
        collate=collator,
        names=lambda i: str(taught[i][0].image),
        check=lambda folder: check_merge(vlm, base_ref, folder, collator, settings),
        data={
            "images": len({group[0].image for group in taught}),
            "dialogues": sum(map(len, taught)),
            "answers": sum(len(lesson.turns) for group in taught for lesson in group),
        },
        skipped=dialogues.skipped,
        notes=notes,
        validate=(lambda: score(vlm, tested, settings.max_new_tokens)) if tested else None,
        metric=_metric(tested),
        rate_of=lambda name: rates.get(part_of(name), 1.0),
        prepare=_checkpoint_activations,
    )


def choose(model: nn.Module, parts: Sequence[Part], wanted: Sequence[str] | None = None) -> list[str]:
    """The modules to adapt: all linear layers of the parts, or those whose last name is in `wanted`.

    Raises:
        UnknownName: a wanted name is no linear layer of these parts.
        BadInput: the parts have no linear layer at all.
    """
    names = linear_layers(model, *parts)
    if not names:
        raise BadInput(f"the model has no linear layer to adapt in its {' and '.join(parts)}")
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    for leaf in wanted or ():
        if leaf not in leaves:
            raise UnknownName("target module", leaf, leaves, remedy="Leave target_modules out to adapt all of them.")
    return [name for name in names if wanted is None or name.rsplit(".", 1)[-1] in wanted]


@torch.no_grad()
def check_merge(
    vlm: TransformersVLM, base_ref: str, folder: Path, collator: LessonCollator, settings: VlmSettings
) -> tuple[float, str]:
    """Load what was saved the way a user will, and compare logits: largest difference, and the fingerprint of both.

    Raises:
        FovealError: they differ by more than `MERGE_TOLERANCE`.
    """
    merged = load_vlm(base_ref, "cpu")  # where it is float32
    assert isinstance(merged, TransformersVLM)  # `adaptable` saw to it
    merged.merge(folder, nf4=settings.quantise, image_side=settings.image_side)
    merged.model.to(vlm.device)
    worst = 0.0
    for i in range(min(COMPARED, len(collator.taught))):
        inputs = vlm.placed(collator.batch([i])[0])
        one, other = (model(**inputs).logits.float() for model in (vlm.model.eval(), merged.model))
        worst = float(torch.maximum(torch.tensor(worst), (one - other).abs().max() / one.abs().max().clamp(min=1)))
    if not worst <= MERGE_TOLERANCE:
        raise FovealError(
            "the merged adapter does not say what base + adapter says",
            expected=f"logits within {MERGE_TOLERANCE:g} of the largest",
            received=f"a difference of {worst:.2g}",
            remedy="Train with a lower learning rate or alpha.",
        )
    return worst, merged.fingerprint


def _overlong(collator: LessonCollator) -> int:
    """How many lessons are cut; looking at all of them also finds an image that leaves no room for words."""
    for i in range(len(collator.taught)):
        collator.batch([i])
    return len(collator.cut)


def _metric(tested: Sequence[Lesson]) -> str:
    return "exact_match" if any(lesson.boxes is None for lesson in tested) else "grounding_iou"


def _checkpoint_activations(model: nn.Module) -> None:
    """Turn on gradient checkpointing in the base model."""
    inner: Any = model.get_base_model()  # pyright: ignore
    inner.gradient_checkpointing_enable({"use_reentrant": False})
