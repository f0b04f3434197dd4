"""Students: compact detectors that learn from pseudo-labels, by name, all behind one interface.

    student = build("fcos-resnet", classes=("bolt", "nut"))
    student.loss(images, targets)            # images (B, 3, S, S) float in [0, 1]
    boxes, scores = student.predict(images)  # (B, Q, 4) xyxy in [0, 1] and (B, Q, C): the graph that is exported

Shape letters: B images, Q candidate boxes, C classes, S input side.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.ops import box_convert

from distill import detr
from distill.fcos import Fcos, MobileNetBody, ResNetBody, Targets, fcos_loss
from foveal import artifacts
from foveal.dataset import check_classes
from foveal.detections import Detections
from foveal.detectors import decode, stretched
from foveal.errors import BadInput, IntegrityError, UnknownName
from foveal.runtime import pick_device

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHTS, CARD, SAMPLES = "model.safetensors", "student.json", "samples"


class Student(nn.Module, ABC):
    """A detector that trains and exports; subclasses say how."""

    family: str  # architecture, as transformers names it, or "fcos"
    nms_iou: float | None  # None: the model suppresses duplicates itself

    def __init__(self, name: str, classes: Sequence[str], size: int, init: str) -> None:
        super().__init__()
        if size % 32 or size < 64:
            raise BadInput(f"students see squares of {size} px", expected="a multiple of 32, at least 64")
        self.name, self.classes, self.size, self.init = name, tuple(classes), size, init

    @abstractmethod
    def loss(self, images: Tensor, targets: Targets) -> Tensor:
        """The training loss of a batch (B, 3, S, S), a scalar."""

    @abstractmethod
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [0, 1] -> boxes (B, Q, 4) xyxy in [0, 1], scores (B, Q, C) in [0, 1]."""

    @abstractmethod
    def backbone(self) -> nn.Module:
        """The module whose forward pass gives the feature maps, finest first."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Plain values from which `_restore` builds the same network again."""


class DenseStudent(Student):
    """FCOS on a small backbone."""

    family, nms_iou = "fcos", 0.6

    def __init__(
        self, name: str, classes: Sequence[str], size: int, shape: dict[str, Any], init: str = "scratch"
    ) -> None:
        super().__init__(name, classes, size, init)
        self.shape = shape
        body = ResNetBody(shape["widths"], shape["depths"]) if shape["body"] == "resnet" else MobileNetBody()
        self.net = Fcos(body, len(classes), shape["width"], shape["convs"])

    def loss(self, images: Tensor, targets: Targets) -> Tensor:
        logits, boxes, cells = self.net(images)
        return fcos_loss(logits, boxes, cells, targets)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.predict(images)

    def backbone(self) -> nn.Module:
        return self.net.body

    def architecture(self) -> dict[str, Any]:
        return dict(self.shape)


