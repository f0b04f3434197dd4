"""LoRA for open-vocabulary detectors: what a run of `foveal adapt detector` trains.

Shape letters: B images, Q candidate boxes, P prompts (the classes), M the most objects in a batch, L tokens,
D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adapt import detection_losses, detector_targets, run
from adapt.job import ENDLESS, Example, Job, LossFunction, Order, Validation
from adapt.run import AdaptReport
from adapt.scenes import Collator, Scenes, load_scenes, may_mirror, seen_size
from adapt.settings import Settings
from adapt.targets import Tower, lora_config
from evals import detection
from foveal import adapters
from foveal.dataset import Dataset
from foveal.detections import FloatArray
from foveal.encoders import adapted_fingerprint
from foveal.errors import BadInput, FovealError
from foveal.models import licence_of, load_open_detector, parse_ref
from foveal.open_detectors import GroundingDetector, OwlDetector, TransformersOpenDetector
from foveal.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

MERGE_TOLERANCE = 1e-4  # largest difference of scores and of boxes in [0, 1] between base + adapter and merged
CHECKED = 8  # images on which both are compared
BATCH = 8  # images looked at together in validation


class DetectorSettings(Settings):
    """Settings of `foveal adapt detector`."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    learning_rate: float = Field(default=2e-3, gt=0)
    batch: int = Field(default=4, ge=2)
    towers: tuple[Tower, ...] = Field(default=("image",), min_length=1)  # without text, prompts are embedded once
    augment: bool = True
    negatives: int = Field(default=50, ge=0)  # classes an image is asked about beside its own


def adapt(
    base_ref: str,
    dataset: Dataset,
    out: Path,
    settings: DetectorSettings | None = None,
    progress: Progress | None = None,
    *,
    validation: Dataset | None = None,
    device: str | None = None,
    fresh: bool = False,
) -> AdaptReport:
    """Train a LoRA adapter for the open-vocabulary detector `base_ref` on the boxes of `dataset` and write it to `out`.

    The prompts are the class names. Interruptions, `fresh` and what is raised are as in `adapt.clip.adapt`.
    """
    settings, out = settings or DetectorSettings(), Path(out)
    detector = adaptable(base_ref, device)
    described = run.identity(
        settings, detector.base_fingerprint, dataset.fingerprint, validation.fingerprint if validation else None
    )
    if (done := run.finished(out, described, fresh)) is not None:
        return done
    job = make_job(base_ref, detector, dataset, settings, progress, validation)
    return run.execute(job, out, described, settings, progress)


def adaptable(base_ref: str, device: str | None = None) -> OwlDetector | GroundingDetector:
    """The detector to adapt.

    Raises:
        BadInput: the reference already carries an adapter, or names a family without a loss.
    """
    if parse_ref(base_ref).adapter is not None:
        raise BadInput(
            f"{base_ref} already carries an adapter", expected="a base model", remedy="Leave the + part out."
        )
    detector: Any = load_open_detector(base_ref, device)
    if not isinstance(detector, OwlDetector | GroundingDetector):
        raise BadInput(f"{base_ref} cannot be adapted", expected="OWL-ViT, OWLv2, Grounding DINO or MM-Grounding-DINO")
    return detector


