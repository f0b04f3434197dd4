from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from evals.arithmetic import evaluate
from evals.gates import check, load
from foveal.errors import BadInput, ConfigError

RESULTS = {
    "distill": {"teacher_map50": 0.80, "student_map50": 0.78, "int8_map50": 0.775, "teacher_ms": 80.0, "int8_ms": 8.0},
    "stages": [{"name": "render", "seconds": 3.5}],
    "prelabel": {"accepted_precision": math.nan, "note": "none"},
    "archive": {"ok": True},
}


def gate(metric: str, op: str, bar: float | str, name: str = "g") -> dict[str, object]:
    return {"name": name, "metric": metric, "op": op, "bar": bar, "why": "because"}


@pytest.mark.parametrize(
    ("entry", "passed"),
    [
        (gate("distill.student_map50", ">=", "0.95 * distill.teacher_map50"), True),
        (gate("distill.student_map50", ">=", "distill.teacher_map50"), False),
        (gate("distill.int8_map50", ">=", "distill.student_map50 - 0.01"), True),
        (gate("distill.teacher_ms", ">=", "8 * distill.int8_ms"), True),
        (gate("distill.teacher_ms", ">", "10 * distill.int8_ms"), False),
        (gate("distill.int8_ms", "<=", "distill.teacher_ms / (2 + 3) - -1"), True),
        (gate("stages.0.seconds", "<", 3.5), False),
        (gate("stages.0.seconds", "==", 3.5), True),
        (gate("archive.ok", "==", 1), True),
        (gate("stages.4.seconds", "<", 100), False),
        (gate("prelabel.accepted_precision", ">=", 0), False),
        (gate("prelabel.note", ">=", 0), False),
        (gate("nothing.here", "<=", 1e9), False),
        (gate("distill.student_map50", ">=", "distill.absent"), False),
        (gate("distill.student_map50", ">=", "1 / (distill.teacher_ms - 80)"), False),
        (gate("distill.student_map50", ">=", "0 / (distill.teacher_ms - distill.int8_ms)"), True),
        (gate("distill.student_map50", "<=", "1e308 * distill.teacher_ms"), False),
    ],
)
def test_gate_verdicts(entry: dict[str, object], passed: bool) -> None:
    report = check([entry], RESULTS)
    assert report.passed is passed
    assert report.exit_code == (0 if passed else 1)
    assert report.checks[0].reason


def test_missing_metric_names_what_is_there() -> None:
    report = check([gate("distill.map", ">=", 0)], RESULTS)
    assert "distill has no 'map'" in report.checks[0].reason
    assert "student_map50" in report.checks[0].reason


@pytest.mark.parametrize(
    "bar",
    [
        "",
        "1 +",
        "* 2",
        "(1",
        "1)",
        "1 2",
        "a..b",
        "a.b c.d",
        "__import__('os')",
        "2 ** 3",
        "a[0]",
        "1.2.3",
        "x;y",
        "1e",
    ],
)
def test_malformed_bars_are_refused_before_anything_is_compared(bar: str) -> None:
    with pytest.raises(ConfigError):
        check([gate("distill.student_map50", ">=", bar)], RESULTS)


@given(
    st.recursive(
        st.floats(0.001, 1000).map(lambda x: f"{x:.6f}"),
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        max_leaves=12,
    )
)
def test_arithmetic_agrees_with_python(expression: str) -> None:
    try:
        expected = eval(expression)  # a string this test built
    except ZeroDivisionError:
        with pytest.raises(BadInput):
            evaluate(expression, lambda _: 0.0)
        return
    assert evaluate(expression, lambda _: 0.0) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("- {name: a, metric: x, op: '>=', bar: 1}", "why"),
        ("- {name: a, metric: x, op: '=>', bar: 1, why: w}", "op"),
        ("- {name: a, metric: x, op: '>=', bar: 1, why: w, warn: yes}", "warn"),
        ("- {name: a, metric: x y, op: '>=', bar: 1, why: w}", "metric"),
        ("- {name: a, metric: x, op: '>', bar: 1, why: w}\n- {name: a, metric: y, op: '>', bar: 1, why: w}", "'a'"),
        ("[]", "no gates"),
        ("gates: 3", "no gates"),
        ("- {name: [", "YAML"),
        ("- 7", "gate 1"),
    ],
)
def test_malformed_files_name_the_gate_and_field(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=names):
        load(path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="absent"):
        load(tmp_path / "absent.yaml")


def test_report_forms_agree(tmp_path: Path) -> None:
    entries = [gate("distill.student_map50", ">=", 0.5, "good"), gate("distill.student_map50", ">=", 0.9, "b<&\x01ad")]
    report = check(entries, RESULTS)
    report.write_json(tmp_path / "gate.json")
    report.write_junit(tmp_path / "gate.xml")
    assert json.loads((tmp_path / "gate.json").read_text()) == json.loads(json.dumps(report.as_dict()))
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    cases = suite.findall("testcase")
    assert [case.find("failure") is not None for case in cases] == [False, True]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    printed = console.export_text()
    assert "1 of 2 hold" in printed
    assert "misses >= 0.9 by 0.12" in printed


def test_wrapped_list_and_no_gates(tmp_path: Path) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text("gates:\n  - {name: a, metric: archive.ok, op: '==', bar: 1, why: w}\n")
    assert check(path, RESULTS).passed
    with pytest.raises(ConfigError):
        check([], RESULTS)