class DetrStudent(Student):
    """A transformers detector."""

    nms_iou = None

    def __init__(self, name: str, classes: Sequence[str], size: int, model: Any, init: str) -> None:
        super().__init__(name, classes, size, init)
        self.model: Any = model
        self.family = model.config.model_type
        detr.weigh(model)
        mean, deviation = detr.FAMILIES[self.family] or ((0.0,) * 3, (1.0,) * 3)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)

    def loss(self, images: Tensor, targets: Targets) -> Tensor:
        return self.model(pixel_values=self._normalised(images), labels=detr.loss_inputs(targets)).loss

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(pixel_values=self._normalised(images))
        boxes = box_convert(out.pred_boxes.float(), "cxcywh", "xyxy")
        return boxes.clamp(0, 1), out.logits.float().sigmoid()

    def backbone(self) -> nn.Module:
        inner = self.model.model
        return inner.backbone if hasattr(inner, "backbone") else inner.conv_encoder

    def architecture(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    def _normalised(self, images: Tensor) -> Tensor:
        return images if detr.FAMILIES[self.family] is None else (images - self.mean) / self.deviation


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a named student is made, and what it trains well with."""

    build: Callable[[str, Sequence[str], int], Student]
    size: int
    learning_rate: float
    batch: int


def _dense(shape: dict[str, Any], name: str, classes: Sequence[str], size: int) -> Student:
    return DenseStudent(name, classes, size, shape)


def _scratch(config: dict[str, Any], name: str, classes: Sequence[str], size: int) -> Student:
    return DetrStudent(name, classes, size, detr.from_scratch(config, classes, size), "scratch")


def _hub(name: str, classes: Sequence[str], size: int) -> Student:
    return DetrStudent(name, classes, size, detr.from_hub(name.removeprefix("hf:"), classes), name)


RESNET = {"body": "resnet", "widths": [16, 32, 64, 96, 128], "depths": [1, 1, 2, 1], "width": 64, "convs": 2}
MOBILENET = {"body": "mobilenet", "width": 96, "convs": 2}
STUDENTS: dict[str, Recipe] = {
    "fcos-resnet": Recipe(partial(_dense, RESNET), 160, 2e-3, 16),
    "fcos-mobilenet": Recipe(partial(_dense, MOBILENET), 160, 2e-3, 16),
    "deimv2-atto": Recipe(partial(_scratch, detr.deimv2(64, 160, (1, 1, 1), 256, 3)), 160, 8e-4, 8),
    "deimv2-pico": Recipe(partial(_scratch, detr.deimv2(112, 320, (1, 1, 2), 512, 5)), 160, 5e-4, 8),
    "d-fine-n": Recipe(partial(_scratch, detr.DFINE_N), 160, 5e-4, 8),
    "rt-detrv2-r18": Recipe(partial(_scratch, detr.RTDETR_R18), 160, 3e-4, 8),
}
HUB = Recipe(_hub, 640, 1e-4, 8)


def recipe(name: str) -> Recipe:
    """The recipe of a student by name; `hf:org/model` and `hf:./folder` are fine-tuned from their weights.

    Raises:
        UnknownName: neither in `STUDENTS` nor an `hf:` reference.
    """
    if name.startswith("hf:"):
        return HUB
    if name not in STUDENTS:
        raise UnknownName("student", name, [*STUDENTS, "hf:org/model"])
    return STUDENTS[name]


def build(name: str, classes: Sequence[str], size: int | None = None) -> Student:
    """A new student; random weights, or the hub's for `hf:` names.

    Raises:
        UnknownName, Unavailable: nothing by that name.
        BadInput: duplicate or no classes, or an impossible size.
    """
    if not classes:
        raise BadInput("a student needs classes", expected="at least one class name")
    found = recipe(name)
    return found.build(name, check_classes(classes), size or found.size)


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with each shared tensor once and every tensor contiguous, as safetensors wants it."""
    once = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
    full = nn.Module.state_dict(module)
    return {name: value.detach().contiguous() for name, value in full.items() if name in once}


def save_student(student: Student, folder: Path) -> None:
    """Write weights and the description to rebuild them; the caller seals the folder."""
    save_file({k: v.cpu() for k, v in unique_state(student).items()}, folder / WEIGHTS, metadata={"format": "pt"})
    card = {
        "student": student.name,
        "family": student.family,
        "classes": list(student.classes),
        "size": student.size,
        "init": student.init,
        "architecture": student.architecture(),
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def restore(folder: Path, *, verify: bool = True) -> tuple[Student, artifacts.Manifest]:
    """The student of a folder that `foveal distill` wrote, ready to predict, and its manifest.

    Raises:
        BadInput: it is no student's folder.
        IntegrityError: a file differs from the manifest, or the weights do not fit the description.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise BadInput(f"{folder} holds no student", expected=f"{WEIGHTS} and {CARD}, as `foveal distill` writes")
    manifest = artifacts.read(folder, verify=verify)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        student = _rebuild(card)
        weights = load_file(folder / WEIGHTS)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder} cannot be read as a student: {error}", remedy="Train it again.") from error
    expected = unique_state(student)
    wrong = sorted(n for n in expected.keys() | weights.keys() if n not in weights or n not in expected)
    wrong += [n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape]
    if wrong:
        raise IntegrityError(f"{folder / WEIGHTS} does not fit {CARD}: {len(wrong)} tensors, first {wrong[0]}")
    student.load_state_dict(weights, strict=False)  # tensors that share memory are stored once
    return student.eval(), manifest


def _rebuild(card: dict[str, Any]) -> Student:
    name, classes, size, shape = card["student"], card["classes"], card["size"], card["architecture"]
    if card["family"] == "fcos":
        return DenseStudent(name, classes, size, shape, card["init"])
    from transformers import AutoConfig, AutoModelForObjectDetection

    options = {k: v for k, v in shape.items() if k not in ("model_type", "backbone_config")}
    inner = dict(shape["backbone_config"])
    backbone = AutoConfig.for_model(inner.pop("model_type"), **inner)
    config = AutoConfig.for_model(shape["model_type"], backbone_config=backbone, **options)
    return DetrStudent(name, classes, size, AutoModelForObjectDetection.from_config(config), card["init"])


def identity(student: str) -> str:
    """What a run is known by: the name, or the fingerprint of the folder it starts from."""
    folder = Path(student)
    return f"student:{artifacts.read(folder).fingerprint}" if folder.is_dir() else student


def start(student: str, classes: Sequence[str], size: int | None) -> Student:
    """A new student by name, or one that starts from the weights in an earlier student's folder.

    Raises:
        UnknownName, Unavailable, BadInput: as `build` and `restore`.
    """
    if not Path(student).is_dir():
        return build(student, classes, size)
    earlier, manifest = restore(Path(student))
    net = _like(earlier, classes, size or earlier.size)
    shared = [(i, earlier.classes.index(name)) for i, name in enumerate(classes) if name in earlier.classes]
    weights, target = unique_state(earlier), unique_state(net)
    for name, value in target.items():
        old = weights.get(name)
        head = value.ndim > 0 and any(word in name for word in ("class_out", "class_embed", "score_head"))
        if old is not None and head and old.shape[1:] == value.shape[1:] and len(old) >= len(earlier.classes):
            for new_row, old_row in shared:  # a class that both know keeps its row, a new one starts afresh
                value[new_row] = old[old_row]
        elif old is not None and old.shape == value.shape:
            value.copy_(old)
    net.load_state_dict(target, strict=False)
    net.init = f"student:{manifest.fingerprint}"
    return net


def _like(earlier: Student, classes: Sequence[str], size: int) -> Student:
    if isinstance(earlier, DenseStudent):
        return DenseStudent(earlier.name, classes, size, earlier.shape)
    return build(earlier.name, classes, size)


class StudentDetector:
    """A trained student as a `Detector`, in PyTorch: what exported forms are compared with."""

    def __init__(self, student: Student, name: str, fingerprint: str, device: str = "cpu") -> None:
        self.student = student.to(device).eval()
        self.name, self.fingerprint, self.classes, self.device = name, fingerprint, student.classes, device

    def detect(self, images: Sequence[Image], threshold: float = 0.05, batch: int = 16) -> list[Detections]:
        """One `Detections` an image, boxes in that image's own pixels, best score first."""
        found: list[Detections] = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            pixels = torch.from_numpy(np.stack([stretched(image, self.student.size) for image in part]))
            with torch.inference_mode():
                boxes, scores = self.student.predict(pixels.to(self.device))
            sizes, iou = [image.size for image in part], self.student.nms_iou
            found += decode(boxes.cpu().numpy(), scores.cpu().numpy(), sizes, self.classes, threshold, iou)
        return found


def load_student(folder: str | Path, device: str | None = None) -> StudentDetector:
    """A student's folder as a detector in PyTorch; raises as `restore`."""
    student, manifest = restore(Path(folder))
    return StudentDetector(student, f"student:{folder}", manifest.fingerprint, pick_device(device))
