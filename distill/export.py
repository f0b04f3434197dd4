"""Exporting a student to ONNX or OpenVINO, in fp32, fp16 or INT8, checked against PyTorch before it is written.

    foveal export runs/student --to onnx --int8 prelabels/ --gold gold/

Shape letters: M images, B images of one call, S input side.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from distill.parity import BATCHES, Parity, ParityFailed, Tolerance, compare
from distill.parting import first_difference, float_layers, worst_layers
from distill.quantise import CALIBRATION, Accuracy, Format, as_openvino, quantised, quiet, torch_run
from distill.students import SAMPLES, DenseStudent, Student, restore, start
from distill.tuned import on_gold
from foveal import artifacts
from foveal.dataset import Dataset
from foveal.detections import Detections, FloatArray
from foveal.detectors import (
    KEY,
    ONNX,
    OPENVINO,
    DetectorCard,
    ExportedDetector,
    load_onnx,
    load_openvino,
    stretched,
)
from foveal.errors import BadImage, BadInput
from foveal.models import ModelRef
from foveal.progress import Progress, track

# Images compared: three rounds of batches 1, 3, 7, and enough for a stable mAP50.
CHECKED = {"fp32": 33, "fp16": 33, "int8": 200}
DYNAMO = ("rf_detr", "lw_detr")  # the legacy exporter lacks their antialiased resize; the others want the legacy one
# The grids of a DETR's encoder are constants of its graph.
DYNAMIC: dict[str, dict[str, dict[int, str]]] = {
    "detr": {name: {0: "batch"} for name in ("images", "boxes", "scores")},
    "dense": {
        "images": {0: "batch", 2: "side", 3: "side"},
        "boxes": {0: "batch", 1: "cells"},
        "scores": {0: "batch", 1: "cells"},
    },
}


class ExportReport(BaseModel):
    """What was written and how it compares with its source."""

    out: str
    to: Format
    precision: Literal["fp32", "fp16", "int8"]
    threshold: float | None  # score from which the target precision is kept on the gold images
    proven: bool
    kept_in_fp32: list[str] | None  # layers of an INT8 form that would cost too much
    megabytes: float
    source_megabytes: float
    seconds: float
    parity: Parity
    fingerprint: str


def export(
    student: str | Path,
    out: str | Path,
    to: Format = "onnx",
    *,
    int8: Dataset | None = None,
    fp16: bool = False,
    check: Dataset | None = None,
    gold: Dataset | None = None,
    target_precision: float = 0.9,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    opset: int = 17,
    tolerance: Tolerance | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a student as a detector folder that needs no PyTorch, if it says the same as the student.

    Args:
        student: folder that `foveal distill` wrote.
        int8: images, labelled or not, to calibrate 8-bit weights and activations on; None exports fp32.
        fp16: store weights in half the bytes (OpenVINO, which computes with them in fp32 on CPUs).
        gold: labelled images that the student did not learn from: they set the threshold and the calibration that the
            file carries; without them it carries none.
        target_precision: of the detections above that threshold.
        classes: only these; the outputs for all others are cut off.
        size: another input side, pixels: smaller is faster and sees less.
        check: images to compare on; None takes those of `int8`, or the samples kept beside the student.

    Raises:
        ParityFailed: the exported form differs from the student by more than `tolerance`; nothing is written.
        BadInput: no such format, no images to check with, or not a student's folder.
        IntegrityError: the student's files are damaged.
    """
    if to not in ("onnx", "openvino"):
        raise BadInput(f"cannot export to {to!r}", expected="onnx or openvino")
    if fp16 and (int8 is not None or to == "onnx"):
        raise BadInput("fp16 weights go with OpenVINO, and not with INT8", received=f"{to}{' int8' if int8 else ''}")
    began, folder, out = time.perf_counter(), Path(student), Path(out)
    net, manifest = restore(folder)
    if classes is not None or size is not None:
        net = pruned(folder, net, classes, size)
    precision: Literal["fp32", "fp16", "int8"] = "int8" if int8 is not None else "fp16" if fp16 else "fp32"
    data = check if check is not None else int8
    pixels, truth = (
        _read(data, net, CHECKED[precision], progress) if data is not None else (_samples(folder, net.size), None)
    )
    card = DetectorCard(
        classes=net.classes, size=net.size, nms_iou=net.nms_iou, family=net.family, precision=precision,
        source=manifest.fingerprint,
    )  # fmt: skip
    calibration = pixels
    if int8 is not None and int8 is not data:
        calibration, _ = _read(int8, net, CALIBRATION, progress)
    with artifacts.staged(out) as staging:
        load = load_onnx if to == "onnx" else load_openvino

        def judged(model: Any) -> tuple[ExportedDetector, Parity]:
            _save(model, to, staging, card)
            _seal(staging, out, manifest, to, precision, opset, None, parity=None, data=int8)
            exported = load(ModelRef(to, str(staging)))
            parity = compare(
                torch_run(net), exported.raw, pixels, net.classes, net.nms_iou, int8=int8 is not None, truth=truth,
                tolerance=tolerance,
            )  # fmt: skip
            if progress is not None:
                progress.note(f"{to} {precision}: {parity.reason or 'agrees'}")
            return exported, parity

        plain = _to_onnx(net, opset)
        model = plain if int8 is None else quantised(plain, to, calibration, net)
        exported, parity = judged(model)
        kept: list[str] | None = [] if int8 is not None else None
        if not parity.passed and int8 is not None:
            whole = float_layers(model)
            model = quantised(plain, to, calibration, net, Accuracy.of(net, pixels, truth, tolerance or Tolerance()))
            exported, parity = judged(model)
            kept = sorted(float_layers(model) - whole)
        if parity.passed and exported.any_size and int8 is None:
            parity = _at_another_size(net, exported, pixels, tolerance, parity)
        if not parity.passed:
            where = _parting(net, plain, model, pixels, quantised=int8 is not None)
            raise ParityFailed(
                f"the {precision} {to} form of {folder} does not agree with it: {parity.reason}{where}",
                remedy="Nothing was written. Export fp32, give more calibration images, or train further.",
            )
        if gold is not None:
            # The very form that will be used tells its own scores; the ones of another precision differ a little.
            card = on_gold(card, exported, gold, target_precision, progress)
            _save(model, to, staging, card)
        sealed = _seal(staging, out, manifest, to, precision, opset, kept, parity=parity, data=int8)
        bytes_ = sum(p.stat().st_size for p in staging.iterdir() if p.name.startswith("model."))
    return ExportReport(
        out=str(out),
        to=to,
        precision=precision,
        kept_in_fp32=kept,
        megabytes=bytes_ / 1e6,
        threshold=card.threshold,
        proven=card.proven,
        source_megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        seconds=time.perf_counter() - began,
        parity=parity,
        fingerprint=sealed.fingerprint,
    )


