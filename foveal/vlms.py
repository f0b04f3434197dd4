"""Image-text-to-text models of transformers, asked and trained through their own chat templates.

Shape letters: B images, L tokens of a padded batch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from foveal import artifacts
from foveal.detections import FloatArray
from foveal.encoders import (
    LOADING_FAILS,
    adapted_fingerprint,
    fingerprint,
    image_config,
    tokenizer_config,
    unreachable,
)
from foveal.errors import BadInput, UnknownName
from foveal.generation import GREEDY, Asking, Following, Listening, Reply, Style, cut, words_of
from foveal.models import ModelRef
from foveal.runtime import pick_device
from foveal.vlm_boxes import box_format, seen_size
from foveal.vlm_prompts import ChatPrompts, Florence2Prompts, PaliGemmaPrompts, Prompts, Turns

if TYPE_CHECKING:
    from PIL.Image import Image

Part = Literal["vision", "projector", "language"]
# Prefixes of a part's modules in every architecture below, read in this order: Qwen's projector lies inside its tower.
PARTS: dict[Part, tuple[str, ...]] = {
    "projector": (
        "model.connector.",
        "model.multi_modal_projector.",
        "model.visual.merger.",
        "model.visual.deepstack_merger_list.",
    ),
    "vision": ("model.vision_model.", "model.vision_tower.", "model.visual."),
    "language": ("model.text_model.", "model.language_model."),
}


@dataclass(frozen=True, slots=True)
class Family:
    """How models of one type are prompted, and how the number of pixels they see is set (None: it is fixed).

    `packs`: positions count tokens one by one and any attention mask is taken, so that several dialogues can follow one
    reading of an image, none seeing another.
    """

    prompts: type[Prompts] = ChatPrompts
    resize: Callable[[Any, int], None] | None = None  # (image processor, side in pixels)
    packs: bool = False


def _longest_edge(images: Any, side: int) -> None:
    from transformers.image_utils import SizeDict

    images.size = SizeDict(longest_edge=side)


def _area(images: Any, side: int) -> None:
    from transformers.image_utils import SizeDict

    images.size = SizeDict(shortest_edge=min(images.size["shortest_edge"], side**2), longest_edge=side**2)


def _tiles(images: Any, side: int) -> None:
    count = round((side / images.size["height"]) ** 2)
    images.max_patches, images.crop_to_patches = max(1, count), count > 1


# model_type of the checkpoint's config -> how it is asked.
FAMILIES: dict[str, Family] = {
    "florence2": Family(Florence2Prompts),
    "idefics3": Family(resize=_longest_edge, packs=True),
    "internvl": Family(resize=_tiles, packs=True),
    "llava": Family(packs=True),
    "paligemma": Family(PaliGemmaPrompts),
    "qwen2_5_vl": Family(resize=_area),
    "qwen3_vl": Family(resize=_area),
    "smolvlm": Family(resize=_longest_edge, packs=True),
}


class TransformersVLM:
    """A `VisionLanguageModel` over a transformers checkpoint; `adapt` trains it through the prompts it answers."""

    name: str
    fingerprint: str
    base_fingerprint: str  # before any adapter: what an adapter trained here will ask for

    def __init__(self, ref: ModelRef, model: Any, processor: Any, device: str) -> None:
        self.name, self.device, self.processor = str(ref), device, processor
        self.family = str(model.config.model_type)
        stored = model.dtype
        model = model.eval()
        self.base_fingerprint = fingerprint(model.state_dict(), _config(processor))
        self.fingerprint = self.base_fingerprint
        on_gpu = device.startswith("cuda")  # there half precision is fast, elsewhere float32
        self.model: Any = model if on_gpu else model.float()
        image_token: Any = getattr(model.config, "image_token_id", None)
        self.image_token = int(model.config.image_token_index if image_token is None else image_token)
        if ref.adapter is not None:
            self.merge(ref.adapter, **conditions(ref.adapter))
            if on_gpu:
                for parameter in self.model.parameters():  # buffers such as rotary frequencies need their float32
                    parameter.data = parameter.data.to(stored)
        self.model = self.model.to(device).requires_grad_(False)
        self.prompts = FAMILIES[self.family].prompts(processor, self.model)

    def merge(self, folder: Path, *, nf4: bool = False, image_side: int | None = None) -> None:
        """Merge the adapter in `folder` into the model, under the conditions that it was trained in.

        Args:
            nf4: it learnt on 4-bit weights of the language model: it is merged into what those stand for.
            image_side: it learnt from images of this size, see `see`.

        Raises:
            AdapterMismatch: it does not fit whole.
        """
        from foveal import adapters

        base = self.under(nf4=nf4, image_side=image_side)
        self.model = adapters.apply(self.model, folder, self.base_fingerprint)
        self.fingerprint = adapted_fingerprint(base, folder)

    def under(self, *, nf4: bool = False, image_side: int | None = None) -> str:
        """Puts a model without adapter under the conditions of one, see `merge`, and returns what it is then."""
        from foveal.quantised import through_nf4

        base, self.model = self.base_fingerprint, self.model.float()
        if nf4:
            through_nf4(self.model, linear_layers(self.model, "language"))
            base += "+nf4"
        if image_side is not None:
            self.see(image_side)
            base += f"+{image_side}px"
        return base

    def see(self, side: int) -> None:
        """Show the model about `side` x `side` pixels of each image from now on.

        Raises:
            BadInput: its vision tower takes one size only.
        """
        resize = FAMILIES[self.family].resize
        if resize is None:
            adjustable = [name for name, family in FAMILIES.items() if family.resize is not None]
            raise BadInput(
                f"{self.name} sees images at one size only",
                expected=f"image_side with {', '.join(adjustable)}",
                remedy="Leave image_side out.",
            )
        resize(self.processor.image_processor, side)

    def answer(self, image: Image, question: str, max_tokens: int = 64) -> str:
        """The answer to one question about one upright RGB image, by the likeliest token each time."""
        return self.reply(image, (), question, max_tokens)

    def reply(self, image: Image, history: Sequence[tuple[str, str]], question: str, max_tokens: int = 64) -> str:
        """`answer`, after the turns (question, answer) of `history`."""
        return self.replies([(image, history, question)], max_tokens)[0]

    def replies(self, asked: Sequence[tuple[Image, Turns, str]], max_tokens: int = 64) -> list[str]:
        """`reply` to each (image, history, question), all at once."""
        askings = [Asking(image, question, history) for image, history, question in asked]
        return [reply.text for reply in self.generate(askings, Style(max_tokens=max_tokens))]

    def generate(self, asked: Sequence[Asking], style: Style = GREEDY) -> list[Reply]:
        """The answer to each conversation, all at once; see `Style`.

        Raises:
            BadInput: the style's schema cannot be followed.
        """
        texts = [self.prompts.ask(one.history, one.question) for one in asked]
        inputs = self.placed(self.prompts.inputs([one.image for one in asked], texts, side="left"))
        given = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        more: dict[str, Any] = {}
        if any(one.heard is not None or one.stops for one in asked):
            more["stopping_criteria"] = [Listening(asked, self.prompts, given)]
        if style.schema is not None:
            more["logits_processor"] = [Following(style.schema, self._words, given)]
        drawn = style.temperature > 0
        with torch.random.fork_rng(enabled=drawn and style.seed is not None), torch.no_grad():
            # Not inference mode: what layers cache here may meet training next.
            if drawn and style.seed is not None:
                torch.manual_seed(style.seed)
            ids = self.model.generate(
                **inputs,
                max_new_tokens=style.max_tokens,
                do_sample=drawn,
                num_beams=1,
                temperature=style.temperature if drawn else None,
                top_p=style.top_p if drawn else None,
                top_k=None,
                **more,
            )
        return [
            self._replied(one, row[given:].tolist(), int(seen), style)
            for one, row, seen in zip(asked, ids, inputs["attention_mask"].sum(dim=1), strict=True)
        ]

    @functools.cached_property
    def _words(self) -> Any:
        width = self.model.get_output_embeddings().weight.shape[0]
        return words_of(self.processor.tokenizer, sorted(self.prompts.stops), width)

    def _replied(self, asked: Asking, ids: list[int], prompt: int, style: Style) -> Reply:
        ends = [place for place, token in enumerate(ids) if place and token in self.prompts.stops]
        said, stopped = cut(self.prompts.spoken(ids), asked.stops)
        count = ends[0] + 1 if ends else len(ids)
        return Reply(said, prompt, count, whole=stopped or bool(ends) or count < style.max_tokens)

    def begins(self, images: Sequence[Image], questions: Sequence[str]) -> FloatArray:
        """How likely each token of the vocabulary begins the answer to each (image, question) -> (B, V) float32."""
        texts = [self.prompts.ask((), question) for question in questions]
        inputs = self.placed(self.prompts.inputs(images, texts, side="left"))
        with torch.no_grad():
            said = self.model.generate(
                **inputs, max_new_tokens=1, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        return said.logits[0].float().softmax(-1).cpu().numpy()

    def locate(self, image: Image, phrase: str, max_tokens: int = 128) -> FloatArray:
        """Boxes (N, 4) of what `phrase` names, xyxy in the image's own pixels, by the family's own question for it."""
        form = box_format(self.family)
        said = self.answer(image, form.ask(phrase), max_tokens)
        shares = form.read(said, seen_size(self.processor, image.size))
        return shares * np.array([*image.size, *image.size], dtype=np.float32)

    def placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs on the model's device, pixels in its type."""
        kind = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        return {k: v.to(self.device, kind if v.is_floating_point() else None) for k, v in inputs.items()}


