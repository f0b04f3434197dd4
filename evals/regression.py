"""The comparing kind of gate: no worse than the incumbent by more than a margin, or better, on the same items."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from evals.arithmetic import evaluate
from evals.bars import METRIC, Entry, enough, measured, rows, shown
from evals.compare import aligned
from evals.evidence import INCUMBENT, Evidence
from evals.measures import Measure
from evals.paired import Interval, difference
from evals.results import Result
from evals.verdicts import Check, Word
from foveal.errors import BadInput


class RegressionGate(Entry):
    """A margin that the change from the incumbent must keep, decided by the paired bootstrap's 95% interval.

    It passes when the interval's bad end is within the margin, fails when the interval lies wholly beyond it, and
    cannot tell in between; nor may it pass on fewer pictures than could have shown a loss of the margin. The very same
    model (fingerprint and answers) has not changed, however few the items.
    """

    metric: str = Field(pattern=METRIC)
    no_worse_than: Literal["incumbent"] | None = None
    better_than: Literal["incumbent"] | None = None
    margin: float | str | None = None
    where: dict[str, str] = Field(default_factory=dict)  # the slice that it is about: column -> word
    undecided: Literal["block", "pass"] = "block"  # what becomes of `cannot tell`

    @model_validator(mode="after")
    def _one_of_two(self) -> RegressionGate:
        if (self.no_worse_than is None) == (self.better_than is None):
            raise ValueError("either no_worse_than or better_than is needed, not both")
        if self.no_worse_than is not None and self.margin is None:
            raise ValueError("no_worse_than needs a margin: how much worse is still the same to you")
        return self

    def verify(self) -> None:
        """Reads the margin through. Raises BadInput where it is malformed or negative."""
        if evaluate(str(self.margin or 0), lambda _: math.nan) < 0:
            raise BadInput("the margin is negative", expected="how much, as a number above 0")

    def decide(self, evidence: Evidence) -> Check:
        """The candidate's figure against the incumbent's."""
        value = interval = distance = None
        verdict: Word = "fail"
        try:
            old, new, measure = self._sides(evidence)
            margin = evaluate(str(self.margin or 0), evidence.value)
            interval = difference(measure, old.items, new.items, old.images)
            value = interval.value
            distance = self._distance(interval, margin, measure)
            verdict, reason = self._held(interval, margin, measure, same(old, new))
            before, after = evidence.value(f"{INCUMBENT}.{self.metric}"), evidence.value(self.metric)
            reason = reason if self.where else f"{before:.4g} became {after:.4g}: {reason}"
        except BadInput as error:
            reason = str(error)
        ends = interval.widest if interval else (None, None)
        return Check(
            name=self.name,
            metric=shown(self.metric, self.where),
            value=value,
            op="change",
            bar=None,
            bar_text=self._said(),
            passed=verdict == "pass" or (verdict == "cannot tell" and self.undecided == "pass"),
            reason=reason,
            why=self.why,
            verdict=verdict,
            low=ends[0],
            high=ends[1],
            detectable=interval.detectable if interval else None,
            needed=interval.needed(distance)
            if interval and distance is not None and verdict == "cannot tell"
            else None,
        )

    def _sides(self, evidence: Evidence) -> tuple[Result, Result, Measure]:
        if not evidence.incumbent:
            raise BadInput(f"{self.metric} has no incumbent to be held against", remedy=f"Give --{INCUMBENT} FILE.")
        new, measure = measured(evidence, self.metric)
        old, _ = measured(evidence, self.metric, incumbent=True)
        new = aligned(old, new)
        return rows(old, self.where), rows(new, self.where), measure

    def _held(self, interval: Interval, margin: float, measure: Measure, unchanged: bool) -> tuple[Word, str]:
        sign = 1 if measure.higher_is_better else -1
        ends = (interval.value, interval.value) if unchanged else interval.widest
        bad, good = sorted(sign * end for end in ends)
        threshold = margin if self.better_than else -margin
        low, high = interval.widest
        reason = f"a change of {interval.value:+.3g}, 95% interval [{low:+.3g}, {high:+.3g}]"
        if unchanged:
            reason = "the same model gave the same answers"
        if bad > threshold or (bad == threshold and not self.better_than):
            return "pass", reason
        if good < threshold or (unchanged and bad <= threshold):
            return "fail", f"{reason}, {'so it is no better' if self.better_than else 'all of it past the margin'}"
        needed = interval.needed(sign * interval.value - threshold)
        crossed = f"reaches across {threshold * sign:+.3g}" if threshold else "holds 0"
        return "cannot tell", (
            f"{reason}, which {crossed}; the smallest change that would show is {interval.detectable:.2g}; "
            f"{enough(interval, needed)}"
        )

    def _distance(self, interval: Interval, margin: float, measure: Measure) -> float:
        sign = 1 if measure.higher_is_better else -1
        return sign * interval.value - (margin if self.better_than else -margin)

    def _said(self) -> str:
        if self.better_than:
            return "better" if not self.margin else f"better by {self.margin}"
        return f"worse by {self.margin} at most" if self.margin else "no worse"


def same(old: Result, new: Result) -> bool:
    """Whether two results are of one model by its fingerprint, and it answered alike."""
    known = old.subject.fingerprint
    return known is not None and known == new.subject.fingerprint and old.items == new.items
