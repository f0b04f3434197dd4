import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.detections import Detections, Provenance, pairwise_iou
from foveal.errors import BadInput

NAMES = ("cat", "dog")
boxes = st.lists(
    st.tuples(*[st.floats(0, 100, width=32)] * 4).map(
        lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
    ),
    max_size=8,
)


@pytest.mark.parametrize(
    ("box", "score", "label", "message"),
    [
        ([0, 0, -1, 1], 0.5, 0, "negative width"),
        ([0, 0, float("nan"), 1], 0.5, 0, "NaN"),
        ([0, 0, 1, 1], 1.5, 0, "score lies outside"),
        ([0, 0, 1, 1], -0.1, 0, "score lies outside"),
        ([0, 0, 1, 1], 0.5, 2, "label has no name"),
        ([0, 0, 1, 1], 0.5, -1, "label has no name"),
    ],
)
def test_impossible_values_are_refused(box: list[float], score: float, label: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Detections.build([box], score, [label], NAMES)


def test_shapes_must_agree() -> None:
    one = np.zeros((1, 4), np.float32)
    with pytest.raises(BadInput, match="scores have the wrong shape"):
        Detections(one, np.zeros(2, np.float32), np.zeros(1, np.int64), NAMES)
    with pytest.raises(BadInput, match="provenance must be one a box"):
        Detections.build(one, 1.0, [0], NAMES, provenance=(Provenance("m"),) * 2)
    with pytest.raises(BadInput, match="masks must be one a box"):
        Detections.build(one, 1.0, [0], NAMES, masks=("", ""))
    with pytest.raises(BadInput, match="probability lies outside"):
        Detections.build(one, 1.0, [0], NAMES, probabilities=np.array([2], np.float32))


def test_rows_keep_their_evidence() -> None:
    made = Detections.build(
        [[0, 0, i + 1, 1] for i in range(3)], [0.1, 0.2, 0.3], ["cat", "dog", "cat"], NAMES,
        probabilities=np.array([0.5, 0.6, 0.7], np.float32), provenance=tuple(Provenance(f"m{i}") for i in range(3)),
    )  # fmt: skip
    for index in ([2, 0], np.array([2, 0]), np.array([True, False, True])):
        part = made[index]
        order = [2, 0] if not isinstance(index, np.ndarray) or index.dtype != bool else [0, 2]
        assert [p.model for p in part.provenance or ()] == [f"m{i}" for i in order]
        assert part.boxes[:, 2].tolist() == [i + 1 for i in order]
    assert len(made[1:]) == 2
    assert made.label_names == ["cat", "dog", "cat"]
    assert len(Detections.empty(NAMES)) == 0


def test_clipping() -> None:
    made = Detections.build([[-5, -5, 50, 5], [60, 60, 70, 70]], 1.0, [0, 0], NAMES).clipped(40, 30)
    assert made.boxes.tolist() == [[0, 0, 40, 5], [40, 30, 40, 30]]


@given(boxes, boxes)
def test_iou_is_symmetric_and_bounded(a: list, b: list) -> None:
    left, right = (np.array(x, np.float32).reshape(-1, 4) for x in (a, b))
    overlap = pairwise_iou(left, right)
    assert overlap.shape == (len(a), len(b))
    np.testing.assert_allclose(overlap, pairwise_iou(right, left).T, atol=1e-6)
    assert ((overlap >= 0) & (overlap <= 1 + 1e-5)).all()


def test_iou_values() -> None:
    a = np.array([[0, 0, 2, 2]], np.float32)
    b = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [5, 5, 5, 5]], np.float32)
    np.testing.assert_allclose(pairwise_iou(a, b), [[1, 1 / 3, 0, 0]], atol=1e-6)


@given(boxes, st.data())
def test_nms_keeps_the_best_and_no_two_rivals(corners: list, data: st.DataObject) -> None:
    count = len(corners)
    scores = data.draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count))
    labels = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    made = Detections.build(corners, np.array(scores, np.float32), labels, NAMES)
    kept = made.nms(0.5)
    assert (np.diff(kept.scores) <= 0).all()
    rivals = (pairwise_iou(kept.boxes, kept.boxes) > 0.5) & (kept.labels[:, None] == kept.labels[None])
    assert not (rivals & ~np.eye(len(kept), dtype=bool)).any()
    if count:
        assert kept.scores[0] == made.scores.max()
    assert len(made.nms(0.5, class_agnostic=True)) <= len(kept)
    again = kept.nms(0.5)
    assert np.array_equal(again.boxes, kept.boxes)
