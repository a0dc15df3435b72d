from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunedeploy_engines.markup.labels import Box, place_labels


@pytest.mark.parametrize("seed", range(5))
def test_labels_cover_neither_each_other_nor_markers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spots = [(float(x), float(y)) for x, y in rng.uniform((80, 60), (900, 460), (14, 2))]
    sizes = [(float(width), 13.0) for width in rng.uniform(40, 160, 14)]
    area = Box(60, 40, 990, 490)
    boxes = place_labels(spots, sizes, area)
    markers = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for a, b in itertools.combinations(boxes, 2):
        assert a.overlap(b) == 0
    assert all(box.overlap(marker) == 0 for box in boxes for marker in markers)
    assert all(box.outside(area) == 0 for box in boxes)


def test_a_lone_label_stands_right_of_its_point() -> None:
    (box,) = place_labels([(100, 100)], [(50, 12)], Box(0, 0, 500, 500))
    assert box.left > 100
    assert box.top < 100 < box.bottom
    (box,) = place_labels([(480, 100)], [(50, 12)], Box(0, 0, 500, 500))
    assert box.right < 480, "inside the area"
