"""LoRA adapters in peft's folder format: what they may attach to, and applying one whole or not at all.

PyTorch's `nn.MultiheadAttention` keeps its projections where no LoRA layer can hook in. peft wraps it by merging the
adapter into the weights around every call, and in doing so adds the output projection's update twice (measured with
peft 0.21.2: the module answers like base + 2·B·A there). Here the fused module is split into two plain linear layers
instead, adapted like any other, and joined again after merging: the update is exactly B·A·scale, DoRA and quantised
linears work, and nothing drifts.

Shape letters: B batch, T and L target and source tokens, E width, H heads.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveal import artifacts
from foveal.errors import AdapterMismatch, BadInput

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LISTED = 6  # tensors named in an error before it says how many more


class SplitAttention(nn.Module):
    """`nn.MultiheadAttention` with its packed projection as a linear layer; same inputs, same numbers."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        width = fused.embed_dim
        self.num_heads, self.batch_first, self.dropout = fused.num_heads, fused.batch_first, fused.dropout
        with torch.device("meta"):
            self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.in_proj.weight, self.in_proj.bias = fused.in_proj_weight, fused.in_proj_bias
        self.out_proj.weight, self.out_proj.bias = fused.out_proj.weight, fused.out_proj.bias
        self.train(fused.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Query (B, T, E), key and value (B, L, E) when batch first -> (B, T, E) and no weights."""
        if need_weights or key_padding_mask is not None:
            raise NotImplementedError("adapted attention returns no weights and takes no padding mask")
        if query is key and key is value:
            q, k, v = self.in_proj(query).chunk(3, dim=-1)
        else:  # a pooling head asks with a probe: project each input through the whole packed matrix, keep its third
            q, k, v = (self.in_proj(x).chunk(3, dim=-1)[i] for i, x in enumerate((query, key, value)))
        q, k, v = (self._heads(x) for x in (q, k, v))
        if attn_mask is not None and attn_mask.ndim == 3:  # (B·H, T, L)
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # MultiheadAttention marks what to hide, the kernel what to see
        rate = self.dropout if self.training else 0.0
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=rate)
        out = out.transpose(1, 2).flatten(2)  # (B, H, T, E/H) -> (B, T, E)
        return self.out_proj(out if self.batch_first else out.transpose(0, 1)), None

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, E), or (T, B, E) -> (B, H, T, E/H)."""
        x = x if self.batch_first else x.transpose(0, 1)
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def fused(self) -> nn.MultiheadAttention:
        """The PyTorch module with these weights."""
        with torch.device("meta"):
            module: Any = nn.MultiheadAttention(
                self.in_proj.in_features, self.num_heads, dropout=self.dropout, batch_first=self.batch_first
            )
        module.in_proj_weight, module.in_proj_bias = self.in_proj.weight, self.in_proj.bias
        module.out_proj.weight, module.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        return module.train(self.training)


def splittable(attention: nn.MultiheadAttention) -> bool:
    """Whether query, key and value share one packed projection, with nothing added to keys or values."""
    packed: Any = attention.in_proj_weight  # None when key or value have widths of their own
    return packed is not None and attention.bias_k is None and not attention.add_zero_attn


def split_attention(model: nn.Module) -> nn.Module:
    """Replace each fused self-attention of `model` by `SplitAttention`, in place; the weights stay the same tensors."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and splittable(module):
            _replace(model, name, SplitAttention(module))
    return model


def join_attention(model: nn.Module) -> nn.Module:
    """Undo `split_attention`, in place, so that the state dict has its original names again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SplitAttention):
            _replace(model, name, module.fused())
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder by name.

    Raises:
        BadInput: the folder is no peft adapter in safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise BadInput(
                f"{folder} is not an adapter folder",
                expected=f"{CONFIG} and {WEIGHTS} in it",
                remedy="Give the folder that `foveal adapt` or peft wrote (safetensors, no .bin).",
            )
    try:
        return load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise BadInput(
            f"{folder / WEIGHTS} cannot be read: {error}", remedy="Copy or train the adapter again."
        ) from error


def identity(folder: Path) -> dict[str, Any]:
    """The part of an adapter's configuration that decides, with its tensors, what it does to a model."""
    names = (
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
    )
    described = json.loads((folder / CONFIG).read_text())
    return {name: described.get(name) for name in names}


