"""Image-text encoders: open_clip models and transformers' CLIP family behind the one `Encoder` protocol.

Shape letters: N images or texts, D embedding dimensions, L tokens, S the side of the square the model sees.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from foveal.cores import at_once, pieces
from foveal.detections import FloatArray
from foveal.errors import BadInput, Unavailable, UnknownName
from foveal.models import ModelRef
from foveal.runtime import pick_device

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 16  # times the shorter side
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")

# What the libraries raise for a folder, file or hub that does not hold what was asked for.
LOADING_FAILS = (OSError, RuntimeError, ValueError, KeyError, TypeError, ImportError, SafetensorError)


class TorchEncoder(ABC):
    """An `Encoder` over a PyTorch model; `adapt` trains through the same inputs and features that inference uses."""

    name: str
    fingerprint: str
    base_fingerprint: str  # before any adapter: what an adapter trained here will ask for
    dimension: int
    logit_scale: float
    logit_bias: float | None
    image_side: int | None
    config: dict[str, Any]  # preprocessing and tokenisation, as far as they change an embedding

    def __init__(self, ref: ModelRef, model: nn.Module, config: dict[str, Any], device: str) -> None:
        from foveal import adapters

        self.name, self.config, self.device, self.dtype = str(ref), config, device, torch.float32
        model = model.float().eval()
        self.base_fingerprint = fingerprint(model.state_dict(), config)
        if ref.adapter is None:
            self.fingerprint = self.base_fingerprint
        else:
            model = adapters.apply(model, ref.adapter, self.base_fingerprint)
            self.fingerprint = adapted_fingerprint(self.base_fingerprint, ref.adapter)
        self.model = model.to(device).requires_grad_(False)
        scale: Any = getattr(model, "logit_scale", None)
        self.logit_scale = 1.0 if scale is None else float(scale.detach().exp())
        bias: Any = getattr(model, "logit_bias", None)  # of models trained with the sigmoid loss
        self.logit_bias = None if bias is None else float(bias.detach())
        self.dimension = self.encode_texts(["a photo"]).shape[1]

    @abstractmethod
    def image_inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Upright RGB images -> what `image_features` takes, on the CPU."""

    @abstractmethod
    def text_inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts -> what `text_features` takes, on the CPU."""

    @abstractmethod
    def overlong(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model's context and lose their end."""

    @property
    @abstractmethod
    def pixel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (3,) that pixels in [0, 1] are normalised with."""

    @abstractmethod
    def image_features(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features (N, D) of `model`, which is this encoder's own or one wrapped around it; not normalised."""

    @abstractmethod
    def text_features(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features (N, D) of `model`, which is this encoder's own or one wrapped around it; not normalised."""

    def prepare_image(self, image: Image) -> dict[str, Tensor]:
        """`image_inputs` of one image; threads may call it."""
        return self.image_inputs([image])

    def encode_prepared(self, prepared: Sequence[Mapping[str, Tensor]], batch: int = 64) -> FloatArray:
        """What `prepare_image` gave -> (N, D) float32, unit length, as `encode_images`."""
        return self._encode_images(prepared, batch, _stacked)

    def encode_images(self, images: Sequence[Image], batch: int = 64) -> FloatArray:
        """Upright RGB images -> (N, D) float32, unit length; `batch` images at a time."""
        return self._encode_images(images, batch, self.image_inputs)

    def encode_texts(self, texts: Sequence[str], batch: int = 256) -> FloatArray:
        """Texts -> (N, D) float32, unit length; `batch` texts at a time. Over-long texts are cut at the context."""
        parts = [texts[start : start + batch] for start in range(0, len(texts), batch)]
        return self._joined([self._encode(self.text_inputs(part), self.text_features) for part in parts])

    def _encode_images(self, items: Sequence[Any], batch: int, prepare: Any) -> FloatArray:
        def encode(part: Sequence[Any]) -> FloatArray:
            return self._encode(prepare(part), self.image_features)

        return self._joined(at_once(encode, pieces(items, batch, self.device), self.device))

    def _encode(self, inputs: Mapping[str, Tensor], embed: Any) -> FloatArray:
        with torch.inference_mode():
            there = {
                name: value.to(self.device, self.dtype if value.is_floating_point() else None)
                for name, value in inputs.items()
            }
            return nn.functional.normalize(embed(self.model, there).float(), dim=-1).cpu().numpy()

    def _joined(self, rows: Sequence[FloatArray]) -> FloatArray:
        return np.concatenate(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)


class OpenClipEncoder(TorchEncoder):
    """A model in open_clip's own format."""

    def __init__(self, ref: ModelRef, model: Any, tokenizer: Any, device: str) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        self.tokenizer = tokenizer
        config = {"images": dict(model.visual.preprocess_cfg), "text": tokenizer_config(tokenizer)}
        self.image_side = _side(config["images"]["size"])
        super().__init__(ref, model, config, device)

    def image_inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        crops = self.config["images"]["resize_mode"] == "shortest"
        whole = [_middle(image) if crops else image for image in images]
        return {"image": torch.stack([self._transform(image) for image in whole])}  # pyright: ignore

    def text_inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"text": self.tokenizer(list(texts))}

    def overlong(self, texts: Sequence[str]) -> int:
        inner = getattr(self.tokenizer, "tokenizer", None)  # open_clip wraps a transformers tokenizer, or has its own
        if not texts:
            return 0
        if inner is not None:
            lengths = [len(ids) for ids in inner(list(texts), truncation=False, verbose=False)["input_ids"]]
        else:
            lengths = [len(self.tokenizer.encode(text)) + 2 for text in texts]  # begin and end token
        return sum(length > self.tokenizer.context_length for length in lengths)

    @property
    def pixel_statistics(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.config["images"]["mean"]), torch.tensor(self.config["images"]["std"])

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return model.encode_image(inputs["image"])

    def text_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return model.encode_text(inputs["text"])


