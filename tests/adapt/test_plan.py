"""What a plan says of tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from adapt.clip import ClipSettings
from adapt.detector import DetectorSettings
from adapt.plan import KINDS, plan, settings_class
from adapt.vlm import VlmSettings
from foveal.errors import FovealError, UnknownName
from tests.tiny import tiny_clip, tiny_owl
from tests.tiny_vlm import tiny_vlm


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
    found = plan("clip", place[0], place[1:], ClipSettings(batch=4, epochs=10, rank=2))
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
    found = plan("clip", place[0], place[1:], ClipSettings(batch=8, epochs=1), memory_mb=10, fit=True)
    assert not found.fits  # nothing fits 10 MB
    assert len(found.tried) == 4  # as asked, checkpointing, micro_batch=2, both
    assert found.tried[0].startswith("as asked: ")
    assert found.tried[-1].startswith("micro_batch=2 checkpointing=true: ")


@pytest.mark.slow
def test_what_a_run_would_refuse_a_plan_refuses_too(place: tuple[str, str]) -> None:
    with pytest.raises(FovealError, match="target module"):
        plan("clip", place[0], place[1:], ClipSettings(target_modules=("nonsense",)))
    with pytest.raises(FovealError, match="one dataset"):
        plan("clip", place[0], [place[1], place[1]], ClipSettings())
    with pytest.raises(UnknownName, match="clip"):
        settings_class("nonsense")


@pytest.mark.slow
def test_every_kind_can_be_planned(place: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    image = Path(place[1]) / "red" / "0.png"
    asked = [{"image": str(image), "question": "what colour is it", "answer": colour} for colour in ("red", "blue")]
    (tmp_path / "questions.jsonl").write_text("\n".join(json.dumps(line) for line in asked))
    boxes = {
        "images": [{"id": 1, "file_name": str(image), "width": 32, "height": 32}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9 + i]} for i in (1, 2)],
        "categories": [{"id": 1, "name": "red thing"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(boxes))
    owl, llava = tiny_owl(tmp_path / "owl"), tiny_vlm(tmp_path / "llava", "llava")
    planned = {
        "detector": plan("detector", f"hf:{owl}", [str(tmp_path / "instances.json")], DetectorSettings(epochs=2)),
        "vlm": plan("vlm", f"hf:{llava}", [str(tmp_path / "questions.jsonl")], VlmSettings(epochs=2, quantise=True)),
    }
    assert set(planned) | {"clip"} == set(KINDS)
    for found in planned.values():
        assert found.fits
        assert found.seconds_a_step is not None
        assert found.steps == 2
