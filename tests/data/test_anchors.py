"""Anchors by k-means on IoU, against clusters that are known and IoUs worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunedeploy.data.anchors import box_sizes, centred_iou, cluster_anchors, fit
from prunedeploy.data.records import CocoDataset, ImageRecord
from prunedeploy_engines.errors import DataError

CENTRES = np.array([(10.0, 14.0), (40.0, 30.0), (60.0, 120.0)])


def around_centres(count: int = 200) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.concatenate([centre * random.uniform(0.9, 1.1, (count, 2)) for centre in CENTRES])


def test_iou_of_boxes_with_one_centre() -> None:
    """2 x 4 and 4 x 2 share 2 x 2 = 4 of 8 + 8 - 4 = 12; 2 x 4 lies within 4 x 8, 8 of 32."""
    found = centred_iou(np.array([[2.0, 4.0]]), np.array([[4.0, 2.0], [4.0, 8.0], [2.0, 4.0]]))
    assert found.tolist() == [[4 / 12, 8 / 32, 1.0]]


def test_fit_counts_boxes_with_an_anchor_above_a_half() -> None:
    """IoUs of the best anchor: 1, 4/12."""
    found = fit(np.array([[4.0, 2.0], [2.0, 4.0]]), [(4.0, 2.0)])
    assert (found.mean_iou, found.recall) == (pytest.approx((1 + 4 / 12) / 2), 0.5)


def test_sizes_are_those_in_the_input_letterboxed_or_stretched() -> None:
    """A box of 20 x 10 in an image of 100 x 50: into 64 x 64, by .64 both ways or by .64 and 1.28."""
    box = np.array([[3, 4, 20, 10]], np.float32)
    record = ImageRecord(1, Path("x.png"), 50, 100, box, np.zeros(1, np.int64), np.zeros(1, np.bool_))
    dataset = CocoDataset([record], ["thing"], [1], Path("x.json"))
    np.testing.assert_allclose(box_sizes(dataset, (64, 64)), [[12.8, 6.4]])
    np.testing.assert_allclose(box_sizes(dataset, (64, 64), stretch=True), [[12.8, 12.8]])


def test_known_clusters_are_found_in_the_order_of_their_areas() -> None:
    sizes = around_centres()
    anchors = np.array(cluster_anchors(np.random.default_rng(0).permutation(sizes), 3))
    expected = [sizes[start : start + 200].mean(axis=0) for start in (0, 200, 400)]
    assert np.abs(anchors - expected).max() <= 0.05 + 1e-9  # rounded to a tenth


def test_as_good_as_any_of_many_plain_starts() -> None:
    """Lloyd's rounds written as a loop over boxes, from random boxes."""
    random = np.random.default_rng(3)
    sizes = random.lognormal(3, 0.7, (150, 2))
    best = 0.0
    for _ in range(20):
        anchors = [tuple(size) for size in sizes[random.choice(150, 4, replace=False)]]
        for _ in range(50):
            clusters: list[list[np.ndarray]] = [[] for _ in anchors]
            for size in sizes:
                overlaps = []
                for anchor in anchors:
                    shared = min(size[0], anchor[0]) * min(size[1], anchor[1])
                    overlaps.append(shared / (size[0] * size[1] + anchor[0] * anchor[1] - shared))
                clusters[overlaps.index(max(overlaps))].append(size)
            anchors = [tuple(np.mean(c, axis=0)) if c else a for c, a in zip(clusters, anchors, strict=True)]
        best = max(best, fit(sizes, anchors).mean_iou)
    assert fit(sizes, cluster_anchors(sizes, 4)).mean_iou >= best - 0.01


def test_same_seed_same_anchors_and_a_draw_says_as_much_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = around_centres()
    assert cluster_anchors(sizes, 3, seed=5) == cluster_anchors(sizes, 3, seed=5)
    monkeypatch.setattr("prunedeploy.data.anchors.MOST_SIZES", 100)
    assert np.abs(np.array(cluster_anchors(sizes, 3)) - CENTRES).max() < 4


def test_sizes_are_those_of_letterboxed_images_without_crowds() -> None:
    boxes = np.array([[0, 0, 100, 50], [5, 5, 20, 20]], np.float32)
    record = ImageRecord(1, Path("a.jpg"), 200, 400, boxes, np.zeros(2, np.int64), np.array([False, True]))
    dataset = CocoDataset([record], ["cell"], [1], Path("train.json"))
    # 400 x 200 into 208 wide and 416 high: scale 208 / 400.
    assert box_sizes(dataset, (416, 208)).tolist() == [[52.0, 26.0]]


def test_fewer_sizes_than_anchors_is_one_line() -> None:
    with pytest.raises(DataError, match="6 anchors need as many sizes of boxes, and the training images have 1"):
        cluster_anchors(np.full((50, 2), 8.0), 6)
