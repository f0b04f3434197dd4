"""Masks for boxes by the models of Segment Anything, with random weights in their own file formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import Unavailable, UnknownName
from foveal.segmenters import BOXES, load_segmenter
from tests.tiny import tiny_owl, tiny_sam


@pytest.mark.parametrize("family", ["sam", "sam2"])
def test_masks_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    segmenter = load_segmenter(f"hf:{tiny_sam(tmp_path, family)}")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (50, 80, 3), dtype=np.uint8))
    corners = rng.uniform(0, 1, (BOXES + 3, 2, 2))
    boxes = (np.sort(corners, axis=1).reshape(-1, 4) * [80, 50, 80, 50]).astype(np.float32)
    found = segmenter.masks(image, boxes)
    assert [mask.shape for mask in found] == [(50, 80)] * len(boxes)
    assert found[0].dtype == bool
    alone = segmenter.masks(image, boxes[BOXES + 1 : BOXES + 2])[0]
    assert (alone != found[BOXES + 1]).mean() < 0.01
    assert segmenter.masks(image, np.zeros((0, 4), np.float32)) == []
    # The model asked directly, with the image instead of its embedding.
    model, processor = segmenter._model, segmenter._processor
    inputs = processor(image, input_boxes=[boxes[:2].astype(float).tolist()], return_tensors="pt")
    sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    with torch.inference_mode():
        answer = model(pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float())
    best = answer.iou_scores[0].argmax(dim=-1).tolist()
    drawn = processor.post_process_masks(answer.pred_masks, *sizes)[0]
    for row in (0, 1):
        assert (np.asarray(drawn[row, best[row]]) != found[row]).mean() < 0.01


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="segmenter family"):
        load_segmenter(f"hf:{tiny_owl(tmp_path)}")
    with pytest.raises(UnknownName, match="segmenter loader"):
        load_segmenter("open_clip:ViT-B-32/openai")
    with pytest.raises(Unavailable):
        load_segmenter("hf:nobody/no-such-sam")
