"""Thresholds against counts by hand and against a plain loop over all thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunedeploy.evaluation import DetectionTable
from prunedeploy.evaluation.operating_point import at_threshold, best_f1, score_curve, with_precision
from prunedeploy_engines.errors import DataError

BOX, AWAY = (10.0, 10.0, 40.0, 40.0), (300.0, 300.0, 40.0, 40.0)


def test_three_detections_by_hand(dataset_of: Any, table_of: Any) -> None:
    """Two objects; detections .9 right, .8 wrong, .4 right: precision 1, 1/2, 2/3; recall 1/2, 1/2, 1."""
    dataset = dataset_of([[(0, BOX, False)], [(0, BOX, False)]])
    curve = score_curve(dataset, table_of([(1, 0, BOX, 0.9), (1, 0, AWAY, 0.8), (2, 0, BOX, 0.4)]))
    assert curve.precision.tolist() == [1, 1 / 2, 2 / 3]
    assert curve.recall.tolist() == [1 / 2, 1 / 2, 1]
    assert curve.thresholds == pytest.approx([0.85, 0.6, 0.2], abs=1e-6)
    best = best_f1(curve)
    assert (best.precision, best.recall, best.f1) == pytest.approx((2 / 3, 1, 0.8))
    assert best.score_threshold == pytest.approx(0.2, abs=1e-6)
    precise = with_precision(curve, 0.7)
    assert (precise.score_threshold, precise.recall) == (pytest.approx(0.85, abs=1e-6), 0.5)


def test_what_a_given_threshold_does(dataset_of: Any, table_of: Any) -> None:
    """The three detections above: a threshold counts what is above it, and one above them all finds nothing."""
    dataset = dataset_of([[(0, BOX, False)], [(0, BOX, False)]])
    curve = score_curve(dataset, table_of([(1, 0, BOX, 0.9), (1, 0, AWAY, 0.8), (2, 0, BOX, 0.4)]))
    for threshold, precision, recall in ((0.5, 1 / 2, 1 / 2), (0.1, 2 / 3, 1), (0.89, 1, 1 / 2), (0.95, 0, 0)):
        point = at_threshold(curve, threshold)
        assert (point.score_threshold, point.precision, point.recall) == pytest.approx((threshold, precision, recall))


def test_equal_scores_are_kept_or_dropped_together(dataset_of: Any, table_of: Any) -> None:
    dataset = dataset_of([[(0, BOX, False)]])
    curve = score_curve(dataset, table_of([(1, 0, BOX, 0.5), (1, 0, AWAY, 0.5)]))
    assert (curve.precision.tolist(), curve.recall.tolist()) == ([0.5], [1.0])


def test_second_detection_of_an_object_and_another_class_are_wrong(dataset_of: Any, table_of: Any) -> None:
    dataset = dataset_of([[(0, BOX, False)]], classes=2)
    curve = score_curve(dataset, table_of([(1, 0, BOX, 0.9), (1, 0, BOX, 0.8), (1, 1, BOX, 0.7)]))
    assert curve.precision.tolist() == [1, 1 / 2, 1 / 3]


def test_what_is_on_a_crowd_counts_neither_way(dataset_of: Any, table_of: Any) -> None:
    dataset = dataset_of([[(0, BOX, False), (0, AWAY, True)]])
    curve = score_curve(dataset, table_of([(1, 0, AWAY, 0.9), (1, 0, BOX, 0.8)]))
    assert (curve.precision.tolist(), curve.recall.tolist()) == ([1.0], [1.0])


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_detections_above_the_threshold(random_world: Any, seed: int) -> None:
    """Matched anew from the detections above each threshold alone, as whoever uses the threshold does."""
    dataset, detections = random_world(seed, ties=True)
    curve = score_curve(dataset, detections)
    assert len(curve.thresholds) > 5
    for threshold, precision, recall in zip(curve.thresholds, curve.precision, curve.recall, strict=True):
        alone = score_curve(dataset, detections.above(threshold))
        assert (alone.precision[-1], alone.recall[-1]) == (precision, recall)
    assert best_f1(curve).f1 == pytest.approx(curve.f1.max())
    assert (np.diff(curve.thresholds) < 0).all()


def test_nothing_detected_and_nothing_to_detect(dataset_of: Any) -> None:
    empty = DetectionTable.empty()
    curve = score_curve(dataset_of([[(0, BOX, False)]]), empty)
    assert best_f1(curve).f1 == 0
    with pytest.raises(DataError, match=r"precision of 0.9 on the held-out images: nothing was detected"):
        with_precision(curve, 0.9)
    with pytest.raises(DataError, match="the held-out images have no boxes"):
        score_curve(dataset_of([[]]), empty)


def test_precision_that_no_threshold_has_names_the_best(dataset_of: Any, table_of: Any) -> None:
    curve = score_curve(dataset_of([[(0, BOX, False)]]), table_of([(1, 0, AWAY, 0.9), (1, 0, BOX, 0.8)]))
    with pytest.raises(DataError, match=r"precision of 0.9 on the held-out images: the best is 0.500"):
        with_precision(curve, 0.9)
