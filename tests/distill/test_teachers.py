"""Teachers of every kind, alone and together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

from distill.fusion import Ensemble, fused
from distill.gold import fit_labeller
from distill.labeller import PrelabelSettings
from distill.ontology import Ontology
from distill.teacher import Dense, candidates
from distill.teachers import Closed, Grounding, Proposals, load_teacher
from distill.views import Flipped, Tiled
from foveal.dataset import Dataset
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput, Unavailable, UnknownName
from foveal.served import ServedOpenDetector, connect
from tests.distill.painted import CLASSES, Blobs, DenseBlobs, painted, remember
from tests.tiny import tiny_owl

ONTOLOGY = Ontology.of(CLASSES)


class Spots:
    """Finds every white pixel block exactly; scores by its size."""

    name, fingerprint, classes = "spots", "spots-1", ("spot", "dust")

    def detect(self, images: Sequence[Image.Image], *rest: Any) -> list[Detections]:
        from scipy import ndimage

        found: list[Detections] = []
        for image in images:
            marks, _ = ndimage.label(np.asarray(image.convert("L")) > 128)
            boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(marks)]
            found.append(
                Detections.build(
                    boxes, 0.5, [0] * len(boxes), rest[0] if rest and not isinstance(rest[0], float) else self.classes
                )
            )
        return found


def _spotted(size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels)


def _as_set(boxes: FloatArray) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in row) for row in boxes.round()}


class Nearsighted(Spots):
    """Sees nothing in an image wider than 100 pixels."""

    def detect(self, images: Sequence[Image.Image], *rest: Any) -> list[Detections]:
        return [
            found if image.width <= 100 else found[:0]
            for found, image in zip(super().detect(images, *rest), images, strict=True)
        ]


def test_tiles_find_each_small_object_once_and_no_part_of_one() -> None:
    boxes = [(x, y, x + 12, y + 9) for x in range(5, 380, 31) for y in range(3, 280, 37)]
    boxes = [tuple(int(v) for v in box) for box in boxes]
    image = _spotted((400, 300), boxes)  # type: ignore[arg-type]
    tiled = Tiled(Nearsighted(), tile=100, overlap=0.3, batch=5)
    (found,) = tiled.dense([image], ["spot"])
    assert _as_set(found.boxes) == set(boxes)
    (kept,) = candidates(tiled, [image], Ontology.of(["spot"]), limit=1000)
    assert len(kept) == len(boxes)
    # One larger than the overlap is whole in no tile's middle; the whole image has it.
    (alone,) = Tiled(Spots(), tile=100, overlap=0.1).dense([_spotted((400, 300), [(60, 50, 260, 150)])], ["spot"])
    assert _as_set(alone.boxes) == {(60, 50, 260, 150)}
    small = _spotted((80, 80), [(1, 2, 30, 40)])
    assert len(tiled.dense([small], ["spot"])[0]) == 1
    assert tiled.fingerprint != Tiled(Nearsighted(), tile=100, overlap=0.2).fingerprint
    with pytest.raises(BadInput, match="impossible tiles"):
        Tiled(Spots(), tile=8)


class LeftHalf(Spots):
    """Sees only what lies in the left half."""

    def detect(self, images: Sequence[Image.Image], *rest: Any) -> list[Detections]:
        return [
            found[found.boxes[:, 2] <= image.width / 2]
            for found, image in zip(super().detect(images, *rest), images, strict=True)
        ]


def test_the_mirrored_look_comes_back_in_the_images_own_pixels() -> None:
    image = _spotted((100, 60), [(5, 5, 20, 20), (70, 30, 95, 50)])
    (found,) = Flipped(LeftHalf()).dense([image], ["spot"])
    assert _as_set(found.boxes) == {(5, 5, 20, 20), (70, 30, 95, 50)}
    (turned,) = Flipped(LeftHalf()).dense([image.transpose(Transpose.FLIP_LEFT_RIGHT)], ["spot"])
    assert _as_set(turned.boxes) == {(80, 5, 95, 20), (5, 30, 30, 50)}


def test_fusion_by_hand() -> None:
    """Two teachers see one object; the boxes weigh by rank: 1 for each one's best, 1/2 for the next."""
    one = Dense(
        np.array([[0, 0, 100, 100], [200, 0, 300, 100]], np.float32), np.array([[0.8, 0.1], [0.1, 0.4]], np.float32)
    )
    two = Dense(
        np.array([[10, 0, 110, 100], [400, 400, 450, 450]], np.float32), np.array([[0.6, 0.2], [0.0, 0.3]], np.float32)
    )
    joined = fused([one, two])
    rows = {tuple(box.round().astype(int).tolist()): row for row, box in enumerate(joined.boxes)}
    both, second, third = rows[5, 0, 105, 100], rows[200, 0, 300, 100], rows[400, 400, 450, 450]
    assert joined.seen_by is not None
    assert joined.seen_by[[both, second, third]].tolist() == [[True, True], [True, False], [False, True]]
    np.testing.assert_allclose(joined.scores[both], [0.7, 0.15], atol=1e-6)
    np.testing.assert_allclose(joined.scores[second], [0.05, 0.2], atol=1e-6)
    np.testing.assert_allclose(joined.scores[third], [0, 0.15], atol=1e-6)


