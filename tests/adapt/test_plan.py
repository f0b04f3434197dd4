"""What a plan says of the tiny CLIP."""

from __future__ import annotations

import pytest
from PIL import Image

from adapt.clip import ClipSettings
from adapt.plan import KINDS, plan, settings_class
from foveal.errors import FovealError, UnknownName
from tests.tiny import tiny_clip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny base, and class folders of eight pictures."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "base").mkdir()
    for colour in ("red", "blue"):
        (folder / "data" / colour).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32 + i, 32), colour).save(folder / "data" / colour / f"{i}.png")
    return f"open_clip:{tiny_clip(folder / 'base')}", str(folder / "data")


def test_a_plan_counts_and_measures(place: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = plan("clip", *place, ClipSettings(batch=4, epochs=10, rank=2))
    assert found.fits
    assert (found.examples, found.batch, found.steps, found.set) == (8, 4, 20, [])
    assert found.seconds_a_step is not None
    assert found.seconds == pytest.approx(20 * found.seconds_a_step)
    assert found.trainable_params is not None
    assert found.total_params is not None
    assert 0 < found.trainable_params < found.total_params
    assert found.peak_mb is not None
    assert found.available_mb is not None
    assert 50 < found.peak_mb < found.available_mb


@pytest.mark.slow
def test_fit_says_what_it_tried(place: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = plan("clip", *place, ClipSettings(batch=8, epochs=1), memory_mb=10, fit=True)
    assert not found.fits  # nothing fits 10 MB
    assert len(found.tried) == 4  # as asked, checkpointing, micro_batch=2, both
    assert found.tried[0].startswith("as asked: ")
    assert found.tried[-1].startswith("micro_batch=2 checkpointing=true: ")


def test_what_a_run_would_refuse_a_plan_refuses_too(place: tuple[str, str]) -> None:
    with pytest.raises(FovealError, match="target module"):
        plan("clip", *place, ClipSettings(target_modules=("nonsense",)))
    with pytest.raises(UnknownName, match="clip"):
        settings_class("nonsense")
    assert set(KINDS) >= {"clip"}
