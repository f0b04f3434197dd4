"""How probable it is that a hit shows what a text asks for, and whether anything in the archive does.

The model is fitted by `retrieval.relevance_fit` and lies beside the archive's table, bound to its encoder. Without it,
and for queries without a text, nothing is claimed.

Shape letters: N hits, D embedding dimensions.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.calibration import Calibrator
from foveal.detections import FloatArray
from foveal.errors import IntegrityError
from retrieval import json_files
from retrieval.candidates import located
from retrieval.evidence import BACKGROUND, OF_HIT, OF_QUERY, Backdrop, Evidence
from retrieval.logistic import Logistic
from retrieval.query import EncodedQuery
from retrieval.snapshot import Snapshot

FORMAT = 1
REMEDY = "Run `foveal archive calibrate` to make it anew."
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is made of a query and its hits."""

    probabilities: Array  # (N,)
    reason: str | None  # why nothing matches


@dataclass(frozen=True, slots=True)
class Model:
    """From evidence to probabilities, for one encoder."""

    fingerprint: str
    contrast: FloatArray  # (C, D)
    scale: float  # of the encoder's logits
    presence: Logistic  # of the query's features: whether anything matches
    threshold: float | None  # of its log-odds, below which nothing does; None: nobody can tell, and nothing is refused
    hit: Logistic  # of a hit's features and the log-odds of presence
    calibrator: Calibrator | None  # of the probabilities that `hit` gives; None: as they are
    basis: Mapping[str, Any]  # what it was fitted to

    def present(self, evidence: Evidence) -> float:
        """Log-odds that anything matches."""
        return float(self.presence(evidence.query[None])[0])

    def probabilities(self, evidence: Evidence) -> Array:
        """P(relevant) (N,) of the hits."""
        if not len(evidence.hits):
            return np.zeros(0)
        stacked = np.full((len(evidence.hits), 1), self.present(evidence))
        raw = 1 / (1 + np.exp(-np.clip(self.hit(np.concatenate([evidence.hits, stacked], axis=1)), -30, 30)))
        return raw if self.calibrator is None else self.calibrator(raw)

    def write(self, file: Path) -> None:
        """Writes it as JSON with a checksum, atomically."""
        record = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "scale": self.scale,
            "presence": self.presence.as_json(),
            "threshold": self.threshold,
            "hit": self.hit.as_json(),
            "calibrator": None if self.calibrator is None else self.calibrator.to_json(),
            "basis": dict(self.basis),
            "dimension": self.contrast.shape[1],
            "contrast": base64.b64encode(self.contrast.astype("<f2").tobytes()).decode(),
        }
        json_files.write(file, record)

    @classmethod
    def read(cls, file: Path) -> Model | None:
        """The model in `file`; None when there is none, or another Foveal's.

        Raises:
            IntegrityError: it is damaged.
        """
        try:
            record = json_files.read(file, remedy=REMEDY)
            if record["format"] != FORMAT:
                return None
            contrast = np.frombuffer(base64.b64decode(record["contrast"]), "<f2").reshape(-1, record["dimension"])
            calibrator = record["calibrator"]
            found = cls(
                record["fingerprint"],
                contrast.astype(np.float32),
                float(record["scale"]),
                Logistic(**record["presence"]),
                None if record["threshold"] is None else float(record["threshold"]),
                Logistic(**record["hit"]),
                None if calibrator is None else Calibrator.from_json(calibrator),
                record["basis"],
            )
        except OSError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{file} is damaged: {error!r}", remedy=REMEDY) from error
        fits = len(found.presence.weights) == len(OF_QUERY) and len(found.hit.weights) == len(OF_HIT) + 1
        return found if fits else None


@dataclass(slots=True)
class Relevance:
    """The model of one generation of an archive, read anew when it changes, and the background of the last snapshot."""

    file: Path
    damage: str | None = field(default=None, init=False)  # why the file was not used when it was last read
    _stamp: tuple[int, int] | None = field(default=None, init=False)
    _model: Model | None = field(default=None, init=False)
    _backdrop: tuple[object, Backdrop] | None = field(default=None, init=False)

    def model(self) -> Model | None:
        """The model, when there is one that can be used."""
        try:
            status = self.file.stat()
            stamp = status.st_ino, status.st_mtime_ns
        except OSError:
            self.damage = None
            return None
        if stamp != self._stamp:
            self._stamp, self._backdrop = stamp, None
            try:
                self._model, self.damage = Model.read(self.file), None
            except IntegrityError as error:
                self._model, self.damage = None, str(error)
        return self._model

    def judge(
        self, view: Snapshot, asked: EncodedQuery, hits: FloatArray, best: FloatArray, kept: int
    ) -> Verdict | None:
        """A verdict on the hits (N, D); None where nothing can be told: without a model, or without a text to be like.

        A hit has to show every text that the query is to be like, and none that it is to be unlike. Whether anything
        matches is only decided where the query is all texts.

        Args:
            best: (., D) the most similar of all the images searched.
            kept: how many these were.
        """
        texts = [
            (part, vector)
            for part, vector in zip(asked.parts, asked.vectors, strict=True)
            if part.text is not None and vector is not None
        ]
        model = self.model() if any(part.weight > 0 for part, _ in texts) else None
        if model is None or model.fingerprint != asked.fingerprint or not len(best):
            return None
        backdrop = self._against(view, model)
        probability = np.ones(len(hits))
        present: list[float] = []
        for part, vector in texts:
            leading = best[np.argsort(-(best @ vector), kind="stable")]
            evidence = backdrop.look(str(part.text), vector, hits, leading, kept)
            chances = model.probabilities(evidence)
            if part.weight > 0:
                probability = np.minimum(probability, chances)
                present.append(model.present(evidence))
            else:
                probability = probability * (1 - chances)
        decided = all(part.text is not None for part in asked.parts if part.weight > 0)
        if not decided or model.threshold is None or max(present) >= model.threshold:
            return Verdict(probability, None)
        named = " or ".join(repr(part.text) for part, _ in texts if part.weight > 0)
        return Verdict(probability, f"no image shows {named}, as far as the encoder can tell")

    def _against(self, view: Snapshot, model: Model) -> Backdrop:
        if self._backdrop is None or self._backdrop[0] is not view.seqs:
            self._backdrop = view.seqs, Backdrop(background(view), model.contrast, model.scale)
        return self._backdrop[1]


def background(view: Snapshot, most: int = BACKGROUND) -> FloatArray:
    """Vectors (., D) of up to `most` images, spread evenly over the archive."""
    spread = view.seqs[np.linspace(0, len(view.seqs) - 1, min(most, len(view.seqs))).astype(np.int64)]
    last = int(view.seqs[-1]) if len(view.seqs) else -1
    return located(view, np.zeros(view.table.dimension, np.float32), spread, None, last).vectors
