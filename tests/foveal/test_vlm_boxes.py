"""Boxes written as each family writes them, and read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foveal.errors import UnknownName
from foveal.vlm_boxes import FORMATS, box_format, seen_size
from foveal.vlms import FAMILIES

BOX = np.array([[0.12, 0.30, 0.44, 0.61]], dtype=np.float32)
SEEN = (560, 280)
WRITTEN = {
    "florence2": "red crate<loc_119><loc_300><loc_439><loc_610>",  # 0.12 and 0.44 lie just below themselves in float32
    "idefics3": "[0.12, 0.30, 0.44, 0.61]",
    "internvl": "<ref>red crate</ref><box>[[120, 300, 440, 610]]</box>",
    "llava": "[0.12, 0.30, 0.44, 0.61]",
    "paligemma": "<loc0307><loc0122><loc0624><loc0450> red crate",
    "qwen2_5_vl": '```json\n[{"bbox_2d": [67, 84, 246, 171], "label": "red crate"}]\n```',
    "qwen3_vl": '```json\n[{"bbox_2d": [120, 300, 440, 610], "label": "red crate"}]\n```',
    "smolvlm": "[0.12, 0.30, 0.44, 0.61]",
}


@pytest.mark.parametrize("family", sorted(FORMATS))
@given(
    corners=arrays(np.float32, st.tuples(st.integers(0, 4), st.just(4)), elements=st.floats(0, 1, width=32)),
    seen=st.tuples(st.integers(28, 2000), st.integers(28, 2000)),
)
def test_boxes_come_back_within_the_stated_error(family: str, corners: np.ndarray, seen: tuple[int, int]) -> None:
    form = box_format(family)
    boxes = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    again = form.read(form.write("red crate", boxes, seen), seen)
    assert again.shape == boxes.shape
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, boxes, rtol=0, atol=form.error(seen) + 1e-6)


@pytest.mark.parametrize("family", sorted(FORMATS))
def test_the_form_is_the_familys_own(family: str) -> None:
    form = box_format(family)
    assert form.write("red crate", BOX, SEEN) == WRITTEN[family]
    assert "red crate" in form.ask("red crate")
    assert len(form.read("I see no such thing [1, 2].", SEEN)) == 0


def test_every_supported_family_writes_boxes() -> None:
    assert set(FORMATS) == set(FAMILIES)
    with pytest.raises(UnknownName, match="paligemma"):
        box_format("gpt2")


def test_only_qwen_resizes_to_what_matters() -> None:
    from transformers import CLIPImageProcessor, Qwen2VLImageProcessor

    class Processor:
        def __init__(self, images: object) -> None:
            self.image_processor = images

    limits = {"shortest_edge": 56 * 56, "longest_edge": 280 * 280}
    assert seen_size(Processor(CLIPImageProcessor()), (640, 480)) == (640, 480)
    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, size=limits)
    width, height = seen_size(Processor(images), (640, 480))
    assert (width % 28, height % 28) == (0, 0)
    assert width * height <= 280 * 280
    grid = images(np.zeros((480, 640, 3), dtype=np.uint8), return_tensors="pt")["image_grid_thw"][0]
    assert (width, height) == (int(grid[2]) * 14, int(grid[1]) * 14)