def apply(model: nn.Module, folder: Path, base_fingerprint: str) -> nn.Module:
    """`model` with the adapter in `folder` merged into its weights; the model is changed in place.

    Raises:
        AdapterMismatch: the adapter was trained on another base, or any of its tensors or targets finds no place.
        BadInput, IntegrityError: the folder is no adapter, or its files differ from its manifest.
    """
    peft_model = attach(model, folder, base_fingerprint)
    return join_attention(peft_model.merge_and_unload(safe_merge=True))


def attach(model: nn.Module, folder: Path, base_fingerprint: str, trainable: bool = False) -> Any:
    """The adapter in `folder` put on `model` as an unmerged `peft.PeftModel`; raises as `apply`."""
    from peft import LoraConfig, set_peft_model_state_dict

    given = tensors(folder)
    if (folder / artifacts.MANIFEST).is_file():  # a plain peft folder has none: only its tensors can be checked
        trained_on = artifacts.read(folder).config.get("base_fingerprint")
        if trained_on != base_fingerprint:
            raise AdapterMismatch(
                f"adapter {folder} belongs to another base model",
                expected=f"fingerprint {str(trained_on)[:12]}",
                received=base_fingerprint[:12],
                remedy="Load it on the base that its manifest.json names, or train it again on this one.",
            )
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise BadInput(f"{folder / CONFIG} is not a LoRA configuration: {error}") from error
    config.inference_mode = not trainable
    peft_model = wrap(model, config, folder)
    wanted = state(peft_model)
    problems = [
        *(f"{name} has no place in the model" for name in given if name not in wanted),
        *(f"{name} is not in the file" for name in wanted if name not in given),
        *(
            f"{name} is {tuple(given[name].shape)}, the model needs {tuple(wanted[name].shape)}"
            for name in given.keys() & wanted.keys()
            if given[name].shape != wanted[name].shape
        ),
    ]
    refuse(folder, problems)
    result: Any = set_peft_model_state_dict(peft_model, given)
    refuse(folder, [f"{name} was not used" for name in result.unexpected_keys])
    return peft_model


def wrap(model: nn.Module, config: Any, source: Path | str) -> Any:
    """`model` with fresh LoRA layers after `config` (a `peft.LoraConfig`), as a `peft.PeftModel`.

    Raises:
        AdapterMismatch: a target of the configuration matches no module.
    """
    from peft import get_peft_model

    config.base_model_name_or_path = None  # peft would look that name up on the hub
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*base_model_name_or_path.*")
            peft_model: Any = get_peft_model(split_attention(model), config)
    except ValueError as error:
        raise AdapterMismatch(f"{source} does not fit the model: {str(error).splitlines()[0]}") from error
    hit = peft_model.base_model.targeted_module_names
    targets = config.target_modules
    if not isinstance(targets, str):
        lost = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in hit)]
        refuse(source, [f"target {name} matches no module" for name in sorted(lost)])
    return peft_model


def fresh(model: nn.Module, config: Any, seed: int, source: Path | str) -> Any:
    """`wrap`, with the layers' random start drawn from `seed` and nothing else's disturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return wrap(model, config, source)


def state(peft_model: Any) -> dict[str, Tensor]:
    """The adapter's own tensors under the names peft gives them in a file."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft_model, save_embedding_layers=False)


def refuse(source: Path | str, problems: Iterable[str]) -> None:
    """Raise `AdapterMismatch` listing the problems, if there are any."""
    found = list(problems)
    if found:
        more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise AdapterMismatch(
            f"adapter {source} does not fit the model whole: " + "; ".join(found[:LISTED]) + more,
            remedy="Use the base it was trained on; nothing of it was applied.",
        )


def save(peft_model: Any, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write the adapter as peft's two files into `folder`; `extra` replaces fields of the configuration."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state(peft_model).items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    config = peft_model.peft_config["default"]
    kept = {name: getattr(config, name) for name in (extra or {})}
    kept["inference_mode"] = config.inference_mode
    try:
        config.inference_mode = True
        for name, value in (extra or {}).items():
            setattr(config, name, value)
        config.save_pretrained(str(folder))
    finally:
        for name, value in kept.items():
            setattr(config, name, value)
