"""Release gates: bars that a run's figures must clear, read from YAML, and the verdict with its reasons.

A gate file is a list (or a mapping with one key, `gates`) of

    - name: student keeps up with its teacher
      metric: distill.student_map50          # dotted path into the results
      op: ">="                               # >= <= > < ==
      bar: 0.95 * distill.teacher_map50      # a number, or arithmetic over numbers and other metrics
      why: a student that lost more than 5% would send the reviewers back to drawing boxes

A figure that is missing, is not a number or is not finite fails its gate: nothing passes for lack of evidence.
"""

from __future__ import annotations

import json
import math
import operator
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evals.arithmetic import evaluate
from foveal.errors import BadInput, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

Op = Literal[">=", "<=", ">", "<", "=="]
OPS: dict[Op, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


class Gate(BaseModel):
    """One bar: `metric op bar`, and why it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    metric: str = Field(pattern=r"^\w+(\.\w+)*$")
    op: Op
    bar: float | str
    why: str = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one gate; `bar` is the number the expression came to, None where it could not be worked out."""

    name: str
    metric: str
    value: float | None
    op: str
    bar: float | None
    bar_text: str  # the bar as the file states it
    passed: bool
    reason: str
    why: str


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
        """0 when the gate is open, 1 when it says no."""
        return 0 if self.passed else 1

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: `{"passed", "checks": [{name, metric, value, op, bar, bar_text, passed, reason, why}]}`."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    def table(self) -> Table:
        """The checks as a table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        held = sum(check.passed for check in self.checks)
        verdict = "open" if self.passed else "closed"
        table = Table(title=f"Gate {verdict}: {held} of {len(self.checks)} hold", title_justify="left")
        for column in ("", "gate", "value", "bar", "reason"):
            table.add_column(column, justify="right" if column in ("value", "bar") else "left")
        for check in self.checks:
            mark = Text("pass", style="green") if check.passed else Text("FAIL", style="bold red")
            bar = check.bar_text if check.bar is None else f"{check.op} {check.bar:.4g}"
            table.add_row(
                mark, Text(check.name), "none" if check.value is None else f"{check.value:.4g}", bar, Text(check.reason)
            )
        return table

    def write_json(self, path: Path) -> None:
        """The verdict for CI, as `as_dict`."""
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def write_junit(self, path: Path, suite: str = "foveal gate") -> None:
        """The verdict as a JUnit file: one test case a gate, its reason as the failure message."""
        failures = sum(not check.passed for check in self.checks)
        root = ElementTree.Element(
            "testsuite", name=suite, tests=str(len(self.checks)), failures=str(failures), errors="0", skipped="0"
        )
        for check in self.checks:
            case = ElementTree.SubElement(root, "testcase", classname=_xml(check.metric), name=_xml(check.name))
            if not check.passed:
                ElementTree.SubElement(case, "failure", message=_xml(check.reason)).text = _xml(check.why)
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def load(path: Path) -> list[Gate]:
    """The gates of a YAML file.

    Raises:
        BadInput: the file cannot be read.
        ConfigError: it is not YAML, or a gate is malformed; the gate and field are named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"cannot read the gate file {path}: {error}", remedy="Give the path of a YAML file of gates."
        ) from None
    try:
        document: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where is not None else ""
        raise ConfigError(f"{path}{line} is not valid YAML", received=" ".join(str(error).split())[:160]) from None
    if isinstance(document, dict) and list(cast(dict[Any, Any], document)) == ["gates"]:
        return parse(cast(dict[str, object], document)["gates"], source=str(path))
    return parse(document, source=str(path))


def parse(document: object, source: str = "gates") -> list[Gate]:
    """Gates from plain data (a list of mappings); raises ConfigError as `load`."""
    if not isinstance(document, list) or not document:
        raise ConfigError(
            f"{source} holds no gates",
            expected="a list of {name, metric, op, bar, why}",
            received=type(cast(object, document)).__name__,
        )
    gates: list[Gate] = []
    for number, entry in enumerate(cast(list[object], document), start=1):
        try:
            gate = Gate.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            named = cast(Mapping[str, Any], entry).get("name", number) if isinstance(entry, Mapping) else number
            field = ".".join(str(part) for part in first["loc"][:1]) or "entry"
            raise ConfigError(
                f"{source}: gate {named!r}, field {field!r}: {first['msg'].lower()}",
                expected=f"exactly the fields {', '.join(Gate.model_fields)} with op one of {' '.join(get_args(Op))}",
                received=repr(first.get("input"))[:120],
            ) from None
        try:
            evaluate(str(gate.bar), lambda _: math.nan)  # reads it through; NaN is never a false division by zero
        except BadInput as error:
            raise ConfigError(f"{source}: gate {gate.name!r}: {error}") from None
        gates.append(gate)
    names = [gate.name for gate in gates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{source}: two gates share the name {twice[0]!r}", remedy="Give each gate its own name.")
    return gates


def check(gates: Path | Sequence[Gate] | Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> GateReport:
    """Every gate against the figures of a run (nested mappings and lists, as in `report.json`)."""
    if isinstance(gates, Path):
        parsed = load(gates)
    else:
        parsed = parse([gate.model_dump() if isinstance(gate, Gate) else gate for gate in gates])
    return GateReport(tuple(_check(gate, results) for gate in parsed))


def lookup(results: Mapping[str, Any], path: str) -> float:
    """The number at a dotted path; integer parts index lists; booleans count as 0 and 1.

    Raises:
        BadInput: nothing stands there, or not a finite number.
    """
    here: Any = results
    walked: list[str] = []
    for part in path.split("."):
        at = ".".join(walked) or "the results"
        if isinstance(here, Mapping) and part in here:
            here = cast(Mapping[str, Any], here)[part]
        elif isinstance(here, list) and part.isdecimal() and int(part) < len(cast(list[Any], here)):
            here = cast(list[Any], here)[int(part)]
        else:
            names = sorted(str(key) for key in cast(Mapping[Any, Any], here)) if isinstance(here, Mapping) else []
            raise BadInput(
                f"{path} was not measured: {at} has no {part!r}",
                remedy=f"It has {', '.join(names[:12])}." if names else None,
            )
        walked.append(part)
    if not isinstance(here, int | float):
        raise BadInput(f"{path} is not a number", received=repr(here)[:80])
    if not math.isfinite(here):
        raise BadInput(f"{path} is not finite", received=str(here))
    return float(here)


def _check(gate: Gate, results: Mapping[str, Any]) -> Check:
    value = bar = None
    passed = False
    try:
        value = lookup(results, gate.metric)
        bar = evaluate(str(gate.bar), lambda path: lookup(results, path))
    except BadInput as error:
        reason = str(error)
    else:
        passed = OPS[gate.op](value, bar)
        reason = f"{value:.4g} {'holds' if passed else 'misses'} {gate.op} {bar:.4g}"
        if not passed and gate.op != "==":
            reason += f" by {abs(value - bar):.3g}"
    return Check(
        name=gate.name,
        metric=gate.metric,
        value=value,
        op=gate.op,
        bar=bar,
        bar_text=str(gate.bar),
        passed=passed,
        reason=reason,
        why=gate.why,
    )


def _xml(text: str) -> str:
    """Text without the control characters that XML 1.0 cannot carry."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", text)
