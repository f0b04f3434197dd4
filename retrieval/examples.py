"""Remembered crops as few-shot examples for a vision-language model.

Retrieved examples stand in for fine-tuning (arXiv 2501.10834).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.dataset import Dataset
from foveal.errors import BadImage
from retrieval.crops import crop
from retrieval.memory import ExemplarMemory

if TYPE_CHECKING:
    from PIL.Image import Image

MISSING = (128, 138, 135)  # colour of a picture that cannot be shown


class Crops:
    """Pictures of remembered boxes by their id, cut out of the files of a dataset."""

    def __init__(self, memory: ExemplarMemory, dataset: Dataset) -> None:
        self._boxes = {e.id: e for e in memory.remembered() if e.variant == "drawn"}
        self._places = {id: place for place, id in enumerate(dataset.ids)}
        self._dataset, self._context = dataset, memory.context

    def find(self, id: str) -> Image | None:
        """The crop; None where the image is not in the dataset or cannot be read any more."""
        box = self._boxes[id]
        if box.image not in self._places:
            return None
        try:
            image = self._dataset[self._places[box.image]].image()
        except BadImage:
            return None
        return crop(image, np.array(box.box, dtype=np.float32), self._context)

    def of(self, id: str) -> Image:
        """The crop, or an even grey where there is none."""
        from PIL import Image as pillow

        return self.find(id) or pillow.new("RGB", (64, 64), MISSING)
