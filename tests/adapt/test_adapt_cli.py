"""What happens to an adapter after training, by the commands that a user types."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from foveal.models import load_encoder
from tests.command import foveal
from tests.tiny import tiny_clip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A tiny base, class folders of eight pictures, and an adapter that the command wrote from them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cli")
    (folder / "base").mkdir()
    base = f"open_clip:{tiny_clip(folder / 'base')}"
    for colour in ("red", "blue"):
        (folder / "data" / colour).mkdir(parents=True)
        for i in range(4):
            image = Image.new("RGB", (32, 32), "grey")
            ImageDraw.Draw(image).rectangle((2 + 4 * i, 8, 12 + 4 * i, 20), fill=colour)
            image.save(folder / "data" / colour / f"{i}.png")
    options = ["--set", "epochs=2", "--set", "batch=4", "--set", "rank=2", "--json"]
    data, out = str(folder / "data"), str(folder / "adapter")
    shown = foveal("adapt", "clip", "--base", base, "--data", data, "--out", out, *options)
    assert shown.json["steps"] == 4
    assert (folder / "adapter" / "report.html").is_file()
    return base, folder / "data", folder / "adapter"


def test_modules_are_listed_without_training(place: tuple[str, Path, Path]) -> None:
    shown = foveal("adapt", "clip", "--base", place[0], "--list-modules", "--json")
    assert {row["module"].partition(".")[0] for row in shown.json["modules"]} >= {"visual", "transformer"}


def test_training_asks_for_data_and_out(place: tuple[str, Path, Path]) -> None:
    shown = foveal("adapt", "clip", "--base", place[0])
    assert shown.code == 1
    assert "--data and --out missing" in shown.error


def test_merge_needs_no_data_and_its_folder_is_a_model(place: tuple[str, Path, Path], tmp_path: Path) -> None:
    base, _, adapter = place
    shown = foveal("adapt", "merge", f"{base}+{adapter}", "--out", str(tmp_path / "merged"), "--json")
    assert shown.json["difference"] <= 1e-4
    assert shown.json["keep"] == 0
    assert shown.json["fingerprint"] == load_encoder(f"open_clip:{tmp_path / 'merged'}").fingerprint


def test_inspect_says_where_the_change_is(place: tuple[str, Path, Path]) -> None:
    base, _, adapter = place
    shown = foveal("adapt", "inspect", str(adapter), "--base", base, "--json")
    assert shown.json["modules"]
    assert all(row["update"] > 0 for row in shown.json["modules"])


@pytest.mark.slow
def test_curve_has_eleven_points_and_a_picture(place: tuple[str, Path, Path], tmp_path: Path) -> None:
    base, data, adapter = place
    words = ["--new", str(data), "--old", str(data), "--out", str(tmp_path / "curve"), "--json"]
    shown = foveal("adapt", "curve", f"{base}+{adapter}", *words)
    assert [point["keep"] for point in shown.json["points"]] == [round(0.1 * i, 1) for i in range(11)]
    assert any(path.suffix in (".png", ".html") for path in (tmp_path / "curve").iterdir())


def test_an_unknown_kind_of_plan_lists_the_kinds() -> None:
    shown = foveal("adapt", "plan", "clop", "--base", "bundled:clip", "--data", "x")
    assert shown.code == 1
    assert "clip" in shown.error
