"""The sample workflow: its commands parse, and run in order on the sample world; its gate opens for an equal model."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml

from evals import gates
from foveal import world
from tests.command import foveal, parse

FOLDER = Path(__file__).parents[2] / "examples" / "ci"
WORKFLOW: dict[Any, Any] = yaml.safe_load((FOLDER / "gate.yml").read_text())
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["gate"]["steps"]


def commands(variables: dict[str, str]) -> list[list[str]]:
    """The `foveal` lines of the workflow, without the word `foveal`, in the order they run."""
    lines = [line for step in STEPS for line in step.get("run", "").splitlines() if line.startswith("foveal ")]
    return [shlex.split(Template(line).substitute(variables))[1:] for line in lines]


def test_every_command_of_the_workflow_parses() -> None:
    lines = commands(WORKFLOW["env"])
    assert len(lines) == 7
    for line in lines:
        assert parse(line).params


def test_the_verdict_is_kept_whatever_it_is() -> None:
    (upload,) = [step for step in STEPS if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert upload["if"] == "always()"
    (gate,) = [line for line in commands(WORKFLOW["env"]) if line[0] == "gate"]
    for option in ("--junit", "--html"):
        assert gate[gate.index(option) + 1].startswith(f"{upload['with']['path']}/")
    assert STEPS.index(upload) == len(STEPS) - 1


def test_the_gates_are_of_every_kind() -> None:
    found = gates.load(FOLDER / "gates.yaml")
    assert {type(gate) for gate in found} == set(gates.KINDS.values())
    text = (FOLDER / "gates.yaml").read_text()
    (line,) = [line.removeprefix("#     foveal ") for line in text.splitlines() if line.startswith("#     foveal ")]
    assert parse(shlex.split(line)).params


@pytest.mark.slow
def test_the_workflow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world.write(tmp_path / "data" / "test", "base", 64, seed=4, workers=2)
    (tmp_path / "gates.yaml").write_bytes((FOLDER / "gates.yaml").read_bytes())
    for line in commands({"CANDIDATE": "bundled:clip", "INCUMBENT": "bundled:clip", "DATA": "data/test"}):
        shown = foveal(*line)
        assert shown.code == 0, f"{line}\n{shown.out}\n{shown.err}"
    suite = ElementTree.parse(tmp_path / "results" / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("7", "0")
    assert "The gate is open" in (tmp_path / "results" / "gate.html").read_text()
    assert json.loads((tmp_path / "results" / "zero-shot.json").read_text())["comparisons"]
