"""What a large model sees in the training images, learnt by the student's backbone beside its boxes.

The model's map of each image is computed once, on the whole image. A view is made of parts of images, moved and scaled;
at each cell of the student's own map the teacher's is read off at the place of the image that lies there, which costs
next to nothing. (A mirrored view reads the map of the image as it was: what a place shows hardly depends on that.)

FitNets (arXiv 1412.6550) for the idea; cosine distance of normalised features as in arXiv 2205.14141. The maps lie in
the space of the model's texts, so that a class's text embedding can be asked for as well, box by box.

Shape letters: M images, G teacher cells a side, B views, H student cells a side, D dimensions, C classes, N boxes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from distill.augment import ImageCache, Pane
from distill.fcos import Targets
from distill.students import Student
from foveal.detections import FloatArray
from foveal.encoders import OpenClipEncoder
from foveal.errors import BadInput
from foveal.models import load_encoder, load_open_detector, parse_ref
from foveal.open_detectors import OwlDetector
from foveal.progress import Progress, track
from foveal.staging import staged

STRIDE = 16  # of the student's map that learns
CELLS = 3  # a side, that stand for a box
TEMPERATURE = 0.07  # CLIP's own at the start, arXiv 2103.00020
BATCH = 8
Half = npt.NDArray[np.float16]
See = Callable[[Sequence[Image.Image]], Tensor]  # images -> maps (B, G, G, D) in the space of texts


@dataclass(frozen=True, slots=True)
class Hints:
    """A model's maps of the training images, and its embeddings of the class names."""

    maps: Half  # (M, G, G, D) unit length
    texts: FloatArray  # (C, D) unit length

    @classmethod
    def of_cache(
        cls, reference: str, cache: ImageCache, classes: Sequence[str], work: Path, progress: Progress | None = None
    ) -> Hints:
        """The maps of all images of a run; kept in `work`, so that a resumed run has them.

        Raises:
            BadInput: the model gives no map in the space of its texts.
            UnknownName, Unavailable: there is no such model.
        """
        see, texts, fingerprint = _teacher(reference, classes)
        kept = work / f"hints-{fingerprint[:16]}.npz"
        if kept.is_file():
            with np.load(kept, allow_pickle=False) as arrays:
                return cls(arrays["maps"], arrays["texts"])
        maps: list[Half] = []
        for start in track(progress, range(0, len(cache), BATCH), "look with the teacher", -(-len(cache) // BATCH)):
            images = [Image.fromarray(pixels) for pixels in cache.pixels[start : start + BATCH]]
            with torch.inference_mode():
                maps.append(F.normalize(see(images).float(), dim=-1).half().cpu().numpy())
        found = cls(np.concatenate(maps), texts)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with staged(kept, folder=False) as path, path.open("wb") as stream:
            np.savez(stream, maps=found.maps, texts=found.texts)
        return found

    def of(self, views: Sequence[Sequence[Pane]], size: int) -> dict[str, npt.NDArray[np.generic]]:
        """For views of `size` pixels: `features` (B, H, H, D) float16 and `seen` (B, H, H), where an image lies."""
        side = size // STRIDE
        line = (np.arange(side, dtype=np.float32) + 0.5) * STRIDE
        x, y = np.meshgrid(line, line)
        features = np.zeros((len(views), side, side, self.maps.shape[-1]), np.float16)
        seen = np.zeros((len(views), side, side), bool)
        for b, panes in enumerate(views):
            for pane in panes:
                x1, y1, x2, y2 = pane.area
                u, v = pane.to_image(x, y)
                here = (x >= x1) & (x < x2) & (y >= y1) & (y < y2) & (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
                features[b][here] = self._at(pane.row, u[here], v[here])
                seen[b] |= here
        return {"features": features, "seen": seen}

    def _at(self, row: int, u: FloatArray, v: FloatArray) -> Half:
        """The map of image `row` between its cells, at shares (N,) of its width and height -> (N, D)."""
        grid = self.maps[row].astype(np.float32)
        last = len(grid) - 1
        x, y = (np.clip(share * len(grid) - 0.5, 0, last) for share in (u, v))
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        right, below = np.minimum(left + 1, last), np.minimum(top + 1, last)
        a, b = (x - left)[:, None], (y - top)[:, None]
        above = (1 - a) * grid[top, left] + a * grid[top, right]
        beneath = (1 - a) * grid[below, left] + a * grid[below, right]
        return ((1 - b) * above + b * beneath).astype(np.float16)


class Pupil(nn.Module):
    """A projection of the student's map into the teacher's space, and how far it is from what the teacher sees.

    Args:
        feature_weight: of the mean cosine distance over all cells where an image lies.
        class_weight: of the cross entropy of each box's class, by the likeness of its features to all class names.
    """

    def __init__(self, student: Student, hints: Hints, feature_weight: float, class_weight: float, seed: int) -> None:
        super().__init__()
        self.feature_weight, self.class_weight = feature_weight, class_weight
        self._map: Tensor | None = None
        student.backbone().register_forward_hook(self._keep)  # called as module(pixels, ...) in every family
        with torch.no_grad():
            student.eval().predict(torch.zeros(1, 3, student.size, student.size))
        student.train()
        assert self._map is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.project = nn.Conv2d(self._map.shape[1], hints.maps.shape[-1], 1)
        self.texts: Tensor
        self.register_buffer("texts", torch.from_numpy(hints.texts), persistent=False)

    def loss(self, features: Tensor, seen: Tensor, targets: Targets) -> Tensor:
        """The weighted distances of the batch that the student has just looked at, a scalar.

        Args:
            features: (B, H, H, D) what the teacher sees at each cell; `seen` (B, H, H) where that is.
        """
        assert self._map is not None
        mine = F.normalize(self.project(self._map).float(), dim=1)  # (B, D, H, H)
        wanted = F.normalize(features.float(), dim=-1).permute(0, 3, 1, 2)
        distance = 1 - (mine * wanted).sum(1)
        total = self.feature_weight * (distance * seen).sum() / seen.sum().clamp(min=1)
        return total + self.class_weight * self._of_classes(mine, targets) if self.class_weight else total

    def _of_classes(self, mine: Tensor, targets: Targets) -> Tensor:
        live = (targets.labels >= 0) & ~targets.ignore
        image, _ = live.nonzero(as_tuple=True)
        if not len(image):
            return mine.sum() * 0
        side = mine.shape[-1]
        rois = torch.cat([image[:, None].float(), targets.boxes[live].float() * side], dim=1)
        inside = F.normalize(roi_align(mine, rois, CELLS, aligned=True).mean((2, 3)), dim=1)  # (N, D)
        losses = F.cross_entropy(inside @ self.texts.T / TEMPERATURE, targets.labels[live], reduction="none")
        weights = targets.weights[live]
        return (losses * weights).sum() / weights.sum().clamp(min=1e-6)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        """Of the backbone's maps, the one with the stride that learns, or the nearest to it, brought to that stride."""
        maps = [item[0] if isinstance(item, tuple) else item for item in output]
        side = inputs[0].shape[-1] // STRIDE
        nearest = min((m for m in maps if m.ndim == 4), key=lambda m: abs(m.shape[-1] - side))
        same = nearest.shape[-1] == side
        self._map = nearest if same else F.interpolate(nearest, (side, side), mode="bilinear", align_corners=False)


def _teacher(reference: str, classes: Sequence[str]) -> tuple[See, FloatArray, str]:
    """What looks, the class names' embeddings (C, D), and the model's fingerprint with the classes."""
    model: Any = (load_encoder if parse_ref(reference).scheme == "open_clip" else load_open_detector)(reference)
    if isinstance(model, OwlDetector):
        texts = model.embed_prompts(tuple(classes)).float().cpu().numpy()
        see: See = partial(_owl_map, model)
    elif isinstance(model, OpenClipEncoder):
        texts = model.encode_texts(list(classes))
        see = partial(_clip_map, model)
    else:
        raise BadInput(f"{reference} gives no map of an image", expected="an OWL detector or an open_clip model")
    named = hashlib.sha256(f"{model.fingerprint} {list(classes)}".encode()).hexdigest()
    return see, texts, named


def _owl_map(model: OwlDetector, images: Sequence[Image.Image]) -> Tensor:
    """The region embeddings that OWL compares with texts, a cell each; the images are square, so nothing is padding."""
    pixels = model.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
    found, _ = model.model.image_embedder(pixel_values=pixels.to(model.device))
    texts = model.embed_prompts(("object",)).expand(len(images), -1, -1)
    _, embedded = model.model.class_predictor(found.flatten(1, 2), texts)
    return embedded.unflatten(1, found.shape[1:3])


def _clip_map(model: OpenClipEncoder, images: Sequence[Image.Image]) -> Tensor:
    """Patch tokens of a ViT, projected as the pooled one is (MaskCLIP, arXiv 2112.01071)."""
    visual: Any = model.model.visual
    pixels = model.image_inputs(images)["image"].to(model.device)
    tokens: Tensor = visual.forward_intermediates(pixels, indices=1, intermediates_only=True, output_fmt="NLC")[
        "image_intermediates"
    ][-1]
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise BadInput(f"{model.name} has no square map", received=f"{tokens.shape[1]} patch tokens")
    tokens = visual.ln_post(tokens) @ visual.proj
    return tokens.unflatten(1, (side, side))