def make_job(
    base_ref: str,
    detector: OwlDetector | GroundingDetector,
    dataset: Dataset,
    settings: DetectorSettings,
    progress: Progress | None = None,
    validation: Dataset | None = None,
) -> Job:
    """Decode the data and put fresh adapter layers on the detector's model."""
    scenes = load_scenes(detector, dataset, settings.max_skipped, progress)
    total = sum(p.numel() for p in detector.model.parameters())
    chosen = detector_targets.choose(detector.model, settings.towers, settings.target_modules)
    if isinstance(detector, OwlDetector):
        loss = owl_loss(detector, scenes.classes, "text" in settings.towers)
    else:
        loss = grounding_loss(detector, scenes.classes)
    model = adapters.fresh(detector.model, lora_config(settings, chosen), settings.seed, base_ref)
    order = Order(len(scenes), settings.batch, ENDLESS, settings.seed)
    notes = [] if may_mirror(scenes.classes) else ["images were not mirrored: class names tell left from right"]
    if validation is not None and not any(sample.truth is not None and len(sample.truth) for sample in validation):
        raise BadInput("the validation set has no boxes", expected="held-out images with boxes")
    return Job(
        kind="detector",
        base=base_ref,
        base_fingerprint=detector.base_fingerprint,
        base_licence=licence_of(base_ref),
        data_fingerprint=dataset.fingerprint,
        device=detector.device,
        model=model,
        total_params=total,
        loss=loss,
        count=len(scenes),
        collate=Collator(scenes, order, settings.augment, settings.negatives),
        names=lambda i: str(scenes.paths[i]),
        check=lambda folder: _check_merge(detector, base_ref, folder, scenes),
        data={
            "images": len(scenes),
            "boxes": sum(len(boxes) for boxes in scenes.boxes),
            "classes": len(scenes.classes),
        },
        skipped=scenes.skipped,
        notes=notes,
        validate=(lambda: _validate(detector, validation)) if validation is not None else None,
        metric="AP",
        prepare=_checkpoint_activations,
    )


def owl_loss(detector: OwlDetector, classes: tuple[str, ...], text_learns: bool) -> LossFunction:
    """The set-prediction loss of a batch made by `Collator`; queries are embedded once unless `text_learns`."""
    fixed = detector.embed_prompts(classes).clone()  # a tensor of inference mode cannot take part in training

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        queries = detector.prompt_features(classes) if text_learns else fixed
        features_map, _ = model.image_embedder(pixel_values=batch["pixels"])
        features = features_map.flatten(1, 2)  # (B, Q, D)
        logits, _ = model.class_predictor(features, queries.expand(len(features), -1, -1))
        boxes = model.box_predictor(features, features_map)
        return detection_losses.set_loss(logits.float(), boxes.float(), _truth(batch), batch["asked"], batch["count"])

    return loss


def grounding_loss(detector: GroundingDetector, classes: tuple[str, ...]) -> LossFunction:
    """transformers' own loss of Grounding DINO for a batch made by `Collator`, on all that fits one caption.

    The whole batch shares the caption. Tokens are mapped to classes here, by character, because transformers looks for
    the ids of BERT's full stop, whatever the tokenizer.
    """

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        present = batch["labels"][batch["labels"] >= 0].unique().tolist()
        others = [i for i in batch["asked"].any(dim=0).nonzero()[:, 0].tolist() if i not in present]
        order = sorted(present + others)
        captions = detector.captions(tuple(classes[i] for i in order))
        first = next(captions)
        if next(captions, None) is not None:  # too many for one caption: what is there comes first
            order = present + others
            first = next(detector.captions(tuple(classes[i] for i in order)))
        _, caption, spans = first
        tokens, own = detector.caption_inputs(caption, spans)
        place = {c: k for k, c in enumerate(order[: len(spans)])}
        device, count = batch["pixels"].device, len(batch["pixels"])
        text = {name: ids.to(device).expand(count, -1) for name, ids in tokens.items()}
        output = model(pixel_values=batch["pixels"], pixel_mask=batch["mask"], **text)
        width = output.logits.shape[-1]
        own = nn.functional.pad(own, (0, width - own.shape[1])).long().to(device)
        mask = nn.functional.pad(text["attention_mask"], (0, width - text["attention_mask"].shape[1])).bool()
        targets: list[dict[str, Tensor]] = []
        for labels, boxes in _truth(batch):
            fits = [i for i, c in enumerate(labels.tolist()) if c in place]
            known = torch.tensor([place[int(labels[i])] for i in fits], dtype=torch.long, device=device)
            targets.append({"class_labels": known, "boxes": boxes[fits]})
        base = model.get_base_model()
        total, _, _ = base.loss_function(
            output.logits,
            targets,
            device,
            output.pred_boxes,
            base.config,
            (own,) * count,
            mask[:, None].expand(-1, output.logits.shape[1], -1),
            encoder_logits=output.encoder_logits,
            encoder_pred_boxes=output.encoder_pred_boxes,
        )
        return total

    return loss


