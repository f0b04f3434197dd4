"""Whatever can propose boxes, as a teacher: by reference, alone or several together.

    bundled:owl, hf:org/model        zero-shot detectors of transformers: OWLv2, Grounding DINO, OmDet-Turbo
    vlm:REF                          a vision-language model, asked where each prompt is
    detector:REF                     a detector with classes of its own: a student's folder, onnx:, openvino:, artifact:
    http://host:port                 the open-vocabulary detector of a running `foveal serve`
    proposals:ANY OF THESE           its boxes without its labels: the exemplar memory alone says what they show, so
                                     that a few crops make a new class (arXiv 2409.10716)

Shape letters: Q boxes, P prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.fusion import Ensemble
from distill.ontology import Ontology
from distill.teacher import Dense, DenseDetector, dense_of, look
from distill.views import Flipped, Tiled
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput
from foveal.models import Detector, OpenDetector, load_detector, load_open_detector, load_vlm

if TYPE_CHECKING:
    from PIL.Image import Image

FLOOR = 0.01
Teacher = OpenDetector | DenseDetector


def load_teacher(
    references: Sequence[str],
    ontology: Ontology,
    *,
    tile: int | None = None,
    flip: bool = False,
    registry: Path | None = None,
) -> Teacher:
    """The teacher that `references` name; several become an `Ensemble`, the first leading.

    Args:
        tile: also look at tiles of this side, pixels.
        flip: also look at the mirrored images.
        registry: where `artifact:` references are looked up.

    Raises:
        UnknownName, BadInput, Unavailable: a reference names nothing, or a detector shares no class with the ontology.
    """
    if not references:
        raise BadInput("there is no teacher", expected="one reference or more")
    found = [_viewed(_load(reference, ontology, registry), tile, flip) for reference in references]
    return found[0] if len(found) == 1 else Ensemble(found)


def _viewed(teacher: Teacher, tile: int | None, flip: bool) -> Teacher:
    if flip:
        teacher = Flipped(teacher)
    return teacher if tile is None else Tiled(teacher, tile)


def _load(reference: str, ontology: Ontology, registry: Path | None) -> Teacher:
    kind, colon, rest = reference.partition(":")
    if colon and kind in KINDS:
        return KINDS[kind](rest, reference, ontology, registry)
    return load_open_detector(reference)


def _proposals(rest: str, _: str, ontology: Ontology, registry: Path | None) -> Teacher:
    return Proposals(_load(rest, ontology, registry))


def _grounding(rest: str, _: str, __: Ontology, ___: Path | None) -> Teacher:
    return Grounding(load_vlm(rest))


def _closed(rest: str, _: str, ontology: Ontology, registry: Path | None) -> Teacher:
    return Closed(closed_detector(rest, registry), ontology)


def closed_detector(reference: str, registry: Path | None = None) -> Detector:
    """A detector with classes of its own: a student's folder, or any reference of an exported one.

    Raises:
        UnknownName, BadInput, IntegrityError: as `load_student` and `load_detector`.
    """
    if Path(reference).is_dir():
        from distill.students import load_student

        return load_student(reference)
    return load_detector(reference, registry)


def _remote(_: str, reference: str, __: Ontology, ___: Path | None) -> Teacher:
    from foveal.served import ServedOpenDetector, connect

    served = connect(reference, ["open-detector"])
    assert isinstance(served, ServedOpenDetector)  # what `connect` was asked for
    return served


# Prefix of a reference -> what loads it from (what follows, the whole, ontology, registry).
KINDS: dict[str, Callable[[str, str, Ontology, Path | None], Teacher]] = {
    "proposals": _proposals,
    "vlm": _grounding,
    "detector": _closed,
    "http": _remote,
    "https": _remote,
}


class Proposals:
    """Another teacher's boxes, with no opinion on what they show."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.name = f"proposals of {_told(teacher, 'name')}"
        self.fingerprint = _hashed("proposals", _told(teacher, "fingerprint"))

    def dense(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Dense]:
        """One `Dense` an image, all scores 0; objectness is what the other teacher makes of the box at all."""
        found = look(self._teacher, images, prompts, FLOOR)
        return [replace(dense, scores=np.zeros_like(dense.scores), objectness=dense.worth) for dense in found]


class Closed:
    """A detector with classes of its own, which answer for the ontology's classes of the same name.

    Raises:
        BadInput: it shares none with the ontology.
    """

    def __init__(self, detector: Detector, ontology: Ontology) -> None:
        self._detector = detector
        asked = {c.name.casefold(): c.asked[0] for c in ontology.classes}
        asked |= {prompt.casefold(): prompt for prompt in ontology.prompts}
        self._prompt_of = {name: asked[name.casefold()] for name in detector.classes if name.casefold() in asked}
        if not self._prompt_of:
            raise BadInput(
                f"{detector.name} knows none of the ontology's classes",
                expected=", ".join(ontology.names),
                received=", ".join(detector.classes),
                remedy="Rename classes, or take its boxes alone: proposals:detector:...",
            )
        self.name = detector.name
        self.fingerprint = _hashed("closed", detector.fingerprint, *sorted(self._prompt_of.items()))

    def dense(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Dense]:
        """One `Dense` an image; boxes of classes that the ontology lacks stay, without a score."""
        place = {prompt: p for p, prompt in enumerate(prompts)}
        answers: list[Dense] = []
        for found in self._detector.detect(images, FLOOR):
            own = dense_of(found)
            scores = np.zeros((len(found), len(prompts)), dtype=np.float32)
            for column, name in enumerate(found.names):
                prompt = self._prompt_of.get(name)
                if prompt in place:
                    scores[:, place[prompt]] = np.maximum(scores[:, place[prompt]], own.scores[:, column])
            answers.append(Dense(found.boxes, scores, own.worth))
        return answers


class Grounding:
    """A vision-language model asked where each prompt is; its boxes have no scores: each counts 1 until calibrated."""

    def __init__(self, vlm: Any) -> None:
        self._vlm = vlm
        self.name, self.fingerprint = vlm.name, _hashed("grounding", vlm.fingerprint)

    def detect(self, images: Sequence[Image], prompts: Sequence[str], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image whose names are the prompts; `threshold` has nothing to act on."""
        answers: list[Detections] = []
        for image in images:
            boxes: list[FloatArray] = []
            labels: list[int] = []
            for p, prompt in enumerate(prompts):
                found = self._vlm.locate(image, prompt)
                boxes.append(found)
                labels += [p] * len(found)
            said = Detections.build(np.concatenate(boxes), 1.0, labels, prompts).clipped(image.width, image.height)
            sides = said.boxes[:, 2:] - said.boxes[:, :2]
            answers.append(said[sides.min(axis=1, initial=np.inf) > 0])
        return answers


def _told(teacher: Teacher, what: str) -> str:
    return str(getattr(teacher, what, type(teacher).__name__))


def _hashed(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
