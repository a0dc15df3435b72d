"""Bootstrap intervals of mAP: how far it would move on other test images of the same kind.

Images are drawn with replacement and mAP is computed anew. Matching detections to objects happens inside an
image, so pycocotools does it once and a resample is no more than a whole number of copies (a weight) per
image; what is recomputed are weighted cumulative sums. Only true positives matter to the interpolated
precision: between two of them precision falls while recall stands still. So a class costs one cumulative sum
over its detections, which serves every IoU threshold, and then work in the number of its objects.

The interval says nothing about another training run: only about the choice of test images.

References: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval);
precision and recall as in ``COCOeval.accumulate``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

LEVEL = 0.95
RESAMPLES = 1000
_CHUNK = 16_000_000  # resamples x detections held at a time: 64 MB

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassMatches:
    """One class: its detections by descending score, and its objects.

    Attributes:
        image_index: ``(D,)`` int64, the image of each detection, as an index into `ImageMatches.image_ids`.
        true_positive: ``(T, D)`` bool, at each of the T IoU thresholds.
        ignored: ``(T, D)`` bool: matched to a crowd box, so neither right nor wrong.
        objects: ``(I,)`` int64, how many each image has, crowd boxes not counted.
    """

    image_index: NDArray[np.int64]
    true_positive: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class ImageMatches:
    """What pycocotools found out about each image, enough to compute mAP on any multiset of the images.

    Attributes:
        image_ids: ``(I,)`` int64, ascending.
        recall_thresholds: ``(101,)`` float64, 0 to 1.
        classes: One entry per class.
    """

    image_ids: NDArray[np.int64]
    recall_thresholds: _Floats
    classes: tuple[ClassMatches, ...]


@dataclass(frozen=True)
class Interval:
    """A figure and its percentile interval.

    Attributes:
        value: On the images as they are.
        low: Lower end.
        high: Upper end.
        level: The share of resamples inside, e.g. 0.95.
        resamples: How many were drawn.
    """

    value: float
    low: float
    high: float
    level: float
    resamples: int


@dataclass(frozen=True)
class MapIntervals:
    """Intervals of `MapResult`'s two means; None where the mean is undefined."""

    map_50_95: Interval | None
    map_50: Interval | None


@dataclass(frozen=True)
class PairedInterval:
    """Two models on the same images: the second against the first, which is the reference.

    Attributes:
        difference: mAP of the second minus that of the reference; None where one is undefined.
        ratio: mAP of the second divided by that of the reference; None where the reference is 0 on the images
            as they are or on a resample: then no finite interval exists.
    """

    difference: Interval | None
    ratio: Interval | None


def matches_from(evaluation: COCOeval) -> ImageMatches:
    """Take the per-image matches out of a ``COCOeval`` of `prunedeploy.evaluation.coco_map.run_cocoeval`."""
    parameters = evaluation._paramsEval
    image_ids = np.array(parameters.imgIds, np.int64)
    if len(parameters.areaRng) != 1 or len(parameters.maxDets) != 1:
        raise ValueError("expected one area range and one number of detections, as run_cocoeval sets them")
    per_class = [
        _class_matches(evaluation.evalImgs[start : start + len(image_ids)], len(parameters.iouThrs))
        for start in range(0, len(image_ids) * len(parameters.catIds), max(1, len(image_ids)))
    ]
    return ImageMatches(image_ids, np.array(parameters.recThrs, np.float64), tuple(per_class))


def _class_matches(entries: list[dict[str, Any] | None], thresholds: int) -> ClassMatches:
    found = [(index, entry) for index, entry in enumerate(entries) if entry is not None]
    objects = np.zeros(len(entries), np.int64)
    for index, entry in found:
        objects[index] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    scores = np.concatenate([np.empty(0), *(entry["dtScores"] for _, entry in found)])
    images = [np.full(len(entry["dtScores"]), index, np.int64) for index, entry in found]
    nothing = np.empty((thresholds, 0), np.bool_)
    matched = np.concatenate([nothing, *(entry["dtMatches"] != 0 for _, entry in found)], axis=1)
    ignored = np.concatenate([nothing, *(entry["dtIgnore"].astype(np.bool_) for _, entry in found)], axis=1)
    order = np.argsort(-scores, kind="stable")  # ties in the order of the images, as pycocotools has them
    return ClassMatches(
        image_index=np.concatenate([np.empty(0, np.int64), *images])[order],
        true_positive=(matched & ~ignored)[:, order],
        ignored=ignored[:, order],
        objects=objects,
    )


