"""A server with every kind of model on it, and what is asked of it: real pictures, names and ids."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.testclient import TestClient

from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput
from foveal.generation import GREEDY, Asking, Reply, Style
from retrieval.archive import Archive
from retrieval.memory import ExemplarMemory
from serve.app import create_app
from serve.corrections import Corrections
from serve.keys import Keys
from serve.label_studio import Pictures
from serve.limits import Limits
from tests.serve.conftest import (
    COLOURS,
    ColourDetector,
    ColourEncoder,
    ColourLabeller,
    ColourOpenDetector,
    ColourTalker,
    draw,
)

LABELS = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image"><Label value="red"/>'
    '<Label value="blue"/></RectangleLabels></View>'
)
LIMITS = Limits(body_bytes=400_000, pixels=1_000_000, texts=8, prompts=4, k=20)


class ColourConverser(ColourTalker):
    """The same in conversations, a word at a time; as JSON it answers nothing."""

    def generate(self, asked: Sequence[Asking], style: Style = GREEDY) -> list[Reply]:
        if style.schema is not None:
            raise BadInput("it does not speak JSON")
        return [self._reply(one, style.max_tokens) for one in asked]

    def _reply(self, one: Asking, most: int) -> Reply:
        words = self.answer(one.image, one.question).split()
        said = [word for number, word in enumerate(words[:most]) if self._goes_on(one, words[: number + 1])]
        return Reply(" ".join(said), len(one.question.split()), len(said), len(said) == len(words))

    @staticmethod
    def _goes_on(one: Asking, said: list[str]) -> bool:
        return one.heard is None or one.heard(" ".join(said))


def everything(folder: Path, keys: Keys | None = None, pictures: Pictures | None = None) -> FastAPI:
    """An archive `depot` of twelve pictures, and one model of each kind."""
    samples: list[Sample] = []
    (folder / "pictures").mkdir()
    for number in range(12):
        colour = list(COLOURS)[number % 4]
        path = folder / "pictures" / f"{colour}-{number}.png"
        draw((colour, (8, 8, 24 + number, 40))).save(path)
        samples.append(Sample(path.stem, path, 64, 48, label=colour))
    archive = Archive.create(folder / "depot", ColourEncoder())
    archive.add(folder / "pictures", ColourEncoder())
    return create_app(
        archive=archive,
        encoder=ColourEncoder(),
        detector=ColourDetector(),
        open_detector=ColourOpenDetector(),
        vlm=ColourConverser(),
        labeller=ColourLabeller(),
        memory=ExemplarMemory.build(ColourEncoder(), Dataset.build(samples, tuple(COLOURS))),
        corrections=Corrections(folder / "corrections.sqlite"),
        limits=LIMITS,
        keys=keys,
        pictures=pictures,
    )


@dataclass(frozen=True)
class Way:
    """One way in which a picture comes to the server."""

    path: str
    body: Callable[[str], Mapping[str, Any]] | None = None  # of the picture in base64; None: as a form
    form: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        return f"{self.path} {'form' if self.body is None else 'JSON'}"

    def send(self, client: TestClient, data: bytes, name: str = "a.png") -> httpx.Response:
        """Posts the bytes of a file as a picture."""
        if self.body is None:
            return client.post(self.path, files={"image": (name, data)}, data=dict(self.form))
        text = base64.b64encode(data).decode()
        return client.post(self.path, content=json.dumps(self.body(text)), headers={**JSON, **self.headers})


JSON = {"content-type": "application/json"}
WAYS = (
    Way("/v1/detect"),
    Way("/v1/detect", form={"prompts": "a red box"}),
    Way("/v1/detect", lambda image: {"image": image}),
    Way("/v1/prelabel"),
    Way("/v1/prelabel", lambda image: {"image": _inline(image)}),
    Way("/v1/classify", lambda image: {"image": image}),
    Way("/v1/verify", lambda image: {"image": image, "proposals": [{"box": [0, 0, 4, 4], "label": "red"}]}),
    Way("/v1/ask", lambda image: {"image": image, "question": "is it red"}),
    Way("/v1/search", lambda image: {"image": image}),
    Way("/v1/search", lambda image: {"text": "red", "parts": [{"image": image, "weight": 0.5}]}),
    Way("/v1/embeddings", lambda image: {"messages": [{"content": [_url(image)]}]}),
    Way("/v1/items"),
    Way(
        "/label-studio/predict", lambda image: {"tasks": [{"data": {"image": _inline(image)}}], "label_config": LABELS}
    ),
    Way("/api/function_invocations", lambda image: {"image": image}, headers={"x-nuclio-function-name": "detector"}),
    Way("/x-anylabeling/v1/predict", lambda image: {"model": "detector", "image": image}),
    Way("/knn-service", lambda image: {"image": image, "num_images": 2}),
)


def _inline(image: str) -> str:
    return f"data:image/png;base64,{image}"


def _url(image: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _inline(image)}}


def scene() -> bytes:
    """A picture with something red and something blue, as PNG."""
    file = io.BytesIO()
    draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40))).save(file, "PNG")
    return file.getvalue()


def check(answer: httpx.Response) -> None:
    """An answer is one that was meant: no failure of the server, and errors in their one shape.

    The tool's own words for success and failure are not looked at.
    """
    told = f"{answer.request.method} {answer.request.url} -> {answer.status_code}: {answer.text[:500]}"
    if answer.status_code >= 500:
        assert answer.status_code == 503, told
        assert int(answer.headers["retry-after"]) >= 1, told
    if answer.status_code >= 400:
        error = json.loads(answer.content)["error"]
        assert set(error) == {"type", "message", "expected", "received", "remedy"}, told
        assert error["type"], told
        assert error["message"], told
        assert "Traceback" not in answer.text, told
