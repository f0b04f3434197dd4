"""Which modules of an image-text model LoRA attaches to."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Literal

from torch import nn

from adapt.settings import Settings
from foveal.adapters import SplitAttention, splittable
from foveal.errors import BadInput, UnknownName

Tower = Literal["image", "text"]
# Prefixes of a tower's modules in open_clip (CLIP, CustomTextCLIP) and in transformers' CLIP family.
PREFIXES: dict[Tower, tuple[str, ...]] = {
    "image": ("visual.", "vision_model."),
    "text": ("transformer.", "text.", "text_model."),
}


def linear_modules(model: nn.Module, towers: Collection[Tower]) -> list[str]:
    """Full names of the linear layers in the towers' blocks, in model order, fused attention counted as split.

    Layers outside the blocks (patch embedding, final projection) stay as they are.
    """
    prefixes = tuple(prefix for tower in towers for prefix in PREFIXES[tower])
    names: list[str] = []
    out_of_reach: tuple[str, ...] = ()  # inside attention whose linear layers are never called as modules
    for name, module in model.named_modules():
        if not name.startswith(prefixes) or not any(part.isdigit() for part in name.split(".")):
            continue
        fused = isinstance(module, nn.MultiheadAttention)
        if isinstance(module, SplitAttention) or (fused and splittable(module)):
            names.extend((f"{name}.in_proj", f"{name}.out_proj"))
        elif fused:
            out_of_reach += (f"{name}.",)
        elif name.startswith(out_of_reach):
            continue
        elif isinstance(module, nn.Linear) and name not in names:
            names.append(name)
    return names


def choose(model: nn.Module, towers: Collection[Tower], wanted: Sequence[str] | None = None) -> list[str]:
    """The modules to adapt: all linear layers of the towers' blocks, or those whose last name is in `wanted`.

    Raises:
        UnknownName: a wanted name is no linear layer of these towers.
        BadInput: the towers have no linear layer at all.
    """
    return narrowed(linear_modules(model, towers), towers, wanted)


def narrowed(names: Sequence[str], towers: Collection[Tower], wanted: Sequence[str] | None) -> list[str]:
    """Those of the linear layers `names` of `towers` whose last name is in `wanted`; raises as `choose`."""
    if not names:
        raise BadInput(
            "the model has no linear layer to adapt", expected=f"a transformer as {' or '.join(towers)} tower"
        )
    if wanted is None:
        return list(names)
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    for leaf in wanted:
        if leaf not in leaves:
            raise UnknownName("target module", leaf, leaves, remedy="Leave target_modules out to adapt all of them.")
    return [name for name in names if name.rsplit(".", 1)[-1] in wanted]


def pattern(names: Sequence[str]) -> str:
    """A regular expression that matches exactly `names`.

    peft matches lists by suffix, so that `transformer.resblocks.0.mlp.c_fc` would also hit the image tower's
    `visual.transformer.resblocks.0.mlp.c_fc`; an expression must match whole.
    """
    return "|".join(re.escape(name) for name in names)


def lora_config(settings: Settings, names: Sequence[str]) -> Any:
    """The `peft.LoraConfig` that adapts exactly the modules `names` as `settings` say."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        target_modules=pattern(names),
    )


def attachments(model: nn.Module, chosen: Collection[str]) -> list[dict[str, str]]:
    """Every linear layer of a model in order, and whether LoRA attaches to it: rows for `--list-modules`."""
    adapted = set(chosen)
    rows: list[dict[str, str]] = []
    for name, module in model.named_modules():
        fused = [n for n in (f"{name}.in_proj",) if n in adapted and isinstance(module, nn.MultiheadAttention)]
        for layer in (*fused, *([name] if isinstance(module, nn.Linear) else [])):
            rows.append({"module": layer, "lora": "yes" if layer in adapted else "no"})
    return rows
