"""Zero-shot detectors of transformers: OWL-ViT, OWLv2, Grounding DINO, MM-Grounding-DINO and OmDet-Turbo.

Shape letters: B images, P prompts, Q queries (candidate boxes), L tokens, D embedding dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from foveal.detections import Detections, FloatArray, IntArray
from foveal.encoders import (
    LOADING_FAILS,
    adapted_fingerprint,
    fingerprint,
    image_config,
    tokenizer_config,
    unreachable,
)
from foveal.errors import BadInput, UnknownName
from foveal.models import ModelRef
from foveal.runtime import pick_device

if TYPE_CHECKING:
    from PIL.Image import Image

Candidates = tuple[FloatArray, FloatArray, IntArray]  # boxes (Q, 4) xyxy pixels, scores (Q,), prompt index (Q,)


class TransformersOpenDetector(ABC):
    """What the families share: batching, clipping and class-wise suppression.

    Args:
        nms_iou: of two boxes of one prompt overlapping by more than this, the better one stays.
    """

    name: str
    fingerprint: str

    def __init__(self, ref: ModelRef, model: Any, processor: Any, device: str, nms_iou: float = 0.5) -> None:
        from foveal import adapters

        self.name, self.device, self.nms_iou = str(ref), device, nms_iou
        self.processor = processor
        config = {"images": image_config(processor.image_processor), "text": tokenizer_config(processor.tokenizer)}
        model = model.float().eval()
        self.base_fingerprint = fingerprint(model.state_dict(), config)
        self.fingerprint = self.base_fingerprint
        if ref.adapter is not None:
            model = adapters.apply(model, ref.adapter, self.base_fingerprint)
            self.fingerprint = adapted_fingerprint(self.base_fingerprint, ref.adapter)
        self.model: Any = model.to(device).requires_grad_(False)

    def detect(
        self, images: Sequence[Image], prompts: Sequence[str], threshold: float = 0.05, batch: int = 8
    ) -> list[Detections]:
        """One `Detections` an image whose `names` are the prompts, boxes in that image's own pixels, best first.

        Raises:
            BadInput: no prompt, an empty one, or the same one twice.
        """
        prompts = tuple(prompts)
        if not prompts or len(set(prompts)) < len(prompts) or not all(p.strip() for p in prompts):
            raise BadInput("prompts cannot be used", expected="distinct, non-empty texts", received=repr(list(prompts)))
        found: list[Detections] = []
        for start in range(0, len(images), batch):
            part = list(images[start : start + batch])
            with torch.inference_mode():
                answers = self.propose(part, prompts, threshold)
            for (boxes, scores, labels), image in zip(answers, part, strict=True):
                everything = Detections.build(boxes, scores, labels, prompts).clipped(image.width, image.height)
                sides = everything.boxes[:, 2:] - everything.boxes[:, :2]
                # A box that lay wholly in the padding has no area left.
                found.append(everything[sides.min(axis=1, initial=np.inf) > 0].nms(self.nms_iou))
        return found

    @abstractmethod
    def propose(self, images: list[Image], prompts: tuple[str, ...], threshold: float) -> list[Candidates]:
        """Every box above `threshold` for each image, duplicates and all."""

    def _pixels(self, images: list[Image]) -> dict[str, Tensor]:
        return {
            k: v.to(self.device) for k, v in self.processor.image_processor(images=images, return_tensors="pt").items()
        }


class OwlDetector(TransformersOpenDetector):
    """OWL-ViT (arXiv 2205.06230) and OWLv2 (2306.09683): prompts are embedded once and reused for every image."""

    CACHED_PROMPT_SETS = 64

    def __init__(self, ref: ModelRef, model: Any, processor: Any, device: str, **options: Any) -> None:
        super().__init__(ref, model, processor, device, **options)
        self._embedded: dict[tuple[str, ...], Tensor] = {}
        self._trunk: Any = getattr(self.model, "owlv2", None) or self.model.owlvit
        self.pads_to_square = hasattr(self.model, "owlv2")

    def embed_prompts(self, prompts: tuple[str, ...]) -> Tensor:
        """Unit-length query embeddings (P, D) of the prompts, from the cache when they were seen before."""
        if prompts not in self._embedded:
            with torch.inference_mode():
                features = self.prompt_features(prompts)
            if len(self._embedded) >= self.CACHED_PROMPT_SETS:
                self._embedded.pop(next(iter(self._embedded)), None)
            self._embedded[prompts] = features
        return self._embedded[prompts]

    def prompt_features(self, prompts: tuple[str, ...]) -> Tensor:
        """`embed_prompts` computed afresh, so that gradients reach a text tower that learns."""
        tokens = self.processor.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        inputs = {k: v.to(self.device) for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
        features = self._trunk.get_text_features(**inputs).pooler_output
        return torch.nn.functional.normalize(features, dim=-1)

    def forget_prompts(self) -> None:
        """Embed prompts anew from now on: the text tower has changed."""
        self._embedded.clear()

    def propose(self, images: list[Image], prompts: tuple[str, ...], threshold: float) -> list[Candidates]:
        features_map, _ = self.model.image_embedder(pixel_values=self._pixels(images)["pixel_values"])
        features = features_map.flatten(1, 2)  # (B, Q, D)
        queries = self.embed_prompts(prompts).expand(len(images), -1, -1)
        logits, _ = self.model.class_predictor(features, queries)  # (B, Q, P)
        scores, labels = logits.float().sigmoid().max(dim=-1)
        boxes = self.model.box_predictor(features, features_map)
        # OWLv2 pads to a square at the bottom and right before it resizes; OWL-ViT stretches.
        sides = [(max(i.size), max(i.size)) if self.pads_to_square else i.size for i in images]
        return _above(threshold, boxes, scores, labels, sides)


class GroundingDetector(TransformersOpenDetector):
    """Grounding DINO (arXiv 2303.05499) and MM-Grounding-DINO (2401.02361).

    All prompts stand in one caption, `crate. red barrel.`; a prompt's score is the mean over its own tokens, as in both
    papers' COCO evaluation, so that every box answers with a whole prompt instead of a fragment of the caption.
    """

    def __init__(self, ref: ModelRef, model: Any, processor: Any, device: str, **options: Any) -> None:
        # peft asks every transformers model for its word embeddings; these two classes do not know theirs
        # (transformers 5.23, `get_input_embeddings not auto-handled`).
        model.get_input_embeddings = model.model.text_backbone.get_input_embeddings
        super().__init__(ref, model, processor, device, **options)

    def propose(self, images: list[Image], prompts: tuple[str, ...], threshold: float) -> list[Candidates]:
        pixels = self._pixels(images)
        sizes = [image.size for image in images]
        answers: list[Candidates] | None = None
        for first, caption, spans in self.captions(prompts):
            tokens, own = self.caption_inputs(caption, spans)
            text = {k: v.to(self.device).expand(len(images), -1) for k, v in tokens.items()}
            output = self.model(**pixels, **text)
            by_token = output.logits.float().sigmoid()[..., : own.shape[1]]  # (B, Q, L)
            own = (own / own.sum(dim=1, keepdim=True).clamp(min=1)).to(by_token.device)
            scores, labels = (by_token @ own.T).max(dim=-1)
            part = _above(threshold, output.pred_boxes, scores, labels + first, sizes)
            answers = part if answers is None else [_merge(a, b) for a, b in zip(answers, part, strict=True)]
        assert answers is not None  # `detect` refuses an empty prompt list
        return answers

    def caption_inputs(self, caption: str, spans: list[tuple[int, int]]) -> tuple[dict[str, Tensor], Tensor]:
        """What the text encoder takes for one caption, each (1, L), and 1 at each prompt's own tokens (P, L)."""
        tokens = dict(
            self.processor.tokenizer(
                caption, return_offsets_mapping=True, return_token_type_ids=True, return_tensors="pt"
            )
        )
        middles = tokens.pop("offset_mapping")[0].float().mean(dim=1)  # (L,) special tokens lie at 0
        return tokens, torch.stack([((middles > a) & (middles < b)).float() for a, b in spans])

    def captions(self, prompts: tuple[str, ...]) -> Iterator[tuple[int, str, list[tuple[int, int]]]]:
        """Captions that fit the text encoder: index of the first prompt, the text, and each prompt's character span."""
        limit = min(getattr(self.model.config, "max_text_len", 256), self.processor.tokenizer.model_max_length)
        first, caption, spans, used = 0, "", list[tuple[int, int]](), 2  # the two special tokens
        for i, prompt in enumerate(prompts):
            phrase = " ".join(prompt.lower().replace(".", " ").split())
            length = len(self.processor.tokenizer(phrase, add_special_tokens=False)["input_ids"]) + 1
            if spans and used + length > limit:
                yield first, caption.strip(), spans
                first, caption, spans, used = i, "", [], 2
            spans.append((len(caption), len(caption) + len(phrase)))
            caption, used = f"{caption}{phrase}. ", used + length
        yield first, caption.strip(), spans


