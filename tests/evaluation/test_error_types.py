"""TIDE's error kinds: against tidecv 1.0.1's figures for one small data set, and single errors of each kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunedeploy.data.records import CocoDataset, ImageRecord
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy.evaluation.error_types import KINDS, error_types

# Image, class, box (left, top, width, height), whether a crowd region.
OBJECTS = [
    (3, 1, [60, 60, 20, 20], False),
    (0, 0, [10, 10, 20, 20], False),
    (0, 1, [50, 50, 20, 20], False),
    (0, 0, [60, 10, 20, 20], False),
    (1, 1, [20, 20, 30, 30], False),
    (1, 2, [60, 60, 30, 30], True),
    (2, 2, [5, 5, 40, 40], False),
    (2, 0, [50, 5, 20, 40], False),
]
# Image, class, box, score.
DETECTIONS = [
    (0, 0, [11, 10, 20, 20], 0.9),
    (0, 0, [12, 11, 20, 20], 0.8),  # a second one of the same object
    (0, 0, [50, 51, 20, 20], 0.7),  # the right place, the wrong class
    (0, 0, [66, 16, 20, 20], 0.6),  # the right class, an IoU of .32
    (0, 2, [64, 14, 20, 20], 0.55),  # an IoU of .47 with an object of another class: both
    (1, 1, [22, 20, 30, 30], 0.85),
    (1, 2, [62, 62, 20, 20], 0.5),  # on a crowd region
    (1, 2, [5, 70, 10, 10], 0.45),
    (1, 0, [28, 28, 30, 30], 0.4),
    (2, 2, [9, 9, 40, 40], 0.75),
    (2, 1, [6, 6, 38, 40], 0.65),
    (2, 0, [52, 5, 20, 38], 0.3),
    (3, 1, [0, 0, 20, 20], 0.35),
    (3, 0, [40, 40, 9, 9], 0.95),
]

# What tidecv 1.0.1 gives for these, in percent there.
AP_50 = 0.53276756247053264
TIDECV = {
    "classification": (2, 0.114097124),
    "localisation": (1, 0.06364922207),
    "both": (2, 0.00518623291),
    "duplicate": (1, 0.00518623291),
    "background": (4, 0.06129184347),
    "missed": (1, 0.05610561056),
}


def dataset(objects: list[tuple[int, int, list[int], bool]]) -> CocoDataset:
    images = []
    for image_id in range(4):
        own = [one for one in objects if one[0] == image_id]
        boxes = np.array([one[2] for one in own], np.float32).reshape(-1, 4)
        classes, crowd = np.array([one[1] for one in own], np.int64), np.array([one[3] for one in own], np.bool_)
        images.append(ImageRecord(image_id, Path("x.png"), 100, 100, boxes, classes, crowd, boxes[:, 2] * boxes[:, 3]))
    return CocoDataset(images, ["a", "b", "c"], [1, 2, 3], Path("x.json"))


def table(detections: list[tuple[int, int, list[int], float]]) -> DetectionTable:
    image_ids, classes, boxes, scores = (np.array(column) for column in zip(*detections, strict=True))
    return DetectionTable(image_ids, classes, boxes.astype(np.float32), scores.astype(np.float32))


def test_counts_and_costs_are_tidecvs():
    found = error_types(dataset(OBJECTS), table(DETECTIONS))
    assert found.ap_50 == pytest.approx(AP_50, abs=1e-9)
    assert found.counts == {kind: count for kind, (count, _) in TIDECV.items()}
    for kind, (_, cost) in TIDECV.items():
        assert found.costs[kind] == pytest.approx(cost, abs=1e-9), kind


@pytest.mark.parametrize(
    ("detection", "kind"),
    [
        ((0, 0, [10, 10, 20, 20], 0.9), None),
        ((0, 1, [10, 10, 20, 20], 0.9), "classification"),
        ((0, 0, [20, 10, 20, 20], 0.9), "localisation"),  # an IoU of a third
        ((0, 1, [20, 10, 20, 20], 0.9), "both"),
        ((0, 0, [70, 70, 20, 20], 0.9), "background"),
    ],
)
def test_one_detection_has_one_error(detection, kind):
    found = error_types(dataset(OBJECTS[1:2]), table([detection]))
    missed = kind in ("both", "background")
    assert found.counts == {**dict.fromkeys(KINDS, 0), **({kind: 1} if kind else {}), "missed": int(missed)}
    # What is mended by itself is whole again, but where the object was never near a detection.
    if kind in ("classification", "localisation"):
        assert (found.ap_50, found.costs[kind]) == (0.0, 1.0)


def test_a_duplicate_costs_nothing_where_the_better_one_is_first():
    found = error_types(dataset(OBJECTS[1:2]), table([(0, 0, [10, 10, 20, 20], 0.9), (0, 0, [11, 10, 20, 20], 0.8)]))
    assert (found.ap_50, found.counts["duplicate"], found.costs["duplicate"]) == (1.0, 1, 0.0)


def test_without_detections_all_is_missed():
    found = error_types(dataset(OBJECTS), DetectionTable.empty())
    assert (found.ap_50, found.counts["missed"]) == (0.0, 7)


def test_only_the_images_asked_for_count():
    some = error_types(dataset(OBJECTS), table(DETECTIONS), image_ids=[0, 2])
    other = [one for one in OBJECTS if one[0] in (0, 2)], [one for one in DETECTIONS if one[0] in (0, 2)]
    assert some == error_types(dataset(other[0]), table(other[1]), image_ids=[0, 2])
    assert sum(some.counts.values()) < sum(error_types(dataset(OBJECTS), table(DETECTIONS)).counts.values())
