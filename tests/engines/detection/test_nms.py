from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunedeploy_engines.detection.nms import PRE_NMS_TOP_K, detections_from, nms

# Corners and scores on a grid: ties, touching boxes, boxes without area and equal boxes all come up.
coordinate = st.integers(0, 12).map(float)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)
score = st.integers(0, 8).map(lambda eighths: eighths / 8)
threshold = st.sampled_from([0.0, 0.1, 0.25, 0.45, 0.5, 0.75, 1.0])


def loop_nms(boxes: list, scores: list, iou_threshold: float) -> list[int]:
    """Greedy NMS as one would write it on a blackboard."""
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])  # sorted() is stable
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if loop_iou(boxes[best], boxes[i]) <= iou_threshold]
    return kept


def loop_iou(a: tuple, b: tuple) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a = max(0.0, a[2] - a[0]) * max(0.0, a[3] - a[1])
    area_b = max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])
    intersection = width * height
    union = area_a + area_b - intersection
    return intersection / union if union > 0 else 0.0


def loop_detections(boxes: list, scores: list, score_threshold: float, iou_threshold: float) -> list[tuple]:
    """(score, row, class) of every detection, best first."""
    found = []
    for class_id in range(len(scores[0]) if scores else 0):
        rows = [i for i in range(len(boxes)) if scores[i][class_id] > score_threshold]
        kept = loop_nms([boxes[i] for i in rows], [scores[i][class_id] for i in rows], iou_threshold)
        found += [(scores[rows[i]][class_id], rows[i], class_id) for i in kept]
    return sorted(found, key=lambda row: (-row[0], row[1], row[2]))


@given(rows=st.lists(st.tuples(box, score), max_size=40), iou_threshold=threshold)
def test_nms_equals_a_python_loop(rows: list, iou_threshold: float) -> None:
    boxes, scores = [row[0] for row in rows], [row[1] for row in rows]
    kept = nms(boxes, scores, iou_threshold)
    assert kept.dtype == np.int64
    assert kept.tolist() == loop_nms(boxes, scores, iou_threshold)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(130, 300), iou_threshold=threshold)
def test_nms_equals_a_python_loop_beyond_one_block(seed: int, count: int, iou_threshold: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 100, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 40, (count, 2))], axis=1).astype(float)
    scores = rng.integers(0, 50, count) / 50
    expected = loop_nms(boxes.tolist(), scores.tolist(), iou_threshold)
    assert nms(boxes, scores, iou_threshold).tolist() == expected


def test_overlap_of_exactly_the_threshold_is_kept() -> None:
    # Two 2 x 2 boxes shifted by 1: intersection 2, union 6, IoU 1/3. And 2 x 1 inside 2 x 2: IoU 1/2, exact
    # in binary.
    assert nms([[0, 0, 2, 2], [1, 0, 3, 2]], [0.9, 0.8], 0.34).tolist() == [0, 1]
    assert nms([[0, 0, 2, 2], [1, 0, 3, 2]], [0.9, 0.8], 0.33).tolist() == [0]
    assert nms([[0, 0, 2, 2], [0, 0, 2, 1]], [0.9, 0.8], 0.5).tolist() == [0, 1]


def test_suppressed_box_suppresses_nobody() -> None:
    # b overlaps a and c by half each (IoU 1/3), a and c touch: with b gone c lives.
    a, b, c = [0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4]
    assert nms([a, b, c], [0.9, 0.8, 0.7], 0.3).tolist() == [0, 2]


def test_equal_boxes_with_equal_scores_keep_the_first() -> None:
    assert nms([[0, 0, 1, 1]] * 3, [0.5] * 3, 0.5).tolist() == [0]


def test_empty_input_gives_an_empty_result() -> None:
    assert nms([], [], 0.5).shape == (0,)
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.5).dtype == np.int64
    for boxes, scores in [((0, 4), (0, 3)), ((2, 4), (2, 3)), ((2, 4), (2, 0))]:
        found = detections_from(np.zeros(boxes), np.zeros(scores), score_threshold=0.5, iou_threshold=0.5)
        assert [array.shape for array in found] == [(0, 4), (0,), (0,)]


def test_wrong_arguments_are_refused_with_what_came() -> None:
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        nms(np.zeros((2, 5)), np.zeros(2), 0.5)
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        nms(np.zeros((2, 4)), np.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"1\.5"):
        nms(np.zeros((2, 4)), np.zeros(2), 1.5)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        detections_from(np.zeros((2, 4)), np.zeros((3, 2)), score_threshold=0.5, iou_threshold=0.5)


