"""Adapting the tiny CLIP: it learns, resumes to the same losses, and is saved as what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from adapt import targets
from adapt.clip import ClipSettings, adapt
from adapt.run import AdaptReport
from foveal import artifacts
from foveal.adapters import split_attention
from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput, FovealError, UnknownName
from foveal.models import load_encoder
from tests.tiny import tiny_clip, tiny_hf

COLOURS = ("red", "green", "blue", "yellow")
PLACES = {"left": (2, 10), "right": (20, 10), "top": (11, 1), "bottom": (11, 21)}
FAST = ClipSettings(rank=8, alpha=16, learning_rate=1e-2, batch=16, epochs=80, augment=False)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"open_clip:{tiny_clip(tmp_path_factory.mktemp('base'))}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """16 pictures: one square of four colours at four places."""
    folder = tmp_path_factory.mktemp("data")
    samples: list[Sample] = []
    for colour in COLOURS:
        for place, (x, y) in PLACES.items():
            image = Image.new("RGB", (32, 32), "grey")
            ImageDraw.Draw(image).rectangle((x, y, x + 9, y + 9), fill=colour)
            path = folder / f"{colour}-{place}.png"
            image.save(path)
            texts = (f"a {colour} square at the {place}", f"the {place} holds a {colour} square")
            samples.append(Sample(id=path.stem, path=path, width=32, height=32, truth=None, captions=texts))
    return Dataset.build(samples, [])


def test_sixteen_pairs_are_learnt_by_heart(base: str, data: Dataset, tmp_path: Path) -> None:
    report = adapt(base, data, tmp_path / "adapter", FAST, validation=data)
    assert report.before is not None
    assert report.after is not None
    assert report.before["recall_at_1"] < 0.5
    assert report.after["recall_at_1"] == 1.0
    assert report.losses[-1] < report.losses[0] / 4
    assert report.merge_difference <= 1e-4
    assert 0 < report.trainable_params < report.total_params
    assert (report.data, report.steps) == ({"images": 16, "captions": 32}, 80)

    adapted = load_encoder(f"{base}+{tmp_path / 'adapter'}")
    assert adapted.fingerprint == report.fingerprint != load_encoder(base).fingerprint
    manifest = artifacts.read(tmp_path / "adapter")
    assert manifest.kind == "adapter"
    assert manifest.config["base_fingerprint"] == report.base_fingerprint
    assert {"adapter_config.json", "adapter_model.safetensors", "report.json", "report.html"} <= set(manifest.files)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]  # no checkpoint is left behind

    again = adapt(base, data, tmp_path / "adapter", FAST, validation=data)
    assert again == report.model_copy(update={"already_done": True})
    with pytest.raises(BadInput, match="differs in settings"):
        adapt(base, data, tmp_path / "adapter", FAST.model_copy(update={"rank": 2}))


@pytest.fixture(scope="module")
def labelled(data: Dataset) -> Dataset:
    """The same pictures with their colours as labels."""
    samples = (replace(sample, captions=(), label=sample.id.split("-")[0]) for sample in data)
    return Dataset.build(samples, COLOURS)


def test_labelled_data_says_whether_training_was_worth_it(base: str, labelled: Dataset, tmp_path: Path) -> None:
    report = adapt(base, labelled, tmp_path / "a", FAST.model_copy(update={"epochs": 30}), validation=labelled)
    assert report.baselines is not None
    assert list(report.baselines) == ["zero-shot", "Tip-Adapter", "linear probe"]
    assert report.before is not None
    assert report.baselines["zero-shot"] == report.before  # the base's own figures, after training too
    assert report.baselines["linear probe"]["top1"] == 1.0
    assert report.after is not None
    assert report.after["top1"] > report.before["top1"]
    assert "Was training worth it" in (tmp_path / "a" / "report.html").read_text()


class _Interrupted(BaseException):
    pass


class _StopAfter:
    """Progress that pulls the plug in the middle of the run."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def start(self, task: str, total: int | None) -> None:
        self.training = task == "train"

    def advance(self, n: int = 1) -> None:
        self.steps -= n if self.training else 0
        if self.steps < 0:
            raise _Interrupted

    def note(self, text: str) -> None:
        self.noted = text

    def finish(self) -> None:
        pass


