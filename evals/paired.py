"""Paired statistics of two models on the same items: interval, p-value and the smallest difference they could show.

Pictures are drawn with replacement, all items of one together, and both models are measured on each draw (Efron 1979,
clusters after Davison and Hinkley 1997, section 3.8). The intervals are expanded percentile ones: percentiles widened
as Student's t widens the normal's, and by the n / (n - 1) that a bootstrap's variance misses (Hesterberg, arXiv
1411.5279). How they, plain percentiles, BCa and Student's t cover the truth is in docs/decisions/0016.

Shape letters: N items, C pictures, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats  # pyright: ignore[reportMissingTypeStubs]

from evals.measures import Figures, Items, Measure, Weights

DRAWS = 1000
CONFIDENCE, POWER = 0.95, 0.80
ENDLESS = 1e9  # items that nobody will gather
BLOCK = 4_000_000  # weights held at once
SINGLE = 64  # items measured one by one at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, where it lies at 95% confidence, and what the data could have shown at all.

    `low` and `high` come from the bootstrap alone: of two equal results both are 0. Where so few pictures differ that
    one draw in twenty has none of them, the bootstrap does not know what it has not seen: `unseen` is then how far the
    truth may lie although no picture shows it (1 - 0.05 ** (1 / C), the rule of three), else 0. `detectable` is the
    smallest true change that would be called one with 80% power, never less than `unseen`.
    """

    value: float
    low: float
    high: float
    p: float  # two-sided, of the value being 0
    error: float  # standard error
    unseen: float
    detectable: float
    items: int
    pictures: int

    @property
    def widest(self) -> tuple[float, float]:
        """The interval, no narrower than what the pictures could have left unseen."""
        return min(self.low, self.value - self.unseen), max(self.high, self.value + self.unseen)

    def needed(self, distance: float) -> int | None:
        """About how many items tell, with 80% power, a change of `distance` from none; None when none are enough."""
        if not distance or not math.isfinite(self.detectable):
            return None
        spread = float(special.ndtri(1 - (1 - CONFIDENCE) / 2) + special.ndtri(POWER)) * self.error
        pictures = self.pictures * max((spread / distance) ** 2, self.unseen / abs(distance))
        items = pictures * self.items / self.pictures
        return math.ceil(items) if items < ENDLESS else None


@dataclass(frozen=True, slots=True)
class McNemar:
    """Items that only one of two models got right, and how surely that is no coincidence (McNemar 1947, exact)."""

    lost: int  # right before, wrong after
    gained: int
    p: float


def mcnemar(before: Sequence[Any] | NDArray[Any], after: Sequence[Any] | NDArray[Any]) -> McNemar:
    """The exact two-sided test on what is right (1) and wrong (0) of each item (N,), items being independent."""
    was, is_ = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    lost, gained = int((was & ~is_).sum()), int((~was & is_).sum())
    p = cast("float", stats.binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, float(p))