def test_one_teachers_own_duplicates_are_one_and_boxes_of_one_teacher_never_fuse() -> None:
    close = np.array([[0, 0, 100, 100], [2, 0, 102, 100], [40, 0, 140, 100]], np.float32)
    answer = Dense(close, np.array([[0.9], [0.8], [0.7]], np.float32))
    joined = fused([answer, Dense(close[:1], np.array([[0.5]], np.float32))])
    assert len(joined) == 2
    assert joined.seen_by is not None
    assert sorted(joined.seen_by.sum(axis=1).tolist()) == [1, 2]
    assert len(fused([answer[np.zeros(0, np.int64)], answer[np.zeros(0, np.int64)]])) == 0


class Shaky(DenseBlobs):
    """The blob teacher with boxes that tremble, and an invention of its own in every image."""

    name, fingerprint = "shaky", "shaky-1"

    def dense(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Dense]:
        rng = np.random.default_rng(len(images))
        answers: list[Dense] = []
        for found in super().dense(images, prompts):
            boxes = found.boxes + rng.normal(0, 1.5, found.boxes.shape).astype(np.float32)
            corner = rng.uniform(0, 70, 2)
            invented = np.array([[*corner, *(corner + 18)]], np.float32)
            scores = np.full((1, len(prompts)), 0.4, np.float32)
            objectness = None if found.objectness is None else np.append(found.objectness, np.float32(0.6))
            answers.append(Dense(np.concatenate([boxes, invented]), np.concatenate([found.scores, scores]), objectness))
        return answers


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return painted(tmp_path_factory.mktemp("teachers") / "gold", 30, 1)


def test_a_labeller_knows_which_teachers_agreed_and_trusts_a_lonely_one_less(gold: Dataset) -> None:
    ensemble = Ensemble([DenseBlobs(), Shaky()])
    labeller, _ = fit_labeller(ONTOLOGY, ensemble, gold, None, PrelabelSettings())
    found = [labeller.label([sample.image()])[0].detections for sample in gold]
    agreed = [(p.teachers, float(q)) for d in found for p, q in zip(d.provenance or (), d.probabilities, strict=True)]  # type: ignore[arg-type]
    assert {teachers for teachers, _ in agreed} >= {("blobs", "shaky"), ("shaky",)}
    both = np.mean([q for teachers, q in agreed if len(teachers) == 2])
    lonely = np.mean([q for teachers, q in agreed if teachers == ("shaky",)])
    assert both > lonely + 0.3
    with pytest.raises(BadInput, match="different teachers"):
        Ensemble([DenseBlobs(), DenseBlobs()])


