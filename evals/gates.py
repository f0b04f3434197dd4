"""Release gates, read from YAML, and the verdict over them with its reasons.

A gate file is a list (or a mapping with one key, `gates`) of entries, each of a kind told by its fields:

    - name: student keeps up with its teacher
      metric: distill.student_map50          # dotted path into the results
      op: ">="                               # >= <= > < ==
      bar: 0.95 * distill.teacher_map50      # a number, or arithmetic over numbers and other metrics
      why: a student that lost more than 5% would send the reviewers back to drawing boxes

    - name: nothing is lost at night
      metric: zero-shot.top1
      no_worse_than: incumbent               # or better_than; decided on the same items, by the 95% interval
      margin: 0.02
      where: {light: night}                  # optional: a slice
      why: the yard works at night

    - {name: may be shipped, licence_in: [Apache-2.0, MIT], why: the product is closed source}
    - {name: can be traced, provenance: complete, why: the auditor asks}

A figure that is missing, is not a number or is not finite fails its gate: nothing passes for lack of evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import ValidationError

from evals.bars import Gate, Op
from evals.evidence import Evidence, lookup
from evals.provenance import LicenceGate, ProvenanceGate
from evals.regression import RegressionGate
from evals.verdicts import Check, GateReport
from foveal.errors import BadInput, ConfigError

__all__ = ["KINDS", "AnyGate", "Check", "Evidence", "Gate", "GateReport", "check", "load", "lookup", "parse"]

AnyGate = Gate | RegressionGate | LicenceGate | ProvenanceGate
KINDS: dict[str, type[AnyGate]] = {  # the field that tells a kind
    "bar": Gate,
    "no_worse_than": RegressionGate,
    "better_than": RegressionGate,
    "licence_in": LicenceGate,
    "provenance": ProvenanceGate,
}


def load(path: Path) -> list[AnyGate]:
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


def parse(document: object, source: str = "gates") -> list[AnyGate]:
    """Gates from plain data (a list of mappings); raises ConfigError as `load`."""
    if not isinstance(document, list) or not document:
        raise ConfigError(
            f"{source} holds no gates",
            expected="a list of {name, metric, op, bar, why}",
            received=type(cast(object, document)).__name__,
        )
    gates: list[AnyGate] = []
    for number, entry in enumerate(cast(list[object], document), start=1):
        kind = _kind(entry)
        try:
            gate = kind.model_validate(entry)
        except ValidationError as error:
            raise _malformed(error, entry, number, kind, source) from None
        try:
            gate.verify()
        except BadInput as error:
            raise ConfigError(f"{source}: gate {gate.name!r}: {error}") from None
        gates.append(gate)
    names = [gate.name for gate in gates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{source}: two gates share the name {twice[0]!r}", remedy="Give each gate its own name.")
    return gates


def check(
    gates: Path | Sequence[AnyGate] | Sequence[Mapping[str, Any]], results: Evidence | Mapping[str, Any]
) -> GateReport:
    """Every gate against the figures of a run: nested mappings and lists, as in `report.json`, or `Evidence`."""
    if isinstance(gates, Path):
        parsed = load(gates)
    else:
        parsed = parse(
            [dict(gate) if isinstance(gate, Mapping) else gate.model_dump(exclude_unset=True) for gate in gates]
        )
    evidence = results if isinstance(results, Evidence) else Evidence(results)
    return GateReport(tuple(gate.decide(evidence) for gate in parsed))


def _kind(entry: object) -> type[AnyGate]:
    fields = cast(Mapping[str, Any], entry) if isinstance(entry, Mapping) else {}
    return next((kind for field, kind in KINDS.items() if field in fields), Gate)


def _malformed(error: ValidationError, entry: object, number: int, kind: type[AnyGate], source: str) -> ConfigError:
    first = error.errors()[0]
    named = cast(Mapping[str, Any], entry).get("name", number) if isinstance(entry, Mapping) else number
    field = ".".join(str(part) for part in first["loc"][:1]) or "entry"
    required = [name for name, info in kind.model_fields.items() if info.is_required()]
    optional = [name for name, info in kind.model_fields.items() if not info.is_required()]
    expected = f"the fields {', '.join(required)}"
    expected += f" with op one of {' '.join(get_args(Op))}" if kind is Gate else ""
    expected += f", and if wanted {', '.join(optional)}" if optional else ""
    return ConfigError(
        f"{source}: gate {named!r}, field {field!r}: {first['msg'].lower()}",
        expected=expected,
        received=repr(first.get("input"))[:120],
    )
