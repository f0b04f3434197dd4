"""Retrieval metrics against cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals import retrieval
from foveal.dataset import Dataset, Sample
from foveal.detections import FloatArray
from foveal.errors import BadInput


def test_a_case_worked_out_by_hand() -> None:
    gallery = np.eye(4, dtype=np.float32)
    query = np.array(
        [
            [0.9, 0.1, 0.0, 0.0],  # its positive 0 comes first
            [0.9, 0.5, 0.1, 0.0],  # positives 1 and 3 come second and fourth
            [0.4, 0.3, 0.2, 0.1],  # positive 2 comes third
        ],
        dtype=np.float32,
    )
    scores = retrieval.recall_at_k(query, gallery, [{0}, {1, 3}, {2}], ks=(1, 2, 3))
    assert scores["recall_at_1"] == pytest.approx(1 / 3)
    assert scores["recall_at_2"] == pytest.approx(2 / 3)
    assert scores["recall_at_3"] == 1.0
    assert scores["median_rank"] == 2.0
    assert scores["map"] == pytest.approx((1 + (1 / 2 + 2 / 4) / 2 + 1 / 3) / 3)


def test_one_point_for_everything_earns_nothing() -> None:
    vectors = np.ones((20, 3), dtype=np.float32)
    scores = retrieval.recall_at_k(vectors, vectors, [{i} for i in range(20)])
    assert scores["recall_at_10"] == 0.0
    assert scores["median_rank"] == 20.0
    assert scores["map"] == pytest.approx(1 / 20)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(size=(n, 8)).astype(np.float32) for n in (50, 30))
    positives = [set(rng.choice(30, size=rng.integers(1, 4), replace=False).tolist()) for _ in range(50)]
    whole = retrieval.recall_at_k(query, gallery, positives)
    monkeypatch.setattr(retrieval, "ROWS", 7)
    assert retrieval.recall_at_k(query, gallery, positives) == pytest.approx(whole)


def test_positives_that_cannot_be() -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(BadInput, match="query 1 has no valid positive"):
        retrieval.recall_at_k(vectors, vectors, [{0}, set(), {2}])
    with pytest.raises(BadInput, match="query 0 has no valid positive"):
        retrieval.recall_at_k(vectors, vectors, [{3}, {0}, {2}])
    with pytest.raises(BadInput, match="one set of positives"):
        retrieval.recall_at_k(vectors, vectors, [{0}])


class ColourEncoder:
    """Embeds images by their mean colour and texts by the colours they name."""

    name, fingerprint, dimension, logit_scale = "colour", "0", 3, 1.0
    words = ("red", "green", "blue")

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        return self._unit([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return self._unit([[word in text for word in self.words] for text in texts])

    def _unit(self, rows: Sequence[object]) -> FloatArray:
        values = np.asarray(rows, dtype=np.float32)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


def test_captions_shared_by_images_are_right_for_all_of_them(tmp_path: Path) -> None:
    samples: list[Sample] = []
    pictures = (("a", (250, 0, 0)), ("b", (200, 0, 0)), ("c", (0, 250, 0)), ("d", (0, 0, 250)))
    for name, colour in pictures:
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (8, 8), colour).save(path)
        word = ColourEncoder.words[int(np.argmax(colour))]
        captions = (f"something {word}", f"the {word} one, {name}")
        samples.append(Sample(id=name, path=path, width=8, height=8, truth=None, captions=captions))
    samples.append(Sample(id="bare", path=tmp_path / "a.png", width=8, height=8, truth=None))
    scores = retrieval.evaluate(ColourEncoder(), Dataset.build(samples, []))
    assert (scores["images"], scores["captions"]) == (4.0, 8.0)
    # `something red` has two right images; `the red one, a` has one, with the other red image tying against it.
    assert scores["recall_at_1"] == pytest.approx(6 / 8)
    assert scores["recall_at_5"] == 1.0
    assert scores["image_to_text_recall_at_1"] == pytest.approx(2 / 4)
    assert scores["image_to_text_recall_at_5"] == 1.0
    with pytest.raises(BadInput, match="no image has a caption"):
        retrieval.evaluate(ColourEncoder(), Dataset.build(samples[-1:], []))
