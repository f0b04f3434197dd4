"""Results side by side: the same items measured twice, each figure's change with its interval, and what flipped.

    comparison = compare(read(Path("incumbent.json")), read(Path("candidate.json")))
    comparison.changes["top1"].interval     # after - before: value, low, high, p, detectable

Only like is compared with like: results of other items, other data or another task are refused, with the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from evals.measures import Measure, measures_of
from evals.paired import CONFIDENCE, DRAWS, Interval, McNemar, alone, intervals, mcnemar, outcomes
from evals.results import Result
from foveal.errors import BadInput, UnknownName

FEWEST = 5  # items in a slice below which nothing is said of it
NAMED = 5  # ids that a refusal shows


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of two results; without `interval` where it does not follow from their items."""

    before: float
    after: float
    interval: Interval | None = None
    mcnemar: McNemar | None = None  # where items are right or wrong, one a picture
    higher_is_better: bool | None = None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `equal` or, where the interval holds 0, `unclear`."""
        if self.interval is None or self.higher_is_better is None:
            return "equal" if self.before == self.after else "unclear"
        if self.interval.low == self.interval.high == 0:
            return "equal"
        low, high = self.interval.widest
        return "unclear" if low <= 0 <= high else _word((low > 0) == self.higher_is_better)


@dataclass(frozen=True, slots=True)
class SliceChange:
    """The change of one figure on the items that share a word."""

    column: str
    word: str
    change: Change
    sure: bool  # it would stand out even among this many slices (Holm 1979)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of every figure from `before` to `after`.

    `lost` and `gained` are rows of items: that were right and are wrong and the other way round or, of a headline that
    knows no right, on which it fell and rose, those that moved most first.
    """

    before: Result
    after: Result  # its items in the order of `before`
    changes: dict[str, Change]
    slices: tuple[SliceChange, ...] = ()
    headline: str | None = None  # the figure that slices and flips are about
    lost: tuple[int, ...] = ()
    gained: tuple[int, ...] = ()
    flipped: bool = True  # whether the headline knows right from wrong

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: figures with intervals, slices, and the ids of items that flipped."""
        ids = self.before.items.get("id", [])
        return {
            "before": self.before.subject.reference,
            "after": self.after.subject.reference,
            "figures": {name: _fields(change) for name, change in self.changes.items()},
            "headline": self.headline,
            "slices": [{"slice": s.column, "value": s.word, "sure": s.sure, **_fields(s.change)} for s in self.slices],
            "lost": [ids[i] for i in self.lost],
            "gained": [ids[i] for i in self.gained],
        }


def compare(
    before: Result, after: Result, figures: Sequence[str] | None = None, *, slices: bool = True, draws: int = DRAWS
) -> Comparison:
    """Both results, figure by figure; slices and flipped items by the first figure that follows from items.

    Args:
        figures: the figures to compare, the most important one first; all that both results have when None.

    Raises:
        BadInput: the results are not of the same task, data and items.
        UnknownName: a figure that one of them lacks.
    """
    after = aligned(before, after)
    flat = {name: (old, flat_figures(after.figures)[name]) for name, old in flat_figures(before.figures).items()
            if name in flat_figures(after.figures)}  # fmt: skip
    measures = {name: measure for name, measure in measures_of(before).items() if name in flat}
    for figure in figures or ():
        if figure not in flat:
            raise UnknownName("figure in both results", figure, flat)
    order = list(figures) if figures else [*measures, *(name for name in flat if name not in measures)]
    chosen = {name: measures[name] for name in order if name in measures}
    found = intervals(chosen, before.items, after.items, before.images, draws) if chosen else {}
    changes = {name: _change(flat[name], chosen.get(name), found.get(name), before, after) for name in order}
    headline = next(iter(chosen), None)
    if headline is None:
        return Comparison(before, after, changes)
    lost, gained, flipped = moved(chosen[headline], before, after)
    parts = _slices(headline, before, after, draws) if slices else ()
    return Comparison(before, after, changes, parts, headline, lost, gained, flipped)


def aligned(before: Result, after: Result) -> Result:
    """`after` with its items in the order of `before`.

    Raises:
        BadInput: the two differ in task, items or data; says how.
    """
    if before.task != after.task:
        raise BadInput(
            "results of different tasks cannot be compared",
            expected=f"{before.task}, as of {before.subject.reference}",
            received=f"{after.task}, of {after.subject.reference}",
        )
    old, new = before.items.get("id", []), after.items.get("id", [])
    missing, added = _apart(old, new), _apart(new, old)
    if missing or added:
        raise BadInput(
            f"{before.subject.reference} and {after.subject.reference} were not measured on the same items",
            expected=f"the same {len(old):,} items",
            received=" and ".join(
                [f"{len(missing):,} missing ({_first(missing)})"] * bool(missing)
                + [f"{len(added):,} others ({_first(added)})"] * bool(added)
            ),
            remedy="Measure both on the same --data.",
        )
    if before.data.fingerprint != after.data.fingerprint:
        raise BadInput(
            f"{before.subject.reference} and {after.subject.reference} were measured on other images or other truth, "
            "though their items have the same ids",
            expected=f"data {before.data.fingerprint[:12]}, {before.data.source}",
            received=f"{after.data.fingerprint[:12]}, {after.data.source}",
            remedy="Measure both on the same --data.",
        )
    if old == new:
        return after
    place = {item: i for i, item in enumerate(new)}
    return part(after, [place[item] for item in old])


def part(result: Result, rows: Sequence[int]) -> Result:
    """The result with some of its items, in that order; its figures are still those of all."""
    return result.model_copy(
        update={
            "items": {name: [column[i] for i in rows] for name, column in result.items.items()},
            "slices": {name: [column[i] for i in rows] for name, column in result.slices.items()},
        }
    )


def moved(measure: Measure, before: Result, after: Result) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Rows that lost and rows that gained, most first, and whether that means right and wrong."""
    was, is_ = outcomes(measure, before.items), outcomes(measure, after.items)
    flipped = was is not None and is_ is not None
    if was is not None and is_ is not None:
        gain = is_.astype(np.float64) - was
    else:
        gain = np.nan_to_num(alone(measure, after.items) - alone(measure, before.items))
        gain = gain if measure.higher_is_better else -gain
    order = np.argsort(gain, kind="stable")
    lost = [i for i in order.tolist() if gain[i] < 0]
    return tuple(lost), tuple(i for i in np.argsort(-gain, kind="stable").tolist() if gain[i] > 0), flipped


