"""What else there is to say of a box (colour, state, ...): read by words, and only as far as the gold set lets one.

The likeness of a box's crop to "a red barrel", "a blue barrel", ... gives odds of its values; how often the gold set
has each value in that class is the prior. Values are written only where their probability is at least the threshold
from which the gold set proves the job's target precision, each gold image judged by the others; an attribute that never
gets there, or of which the gold set says nothing, stays open for annotators.

Shape letters: N boxes, V values of one attribute, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.ontology import Ontology
from evals.thresholds import threshold_for_precision
from foveal.detections import Attributes, FloatArray
from foveal.formats.attributes import as_text
from foveal.models import Encoder

Array = npt.NDArray[np.float64]
SHARPNESS = (0.1, 0.2, 0.4, 0.7, 1.0)  # of the encoder's own scale; the gold set chooses
SPREAD = 1.0  # of each value, added to what the gold set counts
Key = tuple[str, str]  # class and attribute


@dataclass(frozen=True, slots=True)
class Told:
    """A gold box whose attributes somebody has named."""

    image: str
    label: str
    crop: FloatArray  # (D,)
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Reading:
    """What the gold set says of one attribute, each image judged by the others."""

    boxes: int
    right: int
    threshold: float | None  # None: it is left open
    filled: int  # of these boxes, at that threshold
    filled_right: int
    reason: str


@dataclass(frozen=True, slots=True)
class AttributeReader:
    """Reads attributes of crops; see the module."""

    values: dict[Key, tuple[str, ...]]
    words: dict[Key, FloatArray]  # (V, D) unit length, times the encoder's scale
    sharpness: float
    priors: dict[Key, list[float]]  # log of each value's share
    readings: dict[str, Reading]

    @classmethod
    def fit(
        cls, ontology: Ontology, encoder: Encoder, gold: Sequence[Told], target: float, confidence: float | None
    ) -> AttributeReader:
        """The reader of an ontology's attributes, held to `target` precision on the gold boxes."""
        values = _values(ontology)
        words = _words(ontology, values, encoder)
        rows = {
            key: [(g, listed.index(as_text(g.attributes[key[1]]))) for g in gold if _says(g, key, listed)]
            for key, listed in values.items()
        }
        tried = {sharpness: _out_of_fold(rows, words, values, sharpness) for sharpness in SHARPNESS}
        sharpness = min(SHARPNESS, key=lambda s: _log_loss(tried[s]))
        priors = {key: _prior([v for _, v in rows[key]], len(listed)) for key, listed in values.items()}
        readings = {
            name: _reading(
                [one for key, judged in tried[sharpness].items() if key[1] == name for one in judged],
                target,
                confidence,
            )
            for name in dict.fromkeys(name for _, name in values)
        }
        return cls(values, words, sharpness, priors, readings)

    @classmethod
    def from_json(cls, told: dict[str, Any], ontology: Ontology, encoder: Encoder) -> AttributeReader:
        """The reader that `to_json` described."""
        values = _values(ontology)
        priors = {key: told["priors"][key[0]][key[1]] for key in values}
        readings = {name: Reading(**reading) for name, reading in told["readings"].items()}
        return cls(values, _words(ontology, values, encoder), told["sharpness"], priors, readings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        priors: dict[str, dict[str, list[float]]] = {}
        for (label, name), prior in self.priors.items():
            priors.setdefault(label, {})[name] = prior
        return {"sharpness": self.sharpness, "priors": priors, "readings": self.report()}

    def report(self) -> dict[str, Any]:
        """What the gold set says of each attribute."""
        fields = Reading.__slots__
        return {name: {f: getattr(reading, f) for f in fields} for name, reading in self.readings.items()}

    @property
    def warnings(self) -> list[str]:
        """Attributes that are left open, and why."""
        open_ = {name: r.reason for name, r in self.readings.items() if r.threshold is None}
        return [f"attribute {name!r} is left open: {reason}" for name, reason in open_.items()]

    def __call__(self, crops: FloatArray, labels: Sequence[str]) -> tuple[Attributes, ...]:
        """The attributes of boxes (N) by their crops' embeddings (N, D), those that are sure enough."""
        found: list[Attributes] = []
        for crop, label in zip(crops, labels, strict=True):
            said: Attributes = {}
            for key, listed in self.values.items():
                threshold = self.readings[key[1]].threshold
                if key[0] == label and threshold is not None:
                    odds = _odds(self.words[key] @ crop, self.sharpness, np.array(self.priors[key]))
                    if odds.max() >= threshold:
                        said[key[1]] = listed[int(odds.argmax())]
            found.append(said)
        return tuple(found)


def _values(ontology: Ontology) -> dict[Key, tuple[str, ...]]:
    schema = ontology.schema_of_attributes
    return {(label, name): tuple(values) for label, listed in schema.items() for name, values in listed.items()}


def _words(ontology: Ontology, values: dict[Key, tuple[str, ...]], encoder: Encoder) -> dict[Key, FloatArray]:
    asked = {c.name: c.asked[0] for c in ontology.classes}
    texts = [f"a {value} {asked[label]}" for (label, _), listed in values.items() for value in listed]
    told = encoder.encode_texts(texts) * np.float32(encoder.logit_scale)
    cuts = np.cumsum([len(listed) for listed in values.values()])[:-1]
    return dict(zip(values, np.split(told, cuts), strict=True))


def _says(gold: Told, key: Key, listed: tuple[str, ...]) -> bool:
    return gold.label == key[0] and key[1] in gold.attributes and as_text(gold.attributes[key[1]]) in listed


def _prior(seen: Sequence[int], count: int) -> list[float]:
    counts = np.bincount(np.array(seen, dtype=np.int64), minlength=count) + SPREAD
    return np.log(counts / counts.sum()).tolist()


def _odds(likeness: FloatArray, sharpness: float, prior: Array) -> Array:
    z = likeness.astype(np.float64) * sharpness + prior
    e = np.exp(z - z.max())
    return e / e.sum()


Judged = tuple[str, Array, int]  # image, odds (V,), the true value


def _out_of_fold(
    rows: dict[Key, list[tuple[Told, int]]],
    words: dict[Key, FloatArray],
    values: dict[Key, tuple[str, ...]],
    sharpness: float,
) -> dict[Key, list[Judged]]:
    """Each gold box with its odds, the prior made of the other images."""
    found: dict[Key, list[Judged]] = {}
    for key, told in rows.items():
        found[key] = []
        for gold, value in told:
            prior = np.array(_prior([v for g, v in told if g.image != gold.image], len(values[key])))
            found[key].append((gold.image, _odds(words[key] @ gold.crop, sharpness, prior), value))
    return found


def _log_loss(judged: dict[Key, list[Judged]]) -> float:
    return -sum(float(np.log(max(odds[value], 1e-9))) for one in judged.values() for _, odds, value in one)


def _reading(judged: Sequence[Judged], target: float, confidence: float | None) -> Reading:
    if not judged:
        return Reading(0, 0, None, 0, 0, "no gold box says its value")
    sure = np.array([float(odds.max()) for _, odds, _ in judged])
    right = np.array([int(odds.argmax()) == value for _, odds, value in judged])
    images = np.unique([image for image, _, _ in judged], return_inverse=True)[1]
    choice = threshold_for_precision(sure, right, target, confidence, groups=images)
    # A promise only: filled in wrongly, a value is worse than none.
    kept = choice.threshold is not None and (choice.proven or confidence is None)
    threshold = choice.threshold if kept else None
    filled = sure >= threshold if threshold is not None else np.zeros(len(sure), dtype=bool)
    return Reading(len(judged), int(right.sum()), threshold, int(filled.sum()), int(right[filled].sum()), choice.reason)
