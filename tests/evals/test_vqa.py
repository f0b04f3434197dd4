"""Scores of answers, checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.vqa import anls, edit_distance, exact_match, grounding_iou, normalised


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("A red crate.", "red crate", 1),
        ("Two", "2", 1),
        ("three!", "3", 1),
        ("1.5", "1.5", 1),
        ("1.5", "15", 0),
        ("yes", "no", 0),
        ("red", "red crate", 0),
        ("", "red", 0),
    ],
)
def test_exact_match(answer: str, truth: str, score: float) -> None:
    assert exact_match(answer, ["blue", truth]) == score


def test_normalising_twice_changes_nothing() -> None:
    for text in ("The  CAT, sat.", "7,000 boxes", "a-b"):
        assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("", "", 0), ("ab", "ba", 2)]
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == distance


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_anls() -> None:
    assert anls("Barrel", ["barrel"]) == 1
    assert anls("barrl", ["crate", "barrel"]) == pytest.approx(1 - 1 / 6)
    assert anls("box", ["barrel"]) == 0  # below the threshold
    assert anls("abcd", ["abxy"]) == 0.5
    assert anls("", [""]) == 1


def test_grounding() -> None:
    box = np.array([[0, 0, 1, 1]], dtype=np.float32)
    half = np.array([[0, 0, 1, 0.5]], dtype=np.float32)
    none = np.zeros((0, 4), dtype=np.float32)
    assert grounding_iou(box, box) == 1
    assert grounding_iou(half, box) == pytest.approx(0.5)
    assert grounding_iou(np.concatenate([half, box]), box) == pytest.approx(0.5)  # the spare box costs
    assert grounding_iou(np.concatenate([half, box]), np.concatenate([box, half])) == 1  # in any order
    assert grounding_iou(none, box) == grounding_iou(box, none) == 0
    assert grounding_iou(none, none) == 1
