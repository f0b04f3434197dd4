"""Models behind a running server, asked as if they were loaded here: `http://host:8000`, or `http://host:8000#model`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from foveal.client import Client, picture
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput, Unavailable
from foveal.schemas import AskRequest, ContentPart, DetectRequest, EmbeddingRequest, ImageUrl, Message, ModelCard

if TYPE_CHECKING:
    from PIL.Image import Image


def is_server(ref: str) -> bool:
    """Whether a reference names a server."""
    return ref.startswith(("http://", "https://"))


TIMEOUT = 120.0  # seconds for an image, on a slow server
TEXTS = 64  # of one request
AT_ONCE = 8  # requests on their way: a server embeds together what comes together


class _Served:
    """What all of them know: where the model is, what it is called there, and its fingerprint as told there."""

    def __init__(self, client: Client, card: ModelCard) -> None:
        self.client, self.card = client, card
        self.name, self.fingerprint = f"{client.url}#{card.id}", card.fingerprint


class ServedDetector(_Served):
    """A closed-vocabulary detector, as `foveal.models.Detector`."""

    def __init__(self, client: Client, card: ModelCard) -> None:
        super().__init__(client, card)
        self.classes = tuple(card.classes or ())

    def detect(self, images: Sequence[Image], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image, each asked for in a request of its own."""
        return [_asked(self, image, None, threshold, self.classes) for image in images]


class ServedOpenDetector(_Served):
    """A detector that takes texts, as `foveal.models.OpenDetector`."""

    def detect(self, images: Sequence[Image], prompts: Sequence[str], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image, each asked for in a request of its own."""
        return [_asked(self, image, list(prompts), threshold, tuple(prompts)) for image in images]


class ServedVLM(_Served):
    """A vision-language model, as `foveal.models.VisionLanguageModel` as far as it answers in words."""

    def answer(self, image: Image, question: str, max_tokens: int = 64) -> str:
        """The answer to one question about one image; how long it may be is the server's to say."""
        return self.client.send(AskRequest(question=question, image=picture(image), model=self.card.id)).text

    def locate(self, image: Image, phrase: str, max_tokens: int = 128) -> FloatArray:
        """Not asked of servers: the form of a box differs from model to model."""
        raise BadInput("boxes are not asked of a server's vision-language model", remedy="Load it here instead.")


class ServedEncoder(_Served):
    """An encoder, as `foveal.models.Encoder`; `logit_scale` is NaN where the server does not tell it."""

    def __init__(self, client: Client, card: ModelCard) -> None:
        super().__init__(client, card)
        self.dimension = card.dimension or 0
        self.logit_scale = math.nan if card.logit_scale is None else card.logit_scale

    def encode_images(self, images: Sequence[Image]) -> FloatArray:
        """(N, D) float32, unit length, each image in a request of its own, several on their way at once.

        Raises:
            Unavailable: nobody answers, or after several images another model is there.
        """
        if len(images) == 1:  # what is timed: one request and nothing else
            return self._image(images[0])
        with ThreadPoolExecutor(AT_ONCE, "embed") as pool:
            return self._whole(list(pool.map(self._image, images)))

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """(N, D) float32, unit length; raises as `encode_images`."""
        parts = [list(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        return self._whole([self._vectors(EmbeddingRequest(input=part)) for part in parts])

    def _image(self, image: Image) -> FloatArray:
        part = ContentPart(type="image_url", image_url=ImageUrl(url=f"data:image/png;base64,{picture(image)}"))
        return self._vectors(EmbeddingRequest(messages=[Message(content=[part])]))

    def _vectors(self, request: EmbeddingRequest) -> FloatArray:
        answer = self.client.send(request.model_copy(update={"model": self.card.id}))
        ordered = sorted(answer.data, key=lambda one: one.index)
        return np.asarray([one.embedding for one in ordered], dtype=np.float32)

    def _whole(self, parts: Sequence[FloatArray]) -> FloatArray:
        """All parts, if the model that made them is still there: answers do not say whose they are."""
        if self.fingerprint not in [card.fingerprint for card in self.client.models() if card.id == self.card.id]:
            raise Unavailable(f"{self.client.url} has loaded another model since this began", remedy="Start it again.")
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), np.float32)


Served = ServedDetector | ServedOpenDetector | ServedVLM | ServedEncoder
KINDS: dict[str, type[ServedDetector | ServedOpenDetector | ServedVLM | ServedEncoder]] = {
    "detector": ServedDetector,
    "open-detector": ServedOpenDetector,
    "vlm": ServedVLM,
    "encoder": ServedEncoder,
}


def connect(ref: str, kinds: Sequence[str], key: str | None = None) -> Served:
    """The model that `http://host:8000#model` names; the first of `kinds` that the server has when it names none.

    Raises:
        BadInput: the server has no such model.
        Unavailable: nobody answers.
    """
    url, _, name = ref.partition("#")
    client = Client(url, key, timeout=TIMEOUT)
    cards = [card for card in client.models() if card.kind in kinds and name in ("", card.id)]
    if not cards:
        raise BadInput(
            f"{url} serves no {' or '.join(kinds)}" + (f" called {name!r}" if name else ""),
            received=", ".join(f"{card.id} ({card.kind})" for card in client.models()) or "no model",
            remedy=f"Start it with {' or '.join(f'--{kind} REF' for kind in kinds)}.",
        )
    card = min(cards, key=lambda one: kinds.index(one.kind))
    return KINDS[card.kind](client, card)


def _asked(
    model: ServedDetector | ServedOpenDetector,
    image: Image,
    prompts: list[str] | None,
    threshold: float,
    names: tuple[str, ...],
) -> Detections:
    request = DetectRequest(image=picture(image), model=model.card.id, prompts=prompts, threshold=threshold)
    answer = model.client.send(request)
    if answer.fingerprint != model.fingerprint:
        raise Unavailable(f"{model.client.url} has loaded another model since this began", remedy="Start it again.")
    found = answer.detections
    labels = [one.label for one in found]
    known = tuple(dict.fromkeys([*names, *labels]))
    return Detections.build([one.box for one in found], [one.score for one in found], labels, known)
