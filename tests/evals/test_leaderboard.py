"""The leaderboard: what is filed, what may share a board, what is best and what cannot be told from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.filing import file_results, filed
from evals.leaderboard import Row, as_dict, boards, page, rows_of
from evals.results import Result
from foveal import artifacts
from foveal.errors import BadInput, UnknownName
from foveal.registry import Registry
from tests.command import foveal
from tests.evals.made import made

BEST = [1, 1, 1, 1, 0] * 40
CLOSE = [1, 1, 1, 0, 1] * 39 + [0, 1, 1, 1, 0]
FAR = [1, 0, 1, 0, 0] * 40


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    store = Registry(tmp_path / "registry")
    for number in range(3):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "model.onnx").write_text(f"weights {number}")
        metrics = {"gate_passed": number == 1} if number else {}
        artifacts.seal(folder, name="depot", kind="detector", licence="MIT", metrics=metrics)
        store.register(folder)
    return store


def row(label: str, result: Result) -> Row:
    return Row(label, result, "MIT", 1.0)


def test_only_what_can_be_compared_shares_a_board() -> None:
    rows = [
        row("a", made(BEST)),
        row("b", made(FAR)),
        row("c", made(BEST, data="d2")),
        row("d", made(BEST[:100])),
        row("e", made(BEST, name="night")),
        row("f", made(BEST, task="few-shot", name="zero-shot")),
    ]
    found = boards(rows)
    assert sorted(sorted(r.label for r in board.rows) for board in found) == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    with pytest.raises(BadInput, match="registry file"):
        boards([])


def test_the_best_leads_and_what_cannot_be_told_from_it_is_marked() -> None:
    (board,) = boards([row("far", made(FAR)), row("close", made(CLOSE)), row("best", made(BEST))])
    assert [r.label for r in board.rows] == ["best", "close", "far"]
    assert board.best["top1"] == {"best"}
    assert board.tied["top1"] == {"close"}
    assert board.figures == ("top1", "top5", "mean_class_accuracy")
    rows = as_dict([board])["boards"][0]["rows"]
    assert [(r["figures"]["top1"]["best"], r["figures"]["top1"]["tied"]) for r in rows] == [
        (True, False), (False, True), (False, False),
    ]  # fmt: skip
    assert rows[0]["figures"]["top1"]["low"] < 0.8 < rows[0]["figures"]["top1"]["high"]


def test_equals_are_all_the_best_and_items_in_any_order_are_the_same() -> None:
    turned = made(BEST)
    turned = turned.model_copy(update={"items": {name: column[::-1] for name, column in turned.items.items()}})
    (board,) = boards([row("one", made(BEST)), row("two", turned)])
    assert board.best["top1"] == {"one", "two"}


def test_figures_without_items_are_shown_bare() -> None:
    bare = made(BEST).model_copy(update={"items": {}, "figures": {"p95_ms": 9.0, "nested": {"x": 1.0}}})
    (board,) = boards([row("one", bare)])
    assert board.figures == ("p95_ms", "nested.x")
    assert as_dict([board])["boards"][0]["rows"][0]["figures"] == {"p95_ms": {"value": 9.0}, "nested.x": {"value": 1.0}}
    assert "9" in page([board]).html()


def test_what_is_filed_is_found_and_a_newer_measurement_takes_its_place(registry: Registry, tmp_path: Path) -> None:
    made(FAR).write(tmp_path / "first.json")
    made(BEST).write(tmp_path / "second.json")
    made(BEST, data="d2").write(tmp_path / "elsewhere.json")
    file_results(registry, "depot", 2, [tmp_path / "first.json"])
    file_results(registry, "depot", 2, [tmp_path / "second.json", tmp_path / "elsewhere.json"])
    assert [len(version.results) for version in filed(registry)] == [0, 2, 0]
    second = filed(registry)[1]
    assert {r.figures["top1"] for r in second.results} == {0.8}
    assert (second.label, second.licence, second.gate) == ("depot@2", "MIT", "pass")
    assert artifacts.read(registry.resolve("depot@2"))  # the version itself has not changed
    assert [v.gate for v in filed(registry)] == [None, "pass", "fail"]
    assert [r.label for r in rows_of(filed(registry), [("peer", made(FAR))])] == ["depot@2", "depot@2", "peer"]
    assert len(registry.list()) == 3


def test_what_is_no_result_or_of_another_version_is_not_filed(registry: Registry, tmp_path: Path) -> None:
    made(BEST, reference="artifact:depot@1").write(tmp_path / "one.json")
    (tmp_path / "report.json").write_text('{"AP50": 0.5}')
    with pytest.raises(BadInput, match="about another version"):
        file_results(registry, "depot", 2, [tmp_path / "one.json"])
    assert file_results(registry, "depot", 1, [tmp_path / "one.json"])
    with pytest.raises(BadInput, match="not a result"):
        file_results(registry, "depot", 2, [tmp_path / "report.json"])
    with pytest.raises(UnknownName, match="version of depot"):
        file_results(registry, "depot", 9, [tmp_path / "one.json"])


def test_the_commands_register_file_and_rank(tmp_path: Path) -> None:
    for name, right in (("new", BEST), ("old", FAR), ("peer", CLOSE)):
        made(right).write(tmp_path / f"{name}.json")
    home = ["--registry", str(tmp_path / "registry")]
    assert "no result is there" in foveal("registry", "leaderboard", *home).error
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_text(name)
        artifacts.seal(tmp_path / name, name="depot", kind="detector", licence="MIT")
    bad = foveal("registry", "register", str(tmp_path / "old"), "--results", str(tmp_path / "none.json"), *home)
    assert "cannot read the result" in bad.error
    assert foveal("registry", "list", *home, "--json").json["entries"] == []
    foveal("registry", "register", str(tmp_path / "old"), "--results", str(tmp_path / "old.json"), *home)
    assert foveal("registry", "register", str(tmp_path / "new"), *home).code == 0
    kept = foveal("registry", "file", "depot", "2", str(tmp_path / "new.json"), *home, "--json")
    assert len(kept.json["filed"]) == 1
    gates = tmp_path / "gates.yaml"
    for bar, code in ((0.9, 1), (0.7, 0)):
        gates.write_text(f"- {{name: g, metric: zero-shot.top1, op: '>=', bar: {bar}, why: w}}\n")
        line = ("registry", "promote", "depot", "2", "--gates", str(gates), "--results", str(tmp_path / "new.json"))
        assert foveal(*line, *home).code == code
    out = tmp_path / "seen" / "board.html"
    shown = foveal("registry", "leaderboard", str(tmp_path / "peer.json"), "--out", str(out), *home, "--json")
    (board,) = shown.json["boards"]
    assert [(r["model"], r["gate"], r["aliases"]) for r in board["rows"]] == [
        ("depot@2", "pass", ["production"]), ("peer", None, []), ("depot@1", None, []),
    ]  # fmt: skip
    html = out.read_text()
    assert "depot@2 (production)" in html
    printed = foveal("registry", "leaderboard", *home).out
    assert "depot@2 (production)" in printed
    assert "*" in printed
    verdict = json.loads((tmp_path / "registry" / "depot" / "results" / "2" / "gate-verdict.json").read_text())
    assert (verdict["gates"], verdict["passed"]) == ("gates.yaml", True)