def conditions(folder: Path) -> dict[str, Any]:
    """What an adapter's manifest says about how it was trained, as `TransformersVLM.merge` takes it."""
    if not (folder / artifacts.MANIFEST).is_file():  # a plain peft folder
        return {}
    told: dict[str, Any] = artifacts.read(folder).config.get("conditions") or {}
    return {name: told[name] for name in ("nf4", "image_side") if name in told}


def part_of(name: str) -> Part | None:
    """The part of a model that a module or parameter belongs to, by its full name; None outside all (the output layer).

    The name may be one that `peft` gave.
    """
    plain = name.removeprefix("base_model.model.")
    return next((part for part, prefixes in PARTS.items() if plain.startswith(prefixes)), None)


def linear_layers(model: nn.Module, *parts: Part) -> list[str]:
    """Full names of the linear layers of these parts, in model order; those inside fused attention are not called."""
    names: list[str] = []
    fused: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            fused += (f"{name}.",)
        elif isinstance(module, nn.Linear) and part_of(name) in parts and not name.startswith(fused):
            names.append(name)
    return names


def load_hf(ref: ModelRef, device: str | None = None) -> TransformersVLM:
    """An image-text-to-text model from a folder (never touches the network) or the hub.

    Raises:
        BadInput, Unavailable: the folder or the hub does not give a model, or it has no chat template.
        UnknownName: the model is of a family that is not supported.
        AdapterMismatch: the adapter does not fit whole.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    source, local = str(ref.folder or ref.target), ref.folder is not None
    try:
        family = AutoConfig.from_pretrained(source, local_files_only=local).model_type
        if family not in FAMILIES:
            raise UnknownName("vision-language family", family, FAMILIES, remedy=f"{ref} is not one of them.")
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype="auto", use_safetensors=True, local_files_only=local
        )
        processor = AutoProcessor.from_pretrained(source, local_files_only=local)
    except LOADING_FAILS as error:
        raise unreachable(ref, error) from error
    return TransformersVLM(ref, model, processor, pick_device(device))


def _config(processor: Any) -> dict[str, Any]:
    """What of a processor decides the model's inputs."""
    described = processor.image_processor.to_dict()
    names = ("max_image_size", "do_image_splitting", "merge_size", "temporal_patch_size", "crop_to_patches")
    names += ("min_patches", "max_patches", "image_seq_length")
    images = image_config(processor.image_processor) | {n: described[n] for n in names if n in described}
    template = getattr(processor, "chat_template", None) or ""
    return {
        "images": images,
        "text": tokenizer_config(processor.tokenizer),
        "template": hashlib.sha256(str(template).encode()).hexdigest(),
    }
