"""Exported detectors on ONNX Runtime and OpenVINO: numpy and Pillow around them, no PyTorch.

All that a model file does not compute itself (how images are put in, class names, thresholds, calibration) stands in
its metadata under the key `foveal`, so that the file alone is enough: `examples/edge/detect.py` runs it.

Shape letters: B images, Q candidate boxes, C classes, S side of the square the model sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foveal import artifacts
from foveal.detections import Detections, FloatArray, IntArray
from foveal.errors import BadInput, FovealError, IntegrityError, Unavailable
from foveal.models import ModelRef
from foveal.profile import Profile
from foveal.runtime import usable_cores
from foveal.sessions import onnx_session, openvino_settings

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "foveal"  # of the metadata
ONNX, OPENVINO = "model.onnx", "model.xml"
CANDIDATES = 300  # best scores looked at before suppression
MOST = 100  # detections an image, as COCO counts them
BATCH = 16
Run = Callable[[FloatArray], tuple[FloatArray, FloatArray]]  # images (B, 3, S, S) -> boxes (B, Q, 4), scores (B, Q, C)


class Calibration(BaseModel):
    """P(right) of a score, read off between knots: K scores, and a probability at each of them for every class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scores: tuple[float, ...] = Field(min_length=2)
    probabilities: dict[str, tuple[float, ...]]

    def __call__(self, scores: FloatArray, names: Sequence[str]) -> FloatArray:
        """Probabilities of detections (N,) by score and class name."""
        pairs = zip(scores.tolist(), names, strict=True)
        return np.array([np.interp(v, self.scores, self.probabilities[n]) for v, n in pairs], np.float32).reshape(-1)


