"""What a lane runs: each function takes what waits together and gives one answer each, on the model's own thread."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from distill.labeller import Labeller
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput
from foveal.generation import Asking, Converses, Reply, Style
from foveal.models import Detector, Encoder, OpenDetector, VisionLanguageModel
from retrieval.grounding import AnswersMany
from retrieval.memory import ExemplarMemory
from serve.lanes import Lane
from serve.versions import found_by
from serve.vlm_http import AT_ONCE, RemoteVLM

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # xyxy pixels
Model = Encoder | Detector | OpenDetector | VisionLanguageModel | Labeller | ExemplarMemory
TEXT_INPUTS, TEXT_QUERIES = "texts", "text queries"  # keys of an encoder's work without pictures
Kind = Literal["encoder", "detector", "open-detector", "vlm", "labeller", "memory"]


def kind_of(model: Model) -> Kind:
    """`encoder`, `detector` (fixed classes), `open-detector` (classes given as prompts), `vlm` (answers in words),
    `labeller` (a labelling job's judgement of each box) or `memory` (labelled crops that vote)."""
    if hasattr(model, "label"):
        return "labeller"
    if hasattr(model, "verify"):
        return "memory"
    if hasattr(model, "answer"):
        return "vlm"
    if hasattr(model, "encode_images"):
        return "encoder"
    return "detector" if hasattr(model, "classes") else "open-detector"


async def warm_up(lane: Lane, model: Model) -> None:
    """Runs a model once, so that the first request does not pay for lazy initialisation, and measures what batches are
    worth."""
    from PIL import Image as pillow

    if isinstance(model, RemoteVLM):
        lane.most = AT_ONCE  # it is warm where it runs, and its batches are made there
        return
    grey, kind = pillow.new("RGB", (640, 480), (127, 127, 127)), kind_of(model)
    if kind == "encoder":
        call = functools.partial(embedded, cast(Encoder, model))
        await lane.measure(call, ([], [grey]))
        await lane.measure(call, (["a photo"], []), (TEXT_INPUTS, TEXT_QUERIES))  # which are worth far larger batches
    elif kind == "labeller":
        await lane.measure(cast(Labeller, model).label, grey)
    elif kind == "memory":
        whole = np.array([[0, 0, *grey.size]], dtype=np.float32)
        await lane.measure(functools.partial(classified, cast(ExemplarMemory, model)), (grey, whole))
    elif kind == "vlm":
        await lane.measure(functools.partial(said, cast(VisionLanguageModel, model)), (grey, "what is this"))
    else:
        prompts = ["a photo"] if kind == "open-detector" else None
        await lane.measure(functools.partial(detected, cast(Any, model), prompts), (grey, 0.5))


def embedded(encoder: Encoder, items: list[tuple[Sequence[str], Sequence[Image]]]) -> list[FloatArray]:
    """For each item the vectors (N, D) of its texts, then of its images."""
    texts = [text for words, _ in items for text in words]
    images = [image for _, pictures in items for image in pictures]
    none = np.zeros((0, encoder.dimension), dtype=np.float32)
    said = iter(encoder.encode_texts(texts) if texts else none)
    seen = iter(encoder.encode_images(images) if images else none)
    rows = [[*(next(said) for _ in words), *(next(seen) for _ in pictures)] for words, pictures in items]
    return [np.stack(mine) if mine else none for mine in rows]


def detected(
    detector: Detector | OpenDetector, prompts: Sequence[str] | None, items: list[tuple[Image, float]]
) -> list[Detections]:
    """For each (image, threshold) what is found."""
    if prompts is None:
        return found_by(cast(Detector, detector), items)
    images, least = [image for image, _ in items], min(threshold for _, threshold in items)
    found = cast(OpenDetector, detector).detect(images, prompts, least)
    return [one[one.scores >= threshold] for one, (_, threshold) in zip(found, items, strict=True)]


def said(vlm: VisionLanguageModel, items: list[tuple[Image, str]]) -> list[str]:
    """The answer to each (image, question)."""
    if isinstance(vlm, AnswersMany):
        return vlm.replies([(image, (), question) for image, question in items])
    return [vlm.answer(image, question) for image, question in items]


def replied(vlm: Converses, style: Style, items: list[Asking]) -> list[Reply]:
    """What the model says in each conversation."""
    return vlm.generate(items, style)


def classified(memory: ExemplarMemory, items: list[tuple[Image, FloatArray]]) -> list[FloatArray]:
    """For each (image, boxes) the probabilities, see `Engine.classify`."""
    return [memory.classify(image, boxes) for image, boxes in items]


def verified(memory: ExemplarMemory, items: list[tuple[Image, Detections]]) -> list[tuple[Detections, FloatArray]]:
    """For each (image, labelled boxes) what a memory says, see `Engine.verify`."""
    return [memory.verify(image, proposed) for image, proposed in items]


def inside(image: Image, boxes: Sequence[Box]) -> FloatArray:
    """The boxes (N, 4); BadInput unless each has an area within the image."""
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    edges = np.clip(found, 0, [image.width, image.height] * 2)
    if not np.isfinite(found).all() or (edges[:, 2:] - edges[:, :2] < 1).any():
        raise BadInput(
            "a box does not lie in its image", expected=f"x1, y1, x2, y2 within {image.width} x {image.height} pixels"
        )
    return edges.astype(np.float32)


def located(vlm: VisionLanguageModel, items: list[tuple[Image, str]]) -> list[FloatArray]:
    """For each (image, phrase) its boxes (N, 4)."""
    return [vlm.locate(image, phrase) for image, phrase in items]
