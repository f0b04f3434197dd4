"""A server over models that see colour: small enough to run in microseconds, real enough to be right or wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from distill.labeller import Labelled, PrelabelSettings
from distill.ontology import Ontology
from foveal.detections import Detections, FloatArray, Provenance
from foveal.masks import encode
from retrieval.archive import Archive
from serve.app import create_app
from serve.limits import Limits

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 210), "yellow": (230, 210, 40)}
FLOOR = (128, 128, 128)


class ColourEncoder:
    """Embeds a picture as the share of each named colour in it, and a text as the colours it names."""

    name = "colour:encoder"
    fingerprint = hashlib.sha256(b"colour encoder").hexdigest()
    dimension = len(COLOURS) + 1  # the last is everything else
    logit_scale = 10.0

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        rows = np.stack([shares(image) for image in images])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        rows = np.array([[text.split().count(name) for name in COLOURS] + [0.05] for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class ColourDetector:
    """Boxes around the pixels of each colour; the score is how much of the box has it."""

    name = "colour:detector"
    fingerprint = hashlib.sha256(b"colour detector").hexdigest()
    classes = tuple(COLOURS)

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        return [find(image, self.classes, threshold) for image in images]


class ColourOpenDetector:
    """The same, for the colours that the prompts name."""

    name = "colour:open-detector"
    fingerprint = hashlib.sha256(b"colour open detector").hexdigest()

    def detect(
        self, images: Sequence[Image.Image], prompts: Sequence[str], threshold: float = 0.05
    ) -> list[Detections]:
        return [find(image, prompts, threshold) for image in images]


class ColourLabeller:
    """Draws each colour but green, with half its score as probability, and rejects yellow."""

    name = "colour:labeller"
    fingerprint = hashlib.sha256(b"colour labeller").hexdigest()
    classes = tuple(COLOURS)
    ontology = Ontology.model_validate({"classes": list(COLOURS), "attributes": {"state": ["new", "worn"]}})
    settings = PrelabelSettings()
    routing = SimpleNamespace(proven=True)

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        return ColourDetector().detect(images, threshold)

    def label(self, images: Sequence[Image.Image]) -> list[Labelled]:
        return [self._one(image) for image in images]

    def _one(self, image: Image.Image) -> Labelled:
        found = find(image, self.classes, 0.05)
        seen = [encode(nearest_colour(image) == index) if index != 1 else "" for index in found.labels.tolist()]
        routes = ["reject" if name == "yellow" else "accept" for name in found.label_names]
        judged = Detections.build(
            found.boxes, found.scores, found.labels, self.classes,
            probabilities=found.scores / 2,
            masks=tuple(seen),
            attributes=({"state": "worn"},) * len(found),
            provenance=tuple(Provenance(self.name, route=route) for route in routes),
        )  # fmt: skip
        return Labelled(judged, found.scores, found.labels, found.scores, found.labels, found.scores)


class ColourTalker:
    """Names the colours in a picture, says whether one is there, and finds one."""

    name = "colour:talker"
    fingerprint = hashlib.sha256(b"colour talker").hexdigest()

    def answer(self, image: Image.Image, question: str, max_tokens: int = 64) -> str:
        seen = [name for name, share in zip(COLOURS, shares(image)[:-1], strict=True) if share > 0]
        asked = [name for name in COLOURS if name in question.split()]
        return ("yes" if asked[0] in seen else "no") if asked else " and ".join(seen) or "nothing"

    def locate(self, image: Image.Image, phrase: str, max_tokens: int = 128) -> FloatArray:
        return find(image, [phrase], 0.0).boxes


def nearest_colour(image: Image.Image) -> np.ndarray:
    """(H, W) index of the nearest colour, `len(COLOURS)` where it is the floor."""
    palette = np.array([*COLOURS.values(), FLOOR], dtype=np.float32)
    pixels = np.asarray(image, dtype=np.float32)
    return np.linalg.norm(pixels[:, :, None] - palette, axis=-1).argmin(-1)


def shares(image: Image.Image) -> np.ndarray:
    return np.bincount(nearest_colour(image).reshape(-1), minlength=len(COLOURS) + 1) / (image.width * image.height)


def find(image: Image.Image, prompts: Sequence[str], threshold: float) -> Detections:
    nearest, boxes, scores, labels = nearest_colour(image), [], [], []
    for index, prompt in enumerate(prompts):
        wanted = [number for number, name in enumerate(COLOURS) if name in prompt.split()]
        rows, columns = np.nonzero(np.isin(nearest, wanted))
        if len(rows) < 4:
            continue
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        score = len(rows) / ((box[2] - box[0]) * (box[3] - box[1]))
        if score >= threshold:
            boxes.append(box)
            scores.append(score)
            labels.append(index)
    order = np.argsort([-score for score in scores])
    return (
        Detections.build(boxes, scores, labels, prompts)[order.astype(np.int64)] if boxes else Detections.empty(prompts)
    )


def draw(*things: tuple[str, tuple[int, int, int, int]], size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of rectangles: (colour, xyxy box)."""
    image = Image.new("RGB", size, FLOOR)
    pen = ImageDraw.Draw(image)
    for colour, (x1, y1, x2, y2) in things:
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLOURS[colour])
    return image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, three of each colour, with a camera and an hour each."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = ["file_name,camera,hour"]
    for number in range(12):
        colour = list(COLOURS)[number % 4]
        draw((colour, (8, 8, 24 + number, 40))).save(folder / f"{colour}-{number}.png")
        lines.append(f"{colour}-{number}.png,{'north' if number < 6 else 'south'},{number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def archive(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    encoder = ColourEncoder()
    archive = Archive.create(tmp_path_factory.mktemp("archives") / "depot", encoder)
    assert archive.add(pictures, encoder).added == 12
    return archive


@pytest.fixture(scope="session")
def app(archive: Archive) -> FastAPI:
    return create_app(
        archive=archive,
        encoder=ColourEncoder(),
        detector=ColourDetector(),
        open_detector=ColourOpenDetector(),
        limits=Limits(body_bytes=200_000, pixels=1_000_000, texts=8, prompts=4, k=20),
    )


@pytest.fixture(scope="session")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