def weighted_map(matches: ImageMatches, weights: NDArray[np.integer]) -> tuple[_Floats, _Floats]:
    """Compute mAP on multisets of the images.

    Where no two detections of a class have the same score this is exactly what pycocotools computes on a
    data set with each image copied as often as its weight says; with weights of 1 it is so in any case.

    Args:
        matches: The matches.
        weights: ``(R, I)`` whole numbers >= 0: how often each image occurs in each of R multisets.

    Returns:
        ``map_50_95`` and ``map_50``, each ``(R,)`` in [0, 1], NaN where a multiset has no object at all. A
        class without objects in a multiset does not count there, as in pycocotools.

    Raises:
        ValueError: Wrong shape or type (printed), or a negative weight.
    """
    count = len(matches.image_ids)
    if weights.ndim != 2 or weights.shape[1] != count or not np.issubdtype(weights.dtype, np.integer):
        raise ValueError(f"weights must be (R, {count}) integers, got {weights.shape} {weights.dtype}")
    if weights.size and weights.min() < 0:
        raise ValueError(f"weights must not be negative, got {weights.min()}")
    copies = weights.astype(np.int32)
    total = np.zeros(len(weights))
    total_50 = np.zeros(len(weights))
    defined = np.zeros(len(weights))
    for one in matches.classes:
        objects = copies.astype(np.float64) @ one.objects
        has_objects = objects > 0
        defined += has_objects
        step = max(1, _CHUNK // max(1, len(one.image_index)))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            precision = _average_precision(one, copies[part], objects[part], matches.recall_thresholds)
            precision[:, ~has_objects[part]] = 0.0
            total[part] += precision.mean(axis=0)
            total_50[part] += precision[0]
    with np.errstate(invalid="ignore"):
        return total / defined, total_50 / defined


def _average_precision(
    one: ClassMatches, weights: NDArray[np.int32], objects: _Floats, recall_thresholds: _Floats
) -> _Floats:
    """Average precision ``(T, R)`` of one class; meaningless where ``objects`` (R,) is 0."""
    # A detection that is ignored at no threshold counts at all of them: one cumulative sum serves all.
    # The few that a crowd box swallows at some thresholds are added per threshold.
    swallowed = one.ignored.any(axis=0)
    always, sometimes = np.flatnonzero(~swallowed), np.flatnonzero(swallowed)
    always_rank, sometimes_rank = np.cumsum(~swallowed), np.cumsum(swallowed)
    always_seen = _cumulative(weights[:, one.image_index[always]])
    sometimes_weights = weights[:, one.image_index[sometimes]]

    result = np.zeros((len(one.true_positive), len(weights)))
    for t, true_positive in enumerate(one.true_positive):
        position = np.flatnonzero(true_positive)  # of the n true positives
        if not len(position):
            continue
        found = np.cumsum(weights[:, one.image_index[position]], axis=1, dtype=np.float64)  # (R, n)
        seen = always_seen[:, always_rank[position]]
        if len(sometimes):
            counted = sometimes_weights * ~one.ignored[t, sometimes]
            seen = seen + _cumulative(counted)[:, sometimes_rank[position]]
        precision = found / (seen + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = found / objects[:, None]
        # How many recall thresholds are first reached at each true positive: those get its envelope.
        reached = np.searchsorted(recall_thresholds, recall, side="right")
        reached[:, 1:] -= reached[:, :-1].copy()
        result[t] = (reached * envelope).sum(axis=1) / len(recall_thresholds)
    return result


def _cumulative(weights: NDArray[np.int32]) -> NDArray[np.int32]:
    """``(R, n)`` to ``(R, n + 1)``: sums of the first 0 to n entries."""
    sums = np.zeros((len(weights), weights.shape[1] + 1), np.int32)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def draw_weights(images: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each image occurs in each resample: ``(resamples, images)``, every row sums to ``images``.

    Raises:
        ValueError: ``resamples`` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if images < 1:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def bootstrap_map(matches: ImageMatches, *, resamples: int = RESAMPLES, seed: int = 0) -> MapIntervals:
    """Percentile intervals of mAP over images.

    Args:
        matches: From `matches_from`.
        resamples: How many to draw, at least 1.
        seed: Seed of the draw; models with the same images and seed are resampled alike.
    """
    value, value_50 = (float(one[0]) for one in weighted_map(matches, _identity(matches)))
    samples, samples_50 = weighted_map(matches, draw_weights(len(matches.image_ids), resamples, seed))
    return MapIntervals(interval_of(value, samples), interval_of(value_50, samples_50))


def paired_interval(
    reference: ImageMatches, other: ImageMatches, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedInterval:
    """Compare two models on the same images, each resample used for both.

    An image that is hard is hard for both, so this is much narrower than comparing two intervals.

    Args:
        reference: Matches of the model compared with, e.g. the dense one.
        other: Matches of the model in question, e.g. the pruned one.
        resamples: How many to draw, at least 1.
        seed: Seed of the draw.

    Raises:
        ValueError: The two are not of the same images.
    """
    if not np.array_equal(reference.image_ids, other.image_ids):
        raise ValueError(
            f"the two models must be measured on the same images, got {len(reference.image_ids)} and "
            f"{len(other.image_ids)} images with different ids"
        )
    weights = np.concatenate([_identity(reference), draw_weights(len(reference.image_ids), resamples, seed)])
    first, second = weighted_map(reference, weights)[0], weighted_map(other, weights)[0]
    difference = second - first
    ratio = None
    if not np.any(first == 0):  # NaN (no object in a resample) is left out by `interval_of`
        quotient = second / first
        ratio = interval_of(float(quotient[0]), quotient[1:])
    return PairedInterval(interval_of(float(difference[0]), difference[1:]), ratio)


def _identity(matches: ImageMatches) -> NDArray[np.int64]:
    return np.ones((1, len(matches.image_ids)), np.int64)


def interval_of(value: float, samples: _Floats) -> Interval | None:
    """Percentile interval of a figure, None if it is undefined (NaN); resamples in which it is are left out.

    Args:
        value: The figure on the images as they are.
        samples: ``(R,)``, on each resample.
    """
    defined = samples[~np.isnan(samples)]
    if np.isnan(value) or not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), LEVEL, len(samples))
