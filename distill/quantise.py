"""8-bit forms of a student, with an eye on what they still find.

Shape letters: M images, B images of one call, S input side.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from distill.parity import FLOOR, SURE, Tolerance
from distill.students import DenseStudent, Student
from evals.detection import evaluate
from foveal.detections import Detections, FloatArray
from foveal.detectors import decode
from foveal.errors import FovealError
from foveal.quiet import quiet as silence

Format = Literal["onnx", "openvino"]
CALIBRATION = 200  # images that set the INT8 ranges
RANKED = 60  # images on which layers are ranked by the harm that quantising them does
MOST_KEPT = 16  # layers that may stay in fp32 before a network counts as one that cannot be quantised


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a quantised form must not lose: mAP50 on images (M, 3, S, S)."""

    net: Student
    pixels: FloatArray
    goal: list[Detections]
    drop: float

    @classmethod
    def of(cls, net: Student, pixels: FloatArray, truth: list[Detections] | None, tolerance: Tolerance) -> Accuracy:
        if truth is not None:
            return cls(net, pixels, truth, tolerance.map50_drop)
        found = cls(net, pixels, [], 0.0).found(torch_run(net), pixels)
        return cls(net, pixels, [one[one.scores >= SURE] for one in found], 1 - tolerance.self_map50)

    def found(self, run: Callable[[FloatArray], tuple[FloatArray, FloatArray]], pixels: FloatArray) -> list[Detections]:
        size = (self.net.size, self.net.size)
        return [decode(*run(one[None]), [size], self.net.classes, FLOOR, self.net.nms_iou)[0] for one in pixels]

    def __call__(self, model: Any, rows: Iterable[int]) -> tuple[float, None]:
        """mAP50 on some of the images, as NNCF asks for it: of an ONNX model, or one that OpenVINO has compiled."""
        chosen = list(rows)
        found = self.found(_session(model), self.pixels[chosen])
        return evaluate([self.goal[row] for row in chosen], found)["AP50"] or 0.0, None


def _session(model: Any) -> Callable[[FloatArray], tuple[FloatArray, FloatArray]]:
    import onnx

    if isinstance(model, onnx.ModelProto):
        import onnxruntime as ort

        session: Any = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda images: tuple(session.run(["boxes", "scores"], {"images": images}))
    return lambda images: tuple(np.array(model({"images": images})[name]) for name in ("boxes", "scores"))  # type: ignore[return-value]


def quantised(plain: Any, to: Format, pixels: FloatArray, net: Student, judged: Accuracy | None = None) -> Any:
    """INT8 weights and activations by NNCF's post-training quantisation.

    With `judged`, layers go back to fp32 one by one, the most harmful first, until the drop is small enough.
    """
    with quiet():
        import nncf

        settings: dict[str, Any] = {
            "preset": nncf.QuantizationPreset.MIXED,
            "subset_size": min(CALIBRATION, len(pixels)),
            "model_type": None if isinstance(net, DenseStudent) else nncf.ModelType.TRANSFORMER,
        }
        model = as_openvino(plain) if to == "openvino" else plain
        data = nncf.Dataset([image[None] for image in pixels[:CALIBRATION]], lambda image: {"images": image})
        if judged is None:
            return nncf.quantize(model, data, **settings)
        limits = nncf.AdvancedAccuracyRestorerParameters(max_num_iterations=MOST_KEPT, ranking_subset_size=RANKED)
        return nncf.quantize_with_accuracy_control(
            model, data, nncf.Dataset(range(len(judged.pixels))), judged, max_drop=judged.drop,
            advanced_accuracy_restorer_parameters=limits, **settings,
        )  # fmt: skip


def as_openvino(model: Any) -> Any:
    """An ONNX model as an OpenVINO one."""
    import io

    import openvino as ov

    return ov.Core().read_model(io.BytesIO(model.SerializeToString()))


def torch_run(net: Student) -> Callable[[FloatArray], tuple[FloatArray, FloatArray]]:
    """The student in PyTorch, as exported forms are called: images (B, 3, S, S) -> boxes, scores."""

    def run(images: FloatArray) -> tuple[FloatArray, FloatArray]:
        with torch.inference_mode():
            boxes, scores = net.predict(torch.from_numpy(images))
        return boxes.numpy(), scores.numpy()

    return run


@contextmanager
def quiet() -> Generator[None]:
    """`foveal.quiet`, where what cannot be exported is the student."""
    try:
        with silence():
            yield
    except (torch.onnx.OnnxExporterError, NotImplementedError) as error:
        raise FovealError(f"this student cannot be exported: {str(error).splitlines()[0]}") from error