class DetectorCard(BaseModel):
    """What the metadata of a model file says, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[str, ...] = Field(min_length=1)
    size: int = Field(ge=32)
    resize: Literal["stretch"] = "stretch"
    nms_iou: float | None = Field(None, gt=0, le=1)  # None: the model suppresses duplicates itself
    family: str
    precision: Literal["fp32", "fp16", "int8"]
    threshold: float | None = Field(
        default=None, ge=0, le=1
    )  # score from which the target precision is kept; None: not known
    target_precision: float | None = Field(default=None, gt=0, lt=1)
    proven: bool = False  # the gold images prove it, or only make it likely
    calibration: Calibration | None = None
    profile: Profile | None = None  # what it finds in the gold images
    source: str = ""  # fingerprint of the student this was made from


def stretched(image: Image, size: int) -> FloatArray:
    """An upright RGB image stretched to a square -> (3, S, S) float32 in [0, 1]."""
    from PIL.Image import Resampling

    small = image.convert("RGB").resize((size, size), Resampling.BILINEAR, reducing_gap=2.0)
    return np.ascontiguousarray(np.asarray(small, dtype=np.float32).transpose(2, 0, 1)) / np.float32(255)


def decode(
    boxes: FloatArray,
    scores: FloatArray,
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    threshold: float,
    nms_iou: float | None,
) -> list[Detections]:
    """Raw outputs as detections, best first, at most 100 an image.

    Args:
        boxes: (B, Q, 4) xyxy in [0, 1].
        scores: (B, Q, C) in [0, 1]; a query may be detected as several classes.
        sizes: width and height of each image in pixels.
        threshold: lower scores are dropped.
        nms_iou: class-wise suppression above this overlap; None to leave all.
    """
    return [
        _decode_one(b, s, size, tuple(classes), threshold, nms_iou)
        for b, s, size in zip(boxes, scores, sizes, strict=True)
    ]


def _decode_one(
    boxes: FloatArray,
    scores: FloatArray,
    size: tuple[int, int],
    classes: tuple[str, ...],
    threshold: float,
    nms_iou: float | None,
) -> Detections:
    flat = scores.reshape(-1)
    chosen = np.flatnonzero(flat >= threshold)
    if len(chosen) > CANDIDATES:
        chosen = chosen[np.argpartition(-flat[chosen], CANDIDATES)[:CANDIDATES]]
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")]
    labels = chosen % scores.shape[1]
    limit = np.array([*size, *size], dtype=np.float32)
    pixels = np.clip(boxes[chosen // scores.shape[1]] * limit, 0, limit).astype(np.float32)
    keep = np.flatnonzero((pixels[:, 2:] > pixels[:, :2]).all(axis=1))  # nothing of a box without area can be seen
    if nms_iou is not None:
        keep = keep[_suppressed(pixels[keep], labels[keep], nms_iou)]
    keep = keep[:MOST]
    kept = np.clip(flat[chosen[keep]], 0, 1).astype(np.float32)
    return Detections(pixels[keep], kept, labels[keep].astype(np.int64), classes)


def _suppressed(boxes: FloatArray, labels: IntArray, iou: float) -> IntArray:
    """Rows that survive greedy class-wise suppression; rows come best first."""
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    ranks = np.arange(len(boxes), 0, -1, dtype=np.float32)
    kept: Any = cv2.dnn.NMSBoxesBatched(corners, ranks, labels.astype(np.int32), 0.0, iou) if len(boxes) else ()  # pyright: ignore
    return np.asarray(kept, np.int64).reshape(-1)


class ExportedDetector:
    """A `Detector` over one exported folder.

    Args:
        folder: `model.onnx` or `model.xml` (with `model.bin`) and `manifest.json`.
        run: calls the model file.
        threads: that one call uses.
        any_size: the file leaves open the side it sees.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        card: DetectorCard,
        fingerprint: str,
        run: Run,
        threads: int,
        *,
        any_size: bool = False,
    ) -> None:
        self.name, self.folder, self.card, self.fingerprint = name, folder, card, fingerprint
        self.any_size = any_size
        self.classes, self.threads, self._run = card.classes, threads, run

    def raw(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Images (B, 3, S, S) in [0, 1] -> boxes (B, Q, 4) in [0, 1] and scores (B, Q, C), as the graph gives them."""
        return self._run(images)

    def detect(self, images: Sequence[Image], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image, boxes in that image's own pixels, best score first."""
        found: list[Detections] = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            boxes, scores = self._run(np.stack([stretched(image, self.card.size) for image in part]))
            sizes = [image.size for image in part]
            found.extend(decode(boxes, scores, sizes, self.classes, threshold, self.card.nms_iou))
        told = self.card.calibration
        if told is None:
            return found
        return [replace(one, probabilities=told(one.scores, one.label_names)) for one in found]


def load_onnx(ref: ModelRef, threads: int | None = None, size: int | None = None) -> ExportedDetector:
    """An exported ONNX folder on ONNX Runtime.

    Args:
        size: side of the square it sees, in place of the one it was trained at; a multiple of 32.

    Raises:
        BadInput: the folder is not an exported detector, or it sees one size only.
        IntegrityError: a file is missing, differs from the manifest, or does not do what its metadata says.
    """
    return _load(ref, ONNX, _start_onnx, threads, size)


def load_openvino(ref: ModelRef, threads: int | None = None, size: int | None = None) -> ExportedDetector:
    """An exported OpenVINO folder; raises as `load_onnx`, and Unavailable without the `openvino` extra."""
    return _load(ref, OPENVINO, _start_openvino, threads, size)


def _load(
    ref: ModelRef,
    model: str,
    start: Callable[[Path, int], tuple[Run, str, int | None]],
    threads: int | None,
    size: int | None,
) -> ExportedDetector:
    if size is not None and (size < 32 or size % 32):
        raise BadInput(f"a detector cannot see squares of {size} px", expected="a multiple of 32")
    if threads is not None and threads < 1:
        raise BadInput("a detector needs at least one thread", received=str(threads))
    folder = Path(ref.target).expanduser()
    if not folder.is_dir():
        raise BadInput(f"detector folder {folder} does not exist", remedy="Give the folder that `foveal export` wrote.")
    manifest = artifacts.read(folder)
    if not (folder / model).is_file():
        there = next((m for m in (ONNX, OPENVINO) if (folder / m).is_file()), "neither form")
        raise BadInput(f"{folder} has no {model}", received=there, remedy="Use onnx: or openvino: as it was exported.")
    count = threads or usable_cores()
    try:
        run, told, side = start(folder / model, count)
        card = _card(told, folder / model)
        if size is not None and side not in (None, size):
            raise BadInput(
                f"{folder / model} sees squares of {side} px only",
                received=f"{size} px",
                remedy="Export it at that size.",
            )
        card = card.model_copy(update={"size": size or card.size})
        boxes, scores = run(np.zeros((1, 3, card.size, card.size), dtype=np.float32))
    except FovealError:
        raise
    except Exception as error:  # each runtime raises types of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IntegrityError(f"{folder / model} does not run: {reason}", remedy="Export it again.") from error
    if boxes.shape[2:] != (4,) or scores.shape != (*boxes.shape[:2], len(card.classes)):
        raise IntegrityError(
            f"{folder / model} does not fit its metadata",
            expected=f"boxes (1, Q, 4) and scores (1, Q, {len(card.classes)})",
            received=f"{boxes.shape} and {scores.shape}",
        )
    return ExportedDetector(str(ref), folder, card, manifest.fingerprint, run, count, any_size=side is None)


def _card(text: str, path: Path) -> DetectorCard:
    if not text:
        raise BadInput(f"{path} has no metadata {KEY!r}", expected="a model that `foveal export` wrote")
    try:
        return DetectorCard.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "content"
        raise IntegrityError(f"the metadata of {path} is no detector's: {where}: {problem['msg']}") from error


def _start_onnx(path: Path, threads: int) -> tuple[Run, str, int | None]:
    """What runs the model, what its metadata says, and the side it sees where that is fixed."""
    session = onnx_session(path.read_bytes(), threads)

    def run(images: FloatArray) -> tuple[FloatArray, FloatArray]:
        boxes, scores = session.run(["boxes", "scores"], {"images": images})
        return boxes, scores

    side = session.get_inputs()[0].shape[-1]
    told = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    return run, told, side if isinstance(side, int) else None


def _start_openvino(path: Path, threads: int) -> tuple[Run, str, int | None]:
    try:
        import openvino as ov
    except ImportError as error:
        raise Unavailable("openvino is not installed", remedy="pip install 'foveal[openvino]'") from error
    core: Any = ov.Core()
    model = core.read_model(path)
    told = str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else ""
    compiled = core.compile_model(model, "CPU", openvino_settings(threads))

    def run(images: FloatArray) -> tuple[FloatArray, FloatArray]:
        answer = compiled.create_infer_request().infer({"images": images})
        # The buffers belong to the request: copied, they outlive it.
        return np.array(answer["boxes"]), np.array(answer["scores"])

    side = model.input(0).partial_shape[3]
    return run, told, side.get_length() if side.is_static else None
