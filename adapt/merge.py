"""Fold an adapter into its base as a model folder of the base's own format, checked against base + adapter."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adapt.detector import difference, refuse_above_tolerance
from foveal import adapters, artifacts
from foveal.dataset import Dataset
from foveal.encoders import OPEN_CLIP_WEIGHTS, TorchEncoder
from foveal.errors import BadInput
from foveal.models import ModelRef, licence_of, load_encoder, load_open_detector, load_vlm, parse_ref
from foveal.open_detectors import FAMILIES, OwlDetector
from foveal.vlms import FAMILIES as VLM_FAMILIES
from foveal.vlms import TransformersVLM, conditions

if TYPE_CHECKING:
    from PIL.Image import Image

CHECKED = 8  # images on which the written folder is compared


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was written, and how far it is from base + adapter."""

    out: str
    base: str
    adapter: str
    keep: float  # share of the base
    difference: float  # largest, of unit-length embeddings, or of scores, boxes and probabilities in [0, 1]
    images: int  # on which it was measured
    fingerprint: str  # of the merged model


def merge(ref: str, out: Path, keep: float = 0.0, data: Dataset | None = None) -> MergeReport:
    """Write `BASE+ADAPTER` to `out` as one model: (1 - keep) of the adapted weights and `keep` of the base's (WiSE-FT,
    arXiv 2109.01903).

    The folder is loaded again and compared with the base under its unmerged adapter layers (for a `keep` in between,
    with the interpolated weights in memory) on images of `data`, or on a few rendered ones.

    Raises:
        BadInput: the reference has no adapter, `keep` lies outside [0, 1], or the base is no local folder.
        AdapterMismatch, IntegrityError: the adapter does not fit whole, or is not what was sealed.
        FovealError: the written model does not say what base + adapter says; nothing is left behind.
    """
    parsed = parse_ref(ref)
    if parsed.adapter is None:
        raise BadInput(f"{ref} carries no adapter", expected="BASE+ADAPTER, e.g. bundled:clip+runs/adapter")
    if not 0 <= keep <= 1:
        raise BadInput("keep lies outside its range", expected="0 (adapted) to 1 (base)", received=f"{keep:g}")
    base_ref = ModelRef(parsed.scheme, parsed.target)
    merged = load(ref)
    weights = interpolated(_bare(base_ref, parsed.adapter).model.state_dict(), merged.model.state_dict(), keep)
    merged.model.load_state_dict(weights)
    reference = merged
    if keep in (0.0, 1.0):
        reference = _bare(base_ref, parsed.adapter)
        if keep == 0:
            reference.model = adapters.attach(reference.model, parsed.adapter, reference.base_fingerprint).eval()
    images, texts = _examples(data)
    with artifacts.staged(Path(out)) as folder:
        write(merged, base_ref, folder)
        again = load(f"{base_ref.scheme}:{folder}")
        worst = apart(reference, again, images, texts)
        refuse_above_tolerance(worst)
        artifacts.seal(
            folder,
            name=Path(out).name,
            kind=_kind(merged),
            parents=[str(base_ref), str(parsed.adapter)],
            config={
                "base_fingerprint": merged.base_fingerprint,
                "adapted_fingerprint": merged.fingerprint,
                "keep": keep,
            },
            metrics={"merge_difference": worst, "images": len(images)},
            licence=licence_of(str(base_ref)),
        )
    return MergeReport(
        str(out), str(base_ref), str(parsed.adapter), keep, worst, len(images), str(again.base_fingerprint)
    )


def load(ref: str) -> Any:
    """The encoder, open-vocabulary detector or vision-language model that a reference names."""
    parsed = parse_ref(ref)
    config = (parsed.folder or Path()) / "config.json"
    if parsed.scheme == "hf" and parsed.folder is None:
        from transformers import AutoConfig

        kind = AutoConfig.from_pretrained(parsed.target).model_type
    else:
        kind = json.loads(config.read_text()).get("model_type") if parsed.scheme == "hf" and config.is_file() else None
    if kind in VLM_FAMILIES:
        return load_vlm(ref)
    return load_open_detector(ref) if kind in FAMILIES else load_encoder(ref)


def _bare(base: ModelRef, adapter: Path) -> Any:
    """The model without the adapter, under the conditions that it was trained in."""
    model = load(str(base))
    if isinstance(model, TransformersVLM):
        model.under(**conditions(adapter))
    return model


def _kind(model: Any) -> str:
    if isinstance(model, TransformersVLM):
        return "vlm"
    return "encoder" if isinstance(model, TorchEncoder) else "open-detector"


def interpolated(base: dict[str, Tensor], adapted: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    """(1 - keep) of the adapted tensors and `keep` of the base's; at either end exactly that side's."""
    if base.keys() != adapted.keys():
        raise BadInput("the two models have different tensors", expected="an adapter that was merged into its base")
    if keep in (0.0, 1.0):
        return {name: t.clone() for name, t in (base if keep else adapted).items()}
    return {
        name: torch.lerp(adapted[name], t, keep) if t.is_floating_point() else t.clone() for name, t in base.items()
    }


def write(model: Any, base: ModelRef, folder: Path) -> None:
    """Write a loaded model as a folder of the format that `base` has.

    Raises:
        BadInput: an open_clip base that is no local folder.
    """
    if base.scheme == "hf":
        model.model.save_pretrained(folder)
        model.processor.save_pretrained(folder)
        return
    from safetensors.torch import save_file

    if base.folder is None:
        raise BadInput(
            f"{base} is not a local folder, whose configuration and tokenizer the merged one would take over",
            remedy="Download the model's folder and name it as open_clip:./folder.",
        )
    for path in base.folder.iterdir():
        weights = path.suffix in (*artifacts.WEIGHTS, *artifacts.PICKLES)
        if path.is_file() and not weights and path.name not in (artifacts.MANIFEST, "README.md"):
            shutil.copy(path, folder / path.name)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.model.state_dict().items()}
    save_file(tensors, folder / OPEN_CLIP_WEIGHTS[0])


def apart(one: Any, other: Any, images: Sequence[Image], texts: Sequence[str]) -> float:
    """Largest difference between what two models say: of unit-length embeddings, of scores and boxes in [0, 1], or of
    probabilities of an answer's first token."""
    if isinstance(one, TransformersVLM):
        return float(
            max(
                np.abs(one.begins(images, [t] * len(images)) - other.begins(images, [t] * len(images))).max()
                for t in texts[:CHECKED]
            )
        )
    if isinstance(one, TorchEncoder):
        pairs = [
            (one.encode_images(images), other.encode_images(images)),
            (one.encode_texts(texts), other.encode_texts(texts)),
        ]
        return float(np.max([np.abs(a - b).max() for a, b in pairs]))
    for detector in (one, other):
        if isinstance(detector, OwlDetector):
            detector.forget_prompts()
    return difference(one, other, images, texts)


def _examples(data: Dataset | None) -> tuple[list[Image], list[str]]:
    """A few images, and class names or captions that go with them; rendered ones without `data`."""
    if data is None:
        from foveal.world import write as render

        with tempfile.TemporaryDirectory() as folder:
            scenes = Path(folder) / "scenes"
            render(scenes, "site", 4, 0, workers=1)
            return _examples(Dataset.open(scenes))
    samples = [data[i] for i in range(min(CHECKED, len(data)))]
    texts = list(data.classes) or [text for sample in samples for text in sample.captions] or ["a photo"]
    if not samples:
        raise BadInput("the data has no images to compare on", expected="at least one")
    return [sample.image() for sample in samples], texts
