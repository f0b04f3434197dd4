"""Merged folders say what base + adapter says, and inspection counts what is there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from adapt import detector_targets, targets
from adapt.inspect_adapter import inspect
from adapt.merge import interpolated, load, merge
from adapt.settings import Settings
from foveal import adapters, artifacts
from foveal.dataset import Dataset, Sample
from foveal.errors import AdapterMismatch, BadInput, IntegrityError
from foveal.models import load_encoder
from foveal.vlms import TransformersVLM, linear_layers
from tests.foveal.test_open_detectors import tiny_grounding
from tests.tiny import tiny_clip, tiny_hf, tiny_owl
from tests.tiny_vlm import tiny_vlm


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    samples: list[Sample] = []
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        path = folder / f"{i}.png"
        samples.append(Sample(id=str(i), path=path, width=56, height=40, captions=("a red crate",)))
    return Dataset.build(samples, ("red crate", "blue barrel"))


def base_of(kind: str, folder: Path) -> str:
    if kind == "open_clip":
        return f"open_clip:{tiny_clip(folder)}"
    if kind == "owl":
        return f"hf:{tiny_owl(folder)}"
    if kind in ("llava", "qwen3_vl", "florence2"):
        return f"hf:{tiny_vlm(folder, kind)}"
    if kind == "grounding":
        return f"hf:{tiny_grounding(folder, mm=True)}"
    return f"hf:{tiny_hf(folder, kind)}"


def adapter_for(base: str, folder: Path, settings: Settings | None = None) -> Path:
    """An adapter with random updates of a noticeable size, sealed."""
    settings = settings or Settings(rank=2)
    loaded = load(base)
    if isinstance(loaded, TransformersVLM):
        names = linear_layers(loaded.model, "language")
    elif hasattr(loaded, "propose"):
        names = detector_targets.choose(loaded.model, ["image"])
    else:
        names = targets.choose(loaded.model, ["image", "text"])
    model = adapters.fresh(loaded.model, targets.lora_config(settings, names), 0, base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(len(name)))
    folder.mkdir()
    adapters.save(model, folder)
    config = {"base_fingerprint": loaded.base_fingerprint, "base": base}
    data = {"fingerprint": "d" * 64, "licence": "CC0-1.0"}
    metrics = {"before": {"AP": 0.1}, "after": {"AP": 0.2}}
    artifacts.seal(folder, name="a", kind="adapter", config=config, data=data, metrics=metrics, licence="MIT")
    return folder


KINDS = ["open_clip", "clip", "siglip", "owl", "grounding", "llava", "qwen3_vl", "florence2"]


@pytest.mark.parametrize("kind", KINDS)
def test_merged_folders_say_what_base_and_adapter_say(kind: str, data: Dataset, tmp_path: Path) -> None:
    base = base_of(kind, tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    report = merge(f"{base}+{adapter}", tmp_path / "merged", data=data)
    assert report.difference <= 1e-4
    scheme = base.split(":")[0]
    merged, adapted = load(f"{scheme}:{tmp_path / 'merged'}"), load(f"{base}+{adapter}")
    assert merged.fingerprint == report.fingerprint
    for name, tensor in adapted.model.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], tensor)
    manifest = artifacts.read(tmp_path / "merged")
    assert manifest.parents == [base, str(adapter)]
    assert manifest.metrics["merge_difference"] == report.difference
    assert type(merged) is type(adapted)


def test_a_vlm_that_learnt_on_4_bits_is_merged_into_what_those_stand_for(data: Dataset, tmp_path: Path) -> None:
    base = base_of("llava", tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    plain = load(f"{base}+{adapter}").fingerprint
    manifest = artifacts.read(adapter)
    artifacts.seal(
        adapter, name="a", kind="adapter", config={**manifest.config, "conditions": {"nf4": True, "image_side": None}},
    )  # fmt: skip
    report = merge(f"{base}+{adapter}", tmp_path / "merged", data=data)
    assert report.difference <= 1e-4
    merged, adapted = load(f"hf:{tmp_path / 'merged'}"), load(f"{base}+{adapter}")
    assert adapted.fingerprint != plain
    texts = ["what is this"] * 3
    images = [data[i].image() for i in range(3)]
    assert np.abs(merged.begins(images, texts) - adapted.begins(images, texts)).max() <= 1e-4
    assert artifacts.read(tmp_path / "merged").kind == "vlm"


@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_other_methods(method: str, data: Dataset, tmp_path: Path) -> None:
    base = base_of("open_clip", tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter", Settings.model_validate({"method": method, "rank": 2}))
    assert merge(f"{base}+{adapter}", tmp_path / "merged", data=data).difference <= 1e-4
    assert inspect(adapter).method == method


def test_keep_goes_from_adapted_to_base(data: Dataset, tmp_path: Path) -> None:
    base = base_of("open_clip", tmp_path / "base")
    ref = f"{base}+{adapter_for(base, tmp_path / 'adapter')}"
    for keep, name in ((1.0, "all"), (0.25, "some")):
        assert merge(ref, tmp_path / name, keep, data).difference <= 1e-4
    assert load_encoder(f"open_clip:{tmp_path / 'all'}").fingerprint == load_encoder(base).fingerprint
    old, new = load(base).model.state_dict(), load(ref).model.state_dict()
    for name, tensor in load(f"open_clip:{tmp_path / 'some'}").model.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * new[name] + 0.25 * old[name], atol=1e-6, rtol=0)
    assert all(torch.equal(t, new[n]) for n, t in interpolated(old, new, 0.0).items())
    assert all(torch.equal(t, old[n]) for n, t in interpolated(old, new, 1.0).items())


def test_what_cannot_be_merged(data: Dataset, tmp_path: Path) -> None:
    base = base_of("open_clip", tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    ref = f"{base}+{adapter}"
    with pytest.raises(BadInput, match="carries no adapter"):
        merge(base, tmp_path / "m", data=data)
    with pytest.raises(BadInput, match="keep lies outside"):
        merge(ref, tmp_path / "m", 1.5, data)
    other = f"open_clip:{tiny_clip(tmp_path / 'other', seed=1)}"
    with pytest.raises(AdapterMismatch, match="belongs to another base"):
        merge(f"{other}+{adapter}", tmp_path / "m", data=data)
    weights = adapter / adapters.WEIGHTS
    tensors = load_file(weights)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights)
    for attempt in (lambda: merge(ref, tmp_path / "m", data=data), lambda: inspect(adapter)):
        with pytest.raises(IntegrityError, match="has changed"):
            attempt()
    (adapter / artifacts.MANIFEST).unlink()  # a plain peft folder, one tensor short
    with pytest.raises(AdapterMismatch, match="is not in the file"):
        merge(ref, tmp_path / "m", data=data)
    assert not (tmp_path / "m").exists()


def test_inspection_of_an_adapter_made_by_hand(tmp_path: Path) -> None:
    """Rank 1, alpha 4: the update is 4·B·A, whose norm is 4·|B|·|A|."""
    base = base_of("open_clip", tmp_path / "base")
    model: Any = load_encoder(base)
    folder = tmp_path / "adapter"
    folder.mkdir()
    names = ["transformer.resblocks.1.mlp.c_fc", "visual.transformer.resblocks.0.mlp.c_proj"]
    tensors: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in zip(names, ((128, 32), (32, 128)), strict=True):
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.full((1, columns), 0.5)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.full((rows, 1), 0.25)
    save_file(tensors, folder / adapters.WEIGHTS)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 4, "target_modules": targets.pattern(names)}
    (folder / adapters.CONFIG).write_text(json.dumps(config))
    found = inspect(folder)
    assert (found.method, found.rank, found.alpha, found.parameters) == ("lora", 1, 4.0, 2 * (32 + 128))
    assert found.licence is None
    image, text = found.modules
    assert (image.name, image.tower, image.layer) == (names[1], "image", 0)
    assert (text.name, text.tower, text.layer, text.rank, text.parameters) == (names[0], "text", 1, 1, 160)
    norm = 4 * 0.5 * 0.25 * math.sqrt(32 * 128)
    assert text.update == pytest.approx(norm, rel=1e-5)
    assert text.relative is None
    weight = model.model.transformer.resblocks[1].mlp.c_fc.weight.norm().item()
    assert inspect(folder, base).modules[1].relative == pytest.approx(norm / weight, rel=1e-5)


def test_inspection_tells_where_an_adapter_comes_from(tmp_path: Path) -> None:
    base = base_of("owl", tmp_path / "base")
    found = inspect(adapter_for(base, tmp_path / "adapter"), base)
    assert (found.base, found.licence, found.data_licence) == (base, "MIT", "CC0-1.0")
    assert (found.before, found.after) == ({"AP": 0.1}, {"AP": 0.2})
    assert {m.tower for m in found.modules} == {"image"}
    assert all(m.relative is not None and m.relative > 0 for m in found.modules)
