"""A running Foveal server over HTTP, and its open-vocabulary detector as a teacher."""

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


class RemoteServer:
    """A running Foveal server.

    Args:
        key: sent along as a bearer token.

    Raises:
        Unavailable: nothing answers there, or not as a Foveal server does.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        self.address = address.rstrip("/")
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=self.address, timeout=TIMEOUT, headers=sent)
        try:
            self.models: list[dict[str, Any]] = list(self.call("GET", "/v1/models")["data"])
            whole = all({"id", "kind", "fingerprint"} <= set(model) for model in self.models)
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise Unavailable(f"{address} does not answer as a Foveal server does", expected="its list at /v1/models")

    def look(self, path: str, image: bytes, model: dict[str, Any], **asked: Any) -> dict[str, Any]:
        """What one of `models` says of an image file.

        Raises:
            Unavailable: the server is gone, keeps failing, or has loaded another model since.
        """
        sent = {"image": base64.b64encode(image).decode(), "model": model["id"], **asked}
        answer: dict[str, Any] = self.call("POST", path, sent)
        if answer["fingerprint"] != model["fingerprint"]:
            raise Unavailable(f"{self.address} has loaded another model since this job began", remedy="Start it again.")
        return answer

    def call(self, method: str, path: str, body: Any = None) -> Any:
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


class RemoteDetector:
    """An `OpenDetector` behind a server's `/v1/detect`.

    Raises:
        Unavailable: nothing answers there, or not as a Foveal server does.
        BadInput: the server has no open-vocabulary detector.
    """

    def __init__(self, address: str) -> None:
        self._server = RemoteServer(address)
        models = self._server.models
        mine = [model for model in models if model["kind"] == "open-detector"]
        if not mine:
            raise BadInput(
                f"{address} serves no open-vocabulary detector",
                received=", ".join(str(model["id"]) for model in models) or "no model",
                remedy="Start it with --open-detector REF.",
            )
        self._model = mine[0]
        self.fingerprint = str(self._model["fingerprint"])
        self.name = f"{self._model['id']} at {self._server.address}"

    def detect(self, images: Sequence[Image], prompts: Sequence[str], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image whose names are the prompts.

        Raises:
            Unavailable: the server is gone, keeps failing, or has loaded another model since.
        """
        return [self._one(image, prompts, threshold) for image in images]

    def _one(self, image: Image, prompts: Sequence[str], threshold: float) -> Detections:
        data = io.BytesIO()
        image.save(data, "PNG")
        asked = {"prompts": list(prompts), "threshold": threshold}
        found = self._server.look("/v1/detect", data.getvalue(), self._model, **asked)["detections"]
        return Detections.build(
            [d["box"] for d in found], [d["score"] for d in found], [d["label"] for d in found], prompts
        )
