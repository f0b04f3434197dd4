"""What a detector's answers look like on the images that it was measured with: what later answers are held beside."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from foveal.detections import FloatArray

FLOOR = 0.3  # lowest score counted: what requests leave out by default cannot be compared
STEP = 0.1
CROWD = 15  # boxes in an image, and more


class Profile(BaseModel):
    """Counts over images: scores from `FLOOR` in steps of `STEP`, and images by their number of such boxes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(ge=0)
    scores: tuple[int, ...] = Field(min_length=round((1 - FLOOR) / STEP), max_length=round((1 - FLOOR) / STEP))
    boxes: tuple[int, ...] = Field(min_length=CROWD + 1, max_length=CROWD + 1)

    @classmethod
    def of(cls, found: Iterable[FloatArray]) -> Profile:
        """The counts over the scores (N,) found in each image, with a threshold of `FLOOR` or below."""
        every = [scores[scores >= FLOOR] for scores in found]
        bins = round((1 - FLOOR) / STEP)
        scores = np.concatenate(every) if every else np.zeros(0)
        crowds = np.minimum([len(one) for one in every], CROWD).astype(np.int64)
        # The small term keeps a score such as 0.4 out of the bin below, where float32 would put it.
        where = np.clip(((scores - FLOOR) / STEP + 1e-4).astype(np.int64), 0, bins - 1)
        return cls(
            images=len(every),
            scores=tuple(np.bincount(where, minlength=bins).tolist()),
            boxes=tuple(np.bincount(crowds, minlength=CROWD + 1).tolist()),
        )
