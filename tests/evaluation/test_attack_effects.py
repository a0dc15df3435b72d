"""What an attack does to objects that were found: cases worked out by hand, and rates against plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from prunedeploy.evaluation import DetectionTable
from prunedeploy.evaluation.attack_effects import attack_effects

CAT, DOG = 0, 1
LEFT, RIGHT, NOWHERE = (10.0, 10.0, 40.0, 40.0), (100.0, 10.0, 40.0, 40.0), (300.0, 300.0, 20.0, 20.0)


def rates(found):
    return [None if one is None else one.value for one in (
        found.disappeared, found.mislabelled, found.hallucinated, found.hallucinated_clean
    )]  # fmt: skip


@pytest.mark.parametrize(
    ("attacked", "expected"),
    [
        ([(1, CAT, LEFT, 0.9), (1, DOG, RIGHT, 0.9)], [0, 0, 0, 0.5]),
        ([(1, CAT, LEFT, 0.9)], [0.5, 0, 0, 0.5]),
        ([], [1, 0, 0, 0.5]),
        # The dog is called a cat; a cat besides, where nothing is.
        ([(1, CAT, LEFT, 0.9), (1, CAT, RIGHT, 0.9), (1, CAT, NOWHERE, 0.9)], [0, 0.5, 0.5, 0.5]),
        # Below the threshold nothing counts.
        ([(1, CAT, LEFT, 0.9), (1, DOG, RIGHT, 0.4), (1, CAT, NOWHERE, 0.4)], [0.5, 0, 0, 0.5]),
        # Half beside it: an IoU of 1/3 is neither found nor hallucinated.
        ([(1, CAT, (30.0, 10.0, 40.0, 40.0), 0.9), (1, DOG, RIGHT, 0.9)], [0.5, 0, 0, 0.5]),
        # Two detections of one object find it once.
        ([(1, CAT, LEFT, 0.9), (1, CAT, LEFT, 0.8)], [0.5, 0, 0, 0.5]),
    ],
)
def test_objects_disappear_or_are_mislabelled(dataset_of, table_of, attacked, expected):
    dataset = dataset_of([[(CAT, LEFT, False), (DOG, RIGHT, False)]], classes=2)
    clean = table_of([(1, CAT, LEFT, 0.9), (1, DOG, RIGHT, 0.8), (1, DOG, NOWHERE, 0.7)])
    found = attack_effects(dataset, clean, table_of(attacked), score_threshold=0.5, resamples=0)
    assert found.found == 2
    assert rates(found) == expected


def test_crowds_are_no_objects_and_what_lies_on_them_is_no_hallucination(dataset_of, table_of):
    dataset = dataset_of([[(CAT, LEFT, False), (CAT, RIGHT, True)]])
    clean = table_of([(1, CAT, LEFT, 0.9)])
    attacked = table_of([(1, CAT, (110.0, 15.0, 10.0, 10.0), 0.9)])  # in the crowd, a tenth of its size
    found = attack_effects(dataset, clean, attacked, score_threshold=0.5, resamples=0)
    assert rates(found) == [1, 0, 0, 0]


def test_nothing_found_has_no_rates(dataset_of, table_of):
    found = attack_effects(
        dataset_of([[(CAT, LEFT, False)]]), table_of([]), table_of([]), score_threshold=0.5, resamples=20
    )
    assert found.found == 0
    assert rates(found) == [None] * 4


def test_rates_are_sums_over_images_and_their_intervals_cover_them(random_world):
    dataset, clean = random_world(3, images=40)
    _, other = random_world(3, images=40)
    kept = np.random.default_rng(1).random(len(other)) < 0.6
    attacked = DetectionTable(other.image_ids[kept], other.class_ids[kept], other.boxes_xywh[kept], other.scores[kept])
    found = attack_effects(dataset, clean, attacked, score_threshold=0.1, resamples=200)
    # The plain way: image by image, through the very function with one image.
    parts = [
        attack_effects(dataset, clean, attacked, [image.image_id], score_threshold=0.1, resamples=0)
        for image in dataset.images
    ]
    total = sum(part.found for part in parts)
    assert found.found == total > 0
    for name in ("disappeared", "mislabelled", "hallucinated"):
        summed = sum(getattr(part, name).value * part.found for part in parts if part.found)
        if name != "hallucinated":  # there are detections of nothing in images where nothing was found, too
            assert getattr(found, name).value == pytest.approx(summed / total)
        interval = getattr(found, name)
        assert interval.low <= interval.value <= interval.high
    assert 0 < found.disappeared.value + found.mislabelled.value <= 1