def flat_figures(figures: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers among nested figures, by dotted name."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= flat_figures(cast("Mapping[str, Any]", value), f"{before}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{before}{name}"] = float(value)
    return found


def _change(
    values: tuple[float, float], measure: Measure | None, interval: Interval | None, before: Result, after: Result
) -> Change:
    if measure is None:
        return Change(*values)
    test = None
    if len(set(map(str, before.images))) == len(before):  # else items of one picture err together
        was, is_ = outcomes(measure, before.items), outcomes(measure, after.items)
        test = mcnemar(was, is_) if was is not None and is_ is not None else None
    return Change(*values, interval, test, measure.higher_is_better)


def _slices(figure: str, before: Result, after: Result, draws: int) -> tuple[SliceChange, ...]:
    """Each slice's change, the worst first."""
    measure = measures_of(before)[figure]
    found: list[tuple[str, str, Change]] = []
    for column, values in before.slices.items():
        words = sorted({value for value in values if value is not None})
        for word in words if len(words) > 1 else ():
            rows = [i for i, value in enumerate(values) if value == word]
            if len(rows) >= FEWEST:
                old, new = part(before, rows), part(after, rows)
                ones = np.ones((1, len(rows)))
                sides = float(measure.of(old.items, ones)[0]), float(measure.of(new.items, ones)[0])
                interval = intervals({"": measure}, old.items, new.items, old.images, draws)[""]
                found.append((column, word, Change(*sides, interval, None, measure.higher_is_better)))
    sure = _holm([change.interval.p if change.interval else 1.0 for *_, change in found])
    sign = 1 if measure.higher_is_better else -1
    rows_ = [SliceChange(*entry, flag) for entry, flag in zip(found, sure, strict=True)]
    return tuple(sorted(rows_, key=lambda s: sign * (s.change.after - s.change.before)))


def _holm(p: Sequence[float]) -> list[bool]:
    """Which of several hypotheses fall when all of them together may err no more than one alone would."""
    fallen = [False] * len(p)
    for place, i in enumerate(np.argsort(p, kind="stable").tolist()):
        if not p[i] <= (1 - CONFIDENCE) / (len(p) - place):
            break
        fallen[i] = True
    return fallen


def _fields(change: Change) -> dict[str, Any]:
    fields: dict[str, Any] = {"before": change.before, "after": change.after, "verdict": change.verdict}
    if (found := change.interval) is not None:
        fields |= {"difference": found.value, "low": found.low, "high": found.high, "p": found.p}
        fields |= {"detectable": found.detectable, "items": found.items, "pictures": found.pictures}
    if (test := change.mcnemar) is not None:
        fields["mcnemar"] = {"lost": test.lost, "gained": test.gained, "p": test.p}
    return fields


def _word(better: bool) -> str:
    return "better" if better else "worse"


def _apart(ids: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    known = set(others)
    return [item for item in ids if item not in known]


def _first(ids: Sequence[Any]) -> str:
    return ", ".join(map(str, ids[:NAMED])) + (", ..." if len(ids) > NAMED else "")
