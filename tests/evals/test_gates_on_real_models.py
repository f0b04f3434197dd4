"""The gate against the bundled CLIP made worse in ways that happen: no for the right reason, yes to what is equal.

Blur, classes in another order, another preprocessing mean, and INT8 without calibration; an export that changes nothing
and a repaired model must pass; of a handful of pictures it must say that it cannot tell.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evals import zero_shot
from evals.evidence import Evidence
from evals.gates import GateReport, check
from evals.results import Data, Result, Stopwatch, Subject, by_name
from foveal import world
from foveal.dataset import Dataset
from foveal.detections import FloatArray
from foveal.encoders import OpenClipEncoder
from foveal.models import load_encoder, parse_ref

MARGIN = 0.1
GATES: list[dict[str, Any]] = [
    {"name": "kept", "metric": "zero-shot.top1", "no_worse_than": "incumbent", "margin": MARGIN, "why": "it replaces"},
    {"name": "classes kept", "metric": "zero-shot.mean_class_accuracy", "no_worse_than": "incumbent", "margin": MARGIN,
     "why": "rare kinds count too"},
    {"name": "free", "licence_in": ["Apache-2.0"], "why": "it is shipped"},
    {"name": "traced", "provenance": "complete", "why": "the auditor asks"},
]  # fmt: skip
BETTER: dict[str, Any] = {
    "name": "gain",
    "metric": "zero-shot.top1",
    "better_than": "incumbent",
    "why": "it costs a release",
}


@dataclass
class Changed:
    """An encoder with something between it and its input or output; what is left alone is the bundled CLIP's."""

    inner: Any
    name: str
    blur: float = 0.0
    turn: int = 0  # places by which the class texts are off
    run: Any = None  # an ONNX session that stands in for the image tower
    fingerprint: str = field(init=False)
    dimension: int = field(init=False)
    logit_scale: float = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = f"{self.inner.fingerprint}+{self.name}"
        self.dimension, self.logit_scale = self.inner.dimension, self.inner.logit_scale

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        if self.blur:
            images = [image.filter(ImageFilter.GaussianBlur(self.blur)) for image in images]
        if self.run is None:
            return self.inner.encode_images(images)
        (pixels,) = self.inner.image_inputs(images).values()
        features = self.run.run(None, {"images": pixels.numpy()})[0]
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.roll(self.inner.encode_texts(texts), self.turn * len(zero_shot.TEMPLATES), axis=0)


@pytest.fixture(scope="module")
def clip() -> OpenClipEncoder:
    return load_encoder("bundled:clip")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "base"
    world.write(folder, "base", 40, seed=11, workers=2)
    return folder


@pytest.fixture(scope="module")
def blurred(clip: OpenClipEncoder, scenes: Path) -> Result:
    return measured(Changed(clip, "blurred", blur=3), scenes)


@pytest.fixture(scope="module")
def incumbent(clip: OpenClipEncoder, scenes: Path) -> Result:
    return measured(clip, scenes)


def measured(encoder: Any, folder: Path) -> Result:
    dataset, watch = Dataset.open(folder), Stopwatch()
    subject = Subject(reference=encoder.name, fingerprint=encoder.fingerprint, licence="Apache-2.0")
    data = Data(source=str(folder), fingerprint=dataset.fingerprint, images=len(dataset))
    return watch.result("zero-shot", zero_shot.measure(encoder, dataset), subject, data)


def held(new: Result, old: Result, gates: list[dict[str, Any]] = GATES) -> GateReport:
    figures = by_name([new]) | {"incumbent": by_name([old])}
    return check(gates, Evidence(figures, {new.name: new}, {old.name: old}))


def assert_worse(report: GateReport) -> None:
    """No, because of the figures and nothing else, with all of the interval past the margin."""
    assert report.exit_code == 1
    assert [c.name for c in report.checks if not c.passed] == ["kept", "classes kept"], report.as_dict()
    for failed in report.checks[:2]:
        assert failed.verdict == "fail"
        assert failed.high is not None
        assert failed.high < -MARGIN
        assert "past the margin" in failed.reason


def test_blur_is_found(blurred: Result, incumbent: Result) -> None:
    assert_worse(held(blurred, incumbent))


