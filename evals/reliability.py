"""How far probabilities can be trusted: calibration errors, proper scores, reliability diagrams.

Shape letters: N predictions, K classes. `probabilities` (N,) in [0, 1]; `correct` (N,) bool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foveal.errors import BadInput

Array = npt.NDArray[np.float64]
TINY = float(np.finfo(np.float64).eps)


def checked(probabilities: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Array, Array]:
    """Probabilities (N,) and outcomes (N,) as float64.

    Raises:
        BadInput: shapes differ, or a probability is none.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape:
        raise BadInput("probabilities and outcomes differ in shape", expected=str(p.shape), received=str(y.shape))
    if len(p) and not (np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1):
        raise BadInput("probabilities out of range", expected="finite numbers in [0, 1]")
    return p, y


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    count: int
    confidence: float  # mean probability in the bin
    accuracy: float  # share that was correct


@dataclass(frozen=True, slots=True)
class ClassCalibration:
    """How far what is said of one class can be trusted."""

    count: int
    confidence: float  # mean probability
    accuracy: float  # share that was right
    ece: float
    brier: float


def reliability(probabilities: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> list[ReliabilityBin]:
    """The non-empty bins (low, high] of equal width, lowest first; the first bin also holds 0."""
    p, y = checked(probabilities, correct)
    edges = np.linspace(0, 1, bins + 1)
    return _binned(p, y, edges, np.clip(np.searchsorted(edges, p, side="left") - 1, 0, bins - 1))


def _binned(p: Array, y: Array, edges: Array, place: npt.NDArray[np.intp]) -> list[ReliabilityBin]:
    result: list[ReliabilityBin] = []
    for b in np.unique(place).tolist():
        inside = place == b
        result.append(
            ReliabilityBin(
                float(edges[b]),
                float(edges[b + 1]),
                int(inside.sum()),
                float(p[inside].mean()),
                float(y[inside].mean()),
            )
        )
    return result


def ece(probabilities: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> float:
    """Expected calibration error over bins of equal width (arXiv 1706.04599); 0 without predictions."""
    return _gap(reliability(probabilities, correct, bins))


def adaptive_ece(probabilities: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> float:
    """Calibration error over bins of equal count (arXiv 1904.01685): robust where scores crowd at the ends."""
    p, y = checked(probabilities, correct)
    if not len(p):
        return 0.0
    order = np.argsort(p, kind="stable")
    place = np.empty(len(p), dtype=np.intp)
    place[order] = np.arange(len(p)) * min(bins, len(p)) // len(p)
    return _gap(_binned(p, y, np.linspace(0, 1, bins + 1), place))


def _gap(bars: Sequence[ReliabilityBin]) -> float:
    total = sum(bar.count for bar in bars)
    return sum(bar.count * abs(bar.accuracy - bar.confidence) for bar in bars) / total if total else 0.0


def brier(probabilities: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean squared error of the probabilities; 0 without predictions."""
    p, y = checked(probabilities, correct)
    return float(np.mean((p - y) ** 2)) if len(p) else 0.0


def nll(probabilities: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean negative log-likelihood of the outcomes (log loss); 0 without predictions.

    A probability of 0 or 1 counts as one that is away from it by float64's precision, as scikit-learn has it.
    """
    p, y = checked(probabilities, correct)
    q = np.clip(p, TINY, 1 - TINY)
    return float(-np.mean(y * np.log(q) + (1 - y) * np.log1p(-q))) if len(p) else 0.0


def by_class(
    probabilities: npt.ArrayLike, correct: npt.ArrayLike, labels: Sequence[str], bins: int = 15
) -> dict[str, ClassCalibration]:
    """Calibration of the predictions of each class, the most frequent class first; `labels` (N,) name what was said."""
    p, y = checked(probabilities, correct)
    names = np.asarray(labels, dtype=object)
    if len(names) != len(p):
        raise BadInput("labels and probabilities differ in length", expected=str(len(p)), received=str(len(names)))
    counts = {str(name): int((names == name).sum()) for name in sorted(set(names.tolist()))}
    result: dict[str, ClassCalibration] = {}
    for name in sorted(counts, key=lambda name: -counts[name]):
        mine = names == name
        result[name] = ClassCalibration(
            counts[name],
            float(p[mine].mean()),
            float(y[mine].mean()),
            ece(p[mine], y[mine], bins),
            brier(p[mine], y[mine]),
        )
    return result


def multiclass_brier(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean over predictions of the squared distance between `probabilities` (N, K) and the true class, in [0, 2].

    The original definition (Brier 1950), over all classes; `labels` (N,) are the true classes by number.
    """
    p, truth = _distributions(probabilities, labels)
    return float(((p - np.eye(p.shape[1])[truth]) ** 2).sum(axis=1).mean()) if len(p) else 0.0


def multiclass_nll(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean negative log-probability (N, K) of the true classes `labels` (N,); limits as in `nll`."""
    p, truth = _distributions(probabilities, labels)
    return float(-np.log(np.clip(p[np.arange(len(p)), truth], TINY, 1)).mean()) if len(p) else 0.0


def multiclass_ece(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> float:
    """`ece` of the likeliest class of each row of `probabilities` (N, K), the confidence of arXiv 1706.04599."""
    p, truth = _distributions(probabilities, labels)
    return ece(p.max(axis=1), p.argmax(axis=1) == truth, bins) if len(p) else 0.0


def _distributions(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.int64]]:
    p, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or truth.shape != p.shape[:1]:
        raise BadInput(
            "class probabilities and labels do not fit",
            expected="(N, K) and (N,)",
            received=f"{p.shape} and {truth.shape}",
        )
    if len(p) and not (np.isfinite(p).all() and p.min() >= 0 and np.allclose(p.sum(axis=1), 1, atol=1e-4)):
        raise BadInput("class probabilities are none", expected="rows of finite numbers in [0, 1] that sum to 1")
    if len(p) and not (truth.min() >= 0 and truth.max() < p.shape[1]):
        raise BadInput("a label has no column", expected=f"0..{p.shape[1] - 1}", received=str(truth.max()))
    return p, truth
