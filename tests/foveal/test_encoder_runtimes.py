"""An encoder in another runtime gives its source's vectors, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveal import encoder_runtimes
from foveal.encoder_runtimes import ConvertedEncoder, RuntimesDiffer, probes
from foveal.encoders import TorchEncoder
from foveal.errors import Unavailable
from foveal.models import Encoder, PreparingEncoder, Runtime, load_encoder
from retrieval.archive import Archive
from retrieval.query import SearchQuery
from tests.tiny import tiny_clip, tiny_hf

TEXTS = ("a", "a red valve beside two crates", "x y", "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("encoders")
    return {
        "open_clip": f"open_clip:{tiny_clip(home / 'open_clip')}",
        "clip": f"hf:{tiny_hf(home / 'clip', 'clip')}",
        "siglip": f"hf:{tiny_hf(home / 'siglip', 'siglip')}",
    }


@pytest.mark.parametrize(
    "family",
    ["open_clip", pytest.param("clip", marks=pytest.mark.slow), pytest.param("siglip", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_the_vectors_are_those_of_the_source(folders: dict[str, str], family: str, runtime: Runtime) -> None:
    source, other = load_encoder(folders[family]), load_encoder(folders[family], runtime=runtime)
    assert isinstance(other, Encoder)
    assert isinstance(other, PreparingEncoder)
    assert isinstance(other, ConvertedEncoder)
    assert not list(other._source.model.parameters()), "PyTorch's weights are let go"  # pyright: ignore[reportPrivateUsage]
    assert (other.fingerprint, other.dimension, other.logit_scale) == (
        source.fingerprint, source.dimension, source.logit_scale
    )  # fmt: skip
    images = probes(40)
    wanted = source.encode_images(images)
    assert np.abs(other.encode_images(images) - wanted).max() < 1e-5
    assert np.abs(other.encode_images(images[:1]) - wanted[:1]).max() < 1e-5
    assert np.abs(other.encode_prepared([other.prepare_image(each) for each in images]) - wanted).max() < 1e-5
    for count in (1, 3, 4):  # texts of other numbers and lengths than those it was converted with
        assert np.abs(other.encode_texts(TEXTS[:count]) - source.encode_texts(TEXTS[:count])).max() < 1e-5
    assert other.encode_texts([]).shape == (0, source.dimension)


@pytest.mark.parametrize("family", ["open_clip", "clip", "siglip"])
def test_bfloat16_rounds_and_no_more(folders: dict[str, str], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_runtimes, "fast_bfloat16", lambda device: True)
    source, other = load_encoder(folders[family]), load_encoder(folders[family], runtime="bf16")
    assert isinstance(other, TorchEncoder)
    assert {each.dtype for each in other.model.parameters()} == {torch.bfloat16}
    assert other.fingerprint == source.fingerprint
    images = probes(40)
    for made, wanted in (
        (other.encode_images(images), source.encode_images(images)),
        (other.encode_texts(TEXTS), source.encode_texts(TEXTS)),
    ):
        assert made.dtype == np.float32
        assert 0 < np.abs(made - wanted).max() < 1e-2
        assert (made * wanted).sum(1).min() > 0.999
    monkeypatch.setattr(encoder_runtimes, "ROUNDED", 1e-9)
    with pytest.raises(RuntimesDiffer, match="embeds otherwise in bf16"):
        load_encoder(folders[family], runtime="bf16")
    monkeypatch.setattr(encoder_runtimes, "fast_bfloat16", lambda device: False)
    with pytest.raises(Unavailable, match=r"cpu is no faster in bfloat16\. Use --runtime torch"):
        load_encoder(folders[family], runtime="bf16")


@pytest.mark.slow
def test_an_archive_takes_it_for_its_source(folders: dict[str, str], tmp_path: Path) -> None:
    for number, image in enumerate(probes(64)):
        image.save(tmp_path / f"{number}.png")
    source, other = (load_encoder(folders["open_clip"], runtime=runtime) for runtime in ("torch", "openvino"))
    archive = Archive.create(tmp_path / "archive", source)
    assert archive.add(tmp_path, other).added == 4
    (hit,) = archive.search(SearchQuery(image=probes(64)[2], k=1), source)
    assert hit.uri.endswith("2.png")
    assert hit.similarity > 0.999


def test_one_that_embeds_otherwise_is_refused(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def skewed(module: Any, example: tuple[torch.Tensor, ...]) -> encoder_runtimes.Run:
        def run(inputs: Any) -> Any:
            with torch.no_grad():
                rows = module(*(torch.from_numpy(each) for each in inputs)).numpy()
            rows[:, 0] += 0.05 * np.abs(rows).max()
            return rows

        return run

    monkeypatch.setitem(encoder_runtimes.TOWERS, "onnx", skewed)
    with pytest.raises(RuntimesDiffer, match="embeds otherwise in onnx"):
        load_encoder(folders["open_clip"], runtime="onnx")


def test_one_that_cannot_be_converted_names_the_way_out(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(module: Any, example: Any) -> encoder_runtimes.Run:
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setitem(encoder_runtimes.TOWERS, "openvino", broken)
    with pytest.raises(Unavailable, match=r"no such operator\. Use --runtime torch"):
        load_encoder(folders["open_clip"], runtime="openvino")
