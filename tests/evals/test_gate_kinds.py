"""Gates over results: intervals and power of bars, no-regression by the paired bootstrap, licence, provenance."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from evals.evidence import Evidence, gather
from evals.gate_page import page
from evals.gates import check, parse
from evals.results import Result, by_name
from evals.verdicts import Check, GateReport
from foveal import artifacts
from foveal.errors import BadInput, ConfigError
from tests.command import foveal
from tests.evals.made import made

GOOD = [1, 1, 1, 1, 0] * 60
NIGHT: list[str | None] = ["night"] * 100 + ["day"] * 200


def evidence(new: Result, old: Result | None = None, artifact: Path | None = None) -> Evidence:
    figures = by_name([new]) | ({"incumbent": by_name([old])} if old else {})
    return Evidence(figures, {new.name: new}, {old.name: old} if old else {}, artifact)


def decide(gate: dict[str, Any], new: Result, old: Result | None = None) -> Check:
    return check([{"name": "g", "why": "because", **gate}], evidence(new, old)).checks[0]


def no_worse(margin: float | str = 0.05, **more: Any) -> dict[str, Any]:
    return {"metric": "zero-shot.top1", "no_worse_than": "incumbent", "margin": margin, **more}


def changed(right: list[int], lost: int, gained: int = 0) -> Result:
    """Another model, which loses and gains some of the items."""
    new = list(right)
    for i in [i for i, r in enumerate(right) if r][:lost]:
        new[i] = 0
    for i in [i for i, r in enumerate(right) if not r][:gained]:
        new[i] = 1
    return made(new, fingerprint="f2")


@pytest.mark.parametrize(
    ("lost", "gained", "margin", "verdict"),
    [
        (0, 0, 0.05, "pass"),  # the same answers by another model, enough of them
        (3, 3, 0.05, "pass"),
        (6, 4, 0.05, "pass"),
        (20, 8, 0.05, "cannot tell"),
        (40, 2, 0.05, "fail"),
        (0, 30, 0.05, "pass"),
        (0, 0, 0.005, "cannot tell"),  # one item in two hundred could be worse and no picture show it
        (8, 8, 0.0, "cannot tell"),
        (2, 30, 0.0, "pass"),
    ],
)
def test_no_worse_than_the_incumbent(lost: int, gained: int, margin: float, verdict: str) -> None:
    found = decide(no_worse(margin), changed(GOOD, lost, gained), made(GOOD))
    assert found.verdict == verdict, found.reason
    assert found.passed is (verdict == "pass")
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high  # type: ignore[operator]


def test_what_cannot_be_told_says_what_could_be_and_how_many_items_it_takes() -> None:
    found = decide(no_worse(0.05), changed(GOOD, 20, 8), made(GOOD))
    assert found.needed is not None
    assert found.needed > 300
    assert f"about {found.needed:,} items would" in found.reason
    assert "smallest change that would show is" in found.reason
    many = GOOD * (found.needed // 300 + 1)
    more = decide(no_worse(0.05), changed(many, 20 * len(many) // 300, 8 * len(many) // 300), made(many))
    assert more.verdict == "pass"
    assert more.needed is None
    on_the_line = decide(no_worse(0.05), changed(GOOD, 20, 5), made(GOOD))
    assert on_the_line.needed is None
    assert "no number would" in on_the_line.reason


def test_the_same_model_has_not_changed_however_few_the_items() -> None:
    few = [1, 1, 0]
    assert decide(no_worse(0.0), made(few), made(few)).verdict == "pass"
    assert decide(no_worse(0.05), made(few, fingerprint="f2"), made(few)).verdict == "cannot tell"
    assert decide(no_worse(0.05), made(few, fingerprint=None), made(few, fingerprint=None)).verdict == "cannot tell"


@pytest.mark.parametrize(("lost", "gained", "verdict"), [(2, 30, "pass"), (5, 9, "cannot tell"), (30, 2, "fail")])
def test_better_than_the_incumbent(lost: int, gained: int, verdict: str) -> None:
    gate = {"metric": "zero-shot.top1", "better_than": "incumbent"}
    assert decide(gate, changed(GOOD, lost, gained), made(GOOD)).verdict == verdict
    assert decide(gate, made(GOOD), made(GOOD)).verdict == "fail"  # equal is no better
    assert decide({**gate, "margin": 0.2}, changed(GOOD, lost, gained), made(GOOD)).verdict == "fail"


def test_a_smaller_figure_can_be_the_better_one() -> None:
    def ranked(shift: int) -> Result:
        ranks = [1 + i % 9 + shift for i in range(200)]
        items = {"id": [str(i) for i in range(200)], "rank": ranks, "precision": [0.5] * 200}
        figures = {"median_rank": float(sorted(ranks)[100])}
        subject = made([1], fingerprint=f"f{shift}").subject
        return made([1], name="search").model_copy(
            update={"task": "retrieval", "items": items, "figures": figures, "subject": subject}
        )

    gate = {"metric": "search.median_rank", "no_worse_than": "incumbent", "margin": 1.5}
    assert decide(gate, ranked(3), ranked(0)).verdict == "fail"
    assert decide(gate, ranked(0), ranked(3)).verdict == "pass"
    assert decide({**gate, "margin": "0.9 * incumbent.search.median_rank"}, ranked(3), ranked(0)).verdict == "pass"


def test_a_slice_is_held_alone() -> None:
    new = [0] * 40 + [1] * 60 + GOOD[100:]  # 40 lost at night
    sides = made(new, fingerprint="f2", slices={"light": NIGHT}), made([1] * 100 + GOOD[100:], slices={"light": NIGHT})
    night, day = (decide(no_worse(0.1, where={"light": word}), *sides) for word in ("night", "day"))
    assert (night.verdict, day.verdict) == ("fail", "pass")
    assert night.metric == "zero-shot.top1 (light: night)"
    bar = {"metric": "zero-shot.top1", "op": ">=", "bar": 0.7}
    assert decide({**bar, "where": {"light": "night"}}, *sides).value == pytest.approx(0.6)
    assert "one of day, night" in decide({**bar, "where": {"light": "dawn"}}, *sides).reason
    assert "one of light" in decide(no_worse(where={"camera": "one"}), *sides).reason


@pytest.mark.parametrize(
    ("new", "old", "metric", "said"),
    [
        (made([1]), None, "zero-shot.top1", "Give --incumbent FILE"),
        (made([1]), made([1], name="night"), "zero-shot.top1", "incumbent has no result 'zero-shot'; received night"),
        (made([1]), made([1]), "absent.top1", "candidate has no result 'absent'"),
        (made([1]), made([1]), "zero-shot.count", "does not follow from items"),
        (made([1, 0]), made([1]), "zero-shot.top1", "1 others"),
        (made([1], data="d2"), made([1]), "zero-shot.top1", "other images"),
    ],
)
def test_what_cannot_be_compared_fails_and_says_why(new: Result, old: Result | None, metric: str, said: str) -> None:
    found = decide(no_worse(metric=metric), new, old)
    assert found.verdict == "fail"
    assert said in found.reason


def test_undecided_may_be_let_through() -> None:
    sides = changed(GOOD, 20, 8), made(GOOD)
    report = check([{"name": "g", "why": "w", **no_worse(undecided="pass")}], evidence(*sides))
    assert report.passed
    assert report.checks[0].verdict == "cannot tell"
    blocked = check([{"name": "g", "why": "w", **no_worse()}], evidence(*sides))
    assert (blocked.passed, blocked.exit_code, blocked.word) == (False, 1, "cannot tell")


def test_a_bar_on_little_data_says_that_it_could_hardly_have_failed() -> None:
    bar = {"metric": "zero_shot.top1", "op": ">=", "bar": 0.7}
    few, many = decide(bar, made([1, 1, 1, 1, 0] * 4)), decide(bar, made(GOOD * 3))
    assert (few.verdict, few.weak, many.verdict, many.weak) == ("pass", True, "pass", False)
    assert few.power is not None
    assert "Too little data to say no (20 items in 20 pictures)" in few.power
    assert many.power is not None
    assert "it would fail with" in many.power
    noticed = decide({**bar, "notice": 0.2}, made([1, 1, 1, 1, 0] * 4))
    assert not noticed.weak
    assert decide({**bar, "notice": 0.001}, made(GOOD)).weak
    assert decide({**bar, "metric": "zero-shot.seconds"}, made(GOOD)).power is None


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ([1] * 59, "pass"),
        ([1] * 20, "cannot tell"),
        ([1, 1, 1, 0] * 10, "fail"),
        ([0] * 5, "fail"),
        (GOOD * 20, "fail"),
    ],
)
def test_a_confident_bar_asks_the_end_of_the_interval(right: list[int], verdict: str) -> None:
    gate = {"metric": "zero-shot.top1", "op": ">=", "bar": 0.95, "confident": True}
    found = decide(gate, made(right))
    assert found.verdict == verdict, found.reason
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.high <= 1
    assert decide({**gate, "metric": "zero-shot.count"}, made(right)).verdict == "fail"


def test_bars_may_name_the_incumbent() -> None:
    gate = {"metric": "zero-shot.seconds", "op": "<=", "bar": "1.1 * incumbent.zero_shot.seconds"}
    assert decide(gate, made([1]), made([1])).passed
    slow = made([1]).model_copy(update={"seconds": 2.0})
    assert not decide(gate, slow, made([1])).passed


@pytest.mark.parametrize(
    ("licences", "allowed", "passed"),
    [
        (["Apache-2.0", "mit"], ["MIT", "apache-2.0"], True),
        (["Apache-2.0", "AGPL-3.0"], ["MIT", "Apache-2.0"], False),
        (["Apache-2.0", None], ["Apache-2.0"], False),
        (["unknown"], ["unknown"], False),
    ],
)
def test_licences(licences: list[str | None], allowed: list[str], passed: bool) -> None:
    results = {str(i): made([1], name=str(i), licence=licence, reference=f"m{i}") for i, licence in enumerate(licences)}
    report = check([{"name": "g", "why": "w", "licence_in": allowed}], Evidence({}, results))
    assert report.passed is passed
    assert passed or any(f"m{len(licences) - 1}" in c.reason for c in report.checks)


def test_no_model_is_no_licence() -> None:
    assert not check([{"name": "g", "why": "w", "licence_in": ["MIT"]}], {"AP50": 0.5}).passed


def sealed(folder: Path, parents: tuple[str, ...] = ("p",), licence: str = "Apache-2.0") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text("weights")
    artifacts.seal(folder, name="depot", kind="detector", parents=parents, licence=licence)
    return folder


def test_provenance_is_complete_or_says_all_that_is_missing(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "run")
    gates: list[dict[str, Any]] = [
        {"name": "known", "why": "w", "provenance": "complete"},
        {"name": "free", "why": "w", "licence_in": ["Apache-2.0"]},
    ]
    of_it = made([1], fingerprint=artifacts.read(folder).fingerprint)
    assert check(gates, evidence(of_it, made([1]), folder)).passed
    by_path = made([1], reference=f"onnx:{folder}")
    assert check(gates, evidence(by_path, None, folder)).passed
    report = check(
        gates, evidence(made([1], fingerprint=None), made([1], data="d2"), sealed(tmp_path / "b", (), "GPL"))
    )
    known, free = report.checks
    for said in (
        "does not name the fingerprint of bundled:clip",
        "other data",
        "no parents",
        "no result was measured on",
    ):
        assert said in known.reason
    assert "is under GPL" in free.reason
    (folder / "model.onnx").write_text("others")
    assert "has changed" in check(gates, evidence(of_it, None, folder)).checks[0].reason
    assert not check(gates[:1], {"AP50": 0.5}).passed


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"metric": "a.b", "no_worse_than": "incumbent"}, "needs a margin"),
        ({"metric": "a.b", "no_worse_than": "yesterday", "margin": 0}, "no_worse_than"),
        ({"metric": "a.b", "no_worse_than": "incumbent", "better_than": "incumbent", "margin": 0}, "not both"),
        ({"metric": "a.b", "no_worse_than": "incumbent", "margin": -0.1}, "negative"),
        ({"metric": "a.b", "no_worse_than": "incumbent", "margin": "1 +"}, "at its end"),
        ({"metric": "a.b", "no_worse_than": "incumbent", "margin": 0, "bar": 1, "op": ">="}, "'no_worse_than': extra"),
        ({"licence_in": []}, "licence_in"),
        ({"licence_in": ["MIT"], "metric": "a.b"}, "metric"),
        ({"provenance": "partial"}, "provenance"),
        ({"metric": "a.b", "op": ">=", "bar": 1, "notice": 0}, "notice"),
    ],
)
def test_malformed_gates_name_the_field(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse([{"name": "g", "why": "w", **entry}])


def test_files_of_both_kinds_make_one_body_of_evidence(tmp_path: Path) -> None:
    made(GOOD).write(tmp_path / "a.json")
    made(GOOD, name="night").write(tmp_path / "b.json")
    (tmp_path / "report.json").write_text('{"distill": {"student_map50": 0.8}}')
    paths = [tmp_path / name for name in ("a.json", "b.json", "report.json")]
    found = gather(paths, [tmp_path / "a.json"], figures={"parity": 1.0, "distill": 0})
    assert found.value("zero_shot.top1") == found.value("incumbent.zero-shot.top1") == pytest.approx(0.8)
    assert found.value("night.seconds") == 1.5
    assert found.value("distill.student_map50") == 0.8
    assert found.value("parity") == 1.0
    made(GOOD, name="incumbent").write(tmp_path / "c.json")
    (tmp_path / "again.json").write_text('{"distill": {}}')
    (tmp_path / "clash.json").write_text('{"night": {}}')
    (tmp_path / "newer.json").write_text('{"schema": "foveal.result/9"}')
    (tmp_path / "list.json").write_text("[1]")
    for more, said in (
        ("a.json", "another --name"),
        ("c.json", "may not be called"),
        ("again.json", "two files"),
        ("clash.json", "both have 'night'"),
        ("newer.json", "received 'foveal.result/9'"),
        ("list.json", "holds no figures"),
        ("absent.json", "cannot read"),
    ):
        with pytest.raises(BadInput, match=said):
            gather([*paths, tmp_path / more])


def test_the_verdict_in_every_form(tmp_path: Path) -> None:
    gates = [
        {"name": "good", "why": "w", "metric": "zero-shot.top1", "op": ">=", "bar": 0.5},
        {"name": "doubt", "why": "reviewers redraw", **no_worse()},
        {"name": "free", "why": "w", "licence_in": ["MIT"]},
    ]
    held = evidence(changed(GOOD, 20, 8), made(GOOD))
    report = check(gates, held)
    assert [c.word for c in report.checks] == ["pass", "cannot tell", "fail"]
    assert report.word == "fail"
    assert [c["verdict"] for c in report.as_dict()["checks"]] == ["pass", "cannot tell", "fail"]
    assert GateReport(tuple(Check(**c) for c in json.loads(json.dumps(report.as_dict()))["checks"])) == report
    report.write_junit(tmp_path / "new" / "gate.xml")
    cases = ElementTree.parse(tmp_path / "new" / "gate.xml").getroot().findall("testcase")
    failures = [case.find("failure") for case in cases]
    assert [f.get("type") if f is not None else None for f in failures] == [None, "cannot tell", "fail"]
    assert cases[0].find("system-out") is not None
    html = page(report, held, "gates.yaml").html()
    for said in ("The gate says no", "What stops it: doubt, free", "cannot tell", "Candidate less incumbent"):
        assert said in html


def test_checks_of_older_reports_are_read() -> None:
    old = {"name": "n", "metric": "m", "value": 1.0, "op": ">=", "bar": 0.5, "bar_text": "0.5", "passed": True}
    assert Check(**old, reason="r", why="w").word == "pass"


def test_the_commands_take_results_and_an_incumbent(tmp_path: Path) -> None:
    made(GOOD).write(tmp_path / "old.json")
    changed(GOOD, 40).write(tmp_path / "new.json")
    (tmp_path / "gates.yaml").write_text(
        "- {name: kept, metric: zero-shot.top1, no_worse_than: incumbent, margin: 0.05, why: it replaces it}\n"
        "- {name: free, licence_in: [Apache-2.0], why: it is shipped}\n"
    )
    folder = sealed(tmp_path / "run")
    line = ["gate", str(tmp_path / "gates.yaml"), "--incumbent", str(tmp_path / "old.json"), "--artifact", str(folder)]
    more = ["--html", str(tmp_path / "seen" / "gate.html"), "--junit", str(tmp_path / "seen" / "gate.xml"), "--json"]
    worse = foveal(*line, "--results", str(tmp_path / "new.json"), *more)
    assert (worse.code, worse.json["verdict"]) == (1, "fail")
    assert (tmp_path / "seen" / "gate.html").is_file()
    assert (tmp_path / "seen" / "gate.xml").is_file()
    assert foveal(*line, "--results", str(tmp_path / "old.json")).code == 0
    home = ["--registry", str(tmp_path / "registry")]
    assert foveal("registry", "register", str(folder), *home).code == 0
    promote = ["registry", "promote", "depot", "1", *home, "--gates", str(tmp_path / "gates.yaml")]
    sides = ["--incumbent", str(tmp_path / "old.json"), "--results"]
    assert foveal(*promote, *sides, str(tmp_path / "new.json")).code == 1
    assert foveal(*promote, *sides, str(tmp_path / "old.json")).code == 0
