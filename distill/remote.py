"""A running Foveal server as a teacher: its open-vocabulary detector over HTTP."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import httpx

from foveal.detections import Detections
from foveal.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from PIL.Image import Image

TRIES, WAIT = 4, 0.5  # seconds before the second try, doubling
TIMEOUT = 120.0


class RemoteDetector:
    """An `OpenDetector` behind a server's `/v1/detect`.

    Raises:
        Unavailable: nothing answers there, or not as a Foveal server does.
        BadInput: the server has no open-vocabulary detector.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._client = httpx.Client(base_url=self.address, timeout=TIMEOUT)
        try:
            models = self._call("GET", "/v1/models")["data"]
            mine = [m for m in models if m.get("kind") == "open-detector"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Unavailable(f"{address} does not answer as a Foveal server does: {error!r}") from error
        if not mine:
            raise BadInput(
                f"{address} serves no open-vocabulary detector",
                received=", ".join(str(m.get("id")) for m in models) or "no model",
                remedy="Start it with --open-detector REF.",
            )
        self._model = str(mine[0]["id"])
        self.fingerprint = str(mine[0]["fingerprint"])
        self.name = f"{self._model} at {self.address}"

    def detect(self, images: Sequence[Image], prompts: Sequence[str], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image whose names are the prompts.

        Raises:
            Unavailable: the server is gone, keeps failing, or has loaded another model since.
        """
        return [self._one(image, prompts, threshold) for image in images]

    def _one(self, image: Image, prompts: Sequence[str], threshold: float) -> Detections:
        data = io.BytesIO()
        image.save(data, "PNG")
        asked = {
            "image": base64.b64encode(data.getvalue()).decode(),
            "prompts": list(prompts),
            "threshold": threshold,
            "model": self._model,
        }
        answer = self._call("POST", "/v1/detect", asked)
        if answer["fingerprint"] != self.fingerprint:
            raise Unavailable(f"{self.address} has loaded another model since this job began", remedy="Start it again.")
        found = answer["detections"]
        return Detections.build(
            [d["box"] for d in found], [d["score"] for d in found], [d["label"] for d in found], prompts
        )

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; what may pass (no connection, overload) is tried again."""
        said = ""
        for turn in range(TRIES):
            try:
                answer = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                said = str(error) or type(error).__name__
            else:
                if answer.status_code < 400:
                    return answer.json()
                said = f"{answer.status_code} {answer.text[:200]}"
                if answer.status_code < 500 and answer.status_code != 429:
                    break
            if turn < TRIES - 1:
                time.sleep(WAIT * 2**turn)
        raise Unavailable(f"{self.address}{path} does not answer: {said}", remedy="Check that the server is up.")
