"""The plain kind of gate: a bar that a figure must clear."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from scipy import special  # pyright: ignore[reportMissingTypeStubs]

from evals.arithmetic import evaluate
from evals.compare import part
from evals.evidence import Evidence
from evals.measures import Measure, measures_of
from evals.paired import Interval, single
from evals.results import Result
from evals.verdicts import Check, Word
from foveal.errors import BadInput

Op = Literal[">=", "<=", ">", "<", "=="]
OPS: dict[Op, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
METRIC = r"^\w[\w-]*(\.\w[\w-]*)*$"
NOTICE = 0.05  # of what lies beyond the bar: how much worse a truth a gate should notice
WEAK = 0.2  # probability of passing all the same from which a gate is called weak


class Entry(BaseModel):
    """What all kinds of gates state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    why: str = Field(min_length=1)


class Gate(Entry):
    """One bar: `metric op bar`, and why it stands."""

    metric: str = Field(pattern=METRIC)
    op: Op
    bar: float | str
    where: dict[str, str] = Field(default_factory=dict)  # the slice that it is about: column -> word
    confident: bool = False  # the end of the 95% interval must clear the bar, not only the value
    notice: float | None = Field(None, gt=0)  # how much worse than the bar a truth should be noticed

    def verify(self) -> None:
        """Reads the bar through; NaN is never a false division by zero. Raises BadInput where it is malformed."""
        evaluate(str(self.bar), lambda _: float("nan"))

    def decide(self, evidence: Evidence) -> Check:
        """The bar against the figure, with its interval and power where the figure follows from items."""
        value = bar = interval = None
        verdict: Word = "fail"
        try:
            value, interval = self._value(evidence)
            bar = evaluate(str(self.bar), evidence.value)
        except BadInput as error:
            reason = str(error)
        else:
            verdict, reason = self._held(value, bar, interval)
        ends = _ends(interval) if interval else (None, None)
        power, weak = self._power(bar, interval)
        return Check(
            name=self.name,
            metric=shown(self.metric, self.where),
            value=value,
            op=self.op,
            bar=bar,
            bar_text=str(self.bar),
            passed=verdict == "pass",
            reason=reason,
            why=self.why,
            verdict=verdict,
            low=ends[0],
            high=ends[1],
            needed=self._needed(value, bar, interval) if verdict == "cannot tell" else None,
            power=power,
            weak=weak,
        )

    def _value(self, evidence: Evidence) -> tuple[float, Interval | None]:
        """The figure, and its interval where it follows from the items of a result."""
        try:
            result, measure = measured(evidence, self.metric)
        except BadInput:
            if self.where or self.confident:
                raise
            return evidence.value(self.metric), None
        chosen = rows(result, self.where)
        interval = single(measure, chosen.items, chosen.images)
        return interval.value if self.where else evidence.value(self.metric), interval

    def _needed(self, value: float | None, bar: float | None, interval: Interval | None) -> int | None:
        return interval.needed(value - bar) if interval is not None and value is not None and bar is not None else None

    def _held(self, value: float, bar: float, interval: Interval | None) -> tuple[Word, str]:
        held = OPS[self.op](value, bar)
        reason = f"{value:.4g} {'holds' if held else 'misses'} {self.op} {bar:.4g}"
        if not held and self.op != "==":
            reason += f" by {abs(value - bar):.3g}"
        if not self.confident or interval is None or self.op == "==":
            return "pass" if held else "fail", reason
        ends = _ends(interval)
        sides = [OPS[self.op](end, bar) for end in ends]
        reason += f", the truth lies in [{ends[0]:.4g}, {ends[1]:.4g}]"
        if all(sides):
            return "pass", reason
        if not any(sides):
            return "fail", reason
        return "cannot tell", f"{reason}: {enough(interval, self._needed(value, bar, interval))}"

    def _power(self, bar: float | None, interval: Interval | None) -> tuple[str | None, bool]:
        """How surely the gate says no to a truth that is a stated amount worse than the bar; whether too seldom."""
        if interval is None or bar is None or self.confident or self.op == "==" or not math.isfinite(interval.error):
            return None, False
        beyond = 1 - bar if self.op in ("<=", "<") and 0 <= bar < 1 else abs(bar)
        notice = self.notice or NOTICE * beyond
        spread = max(interval.error, interval.unseen / 2)
        passing = float(special.ndtr(-notice / spread)) if spread else 0.0
        what = f"were the truth {notice:.2g} worse than the bar, it would"
        if passing > WEAK:
            of = f"{interval.items:,} items in {interval.pictures:,} pictures"
            return f"Too little data to say no ({of}): {what} pass all the same with {passing:.0%} probability.", True
        return f"{what[0].upper()}{what[1:]} fail with {1 - passing:.0%} probability.", False


def measured(evidence: Evidence, metric: str, *, incumbent: bool = False) -> tuple[Result, Measure]:
    """The result that a metric leads into, and the measure of its figure.

    Raises:
        BadInput: there is no such result, or its items do not tell the figure.
    """
    result, figure = evidence.origin(metric, incumbent=incumbent)
    measures = measures_of(result)
    if figure not in measures:
        said = f"Those that do: {', '.join(measures)}." if measures else "It kept no items."
        raise BadInput(f"{metric} does not follow from items, so it has no interval", remedy=said)
    return result, measures[figure]


def rows(result: Result, where: dict[str, str]) -> Result:
    """The items of a slice.

    Raises:
        BadInput: there is no such slice, or it is empty.
    """
    if not where:
        return result
    for column, word in where.items():
        known = result.slices.get(column)
        if known is None or word not in known:
            choices = sorted(result.slices) if known is None else sorted({w for w in known if w is not None})
            raise BadInput(
                f"{result.name} has no slice {column}: {word}", expected=f"one of {', '.join(choices) or 'no slices'}"
            )
    chosen = [i for i in range(len(result)) if all(result.slices[c][i] == word for c, word in where.items())]
    if not chosen:
        raise BadInput(f"no item of {result.name} is in the slice {where}")
    return part(result, chosen)


def _ends(interval: Interval) -> tuple[float, float]:
    """The ends of a figure's interval; of a share they are shares too."""
    low, high = interval.widest
    return max(low, 0.0) if interval.value >= 0 else low, min(high, 1.0) if interval.high <= 1 else high


def shown(metric: str, where: dict[str, str]) -> str:
    """A metric with its slice: `zero-shot.top1 (light: night)`."""
    return f"{metric} ({', '.join(f'{c}: {w}' for c, w in where.items())})" if where else metric


def enough(interval: Interval, needed: int | None) -> str:
    """What there is, and what it would take."""
    have = f"{interval.items:,} items in {interval.pictures:,} pictures"
    if needed is None:
        return f"{have} cannot tell, and no number would while the truth lies on the bar"
    return f"{have} cannot tell, about {needed:,} items would"