class TransformersEncoder(TorchEncoder):
    """CLIP, SigLIP, SigLIP 2, MetaCLIP and their relatives in transformers' format."""

    def __init__(self, ref: ModelRef, model: Any, processor: Any, device: str) -> None:
        self.processor = processor
        tokenizer = processor.tokenizer
        longest = getattr(model.config.text_config, "max_position_embeddings", 77)
        # SigLIP reads the last position and was trained on padded text; the others pool at the end token.
        fixed = model.config.model_type.startswith("siglip")
        self._context = min(int(longest), int(tokenizer.model_max_length))
        self._text_options = {
            "padding": "max_length" if fixed else True,
            "max_length": self._context,
            "truncation": True,
            "return_tensors": "pt",
        }
        images = image_config(processor.image_processor)
        self.image_side = _side(images.get("crop_size", images.get("size")))
        config = {"images": images, "text": {**tokenizer_config(tokenizer), "max_length": longest, "fixed": fixed}}
        super().__init__(ref, model, config, device)

    def image_inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        crops = self.config["images"].get("do_center_crop")
        whole = [_middle(image) if crops else image for image in images]
        return dict(self.processor.image_processor(images=whole, return_tensors="pt"))

    def text_inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return dict(self.processor.tokenizer(list(texts), **self._text_options))

    def overlong(self, texts: Sequence[str]) -> int:
        if not texts:
            return 0
        ids = self.processor.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(len(row) > self._context for row in ids)

    @property
    def pixel_statistics(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.config["images"]["image_mean"]), torch.tensor(self.config["images"]["image_std"])

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return model.get_image_features(**inputs).pooler_output

    def text_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return model.get_text_features(**inputs).pooler_output


