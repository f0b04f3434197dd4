"""What every annotation tool asks of the server: the model that knows best, and what it draws on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foveal import masks
from foveal.detections import Attributes, Detections, FloatArray
from serve.calls import Kind, kind_of
from serve.engine import Engine
from serve.limits import NotFound

if TYPE_CHECKING:
    from PIL.Image import Image

FLOOR = 0.3  # score from which a detector's boxes are proposed where nobody says
CLOSED: tuple[Kind, ...] = ("labeller", "detector")  # those with classes of their own
DRAWING: tuple[Kind, ...] = (*CLOSED, "open-detector")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One thing in a picture, as a tool shows it."""

    label: str
    confidence: float  # calibrated probability where there is one, else score
    box: tuple[float, float, float, float]  # xyxy pixels inside the picture
    outline: FloatArray | None  # (K, 2) pixels, where the model draws masks
    mask: str  # COCO's form (`foveal.masks`); empty where there is no outline
    attributes: Attributes


def drawing(engine: Engine, kinds: Sequence[Kind] = DRAWING) -> list[str]:
    """The models that draw: labellers, then detectors, then open-vocabulary detectors."""
    return [name for kind in kinds for name, model in engine.models.items() if kind_of(model) == kind]


def answering(engine: Engine, name: str | None = None, kinds: Sequence[Kind] = DRAWING) -> str:
    """The model of that name, or the one that knows best.

    Raises:
        NotFound: there is none.
    """
    names = drawing(engine, kinds)
    if not names:
        raise NotFound(
            "this server has nothing that draws boxes", remedy="foveal serve --prelabels DIR, or --detector REF."
        )
    if name is not None and name not in names:
        raise NotFound(f"no model {name[:80]!r} draws boxes here", expected=", ".join(names))
    return names[0] if name is None else name


async def find(
    engine: Engine, name: str, image: Image, *, labels: Sequence[str] = (), threshold: float | None = None
) -> Detections:
    """What the model finds; a labeller's rejects are left out, and what is less certain than `threshold`.

    Args:
        labels: what an open-vocabulary detector is asked for.
    """
    kind = kind_of(engine.models[name])
    floor = FLOOR if threshold is None else threshold
    if kind == "labeller":
        _, labelled = await engine.prelabel(image, model=name)
        found = labelled.detections
        found = found[np.array([p.route != "reject" for p in found.provenance or ()], dtype=bool)]
    elif kind == "detector":
        _, found = await engine.detect(image, model=name, threshold=floor)
    else:
        _, found = await engine.detect(image, model=name, prompts=labels, threshold=floor)
    return found if threshold is None else found[_confidences(found) >= threshold]


def drawn(found: Detections, image: Image) -> list[Drawn]:
    """The detections of a picture one by one, with outlines."""
    found, confidences = found.clipped(*image.size), _confidences(found).tolist()
    return [_drawn(found, row, confidence, image) for row, confidence in enumerate(confidences)]


def _drawn(found: Detections, row: int, confidence: float, image: Image) -> Drawn:
    mask = "" if found.masks is None else found.masks[row]
    outlines = masks.polygons(mask, image.height, image.width) if mask else []
    x1, y1, x2, y2 = found.boxes[row].tolist()
    return Drawn(
        found.label_names[row],
        confidence,
        (x1, y1, x2, y2),
        outlines[0] if outlines else None,
        mask if outlines else "",
        {} if found.attributes is None else found.attributes[row],
    )


def _confidences(found: Detections) -> FloatArray:
    """(N,) in [0, 1]."""
    return found.scores if found.probabilities is None else found.probabilities
