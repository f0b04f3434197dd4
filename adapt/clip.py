"""LoRA for CLIP-style encoders: what a run of `foveal adapt clip` trains, on which data, towards which objective.

Shape letters: N images, M captions, B pairs in a batch, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from adapt import losses, run, targets
from adapt.job import ENDLESS, Example, Job, LossFunction, Order, Validation
from adapt.pairs import BATCH, FEATURES, Collator, Pairs, load_pairs, look_alikes
from adapt.run import AdaptReport
from adapt.settings import Settings
from adapt.targets import Tower
from evals import few_shot, retrieval, zero_shot
from foveal import adapters
from foveal.dataset import Dataset, Sample
from foveal.detections import FloatArray
from foveal.encoders import TorchEncoder, adapted_fingerprint
from foveal.errors import BadInput, FovealError
from foveal.models import licence_of, load_encoder, parse_ref
from foveal.progress import Progress, track

MERGE_TOLERANCE = 1e-4  # largest difference of unit-length embeddings between base + adapter and merged


class ClipSettings(Settings):
    """Settings of `foveal adapt clip`."""

    towers: tuple[Tower, ...] = Field(default=("image", "text"), min_length=1)  # the other's embeddings are cached
    objective: Literal["auto", "infonce", "sigmoid"] = "auto"  # auto: sigmoid where the base was trained with it
    augment: bool = True
    hard_negatives: Path | None = None  # an archive: images that look alike there share a batch
    group: int = Field(default=4, ge=2)  # how many look-alikes stand together, with `hard_negatives`


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
    """Train a LoRA adapter for the encoder `base_ref` on the captions or labels of `dataset` and write it to `out`.

    Interrupted at any moment, the next call with the same arguments goes on from the last checkpoint (kept beside
    `out` until the end); a finished `out` is reported as done. `fresh` starts over.

    Raises:
        BadInput: `out` holds another run, the base already carries an adapter, or the data cannot be used.
        FovealError: the loss is not finite, memory ran out, or merging the adapter would change what it says.
    """
    settings, out = settings or ClipSettings(), Path(out)
    encoder = adaptable(base_ref, device)
    described = run.identity(
        settings, encoder.base_fingerprint, dataset.fingerprint, validation.fingerprint if validation else None
    )
    if (done := run.finished(out, described, fresh)) is not None:
        return done
    job = make_job(base_ref, encoder, dataset, settings, progress, validation)
    return run.execute(job, out, described, settings, progress)


def adaptable(base_ref: str, device: str | None = None) -> TorchEncoder:
    """The encoder to adapt.

    Raises:
        BadInput: the reference already carries an adapter, or names something that LoRA cannot attach to.
    """
    if parse_ref(base_ref).adapter is not None:
        raise BadInput(
            f"{base_ref} already carries an adapter", expected="a base model", remedy="Leave the + part out."
        )
    encoder: Any = load_encoder(base_ref, device)
    if not isinstance(encoder, TorchEncoder):
        raise BadInput(f"{base_ref} cannot be adapted", expected="an open_clip or transformers encoder")
    return encoder


def make_job(
    base_ref: str,
    encoder: TorchEncoder,
    dataset: Dataset,
    settings: ClipSettings,
    progress: Progress | None = None,
    validation: Dataset | None = None,
) -> Job:
    """Decode the data, compute what stays frozen, and put fresh adapter layers on the encoder's model."""
    pairs = load_pairs(encoder, dataset, settings.max_skipped, progress)
    frozen = _frozen(encoder, pairs, settings.towers, progress)
    total = sum(p.numel() for p in encoder.model.parameters())
    arrange = None
    if settings.hard_negatives is not None:
        arrange = look_alikes(_archived(settings.hard_negatives, pairs), settings.group)
    notes: list[str] = []
    if pairs.overlong:
        notes.append(f"{pairs.overlong} of {len(pairs.meaning)} captions are longer than the context and were cut")
        if progress is not None:
            progress.note(notes[-1])
    order = Order(len(pairs), settings.batch, ENDLESS, settings.seed, arrange)
    loss = contrastive_loss(encoder, settings, pairs)
    chosen = targets.choose(encoder.model, settings.towers, settings.target_modules)
    model = adapters.fresh(encoder.model, targets.lora_config(settings, chosen), settings.seed, base_ref)
    return Job(
        kind="clip",
        base=base_ref,
        base_fingerprint=encoder.base_fingerprint,
        base_licence=licence_of(base_ref),
        data_fingerprint=dataset.fingerprint,
        device=encoder.device,
        model=model,
        total_params=total,
        loss=loss,
        count=len(pairs),
        collate=Collator(pairs, order, settings.augment, frozen),
        names=lambda i: str(pairs.paths[i]),
        check=lambda folder: _check_merge(model, encoder, base_ref, folder, pairs),
        data={"images": len(pairs), "captions": len(pairs.meaning)},
        skipped=pairs.skipped,
        notes=notes,
        arrange=arrange,
        validate=(lambda: _validate(encoder, model, validation)) if validation is not None else None,
        baselines=_baselines(encoder, model, dataset, pairs, validation),
        metric="recall_at_1" if validation is not None and any(s.captions for s in validation) else "top1",
        accumulates=False,
        prepare=_checkpoint_activations,
    )