class OmDetDetector(TransformersOpenDetector):
    """OmDet-Turbo (arXiv 2403.06892)."""

    def propose(self, images: list[Image], prompts: tuple[str, ...], threshold: float) -> list[Candidates]:
        inputs = self.processor(images=images, text=[list(prompts)] * len(images), return_tensors="pt")
        output = self.model(**{k: v.to(self.device) for k, v in inputs.items()})
        scores, labels = output.decoder_class_logits[..., : len(prompts)].float().sigmoid().max(dim=-1)
        return _above(threshold, output.decoder_coord_logits, scores, labels, [image.size for image in images])


# model_type of the checkpoint's config -> how to ask it.
FAMILIES: dict[str, type[TransformersOpenDetector]] = {
    "owlvit": OwlDetector,
    "owlv2": OwlDetector,
    "grounding-dino": GroundingDetector,
    "mm-grounding-dino": GroundingDetector,
    "omdet-turbo": OmDetDetector,
}


def load_hf(ref: ModelRef, device: str | None = None) -> TransformersOpenDetector:
    """A zero-shot detector from a folder (never touches the network) or the hub.

    Raises:
        BadInput, Unavailable: the folder or the hub does not give a model.
        UnknownName: the model is of a family that is not supported.
        AdapterMismatch: the adapter does not fit whole.
    """
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

    source, local = str(ref.folder or ref.target), ref.folder is not None
    try:
        family = AutoConfig.from_pretrained(source, local_files_only=local).model_type
        if family not in FAMILIES:
            raise UnknownName("zero-shot detector family", family, FAMILIES, remedy=f"{ref} is not one of them.")
        model = AutoModelForZeroShotObjectDetection.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, local_files_only=local
        )
        processor = AutoProcessor.from_pretrained(source, local_files_only=local)
    except LOADING_FAILS as error:
        raise unreachable(ref, error) from error
    return FAMILIES[family](ref, model, processor, pick_device(device))


def _above(
    threshold: float, boxes: Tensor, scores: Tensor, labels: Tensor, sides: list[tuple[int, int]]
) -> list[Candidates]:
    """Candidates over the threshold from boxes (B, Q, 4) centre-size in [0, 1] of areas `sides` (width, height)."""
    half = boxes[..., 2:] / 2
    corners = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1).float().cpu().numpy()
    values, indices = scores.cpu().numpy(), labels.cpu().numpy()
    answers: list[Candidates] = []
    for i, (width, height) in enumerate(sides):
        keep = values[i] > threshold
        scale = np.array([width, height, width, height], dtype=np.float32)
        answers.append((corners[i][keep] * scale, values[i][keep], indices[i][keep]))
    return answers


def _merge(a: Candidates, b: Candidates) -> Candidates:
    return np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]), np.concatenate([a[2], b[2]])
