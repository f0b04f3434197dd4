"""CVAT's auto-annotation function: a running Foveal server labels a task of CVAT.

cvat-cli task auto-annotate ID --function-module serve.cvat_function -p server=str:http://127.0.0.1:8000

`pip install foveal[cvat] cvat-cli` brings what it needs. `--conf-threshold` and `--conv-mask-to-poly` are honoured; a
task that lacks some of the model's classes wants `--allow-unmatched-labels`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foveal.client import Client, picture
from foveal.errors import BadInput, Unavailable
from foveal.masks import decode, polygons
from foveal.schemas import Detected, DetectRequest, ModelCard, PrelabelRequest

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec
    from cvat_sdk.models import LabeledShapeRequest
    from PIL.Image import Image

KINDS = ("labeller", "detector")  # those with classes of their own, the one that knows best first


def create(server: str = "http://127.0.0.1:8000", model: str | None = None, key: str | None = None) -> ServerFunction:
    """The function that asks a server.

    Args:
        model: its labeller or detector of that name; the labeller, else the detector, when None.
        key: sent along as a bearer token; FOVEAL_API_KEY of the environment when None.

    Raises:
        BadInput: it serves no such model.
        Unavailable: it does not answer.
    """
    client = Client(server, key or os.environ.get("FOVEAL_API_KEY"))
    models = client.models()
    cards = [card for kind in KINDS for card in models if card.kind == kind]
    chosen = [card for card in cards if model in (None, card.id)]
    if not chosen:
        raise BadInput(
            f"{server} serves no labeller or detector" + ("" if model is None else f" {model!r}"),
            expected=", ".join(card.id for card in cards) or None,
            remedy="foveal serve --prelabels DIR, or --detector REF.",
        )
    return ServerFunction(client, chosen[0])


class ServerFunction:
    """A `DetectionFunction` of cvat_sdk: `spec` names the classes, `detect` draws."""

    def __init__(self, client: Client, card: ModelCard) -> None:
        self._client, self._card = client, card
        self._ids = {name: number for number, name in enumerate(card.classes or ())}

    @property
    def spec(self) -> DetectionFunctionSpec:
        """The model's classes; a labeller may draw masks, a detector draws boxes."""
        from cvat_sdk.auto_annotation import DetectionFunctionSpec, label_spec

        kind = "any" if self._card.kind == "labeller" else "rectangle"
        return DetectionFunctionSpec(labels=[label_spec(name, id, type=kind) for name, id in self._ids.items()])

    def detect(self, context: DetectionFunctionContext, image: Image) -> list[LabeledShapeRequest]:
        """Boxes and masks in pixels of `image`; what a labeller rejects is left out.

        Raises:
            Unavailable: the server is gone, or has loaded another model.
        """
        return [self._shape(one, context, image) for one in self._found(context.conf_threshold, image)]

    def _found(self, threshold: float | None, image: Image) -> Sequence[Detected]:
        sent = picture(_packed(image))
        found: Sequence[Detected]
        if self._card.kind == "labeller":
            labelled = self._client.send(PrelabelRequest(image=sent, model=self._card.id))
            fingerprint, found = labelled.fingerprint, [box for box in labelled.boxes if box.route != "reject"]
        else:
            asked = DetectRequest(image=sent, model=self._card.id)
            if threshold is not None:
                asked.threshold = threshold
            detected = self._client.send(asked)
            fingerprint, found = detected.fingerprint, detected.detections
        if fingerprint != self._card.fingerprint:
            raise Unavailable(
                f"{self._client.url} has loaded another model since this job began", remedy="Start it again."
            )
        return [one for one in found if threshold is None or _confidence(one) >= threshold]

    def _shape(self, one: Detected, context: DetectionFunctionContext, image: Image) -> LabeledShapeRequest:
        from cvat_sdk.auto_annotation import mask, polygon, rectangle
        from cvat_sdk.masks import encode_mask

        label, score, drawn = self._ids[one.label], _confidence(one), getattr(one, "mask", None) or ""
        outlines = polygons(drawn, image.height, image.width) if drawn else []
        if not outlines:
            x1, y1, x2, y2 = one.box
            inside = [max(x1, 0.0), max(y1, 0.0), min(x2, float(image.width)), min(y2, float(image.height))]
            return rectangle(label, inside, score=score)
        if context.conv_mask_to_poly:
            return polygon(label, [float(value) for value in outlines[0].ravel()], score=score)
        return mask(label, encode_mask(decode(drawn, image.height, image.width)), score=score)


def _confidence(one: Detected) -> float:
    return one.score if one.probability is None else one.probability


def _packed(image: Image) -> bytes:
    """The pixels as CVAT has them, small: a JPEG stays one, at its own quality."""
    data = io.BytesIO()
    if image.format == "JPEG" and getattr(image, "quantization", None):  # which does not survive pickling
        image.save(data, "JPEG", quality="keep")
    else:
        image.save(data, "PNG")
    return data.getvalue()