@pytest.mark.slow
def test_classes_in_another_order_are_found(clip: OpenClipEncoder, scenes: Path, incumbent: Result) -> None:
    turned = measured(Changed(clip, "turned", turn=1), scenes)
    assert_worse(held(turned, incumbent))
    assert turned.figures["top1"] < 0.1  # nothing is left of it


@pytest.mark.slow
def test_another_preprocessing_mean_is_found(scenes: Path, incumbent: Result, tmp_path: Path) -> None:
    source = parse_ref("bundled:clip").folder
    assert source is not None
    shutil.copytree(source, tmp_path / "clip")
    (path,) = (tmp_path / "clip").glob("open_clip_config.json")
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["mean"] = [0.0, 0.0, 0.0]
    path.write_text(json.dumps(config))
    assert_worse(held(measured(load_encoder(f"open_clip:{tmp_path / 'clip'}"), scenes), incumbent))


@pytest.fixture(scope="module")
def exported(clip: OpenClipEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image tower as ONNX."""
    import warnings

    import torch

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = clip.model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model.encode_image(images)  # type: ignore[operator]

    path = tmp_path_factory.mktemp("onnx") / "tower.onnx"
    side = clip.image_side or 0
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused attention has no ONNX form
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Tower().eval(), (torch.rand(2, 3, side, side),), str(path), dynamo=False, opset_version=17,
                input_names=["images"], output_names=["features"],
                dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}},
            )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return path


def session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path))


def to_int8(source: Path, pixels: Sequence[FloatArray]) -> Path:
    """The model in INT8, its ranges set by these pixels, each (1, 3, S, S)."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows: Iterator[FloatArray] = iter(pixels)

        def get_next(self) -> dict[str, FloatArray] | None:  # type: ignore[override]
            row = next(self.rows, None)
            return None if row is None else {"images": row}

    target = source.with_name(f"int8-{len(pixels)}.onnx")
    quantize_static(str(source), str(target), Reader())
    return target


@pytest.mark.slow
def test_int8_without_calibration_is_found_and_calibrated_it_is_a_gain(
    clip: OpenClipEncoder, scenes: Path, incumbent: Result, exported: Path
) -> None:
    side = clip.image_side or 0
    blank = to_int8(exported, [np.zeros((1, 3, side, side), dtype=np.float32)])
    blind = measured(Changed(clip, "int8-blind", run=session(blank)), scenes)
    assert_worse(held(blind, incumbent))
    seen = [
        next(iter(clip.image_inputs([sample.image()]).values())).numpy() for sample in list(Dataset.open(scenes))[:16]
    ]
    calibrated = measured(Changed(clip, "int8", run=session(to_int8(exported, seen))), scenes)
    assert held(calibrated, incumbent).passed
    assert held(calibrated, blind, [*GATES, BETTER]).passed


@pytest.mark.slow
def test_an_export_that_changes_nothing_passes(
    clip: OpenClipEncoder, scenes: Path, incumbent: Result, exported: Path
) -> None:
    again = measured(Changed(clip, "onnx", run=session(exported)), scenes)
    report = held(again, incumbent)
    assert report.passed, report.as_dict()
    assert held(again, incumbent, [BETTER]).checks[0].verdict == "cannot tell"  # equal is not better


def test_an_equal_one_passes_and_a_better_one_is_a_gain(
    clip: OpenClipEncoder, scenes: Path, incumbent: Result, blurred: Result
) -> None:
    equal = measured(Changed(clip, "again"), scenes)  # another model by its fingerprint, the same by its answers
    assert held(equal, incumbent).passed
    assert held(incumbent, blurred, [*GATES, BETTER]).passed


def test_too_little_data_cannot_tell(clip: OpenClipEncoder, tmp_path: Path) -> None:
    world.write(tmp_path / "few", "base", 5, seed=11, workers=1)
    old = measured(clip, tmp_path / "few")
    report = held(measured(Changed(clip, "slightly", blur=0.6), tmp_path / "few"), old)
    assert (report.exit_code, report.word) == (1, "cannot tell")
    for undecided in report.checks[:2]:
        assert undecided.verdict == "cannot tell"
        assert undecided.detectable is not None
        assert undecided.detectable > MARGIN
        assert undecided.needed is not None
        assert undecided.needed > len(old)
        assert "in 5 pictures cannot tell" in undecided.reason
    assert held(old, old).passed  # the very same model has not changed
