"""`foveal eval vqa` of a model behind a server: the same answers, and so the same figures, as the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.results import read
from foveal import world
from foveal.models import load_vlm
from serve.app import create_app
from serve.server import running
from tests.command import foveal
from tests.serve.conftest import ColourTalker
from tests.tiny_vlm import tiny_vlm


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{tiny_vlm(tmp_path_factory.mktemp('llava'), 'llava')}"


@pytest.fixture(scope="module")
def url(base: str) -> Iterator[str]:
    with running(create_app(models={"small": load_vlm(base), "talker": ColourTalker()})) as address:
        yield address


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "world"
    world.write(folder, "site", 2, seed=4, workers=1)
    asked = (folder / "questions.jsonl").read_text().splitlines()[:6]
    (folder / "questions.jsonl").write_text("\n".join(asked) + "\n")
    return folder


def test_a_server_is_measured_like_its_model(base: str, url: str, site: Path, tmp_path: Path) -> None:
    data = ("--data", str(site / "questions.jsonl"), "--data", str(site / "instances.json"), "--max-tokens", "6")
    for name, words in (("local", [base]), ("served", [f"{url}#small", "--vlm-family", "llava"])):
        shown = foveal("eval", "vqa", *data, "--vlm", *words, "--out", str(tmp_path / f"{name}.json"))
        assert shown.code == 0, shown.err
    local, served = read(tmp_path / "local.json"), read(tmp_path / "served.json")
    assert served.items == local.items
    assert served.figures == local.figures
    assert served.data.fingerprint == local.data.fingerprint
    assert (served.subject.reference, served.subject.licence) == (f"{url}#small", None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["#small"], "not known how this model writes boxes"),
        (["#large"], "no served model 'large'; expected one of small, talker"),
        ([""], "serves small, talker"),
        (["#small", "--vlm-family", "gpt"], "no box format 'gpt'"),
    ],
)
def test_what_cannot_be_asked_is_said(url: str, site: Path, words: list[str], said: str) -> None:
    shown = foveal("eval", "vqa", "--data", str(site / "instances.json"), "--vlm", url + words[0], *words[1:])
    assert shown.code == 1
    assert said in shown.error


def test_a_model_that_is_loaded_here_says_itself_how_it_writes_boxes(base: str, site: Path) -> None:
    shown = foveal("eval", "vqa", "--data", str(site), "--vlm", base, "--vlm-family", "llava")
    assert "Leave out --vlm-family" in shown.error


def test_a_server_with_one_model_needs_no_name(base: str, site: Path) -> None:
    with running(create_app(vlm=load_vlm(base))) as address:
        line = ("eval", "vqa", "--data", str(site), "--vlm", f"{address}/v1", "--max-tokens", "2", "--json")
        shown = foveal(*line)
    assert shown.code == 0, shown.err
    assert json.loads(shown.out.splitlines()[-1])["count"] == 6