@given(
    rows=st.lists(st.tuples(box, st.tuples(score, score, score)), max_size=25),
    score_threshold=st.sampled_from([0.0, 0.25, 0.5]),
    iou_threshold=threshold,
)
def test_detections_equal_a_python_loop_over_classes(rows: list, score_threshold: float, iou_threshold: float) -> None:
    boxes, scores = [row[0] for row in rows], [row[1] for row in rows]
    expected = loop_detections(boxes, scores, score_threshold, iou_threshold)
    found_boxes, found_scores, class_ids = detections_from(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32).reshape(-1, 3),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )
    assert found_scores.tolist() == [row[0] for row in expected]
    assert class_ids.tolist() == [row[2] for row in expected]
    assert found_boxes.tolist() == [list(boxes[row[1]]) for row in expected]


def many_detections(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    corner = rng.integers(0, 200, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 60, (count, 2))], axis=1).astype(np.float32)
    return boxes, rng.integers(0, 1000, (count, classes)).astype(np.float32) / 1000


def test_many_candidates_equal_a_python_loop() -> None:
    # 600 x 3 candidates above 0.1: more than the joint pass takes, so each class has a pass of its own.
    boxes, scores = many_detections(600, 3)
    expected = loop_detections(boxes.tolist(), scores.tolist(), 0.1, 0.45)
    _, found_scores, class_ids = detections_from(boxes, scores, score_threshold=0.1, iou_threshold=0.45)
    assert found_scores.tolist() == [row[0] for row in expected]
    assert class_ids.tolist() == [row[2] for row in expected]


def test_higher_score_threshold_gives_the_head_of_the_list() -> None:
    # Greedy NMS never lets a lower score suppress a higher one: one pass serves both thresholds.
    boxes, scores = many_detections(300, 4)
    low = detections_from(boxes, scores, score_threshold=0.001, iou_threshold=0.45)
    high = detections_from(boxes, scores, score_threshold=0.5, iou_threshold=0.45)
    above = low[1] > 0.5
    assert above.any()
    assert not above.all()
    for low_part, high_part in zip(low, high, strict=True):
        assert np.array_equal(low_part[above], high_part)


def test_one_box_may_be_of_several_classes() -> None:
    boxes, scores, class_ids = detections_from(
        [[1, 2, 3, 4]], [[0.6, 0.2, 0.9]], score_threshold=0.5, iou_threshold=0.45
    )
    assert class_ids.tolist() == [2, 0]
    assert scores == pytest.approx([0.9, 0.6])
    assert boxes.tolist() == [[1, 2, 3, 4]] * 2


def test_score_equal_to_the_threshold_is_no_detection() -> None:
    found = detections_from([[0, 0, 1, 1]], [[0.5]], score_threshold=0.5, iou_threshold=0.45)
    assert len(found[1]) == 0


def test_max_detections_keeps_the_best() -> None:
    boxes, scores = many_detections(200, 2)
    everything = detections_from(boxes, scores, score_threshold=0.1, iou_threshold=0.45)
    best = detections_from(boxes, scores, score_threshold=0.1, iou_threshold=0.45, max_detections=7)
    assert np.array_equal(best[1], everything[1][:7])
    none = detections_from(boxes, scores, score_threshold=0.1, iou_threshold=0.45, max_detections=0)
    assert len(none[1]) == 0


def test_top_k_lets_the_best_candidates_in_and_ties_in_their_order() -> None:
    boxes = np.array([[10 * i, 0, 10 * i + 5, 5] for i in range(6)], dtype=np.float32)
    scores = np.array([[0.3], [0.9], [0.5], [0.5], [0.5], [0.7]], dtype=np.float32)
    found, _, _ = detections_from(boxes, scores, score_threshold=0.1, iou_threshold=0.45, pre_nms_top_k=4)
    assert found[:, 0].tolist() == [10, 50, 20, 30]


def test_top_k_does_not_change_what_is_above_it() -> None:
    boxes, scores = many_detections(4000, 5)
    assert (scores > 0.001).sum() > PRE_NMS_TOP_K
    capped = detections_from(boxes, scores, score_threshold=0.001, iou_threshold=0.45)
    everything = detections_from(boxes, scores, score_threshold=0.001, iou_threshold=0.45, pre_nms_top_k=None)
    count = len(capped[1])
    assert 0 < count < len(everything[1])
    for part, whole in zip(capped, everything, strict=True):
        assert np.array_equal(part, whole[:count])


def test_boxes_and_scores_that_are_not_numbers_are_dropped() -> None:
    boxes = np.array([[0, 0, np.inf, 5], [0, 0, np.nan, 5], [0, 0, 5, 5], [0, 0, 5, 5]], dtype=np.float32)
    scores = np.array([[0.9], [0.9], [np.nan], [0.8]], dtype=np.float32)
    found, found_scores, _ = detections_from(boxes, scores, score_threshold=0.1, iou_threshold=0.45)
    assert found.tolist() == [[0, 0, 5, 5]]
    assert found_scores == pytest.approx([0.8])