def draws(pictures: Sequence[Any], count: int = DRAWS, seed: int = 0) -> Iterator[Weights]:
    """Weights (b, N) of `count` bootstrap draws in blocks: how often each item's picture was drawn."""
    place = _places(pictures)
    total = int(place.max()) + 1 if len(place) else 0
    rng = np.random.default_rng(seed)
    most = max(1, BLOCK // max(len(place), 1))
    for start in range(0, count, most):
        rows = min(most, count - start)
        yield rng.multinomial(total, np.full(total, 1 / total), size=rows)[:, place].astype(np.float64)


def single(measure: Measure, items: Items, pictures: Sequence[Any], count: int = DRAWS) -> Interval:
    """A figure of one result with its interval."""
    return intervals({"": measure}, items, None, pictures, count)[""]


def difference(measure: Measure, before: Items, after: Items, pictures: Sequence[Any], count: int = DRAWS) -> Interval:
    """How a figure changes from one result to another over the same items, in the same order."""
    return intervals({"": measure}, before, after, pictures, count)[""]


def intervals(
    measures: Mapping[str, Measure],
    before: Items,
    after: Items | None,
    pictures: Sequence[Any],
    count: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each figure of `before`, or its change from there to `after`, with its interval; all over the same draws."""
    firsts: dict[str, list[Figures]] = {name: [] for name in measures}
    seconds: dict[str, list[Figures]] = {name: [] for name in measures}
    ones = [np.ones((1, len(pictures)))]
    for weights in chain(ones, draws(pictures, count, seed)):
        for name, measure in measures.items():
            firsts[name].append(measure.of(before, weights))
            if after is not None:
                seconds[name].append(measure.of(after, weights))
    clusters = len(set(map(str, pictures)))
    found: dict[str, Interval] = {}
    for name in measures:
        first = np.concatenate(firsts[name])
        drawn = np.concatenate(seconds[name]) - first if after is not None else first
        found[name] = _interval(drawn[0], drawn[1:], _whole(first, clusters), len(pictures), clusters)
    return found


def outcomes(measure: Measure, items: Items) -> NDArray[np.bool_] | None:
    """Whether each item is right (N,), where the figure is the share of right items; None for any other figure."""
    count = len(items["id"])
    values = alone(measure, items)
    if not count or not np.isin(values, (0.0, 1.0)).all():
        return None
    figure = measure.of(items, np.ones((1, count)))[0]
    return values > 0 if math.isclose(values.mean(), figure, abs_tol=1e-9) else None


def alone(measure: Measure, items: Items) -> Figures:
    """The figure of each item by itself (N,), NaN where an item alone has none."""
    values: list[Figures] = []
    for start in range(0, len(items["id"]), SINGLE):
        part = {name: column[start : start + SINGLE] for name, column in items.items()}
        values.append(measure.of(part, np.eye(len(part["id"]))))
    return np.concatenate(values) if values else np.zeros(0)


def _whole(drawn: Figures, pictures: int) -> float:
    """What the figure would lose if every picture turned from right to wrong, at the weight a picture has in it.

    Of a share of right pictures that is 1. Figures that weigh some pictures more, as the mean over classes does, vary
    more from draw to draw, at most by half of it over the root of the number of pictures.
    """
    value, known = float(drawn[0]), drawn[np.isfinite(drawn)]
    scale = 1.0 if 0 <= value <= 1 else abs(value)
    return max(scale, 2 * float(known.std()) * math.sqrt(pictures)) if len(known) else scale


def _interval(value: float, drawn: Figures, whole: float, items: int, pictures: int) -> Interval:
    known = np.sort(drawn[np.isfinite(drawn)])
    if not len(known) or not math.isfinite(value):
        nan = math.nan
        return Interval(float(value), nan, nan, nan, nan, nan, nan, items, pictures)
    freedom = max(pictures - 1, 1)
    widen = math.sqrt(pictures / freedom)
    tail = float(special.ndtr(-widen * special.stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2)))
    low, high = np.quantile(known, [tail, 1 - tail])
    if pictures < 2:  # one picture says nothing of others
        low, high = -math.inf, math.inf
    error = float(known.std()) * widen
    atom = max(float((known == end).mean()) for end in (known[0], known[-1]))  # draws that show no picture of a kind
    unseen = whole * (1 - (1 - CONFIDENCE) ** (1 / pictures)) if atom >= 1 - CONFIDENCE else 0.0
    enough = float(special.stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2) + special.stdtrit(freedom, POWER)) * error
    p = _p(known, widen, freedom) if pictures > 1 else 1.0
    floor = max(error, unseen / 2)
    far = min(int((known <= 0).sum()), int((known >= 0).sum()))
    if far < 3 and floor > 0:  # finer than draws can tell
        p = min(p, 2 * float(special.stdtr(freedom, -abs(value) / floor)))
    return Interval(float(value), float(low), float(high), p, error, unseen, max(enough, unseen), items, pictures)


def _p(drawn: Figures, widen: float, freedom: int) -> float:
    """Twice the share of draws on the far side of 0, read off the same widened scale as the interval's ends."""
    share = (min(float((drawn <= 0).sum()), float((drawn >= 0).sum())) + 1) / (len(drawn) + 1)
    t = float(special.ndtri(min(share, 0.5))) / widen
    return min(1.0, 2 * float(special.stdtr(freedom, t)))


def _places(pictures: Sequence[Any]) -> NDArray[np.intp]:
    """The number (N,) of each item's picture."""
    return np.unique(np.array([str(picture) for picture in pictures]), return_inverse=True)[1].reshape(-1)
