"""An adapter applies whole or not at all, and merging changes nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from foveal import adapters, artifacts
from foveal.encoders import TorchEncoder, adapted_fingerprint
from foveal.errors import AdapterMismatch, BadInput, IntegrityError
from foveal.models import load_encoder
from tests.tiny import tiny_clip

TARGETS = r".*\.(in_proj|out_proj|c_fc|c_proj)"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TorchEncoder:
    loaded: Any = load_encoder(f"open_clip:{tiny_clip(tmp_path_factory.mktemp('base'))}")
    return loaded


@pytest.fixture(scope="module")
def inputs(encoder: TorchEncoder) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"image": pixels}, encoder.text_inputs(["a red crate", "two drums"])


def embed(encoder: TorchEncoder, model: nn.Module, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([encoder.image_features(model, inputs[0]), encoder.text_features(model, inputs[1])])


def lora(encoder: TorchEncoder, *, fresh: bool = False, **options: Any) -> Any:
    from peft import LoraConfig

    torch.manual_seed(1)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "init_lora_weights": fresh, **options})
    return adapters.wrap(copy.deepcopy(encoder.model), config, "test").eval()


def sealed(encoder: TorchEncoder, folder: Path, **options: Any) -> Path:
    folder.mkdir()
    adapters.save(lora(encoder, **options), folder)
    artifacts.seal(folder, name="a", kind="adapter", config={"base_fingerprint": encoder.base_fingerprint})
    return folder


def test_split_attention_says_the_same_and_joins_back(encoder: TorchEncoder, inputs: Any) -> None:
    before = embed(encoder, encoder.model, inputs)
    names = list(encoder.model.state_dict())
    split = adapters.split_attention(copy.deepcopy(encoder.model))
    assert not any(isinstance(m, nn.MultiheadAttention) for m in split.modules())
    torch.testing.assert_close(embed(encoder, split, inputs), before, atol=1e-5, rtol=0)
    joined = adapters.join_attention(split)
    assert list(joined.state_dict()) == names
    torch.testing.assert_close(embed(encoder, joined, inputs), before, atol=0, rtol=0)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, "additive", "hidden", "per head"])
def test_split_attention_against_pytorch(batch_first: bool, mask: str | None) -> None:
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(16, 2, batch_first=batch_first).eval()
    split = adapters.SplitAttention(fused)
    query, other = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    chosen = {
        None: None,
        "additive": torch.randn(5, 7),
        "hidden": torch.randn(5, 7) > 1,
        "per head": torch.randn(6, 5, 7),
    }[mask]
    if not batch_first:
        query, other = query.transpose(0, 1), other.transpose(0, 1)
    expected, _ = fused(query, other, other, need_weights=False, attn_mask=chosen)
    torch.testing.assert_close(split(query, other, other, attn_mask=chosen)[0], expected, atol=1e-6, rtol=1e-5)


def test_a_fresh_adapter_changes_nothing(encoder: TorchEncoder, inputs: Any) -> None:
    before = embed(encoder, encoder.model, inputs)
    torch.testing.assert_close(embed(encoder, lora(encoder, fresh=True), inputs), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_merging_changes_nothing(encoder: TorchEncoder, inputs: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = sealed(encoder, tmp_path / "a", **options)
    live = adapters.attach(copy.deepcopy(encoder.model), folder, encoder.base_fingerprint).eval()
    merged = adapters.apply(copy.deepcopy(encoder.model), folder, encoder.base_fingerprint).eval()
    expected = embed(encoder, live, inputs)
    assert (expected - embed(encoder, encoder.model, inputs)).abs().max() > 1e-2
    torch.testing.assert_close(embed(encoder, merged, inputs), expected, atol=1e-4, rtol=0)
    assert list(merged.state_dict()) == list(encoder.model.state_dict())


def test_the_update_is_exactly_b_times_a_times_scale(encoder: TorchEncoder, tmp_path: Path) -> None:
    folder = sealed(encoder, tmp_path / "a")
    merged = adapters.apply(copy.deepcopy(encoder.model), folder, encoder.base_fingerprint).state_dict()
    given, before = adapters.tensors(folder), encoder.model.state_dict()
    block = "transformer.resblocks.1.attn"
    for module, name in (("in_proj", "in_proj_weight"), ("out_proj", "out_proj.weight")):
        a, b = (given[f"base_model.model.{block}.{module}.lora_{side}.weight"] for side in "AB")
        expected = before[f"{block}.{name}"] + 2.0 * b @ a  # alpha 8 / rank 4
        torch.testing.assert_close(merged[f"{block}.{name}"], expected, atol=1e-6, rtol=1e-5)


def test_one_step_changes_only_adapter_tensors(encoder: TorchEncoder, inputs: Any) -> None:
    model = lora(encoder).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    (encoder.image_features(model, inputs[0]).sum() + encoder.text_features(model, inputs[1]).sum()).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert changed == {name for name in before if "lora_" in name}


def test_plain_peft_reads_the_folder(encoder: TorchEncoder, inputs: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = sealed(encoder, tmp_path / "a")
    read: Any = PeftModel.from_pretrained(
        adapters.split_attention(copy.deepcopy(encoder.model)),
        str(folder),  # pyright: ignore
    )
    live = adapters.attach(copy.deepcopy(encoder.model), folder, encoder.base_fingerprint)
    torch.testing.assert_close(embed(encoder, read.eval(), inputs), embed(encoder, live.eval(), inputs))


def tampered(folder: Path, change: Any) -> Path:
    """The adapter with its tensors changed, and no manifest to notice it: what a plain peft folder is."""
    given = load_file(folder / adapters.WEIGHTS)
    change(given)
    save_file(given, folder / adapters.WEIGHTS)
    (folder / artifacts.MANIFEST).unlink()
    return folder


def rename(given: dict[str, torch.Tensor]) -> None:
    name = next(n for n in given if "in_proj.lora_A" in n)
    given[name.replace("resblocks.0", "resblocks.7")] = given.pop(name)


def drop(given: dict[str, torch.Tensor]) -> None:
    given.pop(next(n for n in given if "in_proj.lora_A" in n))


def reshape(given: dict[str, torch.Tensor]) -> None:
    name = next(n for n in given if "in_proj.lora_A" in n)
    given[name] = given[name][:, :-1].contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"resblocks\.7.*has no place in the model.*resblocks\.0.*is not in the file"),
        (drop, r"in_proj\.lora_A\.weight is not in the file"),
        (reshape, r"in_proj\.lora_A\.weight is \(4, 31\), the model needs \(4, 32\)"),
    ],
)
def test_a_partly_matching_adapter_is_refused(encoder: TorchEncoder, tmp_path: Path, change: Any, message: str) -> None:
    folder = tampered(sealed(encoder, tmp_path / "a"), change)
    with pytest.raises(AdapterMismatch, match=message):
        adapters.apply(copy.deepcopy(encoder.model), folder, encoder.base_fingerprint)


@pytest.mark.parametrize("targets", [["in_proj", "q_proj"], ["q_proj"]])
def test_a_target_without_a_module_is_refused(encoder: TorchEncoder, tmp_path: Path, targets: list[str]) -> None:
    folder = sealed(encoder, tmp_path / "a", target_modules=r".*\.in_proj")
    config = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps({**config, "target_modules": targets}))
    (folder / artifacts.MANIFEST).unlink()
    with pytest.raises(AdapterMismatch, match="q_proj"):
        adapters.apply(copy.deepcopy(encoder.model), folder, encoder.base_fingerprint)


def test_another_base_is_refused(encoder: TorchEncoder, tmp_path: Path) -> None:
    folder = sealed(encoder, tmp_path / "a")
    other = tiny_clip(tmp_path / "other", seed=1)
    with pytest.raises(AdapterMismatch, match="another base model"):
        load_encoder(f"open_clip:{other}+{folder}")


def test_the_scale_is_part_of_the_fingerprint(encoder: TorchEncoder, tmp_path: Path) -> None:
    one, other = sealed(encoder, tmp_path / "a"), sealed(encoder, tmp_path / "b", lora_alpha=4)
    assert (one / adapters.WEIGHTS).read_bytes() == (other / adapters.WEIGHTS).read_bytes()
    assert adapted_fingerprint("base", one) != adapted_fingerprint("base", other)


def test_changed_bytes_are_refused(encoder: TorchEncoder, tmp_path: Path) -> None:
    folder = sealed(encoder, tmp_path / "a")
    content = bytearray((folder / adapters.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / adapters.WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match="has changed"):
        adapters.apply(copy.deepcopy(encoder.model), folder, encoder.base_fingerprint)


def test_a_folder_without_an_adapter(encoder: TorchEncoder, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not an adapter folder"):
        adapters.apply(encoder.model, tmp_path, encoder.base_fingerprint)