def test_an_interrupted_run_goes_on_to_the_same_end(base: str, data: Dataset, tmp_path: Path) -> None:
    settings = ClipSettings(rank=2, batch=8, epochs=8, checkpoint_seconds=1e-6)
    whole = adapt(base, data, tmp_path / "whole", settings)
    with pytest.raises(_Interrupted):
        adapt(base, data, tmp_path / "cut", settings, _StopAfter(9))
    assert not (tmp_path / "cut").exists()
    newest = max((tmp_path / ".cut.run").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (newest / "trainer_state.json").unlink()  # as a kill in the middle of a checkpoint leaves it
    watcher = _StopAfter(1000)
    cut = adapt(base, data, tmp_path / "cut", settings, watcher)
    assert watcher.noted.startswith("resumed at step ")
    assert cut.losses == whole.losses
    assert cut.fingerprint == whole.fingerprint


def test_the_clock_ends_a_run(base: str, data: Dataset, tmp_path: Path) -> None:
    report = adapt(base, data, tmp_path / "a", ClipSettings(batch=8, max_seconds=0.5))
    assert report.seconds >= 0.5
    assert 1 <= report.steps < 10_000  # without the clock it would have been 20,000


@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_other_methods_merge_as_exactly(base: str, data: Dataset, tmp_path: Path, method: str) -> None:
    settings = ClipSettings.model_validate({"method": method, "epochs": 2, "batch": 8, "rank": 2})
    report = adapt(base, data, tmp_path / "a", settings)
    assert report.merge_difference <= 1e-4
    assert load_encoder(f"{base}+{tmp_path / 'a'}").fingerprint == report.fingerprint


def test_a_frozen_tower_stays_as_it_is(base: str, data: Dataset, tmp_path: Path) -> None:
    adapt(base, data, tmp_path / "a", ClipSettings(towers=("image",), epochs=3, batch=8))
    before, after = load_encoder(base), load_encoder(f"{base}+{tmp_path / 'a'}")
    texts = ["a red square", "a blue square"]
    np.testing.assert_array_equal(before.encode_texts(texts), after.encode_texts(texts))
    image = [data[0].image()]
    assert np.abs(before.encode_images(image) - after.encode_images(image)).max() > 1e-4


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_transformers_models_too(data: Dataset, tmp_path: Path, family: str) -> None:
    base = f"hf:{tiny_hf(tmp_path / family, family)}"
    settings = FAST.model_copy(update={"epochs": 12, "rank": 4})
    report = adapt(base, data, tmp_path / "a", settings)
    assert report.losses[-1] < report.losses[0]
    assert report.merge_difference <= 1e-4
    model = load_encoder(base).model  # pyright: ignore
    names = targets.choose(model, ["image", "text"])
    assert len(names) == 2 * 2 * 6
    assert not any("head" in name for name in names)


def test_targets_are_exactly_the_blocks_linear_layers(base: str) -> None:
    encoder = load_encoder(base)
    model = encoder.model  # pyright: ignore
    text = targets.choose(model, ["text"])
    assert text == [
        f"transformer.resblocks.{i}.{name}"
        for i in range(2)
        for name in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert targets.choose(model, ["image"], ["in_proj"]) == [
        f"visual.transformer.resblocks.{i}.attn.in_proj" for i in range(2)
    ]
    assert targets.choose(split_attention(model), ["text"]) == text
    with pytest.raises(UnknownName, match=r"c_fc, c_proj, in_proj, out_proj"):
        targets.choose(model, ["text"], ["q_proj"])


def test_data_that_cannot_be_used(base: str, data: Dataset, tmp_path: Path) -> None:
    bare = Dataset.build([Sample(id="a", path=data[0].path, width=32, height=32, truth=None)], [])
    with pytest.raises(BadInput, match="images with captions or labels"):
        adapt(base, bare, tmp_path / "a")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    samples = [*data, Sample(id="b", path=broken, width=1, height=1, truth=None, captions=("a red square",))]
    with pytest.raises(BadInput, match=r"1 of 17 images cannot be read.*broken\.png"):
        adapt(base, Dataset.build(samples, []), tmp_path / "a", ClipSettings(max_skipped=0.01))
    report = adapt(base, Dataset.build(samples, []), tmp_path / "a", ClipSettings(epochs=1, batch=8))
    assert [path for path, _ in report.skipped] == [str(broken)]
    with pytest.raises(BadInput, match="already carries an adapter"):
        adapt(f"{base}+{tmp_path / 'a'}", data, tmp_path / "b")


def test_a_diverging_run_stops_and_leaves_nothing_half_written(base: str, data: Dataset, tmp_path: Path) -> None:
    settings = ClipSettings(learning_rate=1e30, warmup=0, epochs=20, batch=8)
    with pytest.raises(FovealError, match="Lower the learning rate"):
        adapt(base, data, tmp_path / "a", settings)
    assert not (tmp_path / "a").exists()


def test_the_report_is_plain_json(base: str, data: Dataset, tmp_path: Path) -> None:
    report = adapt(base, data, tmp_path / "a", ClipSettings(epochs=1, batch=8))
    assert AdaptReport.model_validate(json.loads((tmp_path / "a" / "report.json").read_text())) == report
