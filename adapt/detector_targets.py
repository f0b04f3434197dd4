"""Which modules of an open-vocabulary detector LoRA attaches to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from adapt.targets import Tower, narrowed
from foveal.errors import UnknownName

Prefixes = dict[Tower, tuple[str, ...]]
_OWL: Prefixes = {"image": ("vision_model.encoder.", "class_head.", "box_head."), "text": ("text_model.encoder.",)}
_GROUNDING: Prefixes = {"image": ("model.encoder.", "model.decoder."), "text": ("model.text_backbone.encoder.",)}
# model_type of the checkpoint's config -> names that a tower's modules start with, below the trunk.
PREFIXES: dict[str, Prefixes] = {
    "owlvit": _OWL,
    "owlv2": _OWL,
    "grounding-dino": _GROUNDING,
    "mm-grounding-dino": _GROUNDING,
}
# Grounding DINO's heads are shared between the decoder and the model: adapting one name would part them.
SHARED = ("bbox_embed", "class_embed")


def linear_modules(model: Any, towers: Collection[Tower]) -> list[str]:
    """Full names of the linear layers that are adapted: blocks and heads of OWL, encoder and decoder of Grounding DINO.

    Raises:
        UnknownName: the detector is of a family that cannot be adapted.
    """
    kind = model.config.model_type
    if kind not in PREFIXES:
        raise UnknownName("adaptable detector family", kind, PREFIXES)
    prefixes = tuple(prefix for tower in towers for prefix in PREFIXES[kind][tower])
    trunk = {"owlvit": "owlvit.", "owlv2": "owlv2."}.get(kind, "")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.removeprefix(trunk).startswith(prefixes)
        and not any(part in SHARED for part in name.split("."))
    ]


def choose(model: Any, towers: Collection[Tower], wanted: Sequence[str] | None = None) -> list[str]:
    """The modules to adapt: all of `linear_modules`, or those whose last name is in `wanted`; raises as
    `adapt.targets.choose`."""
    return narrowed(linear_modules(model, towers), towers, wanted)
