"""The records a rendered scene is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Domain = Literal["base", "site"]
Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WorldObject:
    """One labelled object, as far as the camera sees it."""

    kind: str
    colour: str
    material: str
    state: str  # "whole", or what is the matter with it
    box: tuple[float, float, float, float]  # xyxy pixels, tight around `mask`; x1 and y1 exclusive
    mask: Mask  # (H, W), its visible pixels
    visible: float  # visible share of its in-frame pixels, in (0, 1]
    phrase: str  # "dented blue barrel"


@dataclass(frozen=True, slots=True)
class Question:
    """A question about the picture whose one-word answer follows from the truth."""

    question: str
    answer: str
    kind: str  # count, presence, colour, state, relation


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and everything that is true of it."""

    image: Image  # (H, W, 3) RGB
    objects: tuple[WorldObject, ...]
    captions: tuple[str, ...]  # the first is the most complete
    questions: tuple[Question, ...]
    metadata: dict[str, str | int | float]  # domain, seed, camera, time, light, place, size