def _middle(image: Image) -> Image:
    """All that a centre crop sees of an image more than `LONGEST` times as long as it is wide.

    Preprocessing scales the shorter side to the model's before it crops: of one row of 30,000 pixels it would make
    224 rows of 6,720,000.
    """
    width, height = image.size
    if max(width, height) <= LONGEST * min(width, height):
        return image
    spare_x, spare_y = (max(0, side - LONGEST * min(width, height)) // 2 for side in (width, height))
    return image.crop((spare_x, spare_y, width - spare_x, height - spare_y))  # even, so that the middle stays


def _stacked(prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}


def _side(size: Any) -> int | None:
    """The shorter side that a preprocessing configuration asks for, in any of the forms it is written in."""
    values = list(size.values()) if isinstance(size, Mapping) else size if isinstance(size, (list, tuple)) else [size]
    numbers = [value for value in values if isinstance(value, int)]
    return min(numbers) if numbers else None


def load_open_clip(ref: ModelRef, device: str | None = None) -> OpenClipEncoder:
    """An open_clip encoder from a folder (never touches the network) or `MODEL/PRETRAINED` from the hub.

    Raises:
        BadInput: the folder lacks its configuration or safetensors.
        UnknownName: open_clip knows no such model or weights.
        Unavailable: the hub does not answer.
        AdapterMismatch: the adapter does not fit whole.
    """
    import open_clip

    with _root_handlers_kept():
        if ref.folder is not None:
            for needed in (("open_clip_config.json",), OPEN_CLIP_WEIGHTS):
                if not any((ref.folder / name).is_file() for name in needed):
                    raise BadInput(
                        f"{ref.folder} is not an open_clip folder",
                        expected=f"a file {' or '.join(needed)} in it",
                        remedy="Weights are read as safetensors only; for a transformers folder write hf:FOLDER.",
                    )
            source = f"local-dir:{ref.folder}"
            try:
                model = open_clip.create_model(source, require_pretrained=True)
                tokenizer = open_clip.get_tokenizer(source)
            except LOADING_FAILS as error:
                raise BadInput(f"open_clip cannot read {ref.folder}: {first_line(error)}") from error
        else:
            model, tokenizer = _open_clip_from_hub(ref)
    return OpenClipEncoder(ref, model, tokenizer, pick_device(device))


def _open_clip_from_hub(ref: ModelRef) -> tuple[Any, Any]:
    import open_clip
    from huggingface_hub import hf_hub_download

    architecture, _, tag = ref.target.partition("/")
    for what, name, choices in (
        ("open_clip model", architecture, open_clip.list_models()),
        ("open_clip weights", tag, open_clip.list_pretrained_tags_by_model(architecture)),
    ):
        if name not in choices:
            close = get_close_matches(name, choices, n=8, cutoff=0.5) if name else choices
            raise UnknownName(
                what, name, close or choices[:8], remedy="A local folder is written ./folder or with its full path."
            )
    settings: dict[str, Any] = dict(open_clip.get_pretrained_cfg(architecture, tag))
    repository = str(settings.get("hf_hub", "")).rsplit("/", 1)[0]
    if not repository:
        raise BadInput(f"{ref} is published as a pickle only", remedy="Choose weights that have safetensors.")
    try:
        weights = hf_hub_download(repository, OPEN_CLIP_WEIGHTS[0])
        known = ("mean", "std", "interpolation", "resize_mode")
        model = open_clip.create_model(
            architecture,
            pretrained=weights,
            force_quick_gelu=bool(settings.get("quick_gelu")),
            force_preprocess_cfg={k: settings[k] for k in known if k in settings},
            require_pretrained=True,
        )
        return model, open_clip.get_tokenizer(architecture)
    except LOADING_FAILS as error:
        raise unreachable(ref, error) from error


def load_hf(ref: ModelRef, device: str | None = None) -> TransformersEncoder:
    """A transformers image-text encoder from a folder (never touches the network) or the hub; raises as above."""
    from transformers import AutoModel, AutoProcessor

    source, local = str(ref.folder or ref.target), ref.folder is not None
    try:
        model: Any = AutoModel.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, local_files_only=local
        )
        processor: Any = AutoProcessor.from_pretrained(source, local_files_only=local)
    except LOADING_FAILS as error:
        raise unreachable(ref, error) from error
    missing = [name for name in ("get_image_features", "get_text_features") if not hasattr(model, name)]
    if missing or not hasattr(processor, "image_processor"):
        raise BadInput(
            f"{ref} is no image-text encoder",
            expected="a CLIP, SigLIP, SigLIP 2 or MetaCLIP model",
            received=type(model).__name__,
        )
    return TransformersEncoder(ref, model, processor, pick_device(device))


def fingerprint(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """sha256 hex over named tensors (as float32 where they are floats, so a half-precision file counts as what it loads
    to) and a JSON-able configuration.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(memoryview(cast("Any", tensor.contiguous().reshape(-1).view(torch.uint8).numpy())))
    return digest.hexdigest()


def adapted_fingerprint(base_fingerprint: str, adapter: Path) -> str:
    """The fingerprint of a base with an adapter folder on it.

    It hashes what was applied instead of the merged weights, whose last digits differ from one CPU or GPU to the next.
    """
    from foveal import adapters

    return fingerprint(adapters.tensors(adapter), {"base": base_fingerprint, "adapter": adapters.identity(adapter)})


def image_config(processor: Any) -> dict[str, Any]:
    """What of a transformers image processor changes pixels; its other fields come and go with library versions."""
    names = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std", "patch_size")
    names += ("max_num_patches", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "pad_size")
    described = processor.to_dict()
    return {name: described[name] for name in names if described.get(name) is not None}


def tokenizer_config(tokenizer: Any) -> dict[str, Any]:
    """What of a tokenizer decides the ids of a text: its context length and a sha256 of its rules, wherever it is."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps the transformers one
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is not None:
        # Padding and truncation are set anew by each call, so they are no part of the rules.
        described = json.loads(backend.to_str())
        rules = json.dumps({k: v for k, v in described.items() if k not in ("padding", "truncation")}, sort_keys=True)
    else:
        rules = json.dumps(getattr(inner, "encoder", repr(type(inner))), sort_keys=True)
    return {
        "rules": hashlib.sha256(rules.encode()).hexdigest(),
        "context_length": getattr(tokenizer, "context_length", None),
        "pad_token_id": getattr(inner, "pad_token_id", None),
    }


def unreachable(ref: ModelRef, error: Exception) -> BadInput | Unavailable:
    """The one-line error for a model that a library could not load."""
    if ref.folder is not None:
        return BadInput(
            f"{ref.folder} does not load: {first_line(error)}",
            expected="a folder that transformers wrote, with safetensors and its processor",
        )
    return Unavailable(
        f"{ref} could not be loaded: {first_line(error)}",
        remedy="Check the name and the connection, or download it and give its folder.",
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to a readable length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


@contextmanager
def _root_handlers_kept() -> Generator[None]:
    """open_clip logs through the root logger's functions, which install a handler when there is none: take it back."""
    before = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = before
