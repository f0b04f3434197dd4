"""Exported detectors: what the numbers become, and what damaged or foreign folders say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from foveal import artifacts
from foveal.detectors import KEY, ONNX, decode, load_onnx, stretched
from foveal.errors import BadInput, IntegrityError
from foveal.models import Detector, ModelRef, load_detector

CLASSES = ("bolt", "nut")


def graph(queries: int = 3, classes: int = 2) -> Any:
    """An ONNX model that finds the same boxes in every image, scored by the image's mean brightness."""
    low = np.linspace(0, 0.5, queries * 2, dtype=np.float32).reshape(1, queries, 2)
    boxes = np.concatenate([low, 1 - low[:, ::-1] * 0.5], 2)
    scores = np.linspace(1, 0.2, queries * classes, dtype=np.float32).reshape(1, queries, classes)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Squeeze", ["mean", "last"], ["flat"]),
        helper.make_node("Mul", ["flat", "fixed_scores"], ["scores"]),
        helper.make_node("Mul", ["flat", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "fixed_boxes"], ["boxes"]),
    ]
    constants = {
        "last": np.array([3], np.int64),
        "fixed_scores": scores,
        "zero": np.zeros((1, 1, 1), np.float32),
        "fixed_boxes": boxes.astype(np.float32),
    }
    made = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", queries, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", queries, classes]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def folder(path: Path, model: Any = None, **card: Any) -> Path:
    """A sealed detector folder."""
    path.mkdir(parents=True)
    fields = {
        "classes": CLASSES,
        "size": 64,
        "resize": "stretch",
        "nms_iou": 0.6,
        "family": "fcos",
        "precision": "fp32",
    }
    model = model or graph()
    if card.pop("told", True):
        model.metadata_props.add(key=KEY, value=json.dumps({**fields, **card}))
    (path / ONNX).write_bytes(model.SerializeToString())
    artifacts.seal(path, name="fixed", kind="detector")
    return path


def test_an_exported_folder_detects_in_pixels_of_each_image(tmp_path: Path) -> None:
    detector = load_detector(f"onnx:{folder(tmp_path / 'd')}", threads=1)
    assert isinstance(detector, Detector)
    images = [
        Image.new("RGB", (200, 100), "white"),
        Image.new("RGB", (50, 70), (128, 128, 128)),
        Image.new("L", (9, 9)),
    ]
    wide, small, black = detector.detect(images, threshold=0.3)
    assert wide.names == CLASSES
    assert 150 < wide.boxes[:, [0, 2]].max() <= 200
    assert 75 < wide.boxes[:, [1, 3]].max() <= 100
    assert small.boxes.max() <= 70
    assert list(wide.scores) == sorted(wide.scores, reverse=True)
    assert len(black) == 0
    assert detector.detect([]) == []