def contrastive_loss(encoder: TorchEncoder, settings: ClipSettings, pairs: Pairs) -> LossFunction:
    """The loss of a batch made by `Collator`, over the pairs of all processes, at the encoder's own temperature.

    With `micro_batch` the embeddings of a large batch are computed piece by piece without keeping activations, and
    again in the backward pass: gradient caching (arXiv 2101.06983), here by checkpointing each piece. Labelled images
    are told apart by class names instead, which every process has whole.
    """
    objective = settings.objective
    if objective == "auto":
        objective = "infonce" if encoder.logit_bias is None else "sigmoid"
    bias = encoder.logit_bias if objective == "sigmoid" else None
    if objective == "sigmoid" and bias is None:
        bias = _fit_bias(encoder, pairs)
    scale = encoder.logit_scale

    def loss(model: Any, batch: dict[str, Any]) -> Tensor:
        images = _embed(encoder.image_features, model, batch["image"], settings.micro_batch)
        texts = _embed(encoder.text_features, model, batch["text"], settings.micro_batch)
        if "same" in batch:
            if bias is None:
                return losses.classify(images, texts, scale, batch["same"])
            return losses.sigmoid(images, texts, scale, bias, batch["same"])
        images, texts, meaning = (losses.gathered(rows) for rows in (images, texts, batch["meaning"]))
        same = meaning[:, None] == meaning[None, :]
        if bias is None:
            return losses.for_averaging(losses.info_nce(images, texts, scale, same))
        return losses.for_averaging(losses.sigmoid(images, texts, scale, bias, same))

    return loss


def _embed(features: Any, model: Any, inputs: Mapping[str, Tensor], piece: int | None) -> Tensor:
    """Unit-length embeddings (B, D), `piece` inputs at a time."""
    if FEATURES in inputs:
        return inputs[FEATURES]
    count = len(next(iter(inputs.values())))
    if piece is None or piece >= count:
        return functional.normalize(features(model, inputs).float(), dim=-1)
    rows = [
        checkpoint(features, model, {k: v[i : i + piece] for k, v in inputs.items()}, use_reentrant=False)
        for i in range(0, count, piece)
    ]
    return functional.normalize(torch.cat(rows).float(), dim=-1)


def _frozen(
    encoder: TorchEncoder, pairs: Pairs, towers: Sequence[Tower], progress: Progress | None
) -> dict[Tower, Tensor]:
    """Unit-length features of what passes a tower that does not learn: computed once, and not augmented."""
    frozen: dict[Tower, Tensor] = {}

    def tokens(i: int) -> dict[str, Tensor]:
        return {name: ids[i : i + BATCH] for name, ids in pairs.tokens.items()}

    if "image" not in towers:
        frozen["image"] = _image_features(encoder, pairs, progress)
    if "text" not in towers:
        count = len(pairs.meaning)
        frozen["text"] = _features(encoder, encoder.text_features, tokens, count, "embed captions", progress)
    return frozen


def _image_features(encoder: TorchEncoder, pairs: Pairs, progress: Progress | None = None) -> Tensor:
    """Unit-length features (N, D) of the images as they are."""

    def pixels(i: int) -> dict[str, Tensor]:
        return {pairs.image_key: (pairs.pixels[i : i + BATCH].float() / 255 - pairs.mean) / pairs.deviation}

    return _features(encoder, encoder.image_features, pixels, len(pairs), "embed images", progress)


def _features(
    encoder: TorchEncoder, features: Any, inputs: Any, count: int, task: str, progress: Progress | None
) -> Tensor:
    rows: list[Tensor] = []
    with torch.inference_mode():
        for i in track(progress, range(0, count, BATCH), task):
            placed = {k: v.to(encoder.device) for k, v in inputs(i).items()}
            rows.append(functional.normalize(features(encoder.model, placed).float(), dim=-1).cpu())
    return torch.cat(rows).clone()  # a tensor of inference mode cannot take part in training


def _fit_bias(encoder: TorchEncoder, pairs: Pairs, sample: int = 256) -> float:
    """The sigmoid loss's bias for a base that has none, from a sample of its own embeddings."""
    chosen = np.linspace(0, len(pairs) - 1, min(sample, len(pairs))).astype(int)
    index = torch.from_numpy(chosen)
    caption = pairs.first[index]
    with torch.inference_mode():
        pixels = (pairs.pixels[index].float() / 255 - pairs.mean) / pairs.deviation
        image = encoder.image_features(encoder.model, {pairs.image_key: pixels.to(encoder.device)})
        tokens = {k: v[caption].to(encoder.device) for k, v in pairs.tokens.items()}
        text = encoder.text_features(encoder.model, tokens)
        images, texts = (functional.normalize(x.float(), dim=-1).cpu() for x in (image, text))
    meaning = pairs.meaning[caption]
    return losses.fitted_bias(images @ texts.T, encoder.logit_scale, meaning[:, None] == meaning[None, :])


