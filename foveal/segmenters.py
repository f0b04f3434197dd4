"""Masks for boxes: SAM, SAM 2, SAM-HQ, EdgeTAM and SAM 3's tracker through transformers.

Shape letters: N boxes, M proposed masks of each, H, W image height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.detections import BoolArray, FloatArray
from foveal.encoders import LOADING_FAILS, fingerprint, image_config, unreachable
from foveal.errors import UnknownName
from foveal.models import ModelRef, parse_ref
from foveal.runtime import pick_device

if TYPE_CHECKING:
    from PIL.Image import Image

BOXES = 32  # a pass; each costs a mask of the image's own size
# model_type of the checkpoint's config -> those of Segment Anything (arXiv 2304.02643, 2408.00714).
FAMILIES = ("sam", "sam_hq", "sam2", "sam2_video", "edgetam", "edgetam_video", "sam3_tracker", "sam3_video")


class Segmenter:
    """Draws what a box holds."""

    def __init__(self, ref: ModelRef, model: Any, processor: Any, device: str) -> None:
        self.name, self.device = str(ref), device
        self.fingerprint = fingerprint(model.state_dict(), {"images": image_config(processor.image_processor)})
        self._model: Any = model.float().eval().to(device).requires_grad_(False)
        self._processor = processor

    def masks(self, image: Image, boxes: FloatArray) -> list[BoolArray]:
        """One mask (H, W) a box (N, 4 xyxy pixels) of an upright RGB image; of several proposed, the surest.

        Empty masks come back as they are: what a box holds may be too small to draw.
        """
        found: list[BoolArray] = []
        features: Any = None
        for start in range(0, len(boxes), BOXES):
            part = boxes[start : start + BOXES]
            inputs = self._processor(image, input_boxes=[part.astype(np.float64).tolist()], return_tensors="pt")
            sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
            pixels = inputs.pop("pixel_values").to(self.device, torch.float32)
            with torch.inference_mode():
                # The image is looked at once, however many boxes it has.
                features = self._model.get_image_embeddings(pixels) if features is None else features
                answer = self._model(
                    image_embeddings=features,
                    input_boxes=inputs["input_boxes"].to(self.device, torch.float32),
                    multimask_output=True,
                )
            (drawn,) = self._processor.post_process_masks(answer.pred_masks.cpu(), *sizes)  # (N, M, H, W)
            best = answer.iou_scores[0].argmax(dim=-1).cpu()
            found += [np.asarray(masks[int(k)]) for masks, k in zip(drawn, best, strict=True)]
        return found


def load_segmenter(reference: str, device: str | None = None) -> Segmenter:
    """A segmenter from a folder (never touches the network) or the hub: `hf:org/model`.

    Raises:
        UnknownName, BadInput, Unavailable: it names nothing, or something that is not of Segment Anything.
    """
    from transformers import AutoConfig, AutoModelForMaskGeneration, AutoProcessor

    ref = parse_ref(reference)
    if ref.scheme != "hf":
        raise UnknownName("segmenter loader for scheme", ref.scheme, ["hf"], remedy=f"{ref} draws no masks.")
    source, local = str(ref.folder or ref.target), ref.folder is not None
    try:
        family = AutoConfig.from_pretrained(source, local_files_only=local).model_type
        if family not in FAMILIES:
            raise UnknownName("segmenter family", family, FAMILIES, remedy=f"{ref} is not one of them.")
        model = AutoModelForMaskGeneration.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, local_files_only=local
        )
        processor = AutoProcessor.from_pretrained(source, local_files_only=local)
    except LOADING_FAILS as error:
        raise unreachable(ref, error) from error
    return Segmenter(ref, model, processor, pick_device(device))
