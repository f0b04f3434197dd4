"""Encoders on tiny random checkpoints: unit vectors, the reference numbers of each library, honest fingerprints."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from foveal.encoders import TorchEncoder
from foveal.errors import BadInput, Unavailable, UnknownName
from foveal.models import Encoder, PreparingEncoder, load_encoder
from tests.tiny import CONTEXT, tiny_clip, tiny_hf

TEXTS = ["a red crate", "two yellow pallets and a dented drum " * 9, "ünknown wörds 漢字"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + 9 * i, 64, 3), dtype=np.uint8)) for i in range(5)]


def check_protocol(encoder: Encoder, images: list[Image.Image]) -> None:
    assert isinstance(encoder, Encoder)
    pictures, words = encoder.encode_images(images), encoder.encode_texts(TEXTS)
    for vectors, count in ((pictures, len(images)), (words, len(TEXTS))):
        assert vectors.shape == (count, encoder.dimension)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert encoder.encode_images([]).shape == (0, encoder.dimension)
    # What an image embeds to does not depend on its neighbours in the batch.
    np.testing.assert_allclose(encoder.encode_images(images[3:4]), pictures[3:4], atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS[:1]), words[:1], atol=1e-6)
    assert isinstance(encoder, TorchEncoder)
    np.testing.assert_allclose(encoder.encode_images(images, batch=2), pictures, atol=1e-6)
    # Nor on where it was prepared, or on which core it was encoded.
    assert isinstance(encoder, PreparingEncoder)
    prepared = [encoder.prepare_image(image) for image in images]
    np.testing.assert_allclose(encoder.encode_prepared(prepared), pictures, atol=1e-6)
    torch.set_num_threads(2)
    np.testing.assert_allclose(encoder.encode_prepared(prepared), pictures, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_images(images), pictures, atol=1e-6)
    torch.set_num_threads(1)
    # A row of pixels costs no more than a picture, and is seen as a centre crop sees it.
    line = Image.new("RGB", (30_001, 1), "red")
    line.paste("blue", (14_900, 0, 15_100, 1))
    assert sum(tensor.numel() for tensor in encoder.prepare_image(line).values()) < 10**6
    vectors = encoder.encode_images([line, line.crop((14_980, 0, 15_021, 1))])
    images_config = encoder.config["images"]
    if images_config.get("resize_mode") == "shortest" or images_config.get("do_center_crop"):
        assert vectors[0] @ vectors[1] > 0.999


def test_open_clip_folder(clip_folder: Path, images: list[Image.Image]) -> None:
    import open_clip

    handlers = logging.root.handlers[:]
    encoder = load_encoder(f"open_clip:{clip_folder}")
    check_protocol(encoder, images)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")  # pyright: ignore
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in images])  # pyright: ignore
        expected = model.encode_image(pixels, normalize=True)  # pyright: ignore
    np.testing.assert_allclose(encoder.encode_images(images), expected, atol=1e-6)
    logging.root.handlers[:] = handlers  # open_clip itself installs one
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_loading_installs_no_log_handler(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    load_encoder(f"open_clip:{clip_folder}")
    assert logging.root.handlers == []


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_transformers_folder(tmp_path: Path, images: list[Image.Image], family: str) -> None:
    from transformers import AutoModel, AutoProcessor

    folder = tiny_hf(tmp_path / family, family)
    encoder = load_encoder(f"hf:{folder}")
    check_protocol(encoder, images)
    model: Any = AutoModel.from_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    inputs = processor(
        images=images[:1],
        text=TEXTS[:1],
        padding="max_length",
        max_length=CONTEXT,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(**inputs)
    np.testing.assert_allclose(encoder.encode_images(images[:1]), output.image_embeds, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS[:1]), output.text_embeds, atol=1e-5)


def test_the_fingerprint_follows_what_changes_an_embedding_and_nothing_else(clip_folder: Path, tmp_path: Path) -> None:
    original = load_encoder(f"open_clip:{clip_folder}").fingerprint
    copy = tmp_path / "elsewhere"
    shutil.copytree(clip_folder, copy)
    assert load_encoder(f"open_clip:{copy}").fingerprint == original

    config = json.loads((copy / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["interpolation"] = "bicubic"
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    assert load_encoder(f"open_clip:{copy}").fingerprint != original

    shutil.copy(clip_folder / "open_clip_config.json", copy)
    weights = load_file(copy / "open_clip_model.safetensors")
    weights["visual.proj"][0, 0] += 1e-3
    save_file(weights, copy / "open_clip_model.safetensors")
    assert load_encoder(f"open_clip:{copy}").fingerprint != original

    shutil.copy(clip_folder / "open_clip_model.safetensors", copy)
    rules = json.loads((copy / "tokenizer.json").read_text())
    rules["model"]["merges"].pop()
    (copy / "tokenizer.json").write_text(json.dumps(rules))
    assert load_encoder(f"open_clip:{copy}").fingerprint != original


def test_half_precision_files_compute_in_float32(clip_folder: Path, tmp_path: Path, images: list[Image.Image]) -> None:
    copy = tmp_path / "half"
    shutil.copytree(clip_folder, copy)
    weights = load_file(copy / "open_clip_model.safetensors")
    save_file({name: x.half() for name, x in weights.items()}, copy / "open_clip_model.safetensors")
    half, full = load_encoder(f"open_clip:{copy}"), load_encoder(f"open_clip:{clip_folder}")
    assert half.encode_images(images).dtype == np.float32
    np.testing.assert_allclose(half.encode_images(images), full.encode_images(images), atol=5e-3)


def test_folders_that_are_no_encoder(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"not an open_clip folder.*open_clip_config\.json"):
        load_encoder(f"open_clip:{tmp_path}")
    copy = tmp_path / "pickled"
    shutil.copytree(clip_folder, copy)
    (copy / "open_clip_model.safetensors").rename(copy / "open_clip_pytorch_model.bin")
    with pytest.raises(BadInput, match="safetensors only"):
        load_encoder(f"open_clip:{copy}")
    with pytest.raises(BadInput, match="does not load"):
        load_encoder(f"hf:{tmp_path}")
    (copy / "open_clip_model.safetensors").write_bytes(b"torn")
    with pytest.raises(BadInput, match="cannot read"):
        load_encoder(f"open_clip:{copy}")


def test_unknown_names_list_the_close_ones() -> None:
    with pytest.raises(UnknownName, match="ViT-B-32"):
        load_encoder("open_clip:ViT-B-33/laion2b_s34b_b79k")
    with pytest.raises(UnknownName, match="laion2b_s34b_b79k"):
        load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79")


@pytest.mark.parametrize("ref", ["open_clip:ViT-B-32/laion2b_s34b_b79k", "hf:google/siglip2-base-patch16-224"])
def test_a_hub_out_of_reach_is_one_line(ref: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="give its folder") as caught:
        load_encoder(ref)
    assert "\n" not in str(caught.value)
