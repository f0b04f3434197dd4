"""The curation commands: what they print, write and exit with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from foveal.curate_cli import add_to
from foveal.errors import BadInput
from retrieval.archive import Archive
from tests.retrieval.pixels import PixelEncoder, write_images

APP = typer.Typer()
add_to(APP)
KINDS = {
    "duplicates": [],
    "leaks": ["--split", "camera", "--by", "vectors", "--cosine", "0.99"],
    "outliers": ["--top", "5", "-k", "5"],
    "clusters": ["-k", "4"],
    "gaps": ["--reference", "hour < 12"],
    "select": ["-n", "5", "--labelled", "hour < 12"],
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight noisy colours, and a byte copy of the first that another camera took."""
    folder = tmp_path_factory.mktemp("curate")
    images = write_images(folder / "images", 48)
    (folder / "images" / "copy.png").write_bytes(images[0].read_bytes())
    with (folder / "metadata.csv").open("a") as stream:
        stream.write("copy.png,cam9,3,red\n")
    Archive.create(folder / "archive", PixelEncoder()).add(folder / "images", PixelEncoder())
    return folder / "archive"


def run(*words: str, code: int = 0) -> str:
    outcome = CliRunner().invoke(APP, words)
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == code, outcome.output
    return outcome.stdout


def asked(archive: Path, name: str, *words: str, code: int = 0) -> dict[str, Any]:
    return json.loads(run(name, "--archive", str(archive), *words, "--json", code=code).splitlines()[-1])


@pytest.mark.parametrize("name", KINDS)
def test_each_command_has_rows_for_people_and_a_page_of_one_file(archive: Path, name: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code = 1 if name == "leaks" else 0
    out = run(name, "--archive", str(archive), *KINDS[name], "--filter", "hour < 20", "--html", str(page), code=code)
    assert "uri" in out or "images" in out
    html = page.read_text()
    assert html.count("data:image/webp;base64,") >= 2
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html.replace("xlink:", ""))
    assert "hour &lt; 20" in html


def test_what_can_go_is_listed_by_id(archive: Path, tmp_path: Path) -> None:
    found = asked(archive, "duplicates", "--out", str(tmp_path / "extra.txt"))
    (extra,) = found["ids"]
    assert (tmp_path / "extra.txt").read_text() == f"{extra}\n"
    assert found["saves_bytes"] > 0
    assert [copy["keep"] for copy in found["copies"]] == [True, False]
    assert found["copies"][1]["id"] == extra
    assert Archive.open(archive).items([extra], ["uri"])[extra]["uri"].endswith(".png")


def test_leaks_are_a_gate(archive: Path) -> None:
    found = asked(archive, "leaks", "--split", "camera", code=1)
    assert found["leaking"] == {"cam0": 1, "cam1": 0, "cam2": 0, "cam9": 1}
    assert found["pairs"][0]["how"] == "equal bytes"
    assert asked(archive, "leaks", "--split", "camera", "--filter", "camera <> 'cam9'", code=0)["pairs"] == []
    sides = ("--between", "camera = 'cam9'", "--and", "camera <> 'cam9'")
    assert len(asked(archive, "leaks", *sides, code=1)["pairs"]) == 1
    for words in ([], ["--between", "hour < 3"], ["--split", "camera", *sides]):
        with pytest.raises(BadInput, match="--split COLUMN"):
            run("leaks", "--archive", str(archive), *words)


def test_clusters_are_written_by_image(archive: Path, tmp_path: Path) -> None:
    found = asked(archive, "clusters", "-k", "3", "--words", "colour", "--out", str(tmp_path / "c.csv"))
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert len(lines) == 50
    sizes = [sum(line.endswith(f",{number}") for line in lines) for number in (1, 2, 3)]
    assert sizes == [cluster["size"] for cluster in found["clusters"]]
    assert {name["source"] for cluster in found["clusters"] for name in cluster["names"]} == {"metadata"}


def test_gaps_and_picks_hold_their_figures(archive: Path, tmp_path: Path) -> None:
    gaps = asked(archive, "gaps", "--reference", "hour < 12", "--by", "camera")
    assert gaps["images"] == 24
    assert {row["column"] for row in gaps["by"]} == {"camera"}
    (tmp_path / "u.csv").write_text(f"uri,uncertainty\n{archive.parent / 'images' / '0005.png'},1\n")
    picks = asked(archive, "select", "-n", "4", "--uncertainty", str(tmp_path / "u.csv"))
    assert (picks["unsure"], picks["chosen"]) == (1, 4)
    with pytest.raises(BadInput, match=r"\.csv"):
        run("select", "--archive", str(archive), "-n", "1", "--out", "picks.xlsx")
