"""Rounds: the student labels beside its teachers, people's words stand, and an interrupted call goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import distill.rounds as module
from distill.ontology import Ontology
from distill.parts import MEMORY, Parts, remember_gold
from distill.prelabel import PrelabelSettings, load_report, prelabel
from distill.prelabels import PREDICTIONS
from distill.reviewed import take_back
from distill.rounds import rounds
from distill.students import load_student
from distill.train import train, training_set
from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.errors import BadInput
from tests.distill.tiny_student import CLASSES, SETTINGS, painted

FEW = SETTINGS.model_copy(update={"epochs": 15})


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-labels by a teacher that has seen too little."""
    folder = tmp_path_factory.mktemp("rounds")
    gold, images = painted(16, 1), painted(20, 2)
    train(painted(12, 3), "fcos-resnet", folder / "teacher", SETTINGS)
    memory = remember_gold(gold, "bundled:clip", folder / "memory")
    parts = Parts((f"detector:{folder / 'teacher'}",), Ontology.of(CLASSES), memory)
    bare, how = images.with_truth([None] * len(images)), PrelabelSettings(confidence=None, target_precision=0.8)
    prelabel(bare, parts.ontology, parts.teacher(), gold, parts.remembered(), folder / "job", how, parts=parts)
    return folder / "job"


def test_a_job_says_what_labelled_it(job: Path, tmp_path: Path) -> None:
    parts = Parts.of(job)
    assert parts.teachers == (f"detector:{job.parent / 'teacher'}",)
    assert parts.ontology == Ontology.of(CLASSES)
    assert parts.remembered().fingerprint
    with pytest.raises(BadInput, match="does not say what labelled it"):
        Parts.of(tmp_path)


def test_the_student_labels_beside_its_teacher(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold, out = painted(16, 1), tmp_path / "student"
    first = Dataset.open(job / PREDICTIONS)[0]
    said = Detections.build([[1, 1, 30, 30]], 1.0, ["disc"], CLASSES)
    take_back(job, Dataset.build([first], CLASSES).with_truth([said]))

    labels = module.prelabel

    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "prelabel", stop)
    with pytest.raises(KeyboardInterrupt):
        rounds(job, "fcos-resnet", out, gold, FEW, count=2)
    assert not out.exists()
    monkeypatch.setattr(module, "prelabel", labels)
    done = rounds(job, "fcos-resnet", out, gold, FEW, count=2)
    assert [one.number for one in done] == list(range(1, len(done) + 1))
    best = max(done, key=lambda one: one.gold_ap50)
    assert load_student(out).fingerprint == load_student(best.out).fingerprint
    again = tmp_path / "student-labels-2"
    assert load_report(again).images == 20
    assert len(Parts.of(again).teachers) == 2
    assert (again / MEMORY).is_dir()
    kept = next(sample for sample in training_set(again) if sample.id == first.id)
    assert kept.truth is not None
    assert np.array_equal(kept.truth.boxes, said.boxes)
    seen = [p.teachers for s in Dataset.open(again / PREDICTIONS) if s.truth for p in s.truth.provenance or ()]
    assert any(len(agreed) == 2 for agreed in seen)
    assert rounds(job, "fcos-resnet", out, gold, FEW, count=2) == done
    assert json.loads((tmp_path / "student-rounds.json").read_text())[0]["out"] == done[0].out
    other = FEW.model_copy(update={"seed": 5})
    with pytest.raises(BadInput, match="holds another run"):
        rounds(job, "fcos-resnet", out, gold, other, count=2)
    with pytest.raises(BadInput, match="one round or more"):
        rounds(job, "fcos-resnet", out, gold, FEW, count=0)
