"""The house rules a reader can rely on: imports go one way, importing is cheap and does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["foveal", "evals", "retrieval", "adapt", "distill", "serve"]
COMMAND_LINE = [Path(f"foveal/{p.name}") for p in sorted((ROOT / "foveal").glob("*cli.py"))]
MODULES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def _rooms_imported(path: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    return {name.split(".")[0] for name in names} & set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_rooms_to_its_left(path: Path) -> None:
    relative = path.relative_to(ROOT)
    if relative in COMMAND_LINE:
        return
    allowed = set(ROOMS[: ROOMS.index(relative.parts[0]) + 1])
    assert _rooms_imported(path) <= allowed


@pytest.mark.parametrize("path", COMMAND_LINE, ids=str)
def test_only_the_command_line_knows_every_room_and_imports_them_inside_commands(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text())
    top = {(node.module or "").split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not top & set(ROOMS[1:])


@pytest.mark.parametrize("module", ["foveal", "foveal.cli", "foveal.dataset", "foveal.artifacts", "foveal.config"])
def test_nouns_and_command_line_import_no_framework(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers', 'fastapi', 'gradio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_no_file_unpickles_or_shells_out() -> None:
    banned = ("pickle.load", "torch.load(", "weights_only=False", "shell=True", "trust_remote_code=True", "yaml.load(")
    for path in MODULES:
        text = path.read_text()
        if path.name == "ray_job.py":  # what one process of a Ray job hands to the next
            text = text.replace("cloudpickle.loads(data.as_buffer())", "")
        assert not [word for word in banned if word in text], path


def test_no_two_test_files_share_a_name() -> None:
    """pytest would refuse to collect the second."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