def pruned(folder: Path, net: Student, classes: Sequence[str] | None, size: int | None) -> Student:
    """The student of `folder` with fewer classes, or for images of another size.

    Raises:
        BadInput: a class it does not know, or a size its family cannot take.
    """
    unknown = [name for name in classes or () if name not in net.classes]
    if unknown:
        raise BadInput(f"the student has no class {unknown[0]!r}", expected=f"some of {', '.join(net.classes)}")
    return start(str(folder), tuple(classes or net.classes), size or net.size).eval()


def _seal(
    staging: Path, out: Path, source: artifacts.Manifest, to: str, precision: str, opset: int,
    kept: list[str] | None, *, parity: Parity | None, data: Dataset | None,
) -> artifacts.Manifest:  # fmt: skip
    return artifacts.seal(
        staging,
        name=out.name,
        kind="detector",
        parents=[source.fingerprint],
        data={"calibration": data.fingerprint} if data is not None else {},
        config={"to": to, "precision": precision, "opset": opset, "kept_in_fp32": kept},
        metrics={"parity": parity.model_dump(mode="json")} if parity else {},
        licence=source.licence,
    )


def _read(
    data: Dataset, net: Student, most: int, progress: Progress | None
) -> tuple[FloatArray, list[Detections] | None]:
    """Up to `most` images spread over the dataset (M, 3, S, S), and their accepted boxes in the square's pixels."""
    if not len(data):
        raise BadInput("there are no images to check the export on", expected="at least one")
    rows = np.unique(np.linspace(0, len(data) - 1, min(most, len(data))).astype(int)).tolist()
    pixels: list[FloatArray] = []
    truth: list[Detections] = []
    for sample in track(progress, data.subset(rows), "read images to check on", len(rows)):
        try:
            image = sample.image()
        except BadImage:
            continue  # enough others remain; the count is in the report
        pixels.append(stretched(image, net.size))
        truth.append(_accepted(sample.truth, image.size, net))
    if not pixels:
        raise BadInput("no image to check the export on can be read")
    return np.stack(pixels), truth if any(len(t) for t in truth) else None