def _archived(folder: Path, pairs: Pairs) -> FloatArray:
    """The archive's vectors (N, D) of the training images, found by content.

    Raises:
        BadInput: the archive lacks some of them.
    """
    from foveal.images import content_hash
    from retrieval.archive import Archive

    known = Archive.open(folder).vectors_by_content([content_hash(path) for path in pairs.paths])
    lacking = [path for path, vector in zip(pairs.paths, known, strict=True) if vector is None]
    if lacking:
        raise BadInput(
            f"archive {folder} lacks {len(lacking)} of {len(known)} training images, the first {lacking[0]}",
            remedy=f"Add them: foveal archive add {lacking[0].parent} --archive {folder}",
        )
    return np.stack([vector for vector in known if vector is not None]).astype(np.float32)


def _checkpoint_activations(model: nn.Module) -> None:
    """Turn on gradient checkpointing in an open_clip or transformers model."""
    inner: Any = model.get_base_model()  # pyright: ignore
    if hasattr(inner, "set_grad_checkpointing"):
        inner.set_grad_checkpointing(True)
    else:
        inner.gradient_checkpointing_enable({"use_reentrant": False})


@torch.no_grad()
def _validate(encoder: TorchEncoder, model: Any, validation: Dataset) -> Validation:
    """Recall of captions, or accuracy of labels, with the adapter as it stands."""
    with _speaking_for(encoder, model):
        if any(sample.captions for sample in validation):
            return _recall(encoder, validation)
        return _accuracy(encoder, validation)


@contextmanager
def _speaking_for(encoder: TorchEncoder, model: Any) -> Generator[None]:
    """Let `encoder` embed with `model`, as it stands, for a while."""
    model.eval()
    kept, encoder.model = encoder.model, model
    try:
        yield
    finally:
        encoder.model = kept


def _encoded(encoder: TorchEncoder, samples: Sequence[Sample]) -> FloatArray:
    chunks = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]
    return np.concatenate([encoder.encode_images([s.image() for s in chunk]) for chunk in chunks])


def _recall(encoder: TorchEncoder, validation: Dataset) -> Validation:
    measured = retrieval.measure(encoder, validation)
    paths = {sample.id: sample.path for sample in validation}
    rows = zip(*(measured.items[column] for column in ("image", "text", "rank")), strict=True)
    examples = [Example(paths[image], text, f"rank {rank}", -float(np.log(rank))) for image, text, rank in rows]
    return Validation(measured.figures, examples)


def _accuracy(encoder: TorchEncoder, validation: Dataset) -> Validation:
    labelled = [sample for sample in validation if sample.label in validation.classes]
    if not labelled:
        raise BadInput("the validation set has neither captions nor labels", expected="one of them")
    truth = [validation.classes.index(str(sample.label)) for sample in labelled]
    names = zero_shot.class_embeddings(encoder, validation.classes)
    cosine = _encoded(encoder, labelled) @ names.T
    said = cosine.argmax(axis=1)
    rows = np.arange(len(truth))
    rivals = cosine.copy()
    rivals[rows, truth] = -np.inf
    margin = cosine[rows, truth] - rivals.max(axis=1)
    figures = zero_shot.scores(cosine, truth)
    examples = [
        Example(s.path, str(s.label), validation.classes[int(a)], float(m))
        for s, a, m in zip(labelled, said, margin, strict=True)
    ]
    return Validation(figures, examples)


def _baselines(
    encoder: TorchEncoder, model: Any, dataset: Dataset, pairs: Pairs, validation: Dataset | None
) -> Callable[[], dict[str, dict[str, float]]] | None:
    """What the base reaches without training, where both datasets label images with two or more common classes."""
    if validation is None or any(sample.captions for sample in validation):
        return None
    classes = {name: i for i, name in enumerate(validation.classes)}
    said = {sample.path: sample.label for sample in dataset}
    labels = [classes.get(said[path] or "", -1) for path in pairs.paths]
    known = [i for i, label in enumerate(labels) if label >= 0]
    test = [sample for sample in validation if sample.label in classes]
    if len({labels[i] for i in known}) < 2 or not test:
        return None

    def compare() -> dict[str, dict[str, float]]:
        with _speaking_for(encoder, model), model.disable_adapter():
            names = zero_shot.class_embeddings(encoder, validation.classes)
            shots = _image_features(encoder, pairs).numpy()[known]
            images = _encoded(encoder, test)
        truth = [classes[str(sample.label)] for sample in test]
        return few_shot.compare(names, encoder.logit_scale, (shots, [labels[i] for i in known]), (images, truth))

    return compare


def _check_merge(model: Any, encoder: TorchEncoder, base_ref: str, folder: Path, pairs: Pairs) -> tuple[float, str]:
    """Load what was saved the way a user will, and compare: largest difference, and the fingerprint of both."""
    base: Any = load_encoder(base_ref, encoder.device)
    base.model = adapters.apply(base.model, folder, base.base_fingerprint)
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
    return worst, adapted_fingerprint(base.base_fingerprint, folder)
