"""What became of the gates: one check each, and the verdict over all of them for people, CI and JUnit."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

Word = Literal["pass", "fail", "cannot tell"]
STYLES: dict[Word, str] = {"pass": "green", "fail": "bold red", "cannot tell": "bold yellow"}


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one gate; `bar` is the number the expression came to, None where it could not be worked out.

    `low` and `high` enclose, at 95% confidence, the value of an absolute bar, or of a comparison the change from the
    incumbent. `power` says what this many items could have shown, where the figure follows from items.
    """

    name: str
    metric: str
    value: float | None
    op: str
    bar: float | None
    bar_text: str  # the bar as the file states it
    passed: bool
    reason: str
    why: str
    verdict: Word | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None  # the smallest true change that would be noticed four times out of five
    needed: int | None = None  # items that would tell, where these cannot
    power: str | None = None
    weak: bool = False  # on this little data it would often pass what it should not

    @property
    def word(self) -> Word:
        """The verdict; of checks kept before there were three, by whether they passed."""
        return self.verdict or ("pass" if self.passed else "fail")

    @property
    def value_shown(self) -> str:
        """The value with its interval, signed where it is a change; `none` where nothing was measured."""
        if self.value is None:
            return "-" if self.op == "is" else "none"
        sign = "+" if self.op == "change" else ""
        inside = f" [{self.low:{sign}.3g}, {self.high:{sign}.3g}]" if self.low is not None else ""
        return f"{self.value:{sign}.4g}{inside}"

    @property
    def bar_shown(self) -> str:
        """The bar as a table shows it: the number it came to, else its own words."""
        return self.bar_text if self.bar is None else f"{self.op} {self.bar:.4g}"


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict over all gates of a file."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when every check passed; False for no checks at all."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0 when the gate is open, 1 when it says no or cannot tell."""
        return 0 if self.passed else 1

    @property
    def word(self) -> Word:
        """`fail` where any check fails, `cannot tell` where none fails but some cannot tell, else `pass`."""
        words = {check.word for check in self.checks}
        return "fail" if "fail" in words or not words else "cannot tell" if "cannot tell" in words else "pass"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: `{"passed", "verdict", "checks": [...]}`, a check with the fields of `Check`."""
        return {
            "passed": self.passed,
            "verdict": self.word,
            "checks": [{**asdict(check), "verdict": check.word} for check in self.checks],
        }

    def table(self) -> Table:
        """The checks as a table for a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        held = sum(check.passed for check in self.checks)
        state = "open" if self.passed else "closed"
        table = Table(
            title=f"Gate {state}: {held} of {len(self.checks)} hold",
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("", no_wrap=True)
        table.add_column("gate", max_width=28, overflow="fold")
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("bar", max_width=14, overflow="fold")
        table.add_column("reason", ratio=1, overflow="fold")
        for check in self.checks:
            word = "FAIL" if check.word == "fail" else check.word
            reason = f"{check.reason.rstrip('.')}. {check.power}" if check.weak else check.reason
            value = check.value_shown.partition(" ")[0]
            cells = (
                Text(word, style=STYLES[check.word]),
                Text(check.name),
                Text(value),
                Text(check.bar_shown),
                Text(reason),
            )
            table.add_row(*cells)
        return table

    def write_json(self, path: Path) -> None:
        """The verdict for CI, as `as_dict`."""
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def write_junit(self, path: Path, suite: str = "foveal gate") -> None:
        """The verdict as a JUnit file: one test case a gate, its reason as the failure message.

        What cannot be told is a failure of the type `cannot tell`; what a gate could not have shown is its system-out.
        """
        failures = sum(not check.passed for check in self.checks)
        root = ElementTree.Element(
            "testsuite", name=suite, tests=str(len(self.checks)), failures=str(failures), errors="0", skipped="0"
        )
        for check in self.checks:
            case = ElementTree.SubElement(root, "testcase", classname=_xml(check.metric), name=_xml(check.name))
            if not check.passed:
                failure = ElementTree.SubElement(case, "failure", message=_xml(check.reason), type=check.word)
                failure.text = _xml(check.why)
            if check.power:
                ElementTree.SubElement(case, "system-out").text = _xml(check.power)
        ElementTree.indent(root)
        path.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """Text without the control characters that XML 1.0 cannot carry."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", text)
