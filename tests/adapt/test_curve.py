"""The line between an adapted encoder and its base: its ends are the two, and the best mean is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapt.clip import ClipSettings, adapt
from adapt.curve import KEEPS, curve
from evals import retrieval, zero_shot
from foveal.dataset import Dataset
from foveal.errors import BadInput
from foveal.models import load_encoder
from foveal.world import write
from tests.tiny import tiny_clip


def test_the_ends_are_the_adapted_and_the_base(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = f"open_clip:{tiny_clip(tmp_path / 'base')}"
    site = Dataset.open(write(tmp_path / "site", "site", 6, seed=1, size=64))
    plain = Dataset.build(
        [type(sample)(sample.id, sample.path, sample.width, sample.height, sample.truth) for sample in site],
        site.classes,
    )
    adapt(base, site, tmp_path / "adapter", ClipSettings(batch=6, epochs=10, learning_rate=1e-2))
    ref = f"{base}+{tmp_path / 'adapter'}"
    found = curve(ref, site, plain, tmp_path / "curve")
    assert [point.keep for point in found.points] == list(KEEPS)
    for point, model in ((found.points[0], load_encoder(ref)), (found.points[-1], load_encoder(base))):
        assert point.new == retrieval.evaluate(model, site)["recall_at_1"]
        assert point.old == zero_shot.evaluate_dataset(model, plain)["top1"]
    assert max(point.mean for point in found.points) == next(p.mean for p in found.points if p.keep == found.best)
    assert found.figures == {"new": "text-to-image recall@1", "old": "zero-shot accuracy"}
    assert json.loads((tmp_path / "curve" / "curve.json").read_text())["best"] == found.best
    assert (tmp_path / "curve" / "curve.png").stat().st_size > 5000
    with pytest.raises(BadInput, match="carries no adapter"):
        curve(base, site, site, tmp_path / "other")
