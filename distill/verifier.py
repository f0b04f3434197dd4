"""P(a proposed box is a correctly labelled object), from few gold images: a small conditional logit over evidence.

For box i and class c the log-odds against background are

    z[i, c] = sum_f slope[c, f] * per_class[i, c, f] + sum_g weight[g] * per_box[i, g] + offset[c]

with P(c | i) = exp z[i, c] / (1 + sum_c' exp z[i, c']): McFadden's choice model, so a rival class takes probability
from this one and the evidence may overrule the label the teacher gave. Slopes of evidence *for* a class cannot be
negative, those of evidence against a box cannot be positive; each class's slopes and offset are shrunk to those shared
by all classes, because a class has about ten gold boxes.

Shape letters: N boxes, K classes, F kinds of evidence a class, G a box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from foveal.errors import BadInput

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
BACKGROUND = -1


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of N boxes before deciding on them."""

    per_class: Array  # (N, K, F)
    per_box: Array  # (N, G)

    def __len__(self) -> int:
        return len(self.per_class)

    def __getitem__(self, rows: Any) -> Evidence:
        return Evidence(self.per_class[rows], self.per_box[rows])


@dataclass(frozen=True, slots=True)
class Verifier:
    """The fitted model; features are standardised with the gold set's own mean and spread."""

    slopes: Array  # (K, F)
    offsets: Array  # (K,)
    weights: Array  # (G,)
    class_centre: Array  # (F,)
    class_scale: Array  # (F,)
    box_centre: Array  # (G,)
    box_scale: Array  # (G,)

    @classmethod
    def fit(
        cls,
        evidence: Evidence,
        truth: Index,
        *,
        signs: tuple[int, ...],
        box_signs: tuple[int, ...],
        strength: float = 1.0,
    ) -> Verifier:
        """The most likely model under the shrinkage priors.

        Args:
            evidence: of the gold set's N candidate boxes.
            truth: (N,) true class of each box, `BACKGROUND` where it is no correct box.
            signs: of each of the F slopes: 1 only for, -1 only against, 0 free.
            box_signs: of each of the G weights, likewise.
            strength: multiplies all priors; larger is smoother.
        """
        n, k, f = evidence.per_class.shape
        g = evidence.per_box.shape[1]
        if truth.shape != (n,):
            raise BadInput("evidence and truth differ in length", expected=str(n), received=str(truth.shape))
        class_centre, class_scale = _spread(evidence.per_class.reshape(-1, f))
        box_centre, box_scale = _spread(evidence.per_box)
        x = (evidence.per_class - class_centre) / class_scale
        boxes = (evidence.per_box - box_centre) / box_scale
        chosen = np.zeros((n, k))
        hit = truth != BACKGROUND
        chosen[hit, truth[hit]] = 1.0

        # Parameters: shared slopes (F), slopes a class (K, F), shared offset, offsets a class (K), box weights (G).
        shapes = [(f,), (k, f), (1,), (k,), (g,)]
        cuts = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]

        def split(vector: Array) -> list[Array]:
            return [part.reshape(shape) for part, shape in zip(np.split(vector, cuts), shapes, strict=True)]

        shrink_shared, shrink_slopes, shrink_offsets, shrink_boxes = (strength * v for v in (0.1, 4.0, 1.0, 0.5))

        def loss(vector: Array) -> tuple[float, Array]:
            shared, slopes, base, offsets, weights = split(vector)
            z = np.einsum("nkf,kf->nk", x, slopes) + base + offsets + (boxes @ weights)[:, None]
            top = np.maximum(z.max(axis=1), 0.0)
            scaled = np.exp(z - top[:, None])
            total = scaled.sum(axis=1) + np.exp(-top)
            value = float(np.sum(np.log(total) + top) - np.sum(z * chosen))
            residual = scaled / total[:, None] - chosen
            away = slopes - shared
            value += 0.5 * (
                shrink_shared * float(shared @ shared)
                + shrink_slopes * float(np.sum(away**2))
                + shrink_offsets * float(offsets @ offsets)
                + shrink_boxes * float(weights @ weights)
            )
            gradient = [
                shrink_shared * shared - shrink_slopes * away.sum(axis=0),
                np.einsum("nk,nkf->kf", residual, x) + shrink_slopes * away,
                np.array([residual.sum()]),
                residual.sum(axis=0) + shrink_offsets * offsets,
                residual.sum(axis=1) @ boxes + shrink_boxes * weights,
            ]
            return value, np.concatenate([part.ravel() for part in gradient])

        limits = [_limits(s) for s in signs]
        bounds = limits + limits * k + [(None, None)] * (1 + k) + [_limits(s) for s in box_signs]
        start = np.zeros(sum(int(np.prod(s)) for s in shapes))
        # Vectors of a hundred numbers: BLAS threads only wait for each other, by a factor of fifty on a busy machine.
        with threadpool_limits(limits=1, user_api="blas"):
            found = cast("Any", minimize)(
                loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300, "ftol": 1e-7}
            )
        _, slopes, base, offsets, weights = split(found.x)
        return cls(slopes, offsets + base, weights, class_centre, class_scale, box_centre, box_scale)

    def probabilities(self, evidence: Evidence) -> Array:
        """P(class) of each box -> (N, K); what is missing to 1 is P(no correct box)."""
        x = (evidence.per_class - self.class_centre) / self.class_scale
        boxes = (evidence.per_box - self.box_centre) / self.box_scale
        z = np.einsum("nkf,kf->nk", x, self.slopes) + self.offsets + (boxes @ self.weights)[:, None]
        top = np.maximum(z.max(axis=1, initial=0.0), 0.0)[:, None]
        scaled = np.exp(z - top)
        return scaled / (scaled.sum(axis=1, keepdims=True) + np.exp(-top))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, for `from_json`."""
        return {name: getattr(self, name).tolist() for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verifier:
        """The model `to_json` described."""
        return cls(**{name: np.array(data[name], dtype=np.float64) for name in cls.__slots__})


def log_loss(probabilities: Array, truth: Index) -> float:
    """Mean negative log-likelihood of the true class or background, of `probabilities` (N, K)."""
    rows = np.arange(len(truth))
    missing = 1 - probabilities.sum(axis=1)
    likely = np.where(truth == BACKGROUND, missing, probabilities[rows, np.maximum(truth, 0)])
    return float(-np.mean(np.log(np.clip(likely, 1e-9, 1)))) if len(truth) else 0.0


def folds_by_image(images: Index, count: int) -> Index:
    """Fold (N,) of each box so that no image is in two folds; images dealt round by their number of boxes."""
    ids, sizes = np.unique(images, return_counts=True)
    ranked = ids[np.argsort(-sizes, kind="stable")]
    fold = {image: i % count for i, image in enumerate(ranked.tolist())}
    return np.array([fold[image] for image in images.tolist()], dtype=np.int64)


def _limits(sign: int) -> tuple[float | None, float | None]:
    return (0.0, None) if sign > 0 else (None, 0.0) if sign < 0 else (None, None)


def _spread(values: Array) -> tuple[Array, Array]:
    if not len(values):
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    centre: Array = np.mean(values, axis=0)
    spread: Array = np.std(values, axis=0)
    return centre, np.where(spread > 1e-9, spread, 1.0)
