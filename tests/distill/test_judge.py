"""The judge's parts: no image speaks about itself, evidence has its sign, and a teacher's full answer is used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.judge import BACKGROUND, Bank
from distill.ontology import Ontology
from distill.teacher import candidates, look
from distill.verifier import Evidence, Verifier, folds_by_image, log_loss
from foveal.models import load_open_detector
from tests.distill.painted import Blobs, DenseBlobs, paint
from tests.tiny import tiny_owl


def test_an_image_does_not_speak_about_itself() -> None:
    vectors = np.eye(4, dtype=np.float32)
    bank = Bank(vectors, np.array([0, 0, 1, BACKGROUND]), ("a", "b", "a", "c"), ("1", "2", "3", "4"))
    classes, background = bank.evidence(vectors[:1], 2)
    assert classes[0, 0, 0] == 1
    alone, _ = bank.evidence(vectors[:1], 2, without="a")
    assert alone[0, 0, 0] == 0
    assert alone[0, 1].tolist() == pytest.approx((alone[0, 0] + background[0]) / 2)  # nobody left: no opinion
    (near,) = bank.neighbours(vectors[:1], np.array([0]), ("x", "y"), count=2)
    assert (near[0].id, near[0].label, near[0].supports) == ("1", "x", True)


def made(rng: np.random.Generator, n: int) -> tuple[Evidence, np.ndarray]:
    """Evidence where feature 0 tells the class, feature 1 is noise, and box feature 0 tells background."""
    truth = rng.integers(BACKGROUND, 3, n)
    per_class = rng.normal(0, 1, (n, 3, 2))
    per_class[truth >= 0, truth[truth >= 0], 0] += 2.5
    per_box = rng.normal(0, 1, (n, 1)) + 1.5 * (truth == BACKGROUND)[:, None]
    return Evidence(per_class, per_box), truth


def test_the_verifier_learns_what_tells_and_obeys_signs() -> None:
    rng = np.random.default_rng(0)
    evidence, truth = made(rng, 400)
    model = Verifier.fit(evidence, truth, signs=(1, 1), box_signs=(-1,))
    assert (model.slopes >= 0).all()
    assert (model.weights <= 0).all()
    assert (model.slopes[:, 0] > 3 * model.slopes[:, 1]).all()
    fresh, known = made(rng, 3000)
    p = model.probabilities(fresh)
    assert (p >= 0).all()
    assert (p.sum(axis=1) <= 1 + 1e-9).all()
    picked = np.where(p.max(axis=1) > 1 - p.sum(axis=1), p.argmax(axis=1), BACKGROUND)
    assert (picked == known).mean() > 0.75
    against = Verifier.fit(evidence, truth, signs=(-1, 0), box_signs=(1,))
    assert against.slopes[:, 0].max() <= 0
    assert log_loss(p, known) < log_loss(against.probabilities(fresh), known)
    again = Verifier.from_json(json.loads(json.dumps(model.to_json())))
    np.testing.assert_array_equal(again.probabilities(fresh), p)


def test_a_class_without_gold_gets_little() -> None:
    rng = np.random.default_rng(1)
    evidence, truth = made(rng, 300)
    model = Verifier.fit(evidence, np.where(truth == 2, BACKGROUND, truth), signs=(1, 1), box_signs=(0,))
    p = model.probabilities(evidence)[truth == 2]
    assert p[:, 2].mean() < 0.15


def test_folds_never_split_an_image() -> None:
    images = np.repeat(np.arange(17), np.arange(17) + 1)
    fold = folds_by_image(images, 5)
    assert all(len(set(fold[images == i].tolist())) == 1 for i in range(17))
    assert set(fold.tolist()) == set(range(5))


def test_negative_prompts_take_no_class() -> None:
    picture, truth = paint(np.random.default_rng(4))
    ontology = Ontology.model_validate({"classes": ["red", {"name": "blue", "negative_prompts": ["green"]}]})
    for teacher in (Blobs(), DenseBlobs()):
        (found,) = candidates(teacher, [picture], ontology)
        assert found.teacher.shape == (len(found), 2)
        assert len(found) >= len(truth)
        assert (found.negative > 0.2).any() == any(n == "green" for n in truth.label_names)


def test_an_owl_model_answers_in_full(tmp_path: Path) -> None:
    teacher = load_open_detector(f"hf:{tiny_owl(tmp_path)}", device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8))
    prompts = ("a crate", "a drum", "a cone")
    (dense,) = look(teacher, [picture], prompts, 0.0)
    assert dense.scores.shape == (16, 3)
    assert dense.objectness is not None
    assert dense.features is not None
    np.testing.assert_allclose(np.linalg.norm(dense.features, axis=1), 1, atol=1e-5)
    # Its boxes and best scores are those of the plain answer.
    (plain,) = teacher.detect([picture], prompts, threshold=0.0)
    best = dense.scores.max(axis=1)
    for box, score in zip(plain.boxes, plain.scores, strict=True):
        i = int(np.abs(best - score).argmin())
        assert best[i] == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(np.clip(dense.boxes[i], 0, [80, 40, 80, 40]), box, atol=0.01)
    (found,) = candidates(teacher, [picture], Ontology.of(prompts), threshold=0.0)
    assert (found.boxes[:, 2:] <= [80, 40]).all()
