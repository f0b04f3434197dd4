"""A running Foveal server as an encoder: its embeddings can be measured like those of a model of one's own."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from foveal.client import Client, picture
from foveal.detections import FloatArray
from foveal.errors import BadInput
from foveal.schemas import ContentPart, EmbeddingRequest, ImageUrl, Message

if TYPE_CHECKING:
    from PIL.Image import Image

TEXTS = 64  # of one request
AT_ONCE = 8  # requests on their way; a server embeds together what comes together


class RemoteEncoder:
    """An `Encoder` over HTTP.

    Raises:
        Unavailable: nobody answers, or the key may not do this.
        BadInput: the server has no encoder, or does not say how it scales similarities.
    """

    def __init__(self, client: Client) -> None:
        card = next((card for card in client.models() if card.kind == "encoder"), None)
        if card is None:
            raise BadInput(f"{client.url} serves no encoder", remedy="Start it with --archive or --encoder.")
        if card.dimension is None or card.logit_scale is None:
            raise BadInput(
                f"{client.url} does not describe its encoder",
                expected="dimension and logit_scale in /v1/models",
                remedy="Update the server.",
            )
        self.name, self.fingerprint = card.root, card.fingerprint
        self.dimension, self.logit_scale = card.dimension, card.logit_scale
        self._client, self._model = client, card.id

    def encode_images(self, images: Sequence[Image]) -> FloatArray:
        """Upright RGB images -> (N, D) float32, unit length, sent as PNG.

        Raises:
            Unavailable: the server does not answer.
            BadInput: an image is larger than the server takes, or another model took over meanwhile.
        """
        with ThreadPoolExecutor(AT_ONCE, "embed") as pool:
            return self._whole(list(pool.map(self._image, images)))

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Texts -> (N, D) float32, unit length; raises as `encode_images`."""
        parts = [list(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        return self._whole([self._asked(EmbeddingRequest(input=part)) for part in parts])

    def _image(self, image: Image) -> FloatArray:
        address = ImageUrl(url=f"data:image/png;base64,{picture(image)}")
        content = [ContentPart(type="image_url", image_url=address)]
        return self._asked(EmbeddingRequest(messages=[Message(role="user", content=content)]))

    def _asked(self, request: EmbeddingRequest) -> FloatArray:
        asked = request.model_copy(update={"model": self._model, "encoding_format": "base64"})
        answer = self._client.send(asked)
        vectors = [
            np.frombuffer(base64.b64decode(one.embedding), "<f4") if isinstance(one.embedding, str) else one.embedding
            for one in sorted(answer.data, key=lambda one: one.index)
        ]
        return np.asarray(vectors, np.float32).reshape(-1, self.dimension)

    def _whole(self, parts: Sequence[FloatArray]) -> FloatArray:
        """All parts, if the model that made them is still there."""
        now = next((card.fingerprint for card in self._client.models() if card.id == self._model), "none")
        if now != self.fingerprint:
            raise BadInput(
                f"{self._client.url} changed its model while it was measured",
                expected=self.fingerprint[:12],
                received=now[:12],
                remedy="Measure again, on a server that nobody updates.",
            )
        return np.concatenate([np.zeros((0, self.dimension), np.float32), *parts])