def test_the_batch_an_image_comes_in_changes_nothing(tmp_path: Path) -> None:
    detector = load_onnx(ModelRef("onnx", str(folder(tmp_path / "d"))))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)) for _ in range(20)]
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image])
        assert np.allclose(alone.boxes, found.boxes)
        assert np.allclose(alone.scores, found.scores)


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    one, same, other = (
        load_onnx(ModelRef("onnx", str(folder(tmp_path / name, **card))))
        for name, card in (("a", {}), ("b", {}), ("c", {"nms_iou": 0.5}))
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / ONNX).write_bytes(b"x" + (f / ONNX).read_bytes()), IntegrityError, "has changed"),
        (lambda f: (f / ONNX).unlink(), IntegrityError, "is missing"),
        (lambda f: (f / "manifest.json").unlink(), BadInput, "has no manifest"),
    ],
)
def test_damaged_folders_name_the_file(tmp_path: Path, damage: Any, error: type[Exception], message: str) -> None:
    path = folder(tmp_path / "d")
    damage(path)
    with pytest.raises(error, match=message):
        load_onnx(ModelRef("onnx", str(path)))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"resize": "crop"}, "resize"),
        ({"classes": []}, "classes"),
        ({"classes": ["a", "b", "c"]}, r"scores \(1, Q, 3\)"),
        ({"colour": "bgr"}, "colour"),
        ({"size": 96}, "does not run"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path: Path, card: dict[str, Any], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        load_onnx(ModelRef("onnx", str(folder(tmp_path / "d", **card))))


def test_a_model_without_metadata_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no metadata 'foveal'"):
        load_onnx(ModelRef("onnx", str(folder(tmp_path / "d", told=False))))


def test_calibration_in_the_file_gives_probabilities(tmp_path: Path) -> None:
    told = {"scores": [0, 0.5, 1], "probabilities": {"bolt": [0, 0.2, 1], "nut": [0, 0.5, 0.6]}}
    detector = load_onnx(ModelRef("onnx", str(folder(tmp_path / "d", calibration=told))))
    (found,) = detector.detect([Image.new("RGB", (64, 64), "white")])
    assert found.probabilities is not None
    for score, name, p in zip(found.scores, found.label_names, found.probabilities, strict=True):
        expected = np.interp(score, [0, 0.5, 1], told["probabilities"][name])
        assert p == pytest.approx(expected, abs=1e-6)
    (plain,) = load_onnx(ModelRef("onnx", str(folder(tmp_path / "e")))).detect([Image.new("RGB", (64, 64), "white")])
    assert plain.probabilities is None


def test_a_sealed_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    (path / ONNX).write_bytes(b"not a protobuf")
    artifacts.seal(path, name="d", kind="detector")
    with pytest.raises(IntegrityError, match="does not run"):
        load_onnx(ModelRef("onnx", str(path)))


def test_the_wrong_place_or_form_is_said(tmp_path: Path) -> None:
    from foveal.detectors import load_openvino

    path = folder(tmp_path / "d")
    with pytest.raises(BadInput, match=r"model\.xml"):
        load_openvino(ModelRef("openvino", str(path)))
    with pytest.raises(BadInput, match="does not exist"):
        load_onnx(ModelRef("onnx", str(tmp_path / "gone")))
    with pytest.raises(BadInput, match="thread"):
        load_onnx(ModelRef("onnx", str(path)), threads=0)


def test_overlapping_boxes_of_one_class_are_suppressed_and_of_two_are_kept() -> None:
    boxes = np.array([[[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.49], [0.5, 0.5, 0.5, 0.9]]], np.float32)
    scores = np.array([[[0.9, 0.1], [0.8, 0.7], [0.99, 0.0]]], np.float32)
    (found,) = decode(boxes, scores, [(100, 100)], CLASSES, 0.3, 0.6)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    assert found.labels.tolist() == [0, 1]
    (everything,) = decode(boxes, scores, [(100, 100)], CLASSES, 0.3, None)
    assert len(everything) == 3


def test_suppression_agrees_with_the_shared_one() -> None:
    rng = np.random.default_rng(1)
    corner = rng.random((1, 80, 2), dtype=np.float32) * 0.6
    boxes = np.concatenate([corner, corner + 0.1 + rng.random((1, 80, 2), dtype=np.float32) * 0.3], 2)
    scores = rng.random((1, 80, 2), dtype=np.float32)
    (mine,) = decode(boxes, scores, [(64, 64)], CLASSES, 0.6, 0.5)
    (every,) = decode(boxes, scores, [(64, 64)], CLASSES, 0.6, None)
    assert 20 < len(mine) < len(every) < 100
    assert np.allclose(mine.boxes, every.nms(0.5).boxes)
    assert len(decode(boxes, scores, [(64, 64)], CLASSES, 0.1, None)[0]) == 100


def test_stretching_gives_planes_in_unit_range() -> None:
    pixels = stretched(Image.new("RGBA", (30, 500), (255, 0, 51, 128)), 32)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.float32
    assert pixels[:, 5, 5] == pytest.approx([1, 0, 0.2])


def test_the_test_graph_is_valid() -> None:
    onnx.checker.check_model(graph())