def _truth(batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Labels (N,) and boxes (N, 4) of each image, without the padding."""
    kept = [labels >= 0 for labels in batch["labels"]]
    return [
        (labels[real], boxes[real]) for labels, boxes, real in zip(batch["labels"], batch["boxes"], kept, strict=True)
    ]


def _checkpoint_activations(model: nn.Module) -> None:
    inner: Any = model.get_base_model()  # pyright: ignore
    inner.gradient_checkpointing_enable({"use_reentrant": False})


def _validate(detector: OwlDetector | GroundingDetector, validation: Dataset) -> Validation:
    """COCO average precision with the adapter as it stands: peft put its layers into the detector's own model."""
    detector.model.eval()
    if isinstance(detector, OwlDetector):
        detector.forget_prompts()
    samples = [sample for sample in validation if sample.truth is not None]
    found, truths, examples = [], [], list[Example]()
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        found += detector.detect([sample.image() for sample in part], validation.classes, threshold=0.01)
    for sample, said in zip(samples, found, strict=True):
        truth = sample.truth
        assert truth is not None
        truths.append(truth)
        if len(truth):
            hits = int(detection.match(said, truth).sum())
            value = detection.precision_recall_curve([said], [truth]).average_precision
            asked = ", ".join(dict.fromkeys(truth.label_names))
            examples.append(Example(sample.path, asked, f"{hits} of {len(truth)} (AP50 {value:.2f})", value))
    scores = detection.evaluate(truths, found)
    figures = {name: float(scores[name] or 0.0) for name in ("AP", "AP50", "AP75", "AR100")}
    return Validation({**figures, "images": float(len(samples))}, examples)


def _check_merge(
    detector: OwlDetector | GroundingDetector, base_ref: str, folder: Path, scenes: Scenes
) -> tuple[float, str]:
    """Load what was saved the way a user will, and compare: largest difference, and the fingerprint of both."""
    from foveal.images import decode

    other: Any = load_open_detector(base_ref, detector.device)
    other.model = adapters.apply(other.model, folder, other.base_fingerprint)
    if isinstance(detector, OwlDetector):
        detector.forget_prompts()
    images = [decode(path) for path in scenes.paths[:CHECKED]]
    worst = difference(detector, other, images, scenes.classes)
    refuse_above_tolerance(worst)
    return worst, adapted_fingerprint(other.base_fingerprint, folder)


def refuse_above_tolerance(worst: float) -> None:
    """Raise `FovealError` when two forms of one model differ by more than the stated tolerance, or by NaN."""
    if not worst <= MERGE_TOLERANCE:
        raise FovealError(
            "the merged adapter does not say what base + adapter says",
            expected=f"scores and boxes within {MERGE_TOLERANCE:g}",
            received=f"a difference of {worst:.2g}",
            remedy="Train in float32, with a lower learning rate or alpha.",
        )


def difference(
    one: TransformersOpenDetector, other: TransformersOpenDetector, images: Sequence[Image], prompts: Sequence[str]
) -> float:
    """Largest difference of scores and of boxes in [0, 1] between what two detectors propose.

    Grounding DINO orders its candidates by score, so that rounding swaps neighbours: there each candidate is compared
    with the nearest of the other side.
    """
    worst = 0.0
    for image in images:
        a, b = (torch.from_numpy(_proposals(detector, image, tuple(prompts))) for detector in (one, other))
        if isinstance(one, OwlDetector):
            apart = (a - b).abs().max()
        else:
            distances = torch.cdist(a, b, p=float("inf"))
            apart = torch.maximum(distances.min(dim=0).values.max(), distances.min(dim=1).values.max())
        worst = max(worst, float(apart)) if bool(torch.isfinite(apart)) else float("nan")
    return worst


@torch.inference_mode()
def _proposals(detector: TransformersOpenDetector, image: Image, prompts: tuple[str, ...]) -> FloatArray:
    """Every candidate's box in [0, 1] and score (Q, 5)."""
    ((boxes, scores, _),) = detector.propose([image], prompts, -1.0)
    scale = np.array(seen_size(detector, image.size) * 2, dtype=np.float32)
    return np.concatenate([boxes / scale, scores[:, None]], axis=1)
