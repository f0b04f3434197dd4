"""The README's commands, run as printed: the loop on one's own folder, with stand-ins for what comes from a hub."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveal import world
from tests.command import COMMAND, Outcome, foveal, parse, shell

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OWN_FOLDER = README.split("## The same loop on your own folder")[1].split("\n## ")[0]

# What the README names -> what stands in for it here; everything else runs as printed.
STAND_INS = {
    "hf:google/siglip2-base-patch16-224": "bundled:clip",
    "hf:google/owlv2-base-patch16-ensemble": "bundled:owl",
    "hf:ustc-community/dfine-small-coco": "fcos-resnet",
    "max_seconds=3600": "max_seconds=2",
    "max_seconds=7200": "epochs=40",  # not seconds: how many steps those are depends on who else is at work
    "target_precision=0.9": "target_precision=0.5",  # two dozen gold images prove no more
    "bar: 0.6": "bar: 0.0",  # after seconds of training
}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", OWN_FOLDER, flags=re.DOTALL)


COMMANDS = [line for block in _blocks("bash") for line in block.splitlines() if line.strip()]
STEPS = [line for line in COMMANDS if line.startswith("foveal") and not line.startswith("foveal serve")]
(SERVE,) = (line for line in COMMANDS if line.startswith("foveal serve"))
QUESTIONS = [line for line in COMMANDS if line.startswith("curl")]


def _standing_in(line: str) -> str:
    for name, stand_in in STAND_INS.items():
        line = line.replace(name, stand_in)
    return line


def _run(line: str, *more: str) -> Outcome:
    """One printed line, `> file` included."""
    words = shlex.split(_standing_in(line))
    target = words[words.index(">") + 1] if ">" in words else None
    shown = foveal(*words[1 : words.index(">") if target else None], *more)
    if target:
        Path(target).write_text(shown.out)
    return shown


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder as the README lays it out."""
    folder = tmp_path_factory.mktemp("own")
    for name, count, seed in (("rendered", 16, 1), ("gold", 24, 2), ("test", 6, 3)):
        world.write(folder / name, "base", count, seed=seed, workers=1)  # the domain that the stand-ins know
    shutil.copy(min((folder / "test" / "images").iterdir()), folder / "test" / "images" / "0001.jpg")
    shutil.move(folder / "rendered" / "images", folder / "photos")
    said = (folder / "rendered" / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(said.replace('"images/', '"photos/'))
    shutil.rmtree(folder / "rendered")
    for block in _blocks("yaml"):
        title, _, content = block.partition("\n")
        (folder / title.removeprefix("# ")).write_text(_standing_in(content))
    return folder


@pytest.fixture(scope="module")
def looped(own_folder: Path) -> Path:
    """The folder after every printed step; each must have gone well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own_folder)
        for line in STEPS:
            shown = _run(line)
            assert shown.code == 0, f"{line}\n{shown.err}"
            assert shown.out.strip() or ">" in line
    return own_folder


def test_every_step_of_the_loop_runs_as_printed(looped: Path) -> None:
    made = {path.name for path in (looped / "runs").iterdir() if not path.name.startswith(".")}
    assert made >= {"adapter", "archive", "prelabels", "student", "student-onnx", "student-int8", "registry"}
    assert json.loads((looped / "runs" / "student.json").read_text())["images"] == 6
    assert (looped / "runs" / "prelabels" / "label_studio.json").is_file()


def test_nothing_printed_is_left_out() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"foveal", "curl"}
    assert len(STEPS) + len(QUESTIONS) + 1 == len(COMMANDS)
    for name in STAND_INS:
        assert name in OWN_FOLDER, f"{name} is no longer in the README"


def test_a_second_run_has_nothing_left_to_do(looped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(looped)
    for start in ("foveal adapt clip", "foveal distill"):
        (line,) = (line for line in STEPS if line.startswith(start))
        assert _run(line, "--json").json["already_done"] is True
    (line,) = (line for line in STEPS if line.startswith("foveal archive add"))
    assert _run(line, "--json").json["unchanged"] == 16


def _promised() -> dict[str, list[str]]:
    """Command -> the keys its row of the command table promises under --json."""
    table = README.split("| command | does | `--json` holds |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
    return {re.sub(r" [A-Z.]+", "", row[0].strip("`| ")): re.findall(r"`(\w+)`", row[2]) for row in rows}


def _commands(command: object, *path: str) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(("foveal", *path))
    for name, child in (children or {}).items():
        yield from _commands(child, *path, name)


def test_the_table_lists_every_command() -> None:
    assert set(_promised()) == {name.replace("prelabel run", "prelabel") for name in _commands(COMMAND)}


@pytest.mark.parametrize(
    "start", ["adapt clip", "archive add", "archive search", "prelabel", "distill", "eval detection", "gate"]
)
def test_json_holds_what_the_table_promises(looped: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.chdir(looped)
    line = next(line for line in STEPS if line.startswith(f"foveal {start}"))
    shown = foveal(*shlex.split(_standing_in(line.partition(" >")[0]))[1:], "--json")
    nested = {key for row in shown.json.get("hits", ()) for key in row}
    assert not set(_promised()[f"foveal {start}"]) - set(shown.json) - nested


def test_json_of_commands_that_are_not_in_the_loop(looped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(looped)
    for line in (
        "archive check --archive runs/archive",
        "eval retrieval --data captions.jsonl",
        "eval zero-shot --data gold",
        "registry list",
    ):
        shown = foveal(*line.split(), "--json")
        name = "foveal " + line.partition(" --")[0]
        assert not set(_promised()[name]) - set(shown.json), name


@pytest.fixture
def server(looped: Path) -> Iterator[str]:
    """The printed `foveal serve`, on a free port, as a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [*shell(*shlex.split(_standing_in(SERVE))[1:]), "--port", str(port)]
    process = subprocess.Popen(words, cwd=looped, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment())
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, process.communicate()[1].decode()
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said.decode()
    assert "Traceback" not in said.decode()


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README asks with curl, which is not installed")
def test_the_server_answers_what_is_printed(server: str, looped: Path) -> None:
    answers = {}
    for line in QUESTIONS:
        asked = _standing_in(line).replace("http://127.0.0.1:8000", server)
        shown = subprocess.run(["bash", "-c", asked], cwd=looped, capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0, shown.stderr
        answers[line.split("/v1/")[1].split()[0]] = json.loads(shown.stdout)
    (example,) = _blocks("python")
    program = _standing_in(example).replace("http://127.0.0.1:8000", server)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=looped, capture_output=True, text=True, timeout=60, env=_environment()
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 5
    assert len(answers["search"]["hits"]) == 5
    assert answers["detect"]["model"] == "detector"
    assert len(answers["embeddings"]["data"][0]["embedding"]) > 0


def test_what_the_readme_points_at_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)):
        assert f"\n{target}:" in makefile, target
    for room in re.findall(r"^\| `(\w+)/`", README, flags=re.MULTILINE):
        assert (ROOT / room).is_dir(), room


def test_every_example_is_accepted_by_what_it_is_for() -> None:
    from adapt.clip import ClipSettings
    from distill.ontology import Ontology
    from distill.train import TrainSettings
    from evals import gates, prices, scenario_suite
    from foveal.config import load
    from serve.quickstart import QuickstartSettings

    schemas = {"quickstart-short": QuickstartSettings, "adapt-siglip2": ClipSettings, "distill-dfine": TrainSettings}
    for path in (ROOT / "examples").glob("*.yaml"):
        if path.stem in schemas:
            assert load(schemas[path.stem], path)
        else:
            readers = {
                "ontology": Ontology.load, "gates": gates.load, "scenarios": scenario_suite.read, "prices": prices.read,
            }  # fmt: skip
            assert readers[path.stem](path)
        text = path.read_text().replace(" \\\n#        ", "")
        lines = [words for words in re.findall(r"^#     foveal (.*)", text, flags=re.MULTILINE) if path.name in words]
        assert [parse(shlex.split(line)).params for line in lines], path.name
