"""`foveal memory` on painted scenes: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.memory_cli import memory_app
from tests.retrieval.pixels import PixelEncoder
from tests.retrieval.test_label_errors import flipped
from tests.retrieval.test_memory import CLASSES, scenes


@pytest.fixture(autouse=True)
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.models.load_encoder", lambda ref, device=None: PixelEncoder())


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scenes(tmp_path_factory.mktemp("gold") / "images", 12)


@pytest.fixture
def memory(gold: Dataset, tmp_path: Path) -> Path:
    gold.write(tmp_path / "gold.json", "coco")
    assert run("build", tmp_path / "gold.json", "--out", tmp_path / "memory")["boxes"]["red"] == 12
    return tmp_path / "memory"


def run(*words: object, code: int = 0) -> dict[str, Any]:
    """The JSON object that a command prints."""
    done = CliRunner().invoke(memory_app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_crops_are_classified_and_bad_files_named(memory: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 26), "blue").save(tmp_path / "blue.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    said = run("classify", tmp_path / "blue.png", tmp_path / "bad.png", "--memory", memory)
    assert [row["label"] for row in said["rows"]] == ["blue"]
    assert said["rows"][0]["vote"] > 0.9
    assert list(said["skipped"]) == [str(tmp_path / "bad.png")]
    assert run("classify", tmp_path / "bad.png", "--memory", memory, code=1)["images"] == 0


def test_corrections_change_what_is_said_of_the_crop(memory: Path, gold: Dataset, tmp_path: Path) -> None:
    wrong = [Detections.build([[90, 2, 118, 28]], 1.0, ["red"], CLASSES), *[None] * 11]
    gold.with_truth(wrong).subset([0]).write(tmp_path / "wrong.json", "coco")
    sample = gold[1]
    assert sample.truth is not None
    gold.subset([1]).write(tmp_path / "right.json", "coco")
    said = run(
        "correct", "--memory", memory, "--approved", tmp_path / "right.json", "--rejected", tmp_path / "wrong.json"
    )
    assert (said["learnt"], said["boxes"]["red"]) == (3, 12)
    assert said["untuned"] == 3


def test_proposals_are_supported_or_not(memory: Path, gold: Dataset, tmp_path: Path) -> None:
    data, wrong = flipped(gold, 2)
    data.write(tmp_path / "proposed.json", "coco")
    said = run("verify", tmp_path / "proposed.json", "--memory", memory, "--out", tmp_path / "support.csv")
    assert (said["boxes"], said["agreed"]) == (24, 22)
    assert [row["support"] < 0.5 for row in said["rows"]] == [True] * 2 + [False] * 22
    with (tmp_path / "support.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 24
    assert wrong


def test_errors_are_listed_and_shown(gold: Dataset, tmp_path: Path) -> None:
    data, wrong = flipped(gold, 2)
    data.write(tmp_path / "labels.json", "coco")
    said = run("errors", tmp_path / "labels.json", "--out", tmp_path / "e.csv", "--html", tmp_path / "e.html")
    assert len(said["rows"]) == said["suspects"] >= len(wrong)
    assert said["labels"] == 24
    with (tmp_path / "e.csv").open() as stream:
        assert [row["id"] for row in csv.DictReader(stream)] == [row["id"] for row in said["rows"]]
    first = said["rows"][0]
    assert Path(first["file"]).is_file()
    assert f"{first['given']}, or {first['suggested']}?" in (tmp_path / "e.html").read_text()
    shown = CliRunner().invoke(memory_app, ["errors", str(tmp_path / "labels.json")])
    assert "suggested probability" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["correct", "--memory", "DIR"], "nothing to learn"),
        (["errors", "labels.json", "--out", "errors.xlsx"], "cannot write errors.xlsx"),
        (["classify", "a.png", "--memory", "nowhere"], "nowhere has no manifest.json"),
    ],
)
def test_what_cannot_be_done_is_said(words: list[str], said: str) -> None:
    done = CliRunner().invoke(memory_app, words)
    assert said in str(done.exception)
