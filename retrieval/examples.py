"""Remembered crops as few-shot examples for a vision-language model: retrieved ones instead of training.

After arXiv 2501.10834. Models that take several images get the crops themselves; for those that take one there are
hints in words. Nothing here uses hints unasked: of 300 questions about the sample world's site the bundled model,
taught there, answers 78% right, and 39% behind a hint, be it retrieved or the very truth. It never learnt to read one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.dataset import Dataset
from foveal.detections import FloatArray
from foveal.errors import BadImage, BadInput
from retrieval.crops import crop
from retrieval.memory import BACKGROUND, ExemplarMemory

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP = 100  # neighbours that examples are chosen from
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


@dataclass(frozen=True, slots=True)
class Example:
    """A remembered crop and what it shows."""

    id: str  # of the box
    label: str
    similarity: float  # cosine to what is asked about, [-1, 1]
    image: Image | None  # None without `crops`


def pick(
    memory: ExemplarMemory,
    image: Image,
    n: int = 4,
    *,
    box: FloatArray | None = None,
    crops: Crops | None = None,
    exclude_image: str | None = None,
) -> list[Example]:
    """Up to `n` examples for a question about `image`, or about the `box` (4,) of it, the most similar last.

    The classes that the nearest neighbours vote for take turns, the likeliest first, each giving its nearest crop not
    given yet: a model shown one class alone answers with it whatever it sees. The most similar stands nearest to the
    question, where models listen most (arXiv 2102.09690, 2101.06804). Background is never an example.

    Args:
        crops: gives their pictures; those whose file is gone are passed over.
        exclude_image: sample whose crops may not be examples, as when it is the one asked about.

    Raises:
        BadInput: n is less than 1.
    """
    if n < 1:
        raise BadInput("n lies outside its range", expected="1 or more examples", received=str(n))
    whole = np.array([0, 0, *image.size], dtype=np.float32)
    vectors = memory.embed(image, (whole if box is None else np.asarray(box, dtype=np.float32)).reshape(1, 4))
    near = memory.nearest(vectors, max(DEEP, memory.voting.k), exclude_image=exclude_image)[0]
    turns: dict[str, list[tuple[str, float]]] = {}
    weight: dict[str, float] = {}
    top = near[0][1] if near else 0.0
    for exemplar, similarity in near:
        if exemplar.label is not None:
            turns.setdefault(exemplar.label, []).append((exemplar.id, similarity))
            vote = float(np.exp((similarity - top) / memory.voting.temperature))
            weight[exemplar.label] = weight.get(exemplar.label, 0.0) + vote
    order = sorted(turns, key=lambda label: -weight[label])
    chosen: list[Example] = []
    while len(chosen) < n and any(turns.values()):
        for label in order:
            while turns[label] and len(chosen) < n:
                id, similarity = turns[label].pop(0)
                picture = None if crops is None else crops.find(id)
                if crops is None or picture is not None:
                    chosen.append(Example(id, label, similarity, picture))
                    break
    return sorted(chosen, key=lambda example: example.similarity)


def conversation(examples: Sequence[Example], image: Image, question: str) -> tuple[list[dict[str, Any]], list[Image]]:
    """Messages for the chat template of a model that takes several images, and the images in their order.

    Each example is a turn: its picture and the question, answered with its label. So the question has to be one that a
    label answers, such as "what is this".

    Raises:
        BadInput: an example has no picture.
    """
    without = next((example.id for example in examples if example.image is None), None)
    if without is not None:
        raise BadInput(f"example {without} has no picture", remedy="Pass `crops` to `pick`.")
    images = [*(example.image for example in examples if example.image is not None), image]
    answers = [*(example.label for example in examples), None]
    messages: list[dict[str, Any]] = []
    for answer in answers:
        messages.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages, images


def hint(examples: Sequence[Example], question: str) -> str:
    """The question behind what the examples are, in words, for a model that takes one image; most similar first.

    Measure before you use it: to a model that was never asked so, it is noise.
    """
    labels = list(dict.fromkeys(example.label for example in reversed(examples) if example.label != BACKGROUND))
    return f"Similar known objects: {', '.join(labels)}. {question}" if labels else question
