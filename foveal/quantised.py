"""4-bit weights (nf4, arXiv 2305.14314): a language model's layers kept in them, or taken through them and back.

An adapter that learnt on 4-bit weights has learnt to mend their rounding too: merged into the original weights it
answers differently. What it belongs to are the weights that the 4 bits stand for, `through_nf4`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def to_nf4(model: nn.Module, names: Sequence[str], device: str) -> None:
    """Replace the linear layers `names` of `model` by bitsandbytes' 4-bit ones on `device`, in place.

    Weights are unpacked for each product to the type of what they multiply: float32, or bfloat16 under autocast.
    """
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    for name in names:
        full: Any = model.get_submodule(name)
        layer: Any = layers.Linear4bit(
            full.in_features,
            full.out_features,
            bias=full.bias is not None,
            compute_dtype=torch.float32,
            quant_type="nf4",
        )
        weight = full.weight.detach().float().contiguous()
        layer.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
        if full.bias is not None:
            layer.bias = nn.Parameter(full.bias.detach(), requires_grad=False)
        layer.support_avx512bf16_for_cpu = False  # it would repack its weights at the first answer, in bfloat16
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.to(device))
    whole: Any = model
    whole.is_loaded_in_4bit = True  # peft looks here


@torch.no_grad()
def through_nf4(model: nn.Module, names: Sequence[str]) -> None:
    """Give the linear layers `names` of `model` the weights that their 4-bit forms stand for, in place."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for name in names:
        weight: Any = model.get_submodule(name).weight
        packed, state = quantize_4bit(weight.float().contiguous(), quant_type="nf4", compress_statistics=True)
        weight.copy_(dequantize_4bit(packed, state))