def _accepted(truth: Detections | None, size: tuple[int, int], net: Student) -> Detections:
    if truth is None:
        return Detections.empty(net.classes)
    routes = [p.route for p in truth.provenance] if truth.provenance is not None else [None] * len(truth)
    keep = [
        i
        for i, (route, name) in enumerate(zip(routes, truth.label_names, strict=True))
        if route in (None, "accept") and name in net.classes
    ]
    scale = np.array([net.size / size[0], net.size / size[1]] * 2, dtype=np.float32)
    return Detections.build(truth.boxes[keep] * scale, 1.0, [truth.label_names[i] for i in keep], net.classes)


def _samples(folder: Path, size: int) -> FloatArray:
    paths = sorted((folder / SAMPLES).glob("*.jpg"))
    if not paths:
        raise BadInput(
            f"{folder} kept no images to check an export on", remedy="Give some: --check DATA (any image folder)."
        )
    return np.stack([stretched(Image.open(path), size) for path in paths])


def _parting(net: Student, plain: Any, model: Any, pixels: FloatArray, *, quantised: bool) -> str:
    """In words, the layers where the exported form and its source part, as far as they can be told."""
    import onnx

    if not quantised:
        named = first_difference(net, plain, pixels)
        return f"; they part at {named}" if named else ""
    if not isinstance(model, onnx.ModelProto):
        return ""
    worst = ", ".join(f"{name} ({error:.0%})" for name, error in worst_layers(plain, model, pixels)[:3])
    return f"; quantising moves these most: {worst}" if worst else ""


def _at_another_size(
    net: Student, exported: ExportedDetector, pixels: FloatArray, tolerance: Tolerance | None, parity: Parity
) -> Parity:
    """The parity, failed where a form that leaves the side open differs from its source at another one."""
    side = net.size + 32
    again = F.interpolate(torch.from_numpy(pixels[: sum(BATCHES)]), (side, side), mode="bilinear").numpy()
    other = compare(torch_run(net), exported.raw, again, net.classes, net.nms_iou, int8=False, tolerance=tolerance)
    return parity if other.passed else other.model_copy(update={"reason": f"at {side} px {other.reason}"})


class _Predict(nn.Module):
    """`Student.predict` as the forward pass of a module, which is what exporters take."""

    def __init__(self, net: Student) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.predict(images)


def _to_onnx(net: Student, opset: int) -> Any:
    """The student as an ONNX model with a dynamic batch, and where its family can, a dynamic side."""
    import io

    import onnx

    images = torch.rand(2, 3, net.size, net.size, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["boxes", "scores"]}
    module = _Predict(net).eval()
    with quiet(), torch.no_grad():
        if net.family in DYNAMO:
            batch = torch.export.Dim("batch", min=1, max=1024)
            program: Any = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                dynamic_shapes={"images": {0: batch}},
                opset_version=max(opset, 18),
                **names,
            )
            return program.model_proto
        buffer = io.BytesIO()
        torch.onnx.export(
            module,
            (images,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            dynamic_axes=DYNAMIC["dense" if isinstance(net, DenseStudent) else "detr"],
            **names,
        )
    return onnx.load_from_string(buffer.getvalue())


def _save(model: Any, to: Format, folder: Path, card: DetectorCard) -> None:
    told = card.model_dump_json()
    if to == "onnx":
        import onnx

        onnx.checker.check_model(model)
        onnx.helper.set_model_props(model, {KEY: told})
        (folder / ONNX).write_bytes(model.SerializeToString())
        return
    import openvino as ov

    form = model if isinstance(model, ov.Model) else as_openvino(model)
    form.set_rt_info(told, [KEY])
    ov.save_model(form, folder / OPENVINO, compress_to_fp16=card.precision == "fp16")
