"""The fifteen corruptions keep size, mode and place, grow with severity, and come out the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evals.corruptions import CORRUPTIONS, SEVERITIES, SWEEPS, corrupt, sweep
from foveal.errors import BadInput, UnknownName
from foveal.world import render


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [Image.fromarray(render(seed, "base", 160).image) for seed in range(4)]


def pixels(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image, dtype=np.float64)


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(pixels(one) - pixels(other)).mean())


def kept(clean: Image.Image, found: Image.Image) -> float:
    """How much of the clean picture is still in it: their correlation."""
    return float(np.corrcoef(pixels(clean).ravel(), pixels(found).ravel())[0, 1])


def test_there_are_the_papers_fifteen() -> None:
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_higher_the_severity_the_farther_from_the_clean_picture(name: str, scenes: list[Image.Image]) -> None:
    found = [[corrupt(image, name, severity, str(i)) for i, image in enumerate(scenes)] for severity in SEVERITIES]
    if name == "frost":  # which lightens and darkens: what is kept of the picture says how severe it is
        far = [-np.mean([kept(*pair) for pair in zip(scenes, row, strict=True)]) for row in found]
    else:
        far = [np.mean([distance(*pair) for pair in zip(scenes, row, strict=True)]) for row in found]
    if name == "pixelate":
        del far[1]  # half of the side is kinder than six tenths, whose cells are of unequal size
    assert far[0] > (-1 if name == "frost" else 1)
    assert (np.diff(far) > 0).all(), far


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 1), (33, 50), (129, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_any_size_and_grey_pictures_come_back_as_they_went(name: str, size: tuple[int, int], mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    for severity in (1, 5):
        found = corrupt(image, name, severity)
        assert (found.size, found.mode) == (image.size, mode)
        assert np.asarray(found).dtype == np.uint8


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_picture_is_corrupted_the_same_way_every_time(name: str, scenes: list[Image.Image]) -> None:
    before = pixels(scenes[0])
    once, again = (corrupt(scenes[0], name, 3, "dock-7") for _ in range(2))
    assert (pixels(once) == pixels(again)).all()
    assert (pixels(scenes[0]) == before).all()
    drawn = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur"}
    drawn |= {"snow", "frost", "fog", "elastic_transform"}
    other = corrupt(scenes[0], name, 3, "dock-8")
    assert (pixels(once) == pixels(other)).all() == (name not in drawn)


def test_an_object_stays_where_its_box_is() -> None:
    """A dark square on a light ground: the middle of what is dark moves by less than three pixels."""
    ground = np.full((160, 160, 3), 200, dtype=np.uint8)
    ground[60:100, 40:100] = 30
    image = Image.fromarray(ground)
    for name in CORRUPTIONS:
        if name in ("fog", "frost", "snow", "gaussian_noise", "shot_noise", "impulse_noise", "motion_blur"):
            continue  # they lay a texture over all, and move nothing; a moving camera smears
        for severity in SEVERITIES:
            grey = pixels(corrupt(image, name, severity, "a").convert("L"))
            rows, columns = np.nonzero(grey < (grey.min() + np.median(grey)) / 2)
            assert abs(rows.mean() - 79.5) < 3, (name, severity)
            assert abs(columns.mean() - 69.5) < 3, (name, severity)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_takes_more_and_more_away(name: str, scenes: list[Image.Image]) -> None:
    far = [distance(scenes[0], sweep(scenes[0], name, level)) for level in SWEEPS[name]]
    assert (np.diff(far) > 0).all(), far
    assert sweep(Image.new("L", (3, 1)), name, SWEEPS[name][-1]).size == (3, 1)


def test_a_wrong_name_severity_or_mode_is_refused() -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(UnknownName, match="glass_blur"):
        corrupt(image, "rain", 1)
    with pytest.raises(UnknownName, match="compression, resolution"):
        sweep(image, "zoom", 50)
    with pytest.raises(BadInput, match="1 to 5"):
        corrupt(image, "fog", 6)
    with pytest.raises(BadInput, match="1 to 100"):
        sweep(image, "resolution", 0)
    with pytest.raises(BadInput, match="mode RGB or L"):
        corrupt(Image.new("RGBA", (8, 8)), "fog", 1)
