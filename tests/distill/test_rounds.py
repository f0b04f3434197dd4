"""A student's second look: what it may change, and that rounds go on where they were."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import distill.rounds as module
from distill.rounds import agreed, rounds
from distill.students import load_student
from foveal.dataset import Dataset
from foveal.detections import Detections, Provenance
from foveal.errors import BadInput
from tests.distill.tiny_student import CLASSES, SETTINGS, painted

BOX = [[0, 0, 10, 10]]


def _labels(route: str | None, probability: float, label: str = "disc") -> Detections:
    told = (Provenance("teacher", route=route),) if route else None  # type: ignore[arg-type]
    sure = np.array([probability], np.float32) if route else None
    return Detections.build(BOX, 0.5, [label], CLASSES, probabilities=sure, provenance=told)


def _seen(label: str, probability: float, box: list[list[int]] = BOX) -> Detections:
    return Detections.build(box, 0.6, [label], CLASSES, probabilities=np.array([probability], np.float32))


NOTHING = Detections.build([], [], [], CLASSES, probabilities=np.zeros(0, np.float32))


@pytest.mark.parametrize(
    ("before", "seen", "route", "count", "change"),
    [
        (_labels("accept", 0.9), _seen("disc", 0.7), "accept", 1, "kept"),
        (_labels("accept", 0.9), _seen("square", 0.9), "review", 1, "set aside"),
        (_labels("accept", 0.9), _seen("square", 0.6), "accept", 1, "kept"),
        (_labels("accept", 0.9), NOTHING, "accept", 1, "kept"),
        (_labels("review", 0.5), _seen("disc", 0.9), "accept", 1, "promoted"),
        (_labels("review", 0.5), _seen("disc", 0.6), "review", 1, None),
        (_labels("review", 0.1), _seen("disc", 0.9), "review", 1, None),
        (_labels("reject", 0.05), _seen("disc", 0.9), "reject", 1, None),
        (_labels("accept", 0.9), _seen("disc", 0.9, [[40, 40, 50, 50]]), "accept", 2, "added"),
        (_labels(None, 1.0), _seen("square", 0.99), None, 1, None),
    ],
)
def test_what_a_second_look_may_change(
    before: Detections, seen: Detections, route: str | None, count: int, change: str | None
) -> None:
    changes = Counter[str]()
    after = agreed(before, seen, changes)
    assert len(after) == count
    assert after.provenance is not None
    assert after.provenance[0].route == route
    assert changes[change] == 1 if change else sum(changes.values()) == 0


def _noisy(dataset: Dataset, seed: int) -> Dataset:
    """Accepted labels, a tenth of them of the wrong class and a fifth under review."""
    rng = np.random.default_rng(seed)
    truths: list[Detections] = []
    for sample in dataset:
        assert sample.truth is not None
        n = len(sample.truth)
        labels = np.where(rng.random(n) < 0.1, 1 - sample.truth.labels, sample.truth.labels)
        routes = ["review" if rng.random() < 0.2 else "accept" for _ in range(n)]
        truths.append(
            Detections.build(
                sample.truth.boxes, 0.5, labels.tolist(), CLASSES, probabilities=np.full(n, 0.8, np.float32),
                provenance=tuple(Provenance("teacher", route=r) for r in routes),  # type: ignore[arg-type]
            )
        )  # fmt: skip
    return dataset.with_truth(truths, CLASSES)


def test_rounds_correct_labels_and_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, gold = _noisy(painted(), 0), painted(12, 1)
    settings = SETTINGS.model_copy(update={"epochs": 30})
    out = tmp_path / "student"
    looked = module._next_labels

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_next_labels", stop)
    with pytest.raises(KeyboardInterrupt):
        rounds(data, "fcos-resnet", out, gold, settings, count=2)
    assert not out.exists()
    monkeypatch.setattr(module, "_next_labels", looked)
    done = rounds(data, "fcos-resnet", out, gold, settings, count=2)
    assert [one.number for one in done] == [1, 2]
    assert done[1].changes["kept"] > 15
    assert done[1].changes["promoted"] >= 1
    best = max(done, key=lambda one: one.gold_ap50)
    kept, chosen = load_student(out), load_student(best.out)
    assert kept.fingerprint == chosen.fingerprint
    assert (tmp_path / "student-rounds.json").is_file()
    assert rounds(data, "fcos-resnet", out, gold, settings, count=2) == done
    with pytest.raises(BadInput, match="one round or more"):
        rounds(data, "fcos-resnet", out, gold, settings, count=0)
