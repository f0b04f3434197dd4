from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foveal.detections import FloatArray
from retrieval.query import EncodedQuery
from retrieval.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Verdict:
    probabilities: npt.NDArray[np.float64]
    reason: str | None


class Relevance:
    def __init__(self, file: Path) -> None:
        self.file = file

    def judge(
        self, view: Snapshot, asked: EncodedQuery, hits: FloatArray, top: FloatArray, kept: int
    ) -> Verdict | None:
        return None
