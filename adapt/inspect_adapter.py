"""What an adapter changes: its layers by tower and block, and how large each update is beside the weight it changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.targets import Tower
from foveal import adapters, artifacts

TEXT = ("transformer.", "text.", "text_model.", "owlv2.text_model.", "owlvit.text_model.", "model.text_backbone.")


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """One linear layer that the adapter changes."""

    name: str
    tower: Tower
    layer: int | None  # index of its block
    rank: int
    parameters: int
    update: float  # Frobenius norm of B·A·scale
    relative: float | None  # the same over the norm of the base's weight; None without the base


@dataclass(frozen=True, slots=True)
class AdapterDescription:
    """What is known about an adapter folder."""

    method: str
    rank: int
    alpha: float
    parameters: int
    base: str | None
    base_fingerprint: str | None
    data_fingerprint: str | None
    licence: str | None  # the base's
    data_licence: str | None
    before: dict[str, float] | None  # validation figures
    after: dict[str, float] | None
    modules: list[AdaptedModule]


def inspect(folder: Path, base_ref: str | None = None) -> AdapterDescription:
    """Describe the adapter in `folder`; with its base, also how large each update is beside the weight it changes.

    For DoRA the update is that of the direction alone.

    Raises:
        BadInput, IntegrityError: the folder is no adapter, or not what was sealed.
        AdapterMismatch: it does not fit the base whole.
    """
    folder = Path(folder)
    tensors = adapters.tensors(folder)
    config = json.loads((folder / adapters.CONFIG).read_text())
    manifest = artifacts.read(folder) if (folder / artifacts.MANIFEST).is_file() else None
    scales, norms = dict[str, float](), dict[str, float]()
    if base_ref is not None:
        from adapt.merge import load

        model: Any = load(base_ref)
        peft_model = adapters.attach(model.model, folder, model.base_fingerprint)
        for name, module in peft_model.get_base_model().named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                scales[name] = float(module.scaling["default"])
                norms[name] = float(module.get_base_layer().weight.float().norm())
    modules: list[AdaptedModule] = []
    for key, down in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        stem = key.removesuffix(".lora_A.weight")
        name, up = stem.removeprefix("base_model.model."), tensors[f"{stem}.lora_B.weight"]
        rank = len(down)
        scale = scales.get(name, _scale(config, rank))
        update = float((up.float() @ down.float()).norm()) * scale
        size = sum(t.numel() for other, t in tensors.items() if other.startswith(f"{stem}."))
        tower: Tower = "text" if name.startswith(TEXT) else "image"
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        relative = update / norms[name] if norms.get(name) else None
        modules.append(AdaptedModule(name, tower, numbers[0] if numbers else None, rank, size, update, relative))
    metrics, about = (manifest.metrics, manifest.config) if manifest else ({}, {})
    return AdapterDescription(
        method="dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora",
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        base=about.get("base"),
        base_fingerprint=about.get("base_fingerprint"),
        data_fingerprint=manifest.data.get("fingerprint") if manifest else None,
        licence=manifest.licence if manifest else None,
        data_licence=manifest.data.get("licence") if manifest else None,
        before=metrics.get("before"),
        after=metrics.get("after"),
        modules=sorted(modules, key=lambda m: (m.tower, -1 if m.layer is None else m.layer)),
    )


def _scale(config: dict[str, Any], rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) (arXiv 2312.03732)."""
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
