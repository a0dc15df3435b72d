"""Bootstrap intervals: against pycocotools on data sets that really hold the copies, and against theory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from prunedeploy.evaluation import (
    DetectionTable,
    bootstrap_map,
    coco_map,
    matches_from,
    paired_interval,
    run_cocoeval,
)
from prunedeploy.evaluation.bootstrap import draw_weights, weighted_map

BOX = (10.0, 20.0, 100.0, 50.0)


def matches_of(dataset, detections):
    return matches_from(run_cocoeval(dataset, detections))


def of_image(table, image_id):
    """The rows of one image."""
    wanted = table.image_ids == image_id
    return DetectionTable(
        table.image_ids[wanted], table.class_ids[wanted], table.boxes_xywh[wanted], table.scores[wanted]
    )


def hits_world(dataset_of, table_of, hits):
    """One object per image, found exactly or not at all: precision is 1 up to the share of hits."""
    dataset = dataset_of([[(0, BOX, False)]] * len(hits))
    rows = [(number, 0, BOX, 0.9) for number, hit in enumerate(hits, start=1) if hit]
    return matches_of(dataset, table_of(rows))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_every_image_once_equals_pycocotools(random_world, seed, ties):
    # 320 detections per image: more than 100 of a class, so that pycocotools' limit acts too.
    dataset, detections = random_world(seed, detections=320 if seed == 0 else 30, ties=ties)
    reference = coco_map(dataset, detections)
    ones = np.ones((1, len(dataset.images)), np.int64)
    ours, ours_50 = weighted_map(matches_of(dataset, detections), ones)
    assert 0.02 < reference.map_50_95 < 0.98
    assert abs(ours[0] - reference.map_50_95) <= 1e-12
    assert abs(ours_50[0] - reference.map_50) <= 1e-12
    intervals = bootstrap_map(matches_of(dataset, detections), resamples=5)
    assert intervals.map_50_95.value == ours[0]
    assert intervals.map_50.value == ours_50[0]


@pytest.mark.parametrize("seed", range(4))
def test_resample_equals_pycocotools_on_a_data_set_with_copies(random_world, seed):
    dataset, detections = random_world(seed)
    assert any(image.iscrowd.any() for image in dataset.images)
    assert len(np.unique(detections.scores)) == len(detections)
    matches = matches_of(dataset, detections)
    weights = draw_weights(len(dataset.images), 6, seed)
    ours, ours_50 = weighted_map(matches, weights)
    by_id = {image.image_id: image for image in dataset.images}
    for resample, row in enumerate(weights):
        images, tables = [], []
        for image_id, copies in zip(matches.image_ids.tolist(), row, strict=True):
            for _ in range(copies):
                own = of_image(detections, image_id)
                images.append(replace(by_id[image_id], image_id=len(images)))
                tables.append(replace(own, image_ids=np.full(len(own), len(images) - 1)))
        copied = replace(dataset, images=images)
        reference = coco_map(copied, DetectionTable.concatenate(tables))
        assert abs(ours[resample] - reference.map_50_95) <= 1e-12
        assert abs(ours_50[resample] - reference.map_50) <= 1e-12


def test_result_does_not_depend_on_how_many_resamples_are_held_at_a_time(random_world, monkeypatch):
    matches = matches_of(*random_world(7))
    whole = bootstrap_map(matches, resamples=50)
    monkeypatch.setattr("prunedeploy.evaluation.bootstrap._CHUNK", 1000)
    assert bootstrap_map(matches, resamples=50) == whole


def test_interval_is_the_binomial_one_where_map_is_a_proportion(dataset_of, table_of):
    images, share = 200, 0.6
    matches = hits_world(dataset_of, table_of, [i < share * images for i in range(images)])
    interval = bootstrap_map(matches, resamples=4000, seed=3).map_50
    # Recall is Binomial(200, .6) / 200 and average precision counts the thresholds 0, .01, ... up to it.
    low, high = stats.binom.ppf([0.025, 0.975], images, share) / images
    assert interval.value == pytest.approx(61 / 101, abs=1e-12)
    assert interval.low == pytest.approx(low, abs=0.012)
    assert interval.high == pytest.approx(high, abs=0.012)
    assert interval.level == 0.95
    assert interval.resamples == 4000


def test_seed_decides_the_draw(random_world):
    matches = matches_of(*random_world(1, images=40))
    assert bootstrap_map(matches, resamples=20, seed=5) == bootstrap_map(matches, resamples=20, seed=5)
    assert bootstrap_map(matches, resamples=20, seed=5) != bootstrap_map(matches, resamples=20, seed=6)


def test_every_resample_has_as_many_images(random_world):
    weights = draw_weights(17, 30, seed=0)
    assert weights.shape == (30, 17)
    assert (weights.sum(axis=1) == 17).all()
    assert weights.min() == 0


def test_without_objects_there_is_no_interval(dataset_of, table_of):
    for images in ([[], []], []):
        matches = matches_of(dataset_of(images), DetectionTable.empty())
        intervals = bootstrap_map(matches, resamples=10)
        assert intervals.map_50_95 is None
        assert intervals.map_50 is None
        pair = paired_interval(matches, matches, resamples=10)
        assert pair.difference is None
        assert pair.ratio is None


def test_without_detections_the_interval_is_zero(dataset_of, table_of):
    interval = bootstrap_map(hits_world(dataset_of, table_of, [False] * 5), resamples=10).map_50_95
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_model_compared_with_itself_is_equal_on_every_resample(random_world):
    matches = matches_of(*random_world(2, images=40))
    pair = paired_interval(matches, matches, resamples=100)
    assert (pair.difference.value, pair.difference.low, pair.difference.high) == (0.0, 0.0, 0.0)
    assert (pair.ratio.value, pair.ratio.low, pair.ratio.high) == (1.0, 1.0, 1.0)


def test_pair_shares_its_resamples(dataset_of, table_of):
    # The second model finds exactly half of what the first finds, on images drawn alike.
    images = 120
    first = hits_world(dataset_of, table_of, [i % 3 != 2 for i in range(images)])
    second = hits_world(dataset_of, table_of, [i % 3 == 0 for i in range(images)])
    seed, resamples = 4, 300
    pair = paired_interval(first, second, resamples=resamples, seed=seed)
    weights = draw_weights(images, resamples, seed)
    number = np.arange(images)

    def proportion(found):
        share = weights[:, found].sum(axis=1)
        # Thresholds 0, 1/100, ... that k / 120 reaches, counted in whole numbers: 100 k // 120 + 1 of 101.
        return (100 * share // images + 1) / 101

    reference, other = proportion(number % 3 != 2), proportion(number % 3 == 0)
    assert pair.difference.low == pytest.approx(np.quantile(other - reference, 0.025), abs=1e-12)
    assert pair.difference.high == pytest.approx(np.quantile(other - reference, 0.975), abs=1e-12)
    assert pair.ratio.low == pytest.approx(np.quantile(other / reference, 0.025), abs=1e-12)
    assert pair.ratio.high == pytest.approx(np.quantile(other / reference, 0.975), abs=1e-12)
    assert pair.ratio.value == pytest.approx((34 / 101) / (67 / 101), abs=1e-12)


def test_ratio_to_zero_is_undefined(dataset_of, table_of):
    zero = hits_world(dataset_of, table_of, [False] * 6)
    some = hits_world(dataset_of, table_of, [True] * 6)
    pair = paired_interval(zero, some, resamples=20)
    assert pair.ratio is None
    assert pair.difference.value == pytest.approx(1.0, abs=1e-12)
    assert paired_interval(some, zero, resamples=20).ratio.value == 0.0


def test_models_on_different_images_are_not_compared(random_world):
    with pytest.raises(ValueError, match="same images"):
        paired_interval(matches_of(*random_world(0, images=4)), matches_of(*random_world(0, images=5)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, 3), np.int64), r"\(2, 3\)"),
        (np.ones((2, 4)), "float64"),
        (np.full((2, 4), -1), "-1"),
    ],
)
def test_wrong_weights_are_refused(random_world, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_map(matches_of(*random_world(0, images=4)), weights)


def test_no_resamples_are_refused(random_world):
    with pytest.raises(ValueError, match="resamples must be"):
        bootstrap_map(matches_of(*random_world(0, images=4)), resamples=0)
