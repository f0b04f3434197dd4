"""The open-vocabulary detector of a running Foveal server as a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foveal.client import Client, picture
from foveal.detections import Detections
from foveal.errors import BadInput, Unavailable
from foveal.schemas import DetectRequest

if TYPE_CHECKING:
    from PIL.Image import Image

TIMEOUT = 120.0  # seconds for an image, on a slow server


class RemoteDetector:
    """An `OpenDetector` behind a server's `/v1/detect`.

    Raises:
        Unavailable: nothing answers there, or not as a Foveal server does.
        BadInput: the server has no open-vocabulary detector.
    """

    def __init__(self, address: str) -> None:
        self._client = Client(address, timeout=TIMEOUT)
        models = self._client.models()
        mine = [model for model in models if model.kind == "open-detector"]
        if not mine:
            raise BadInput(
                f"{address} serves no open-vocabulary detector",
                received=", ".join(model.id for model in models) or "no model",
                remedy="Start it with --open-detector REF.",
            )
        self._model, self.fingerprint = mine[0].id, mine[0].fingerprint
        self.name = f"{self._model} at {self._client.url}"

    def detect(self, images: Sequence[Image], prompts: Sequence[str], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image whose names are the prompts.

        Raises:
            Unavailable: the server is gone, keeps failing, or has loaded another model since.
        """
        return [self._one(image, prompts, threshold) for image in images]

    def _one(self, image: Image, prompts: Sequence[str], threshold: float) -> Detections:
        asked = DetectRequest(image=picture(image), prompts=list(prompts), threshold=threshold, model=self._model)
        answer = self._client.send(asked)
        if answer.fingerprint != self.fingerprint:
            raise Unavailable(
                f"{self._client.url} has loaded another model since this job began", remedy="Start it again."
            )
        found = answer.detections
        return Detections.build([d.box for d in found], [d.score for d in found], [d.label for d in found], prompts)
