"""A running Foveal server as a detector: what it answers to others can be measured like a model of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from foveal.client import Client, picture
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.schemas import DetectRequest

if TYPE_CHECKING:
    from PIL.Image import Image


class RemoteDetector:
    """A `Detector` over HTTP; with prompts, the server's open-vocabulary detector asked for these.

    Args:
        prompts: text -> the class that it stands for.

    Raises:
        Unavailable: nobody answers, or the key may not do this.
        BadInput: the server has no such detector.
    """

    def __init__(self, client: Client, prompts: Mapping[str, str] | None = None) -> None:
        kind = "detector" if prompts is None else "open-detector"
        card = next((card for card in client.models() if card.kind == kind), None)
        if card is None:
            raise BadInput(
                f"{client.url} serves no {kind}", remedy="Start it with one, or give --prompts for the other kind."
            )
        self.name, self.fingerprint = card.root, card.fingerprint
        self._client, self._prompts = client, dict(prompts or {})
        self.classes = tuple(self._prompts.values() if prompts else card.classes or ())

    def detect(self, images: Sequence[Image], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image, boxes in that image's own pixels, best score first.

        Raises:
            Unavailable: the server does not answer.
            BadInput: another model took over meanwhile.
        """
        return [self._detect(image, threshold) for image in images]

    def _detect(self, image: Image, threshold: float) -> Detections:
        answer = self._client.send(
            DetectRequest(image=picture(image), prompts=list(self._prompts) or None, threshold=threshold)
        )
        if answer.fingerprint != self.fingerprint:
            raise BadInput(
                f"{self._client.url} changed its model while it was measured",
                expected=self.fingerprint[:12],
                received=answer.fingerprint[:12],
                remedy="Measure again, on a server that nobody updates.",
            )
        found = answer.detections
        labels = [self._prompts.get(one.label, one.label) for one in found]
        return Detections.build([one.box for one in found], [one.score for one in found], labels, self.classes)
