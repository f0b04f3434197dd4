"""The command line as a whole: every command explains itself, its examples parse, and failures end in one line."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveal import __version__, artifacts
from foveal.printing import emit
from tests.command import COMMAND, foveal, parse, shell

ROOT = Path(__file__).parent.parent


def _walk(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """(full name, command) of every group and command below `command`."""
    yield " ".join(("foveal", *path)), command
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk(child, *path, name)


EVERYTHING = dict(_walk(COMMAND))
COMMANDS = {name: command for name, command in EVERYTHING.items() if not hasattr(command, "commands")}


def _examples(command: Any) -> list[list[str]]:
    lines = [line.strip() for line in (command.callback.__doc__ or "").splitlines()]
    return [shlex.split(line.removeprefix("Example:")) for line in lines if line.startswith("Example:")]


def test_the_promised_commands_are_there() -> None:
    promised = {
        "quickstart", "world", "adapt clip", "adapt vlm", "archive add", "archive search", "archive check",
        "prelabel run", "distill", "export", "eval detection", "eval retrieval", "eval zero-shot", "eval vqa", "gate",
        "registry list", "registry promote", "registry rollback", "serve",
    }  # fmt: skip
    assert not {f"foveal {name}" for name in promised} - set(COMMANDS)


@pytest.mark.parametrize("name", EVERYTHING)
def test_everything_has_help(name: str) -> None:
    command = EVERYTHING[name]
    assert command.help
    assert command.help.strip().endswith(".") or "Example:" in command.help
    lacking = [p.name for p in command.params if not (getattr(p, "help", None) or getattr(p, "hidden", False))]
    assert not lacking, f"{name}: no help for {lacking}"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_an_example_that_parses(name: str) -> None:
    examples = _examples(COMMANDS[name])
    assert examples, f"{name} has no Example: line"
    for words in examples:
        assert " ".join(words).startswith(name.removesuffix(" run"))  # what a group does without a command's name
        assert parse(words[1:]).command is COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_prints_json_when_asked(name: str) -> None:
    options = {opt for parameter in COMMANDS[name].params for opt in parameter.opts}
    assert "--json" in options


@pytest.mark.parametrize(
    "line",
    [
        "archive add a b --archive DIR --encoder REF",
        "archive search --archive DIR --text T --image F --filter EXPR -k 3",
        "archive check --archive DIR",
        "adapt clip --base REF --data SOURCE --out DIR",
        "adapt vlm --base REF --data SOURCE --data MORE --out DIR --validation SOURCE",
        "prelabel SOURCE --ontology FILE --gold FILE --teacher REF --out DIR",
        "distill DATASET --student NAME --out DIR",
        "export MODEL --to openvino --int8 DATA --out DIR",
        "export MODEL --to onnx",
        "eval detection --truth FILE --predictions FILE",
        "eval retrieval --data SOURCE",
        "eval zero-shot --data SOURCE",
        "eval vqa --data SOURCE --vlm REF",
        "gate FILE",
        "registry list",
        "registry promote NAME 2",
        "registry rollback NAME",
        "serve --archive DIR --detector REF --host 127.0.0.1 --port 0",
        "quickstart --fresh",
    ],
)
def test_promised_shapesparse(line: str) -> None:
    assert parse([*shlex.split(line), "--json"]).params["json_"] is True


def test_help_names_the_example_and_exits_with_zero() -> None:
    shown = foveal("archive", "search", "--help")
    assert shown.code == 0
    assert "Example:" in shown.out


def test_version() -> None:
    shown = foveal("--version")
    assert (shown.code, shown.out.strip()) == (0, f"foveal {__version__}")


@pytest.mark.parametrize(
    ("words", "meant"), [(["archve"], "archive"), (["archive", "serach"], "search"), (["distil"], "distill")]
)
def test_an_unknown_command_gets_a_suggestion(words: list[str], meant: str) -> None:
    shown = foveal(*words)
    assert shown.code == 2
    assert "Did you mean" in shown.err
    assert meant in shown.err


def test_an_unknown_option_is_refused() -> None:
    shown = foveal("archive", "search", "--archive", "a", "--txt", "b")
    assert shown.code == 2
    assert "--txt" in shown.err
    assert "Traceback" not in shown.err


def test_a_number_out_of_range_is_refused_before_anything_is_loaded() -> None:
    shown = foveal("archive", "search", "--archive", "a", "--text", "b", "-k", "0")
    assert shown.code == 2
    assert "-k" in shown.err


def test_a_failure_is_one_line_and_exit_code_one(tmp_path: Path) -> None:
    shown = foveal("registry", "promote", "depot", "2", "--registry", str(tmp_path))
    assert shown.code == 1
    assert "depot" in shown.error
    assert not shown.out


def test_results_go_to_stdout_and_the_rest_to_stderr(tmp_path: Path) -> None:
    shown = foveal("world", str(tmp_path / "w"), "--count", "2", "--size", "64", "--workers", "1", "--json")
    assert shown.code == 0
    assert len(shown.out.splitlines()) == 1
    assert shown.json == {"out": str(tmp_path / "w"), "images": 2}


def test_a_gate_says_no_by_exit_code(tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text('- {name: good, metric: a.b, op: ">=", bar: 0.5, why: because}\n')
    (tmp_path / "results.json").write_text('{"a": {"b": 0.4}}')
    line = ["gate", str(tmp_path / "gates.yaml"), "--results", str(tmp_path / "results.json"), "--json"]
    closed = foveal(*line)
    assert closed.code == 1
    assert closed.json["passed"] is False
    assert "error:" not in closed.err
    (tmp_path / "results.json").write_text('{"a": {"b": 0.6}}')
    assert foveal(*line).code == 0


def test_what_fails_a_gate_is_not_promoted(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.onnx").write_text("weights")
    artifacts.seal(tmp_path / "run", name="depot", kind="detector", metrics={"parity": {"matched": 1.0}})
    (tmp_path / "gates.yaml").write_text(
        '- {name: same, metric: parity.matched, op: ">=", bar: 0.99, why: it says what its source says}\n'
        '- {name: good, metric: AP50, op: ">=", bar: 0.5, why: because}\n'
    )
    home = ["--registry", str(tmp_path / "registry")]
    assert foveal("registry", "register", str(tmp_path / "run"), *home).code == 0
    plain = foveal("registry", "promote", "depot", "1", *home)
    assert plain.code == 1
    assert "has passed no gate" in plain.error
    line = ["registry", "promote", "depot", "1", "--gates", str(tmp_path / "gates.yaml"), *home, "--json"]
    for figure, code in (("0.4", 1), ("0.6", 0)):
        (tmp_path / "results.json").write_text(f'{{"AP50": {figure}}}')
        assert foveal(*line, "--results", str(tmp_path / "results.json")).code == code
    assert foveal("registry", "withdraw", "depot", "--alias", "production", *home).code == 0


def test_json_is_json_even_where_a_figure_is_missing(tmp_path: Path) -> None:
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "cone"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 1}])
    )
    shown = foveal(
        "eval",
        "detection",
        "--truth",
        str(tmp_path / "truth.json"),
        "--predictions",
        str(tmp_path / "found.json"),
        "--json",
    )
    scores = json.loads(shown.out.splitlines()[-1], parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert scores["AP50"] == pytest.approx(1.0)
    assert scores["APl"] is None


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_traceback_is_shown_only_under_debug(tmp_path: Path, place: str) -> None:
    line = ["registry", "promote", "depot", "2", "--registry", str(tmp_path)]
    asked = ["--debug", *line] if place == "before" else [*line, "--debug"]
    shown = subprocess.run(shell(*asked), capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "depot" in shown.stderr.splitlines()[-1]
    assert "Traceback" not in foveal(*line).err


def test_a_defect_is_one_line_too_and_says_how_to_report_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(self: object) -> None:
        raise KeyError("versions")

    monkeypatch.setattr("foveal.registry.Registry.list", broken)
    shown = foveal("registry", "list", "--registry", str(tmp_path))
    assert shown.code == 1
    assert "KeyError" in shown.error
    assert "--debug" in shown.error


def test_a_figure_that_json_cannot_hold_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": float("nan"), "b": [float("inf"), 1.5]}, True)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}


def test_people_get_every_character_that_programs_get(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"reasons": [{"path": "[bold]a.jpg"}], "none": []}, False)
    assert '[{"path": "[bold]a.jpg"}]' in capsys.readouterr().out


def test_an_interrupt_says_that_work_continues(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("foveal.registry.Registry.list", interrupted)
    shown = foveal("registry", "list", "--registry", str(tmp_path))
    assert shown.code == 130
    assert shown.err.startswith("interrupted")


@pytest.mark.parametrize("options", [[], ["--predictions", "p.json", "--detector", "onnx:d"]])
def test_detection_measures_one_thing(options: list[str]) -> None:
    shown = foveal("eval", "detection", "--truth", "truth.json", *options)
    assert shown.code == 1
    assert "--predictions FILE or --detector REF" in shown.error