def test_proposals_are_named_by_the_memory_alone(gold: Dataset) -> None:
    """The teacher's own opinion is taken away; what remembered crops say is enough for most boxes."""
    blind = Proposals(DenseBlobs())
    (dense,) = blind.dense([gold[0].image()], ONTOLOGY.prompts)
    assert not dense.scores.any()
    assert dense.objectness is not None
    labeller, summary = fit_labeller(ONTOLOGY, blind, gold, remember(gold), PrelabelSettings())
    right = summary.with_memory.correct[summary.with_memory.probabilities > 0.5]
    assert len(right) > 30
    assert right.mean() > 0.8
    assert summary.without_memory.probabilities.max() < 0.6
    assert labeller.routing.choices


def test_a_closed_detector_answers_for_classes_of_its_names(gold: Dataset) -> None:
    ontology = Ontology.model_validate({"classes": [{"name": "spot", "prompts": ["a white spot"]}, "hole"]})
    closed = Closed(Spots(), ontology)
    (dense,) = closed.dense([_spotted((60, 60), [(5, 5, 20, 20)])], ontology.prompts)
    assert dense.scores.round(3).tolist() == [[0.5, 0.0]]
    with pytest.raises(BadInput, match="knows none of the ontology's classes"):
        Closed(Spots(), Ontology.of(["cat"]))


class Pointing:
    """A vision-language model that always points at the left half of what it is shown, and twice at `pair`."""

    name, fingerprint = "pointing", "pointing-1"

    def answer(self, image: Image.Image, question: str, max_tokens: int = 64) -> str:
        return ""

    def locate(self, image: Image.Image, phrase: str, max_tokens: int = 128) -> FloatArray:
        half = np.array([[0, 0, image.width / 2, image.height]], np.float32)
        return np.concatenate([half, half + 5]) if phrase == "pair" else half[: phrase == "left"]


def test_a_vision_language_model_is_asked_for_every_prompt() -> None:
    (found,) = Grounding(Pointing()).detect([Image.new("RGB", (40, 20))], ["left", "pair", "absent"])
    assert found.labels.tolist() == [0, 1, 1]
    assert found.scores.tolist() == [1, 1, 1]
    assert found.boxes.max() <= 40


def test_references(tmp_path: Path) -> None:
    folder = tiny_owl(tmp_path / "owl")
    plain = load_teacher([f"hf:{folder}"], ONTOLOGY)
    tiled = load_teacher([f"proposals:hf:{folder}"], ONTOLOGY, tile=64, flip=True)
    assert isinstance(tiled, Tiled)
    (dense,) = tiled.dense([Image.new("RGB", (100, 80), "red")], ONTOLOGY.prompts)
    assert not dense.scores.any()
    assert len(dense)
    assert len({t.fingerprint for t in (plain, tiled)}) == 2  # type: ignore[attr-defined]
    with pytest.raises(UnknownName, match="model scheme 'nothing'"):
        load_teacher(["nothing:x"], ONTOLOGY)
    with pytest.raises(BadInput, match="no teacher"):
        load_teacher([], ONTOLOGY)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A real server with the blob teacher, on a free port."""
    import threading
    import time

    import httpx
    import uvicorn

    from serve.app import create_app

    running = uvicorn.Server(uvicorn.Config(create_app(open_detector=Blobs(), demo=False), port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    address = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    assert httpx.get(f"{address}/v1/models").status_code == 200
    yield address
    running.should_exit = True
    thread.join(10)


def test_a_running_server_is_a_teacher(server: str, gold: Dataset) -> None:
    remote = load_teacher([server], ONTOLOGY)
    assert isinstance(remote, ServedOpenDetector)
    image = gold[0].image()
    (there,), (here,) = remote.detect([image], CLASSES, 0.2), Blobs().detect([image], CLASSES, 0.2)
    assert len(here)
    np.testing.assert_allclose(there.boxes, here.boxes)
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-6)
    assert there.label_names == here.label_names
    assert remote.fingerprint == Blobs.fingerprint


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.client_calls.WAIT", 0.0)
    with pytest.raises(Unavailable, match="does not answer"):
        connect("http://127.0.0.1:9", ["open-detector"])
