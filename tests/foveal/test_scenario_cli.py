"""`foveal scenarios` from a shell: real models, exit codes, and corrections that become cases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foveal import world
from foveal.dataset import Dataset
from tests.command import foveal

CASE = """
  - name: {name}
    images: [{image}]
    expect: {expect}
    severity: {severity}
    owner: me
    why: it went wrong once
    added: 2026-01-02"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios") / "site"
    world.write(folder, "base", 4, seed=5, workers=1)
    return folder


def suite(folder: Path, site: Path, expect: str, severity: str) -> str:
    image = Dataset.open(site)[0].path.name
    case = CASE.format(name="it is a scene", image=image, expect=expect, severity=severity)
    (folder / "suite.yaml").write_text(f"data: {site}\ncases:{case}\n")
    return str(folder / "suite.yaml")


RIGHT = "{classify: {class: a photo of a room, among: [a photo of a room, a photo of the sea]}}"


def test_only_a_blocker_says_no(site: Path, tmp_path: Path) -> None:
    wrong = RIGHT.replace("class: a photo of a room", "class: a photo of the sea")
    codes: dict[tuple[str, bool], int] = {}
    for severity in ("blocker", "major"):
        for expect in (RIGHT, wrong):  # one of the two holds
            file = suite(tmp_path, site, expect, severity)
            assert foveal("scenarios", "lock", file).code == 0
            line = ["scenarios", "run", file, "--encoder", "bundled:clip", "--json"]
            ran = foveal(*line, "--out", str(tmp_path / "result.json"))
            assert (tmp_path / "result.html").stat().st_size > 10_000
            held = ran.json["passed"] == 1
            assert ran.json["blockers_failed"] == (severity == "blocker" and not held)
            codes[severity, held] = ran.code
    assert codes == {("blocker", True): 0, ("blocker", False): 1, ("major", True): 0, ("major", False): 0}


def test_nothing_runs_on_pictures_that_changed(site: Path, tmp_path: Path) -> None:
    file = suite(tmp_path, site, RIGHT, "major")
    unlocked = foveal("scenarios", "run", file, "--encoder", "bundled:clip")
    assert unlocked.code == 1
    assert "foveal scenarios lock" in unlocked.error
    assert foveal("scenarios", "lock", file, "--json").json["images"] == 1
    assert foveal("scenarios", "check", file, "--json").json["majors"] == 1
    lock = tmp_path / "suite.lock.json"
    held = lock.read_text()
    lock.write_text(re.sub(r'"[0-9a-f]{64}"', f'"{"0" * 64}"', held))
    for words in (("run", file, "--encoder", "bundled:clip"), ("check", file)):
        assert "has changed" in foveal("scenarios", *words).error
    assert "--repeats" in foveal("scenarios", "run", file, "--noise", "2").error
    lock.write_text(held)
    assert "--encoder REF" in foveal("scenarios", "run", file).error


def test_a_corrected_set_becomes_cases(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "grown.yaml"
    line = ["scenarios", "add", str(file), "--from", str(site), "--owner", "me", "--limit", "3", "--json"]
    assert foveal(*line).json["added"] == 3
    again = foveal(*line).json
    assert (again["added"], again["known"]) == (0, 3)
    assert foveal("scenarios", "check", str(file), "--json").json["cases"] == 3
    ran = foveal("scenarios", "run", str(file), "--detector", "bundled:owl", "--json")
    assert ran.code == 0  # they are no blockers
    assert {row["severity"] for row in ran.json["verdicts"]} == {"major"}
