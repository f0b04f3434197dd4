"""Exports agree with their source or are not written."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import distill.export as exporting
from distill.curve import curve, draw
from distill.export import export
from distill.parity import ParityFailed, Tolerance, compare
from distill.parting import first_difference, float_layers
from distill.students import load_student, restore
from distill.tensorrt import build_engine
from distill.train import TrainSettings, train
from evals.detection import assign, evaluate
from foveal import artifacts
from foveal.detections import Detections
from foveal.detectors import stretched
from foveal.errors import BadInput, FovealError, Unavailable
from foveal.models import load_detector
from tests.command import foveal
from tests.distill.tiny_student import SETTINGS, painted, trained
from tests.tiny import tiny_detr


def test_onnx_says_what_the_student_says(tmp_path: Path) -> None:
    source, _ = trained()
    report = export(source, tmp_path / "onnx")
    assert report.parity.passed
    assert report.parity.matched == 1.0
    assert report.parity.largest_score_difference < 1e-4
    assert report.parity.batches == (1, 3, 7)
    images = [s.image() for s in painted(12, 1)]
    mine, theirs = load_student(source, "cpu").detect(images), load_detector(f"onnx:{tmp_path / 'onnx'}").detect(images)
    for one, other in zip(mine, theirs, strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        assert np.allclose(one.boxes, other.boxes, atol=0.01)
        assert np.allclose(one.scores, other.scores, atol=1e-4)
    manifest = artifacts.read(tmp_path / "onnx")
    assert manifest.parents == [artifacts.read(source).fingerprint]
    assert manifest.metrics["parity"]["passed"]
    assert manifest.fingerprint == report.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(("family", "to"), [("rf_detr", "onnx"), ("lw_detr", "openvino")])
def test_transformer_backbones_export_too(tmp_path: Path, family: str, to: str) -> None:
    settings = TrainSettings(size=64, epochs=1, batch=8, evaluations=0)
    train(painted(), f"hf:{tiny_detr(tmp_path / 'hub', family)}", tmp_path / "student", settings)
    report = export(tmp_path / "student", tmp_path / "out", to)
    assert report.parity.passed
    assert len(load_detector(f"{to}:{tmp_path / 'out'}").detect([painted()[0].image()], threshold=0.0)[0])


def test_a_student_that_kept_no_images_is_checked_on_those_given(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "samples": 0})
    train(painted(), "fcos-resnet", tmp_path / "student", settings)
    args = ["export", str(tmp_path / "student"), "--json"]
    assert "--check DATA" in foveal(*args).err
    images = str(painted()[0].path.parent)
    told = foveal(*args, "--check", images)
    assert told.code == 0
    assert told.json["parity"]["images"] == 24


def test_int8_keeps_map_and_is_smaller(tmp_path: Path) -> None:
    source, _ = trained()
    report = export(source, tmp_path / "int8", int8=painted())
    assert report.precision == "int8"
    assert report.parity.against == "labels"
    assert report.megabytes < 0.45 * report.source_megabytes
    held_out = painted(12, 1)
    found = load_detector(f"onnx:{tmp_path / 'int8'}").detect([s.image() for s in held_out])
    assert evaluate([s.truth for s in held_out], found)["AP50"] > 0.75


def test_openvino_agrees_too(tmp_path: Path) -> None:
    source, _ = trained()
    assert export(source, tmp_path / "ov", "openvino").parity.matched == 1.0
    assert len(load_detector(f"openvino:{tmp_path / 'ov'}", threads=1).detect([painted()[0].image()])[0])


def test_a_form_with_one_wrong_weight_is_not_written(tmp_path: Path, monkeypatch) -> None:
    source, _ = trained()
    honest = exporting._to_onnx

    def corrupted(net, opset):
        with torch.no_grad():
            net.net.box_out.bias[2] += 0.4
            model = honest(net, opset)
            net.net.box_out.bias[2] -= 0.4
        return model

    monkeypatch.setattr(exporting, "_to_onnx", corrupted)
    with pytest.raises(ParityFailed, match="detections agree"):
        export(source, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_layer_where_a_damaged_form_parts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = trained()
    honest = exporting._to_onnx

    def damaged(net: Any, opset: int) -> Any:
        import onnx

        model: Any = honest(net, opset)
        node = next(n for n in model.graph.node if n.op_type == "Conv" and "smooth.1" in n.name)
        weight = next(i for i in model.graph.initializer if i.name == node.input[1])
        values = -onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model

    monkeypatch.setattr(exporting, "_to_onnx", damaged)
    with pytest.raises(ParityFailed, match=r"they part at net\.smooth\.1"):
        export(source, tmp_path / "onnx")
    monkeypatch.setattr(exporting, "_to_onnx", honest)
    net, _ = restore(source)
    model = honest(net, 17)
    pixels = np.random.default_rng(0).random((2, 3, net.size, net.size), np.float32)
    assert first_difference(net, model, pixels) is None


def test_int8_that_costs_too_much_is_not_written(tmp_path: Path, monkeypatch) -> None:
    source, _ = trained()
    honest = exporting.quantised

    def blind(plain, *args):
        import onnx

        model = honest(plain, *args)
        for tensor in model.graph.initializer:  # every 8-bit weight loses its sign
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
                values = np.abs(onnx.numpy_helper.to_array(tensor))
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr(exporting, "quantised", blind)
    with pytest.raises(ParityFailed, match=r"mAP50 fell.*quantising moves these most: \S*Conv \(\d+%\)"):
        export(source, tmp_path / "int8", int8=painted())
    assert list(tmp_path.iterdir()) == []


def test_a_graph_with_a_frozen_batch_fails() -> None:
    def source(images):
        return np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (len(images), 1, 1)), np.full(
            (len(images), 1, 1), 0.9, np.float32
        )

    def frozen(images):
        if len(images) != 1:
            raise RuntimeError("got invalid dimensions for input")
        return source(images)

    pixels = np.zeros((5, 3, 64, 64), np.float32)
    assert compare(source, source, pixels, ("a",), 0.6, int8=False).passed
    assert "batches" in compare(source, frozen, pixels, ("a",), 0.6, int8=False).reason


def test_a_student_that_detects_nothing_proves_nothing() -> None:
    def silent(images):
        return np.zeros((len(images), 1, 4), np.float32), np.zeros((len(images), 1, 1), np.float32)

    pixels = np.zeros((2, 3, 64, 64), np.float32)
    assert "nothing" in compare(silent, silent, pixels, ("a",), 0.6, int8=False).reason
    assert "no labels" in compare(silent, silent, pixels, ("a",), 0.6, int8=True).reason


def test_int8_without_labels_is_measured_against_the_source() -> None:
    def source(images):
        return np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (len(images), 1, 1)), np.full(
            (len(images), 1, 1), 0.9, np.float32
        )

    def shifted(images):
        boxes, scores = source(images)
        return boxes + np.float32([0.3, 0, 0.3, 0]), scores

    pixels = np.zeros((5, 3, 64, 64), np.float32)
    same = compare(source, source, pixels, ("a",), 0.6, int8=True)
    assert (same.passed, same.against, same.map50_exported) == (True, "the source's own detections", 1.0)
    assert "mAP50 fell" in compare(source, shifted, pixels, ("a",), 0.6, int8=True).reason


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    source, _ = trained()
    with pytest.raises(BadInput, match="coreml"):
        export(source, tmp_path / "x", "coreml")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="fp16 weights go with OpenVINO"):
        export(source, tmp_path / "x", fp16=True)
    with pytest.raises(BadInput, match="no class 'cat'"):
        export(source, tmp_path / "x", classes=["disc", "cat"])
    with pytest.raises(BadInput, match="multiple of 32"):
        export(source, tmp_path / "x", size=70)
    with pytest.raises(BadInput, match="cannot calibrate"):
        export(source, tmp_path / "x", gold=painted(12, 1).with_truth([Detections.empty(("disc", "square"))] * 12))
    with pytest.raises(BadInput, match="holds no student"):
        export(tmp_path, tmp_path / "x")
    with pytest.raises(FovealError, match="no images"):
        export(source, tmp_path / "x", check=painted().subset([]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deimv2-pico", "d-fine-n", "rt-detrv2-r18"])
def test_transformers_students_export_with_a_dynamic_batch(tmp_path: Path, name: str) -> None:
    from distill.train import TrainSettings, train

    settings = TrainSettings(size=64, epochs=25, batch=8, evaluations=0)
    train(painted(), name, tmp_path / "student", settings)
    # Barely trained: near ties let runtimes choose other queries, so most must match, not all.
    report = export(tmp_path / "student", tmp_path / "onnx", tolerance=Tolerance(matched=0.8))
    assert report.parity.batches == (1, 3, 7)


EDGE = Path(__file__).parents[2] / "examples" / "edge" / "detect.py"
ALONE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "foveal", "cv2", "scipy", "onnx", "openvino", "pydantic"):
            raise ImportError(f"{name} is not on the edge")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _edge(model: Path, image: Path, threshold: float) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", ALONE, str(EDGE), str(model), str(image), str(threshold)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=model.parent)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_file_alone_is_enough_on_the_edge(tmp_path: Path) -> None:
    source, _ = trained()
    report = export(source, tmp_path / "onnx", gold=painted(12, 1), target_precision=0.8)
    assert report.threshold is not None
    assert 0 < report.threshold < 1
    detector = load_detector(f"onnx:{tmp_path / 'onnx'}")
    for sample in list(painted(12, 1))[:3]:
        (ours,) = detector.detect([sample.image()], 0.1)
        theirs = _edge(tmp_path / "onnx" / "model.onnx", sample.path, 0.1)
        assert [one["label"] for one in theirs] == ours.label_names
        np.testing.assert_allclose([one["box"] for one in theirs], ours.boxes, atol=1e-3)
        assert ours.probabilities is not None
        np.testing.assert_allclose([one["probability"] for one in theirs], ours.probabilities, atol=1e-4)
    assert len(EDGE.read_text().splitlines()) <= 40


def test_the_threshold_in_the_file_keeps_the_precision_on_other_images(tmp_path: Path) -> None:
    source, _ = trained()
    report = export(source, tmp_path / "onnx", gold=painted(60, 7), target_precision=0.8)
    assert report.threshold is not None
    others = painted(60, 8)
    found = load_detector(f"onnx:{tmp_path / 'onnx'}").detect([s.image() for s in others], report.threshold)
    right = [r >= 0 for d, s in zip(found, others, strict=True) for r in assign(d, s.truth).tolist()]
    assert len(right) > 30
    assert np.mean(right) >= 0.75


def test_fewer_classes_and_another_size_are_real(tmp_path: Path) -> None:
    source, _ = trained()
    whole = export(source, tmp_path / "whole")
    assert export(source, tmp_path / "one", classes=["square"]).megabytes < whole.megabytes
    assert export(source, tmp_path / "less", classes=["square"], size=96).parity.passed
    detector = load_detector(f"onnx:{tmp_path / 'less'}")
    assert detector.classes == ("square",)
    images = painted(12, 1)
    found = detector.detect([s.image() for s in images])
    goal = [
        Detections.build(s.truth.boxes[k], 1.0, [0] * int(k.sum()), ("square",))
        for s in images
        if s.truth is not None and (k := np.array([n == "square" for n in s.truth.label_names], dtype=bool)) is not None
    ]
    assert (evaluate(goal, found)["AP50"] or 0) > 0.4  # at a size it was not trained for


def test_half_precision_weights_are_half_as_large(tmp_path: Path) -> None:
    source, _ = trained()
    plain, half = export(source, tmp_path / "a", "openvino"), export(source, tmp_path / "b", "openvino", fp16=True)
    assert half.parity.passed
    assert half.megabytes < 0.65 * plain.megabytes
    assert half.precision == "fp16"


def test_the_curve_tells_what_each_size_costs(tmp_path: Path) -> None:
    source, _ = trained()
    points = curve(source, painted(12, 1), sizes=[64, 128])
    assert {point.size for point in points} == {64, 128}
    assert points[0].ms < points[-1].ms
    assert points[0].best
    draw(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_without_a_gpu_no_engine_is_built_and_it_says_what_to_do(tmp_path: Path) -> None:
    source, _ = trained()
    export(source, tmp_path / "onnx")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(Unavailable, match=r"no TensorRT or no NVIDIA GPU.*Run the same command where"):
        build_engine(tmp_path / "onnx", tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@pytest.mark.slow
def test_the_edge_script_runs_where_nothing_else_is_installed(tmp_path: Path) -> None:
    source, _ = trained()
    export(source, tmp_path / "onnx")
    venv.create(tmp_path / "edge", with_pip=True)
    python = tmp_path / "edge" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "pillow", "onnxruntime"], check=True)
    sample = painted(12, 1)[0]
    done = subprocess.run(
        [python, EDGE, tmp_path / "onnx" / "model.onnx", sample.path, "0.3"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[0])["label"] in ("disc", "square")


def test_one_file_sees_any_size(tmp_path: Path) -> None:
    source, _ = trained()
    export(source, tmp_path / "onnx")
    larger = load_detector(f"onnx:{tmp_path / 'onnx'}", size=96)
    net, _ = restore(source)
    pixels = np.random.default_rng(0).random((2, 3, 96, 96), np.float32)
    with torch.inference_mode():
        boxes, scores = net.predict(torch.from_numpy(pixels))
    theirs = larger.raw(pixels)  # type: ignore[attr-defined]
    np.testing.assert_allclose(theirs[0], boxes.numpy(), atol=1e-4)
    np.testing.assert_allclose(theirs[1], scores.numpy(), atol=1e-4)
    assert len(larger.detect([painted()[0].image()])[0])
    with pytest.raises(BadInput, match="a multiple of 32"):
        load_detector(f"onnx:{tmp_path / 'onnx'}", size=100)


@pytest.mark.slow
def test_layers_that_cost_too_much_go_back_to_fp32(tmp_path: Path) -> None:
    source, _ = trained()
    net, _ = restore(source)
    plain = exporting._to_onnx(net, 17)
    pixels = np.stack([stretched(sample.image(), net.size) for sample in painted()])
    judged = exporting.Accuracy(net, pixels, [], 0.0)
    said = judged.found(exporting.torch_run(net), pixels)  # every weak guess of the source too: rounding loses some
    judged = exporting.Accuracy(net, pixels, said, 0.0)
    whole = float_layers(exporting.quantised(plain, "onnx", pixels, net))
    assert float_layers(exporting.quantised(plain, "onnx", pixels, net, judged)) > whole
    with pytest.raises(ParityFailed, match="mAP50 fell"):
        export(source, tmp_path / "int8", int8=painted(), tolerance=Tolerance(map50_drop=-1.0))
    assert list(tmp_path.iterdir()) == []
