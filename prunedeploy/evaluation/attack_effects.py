"""What an attack does to objects that a detector had found: they disappear, are mislabelled, or are joined by others.

An object counts as found if a detection of its class overlaps it by an IoU of at least `FOREGROUND_IOU`; a detection
finds one object, the one it overlaps most of those left, the best-scored detection first. Of the objects that are found
in the clean image, under the attack

    disappeared     are not found, and no detection of another class overlaps them by `FOREGROUND_IOU` either
    mislabelled     are not found, but such a detection overlaps them

Hallucinated are detections that overlap no object by more than `BACKGROUND_IOU` (TIDE's background errors); they are
counted per object found in the clean images, before and after, so that all four rates have one denominator.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunedeploy.data.records import CocoDataset, ImageRecord
from prunedeploy.evaluation.bootstrap import RESAMPLES, Interval, draw_weights, interval_of
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy.evaluation.error_types import BACKGROUND_IOU, FOREGROUND_IOU, overlaps


@dataclass(frozen=True)
class AttackEffects:
    """Rates over the objects found in the clean images; an interval is None where none was found.

    Attributes:
        found: How many objects are found in the clean images.
        disappeared: Share of them, in [0, 1].
        mislabelled: Share of them, in [0, 1].
        hallucinated: Detections of nothing in the attacked images, per object; at least 0.
        hallucinated_clean: The same in the clean images.
    """

    found: int
    disappeared: Interval | None
    mislabelled: Interval | None
    hallucinated: Interval | None
    hallucinated_clean: Interval | None


def attack_effects(
    dataset: CocoDataset,
    clean: DetectionTable,
    attacked: DetectionTable,
    image_ids: Collection[int] | None = None,
    *,
    score_threshold: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> AttackEffects:
    """Compare what is found before and after an attack.

    Args:
        dataset: Ground truth; crowd regions are not objects, and what lies on one is not a hallucination.
        clean: Detections in its images.
        attacked: Detections in the same images, attacked.
        image_ids: The images that count; None: all.
        score_threshold: Detections below it are not looked at, in [0, 1].
        resamples: Resamples of the bootstrap over images; 0: the intervals are the figures themselves.
        seed: Seed of the bootstrap.
    """
    before, after = clean.above(score_threshold), attacked.above(score_threshold)
    images = [image for image in dataset.images if image_ids is None or image.image_id in image_ids]
    counts = np.array([_counts(image, before, after) for image in images], np.float64).reshape(-1, 5)
    weights = draw_weights(len(images), resamples, seed) if resamples else np.ones((1, len(images)), np.int64)
    found, *others = counts.T
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [
            interval_of(float(np.divide(one.sum(), found.sum())), (weights @ one) / (weights @ found)) for one in others
        ]
    return AttackEffects(int(found.sum()), *rates)


def _counts(image: ImageRecord, before: DetectionTable, after: DetectionTable) -> list[int]:
    """Counts of one image: found, disappeared, mislabelled, hallucinated, hallucinated before."""
    found, _, hallucinated_clean = _seen(image, before)
    still, mislabelled, hallucinated = _seen(image, after)
    lost = found & ~still
    return [
        int(found.sum()),
        int((lost & ~mislabelled).sum()),
        int((lost & mislabelled).sum()),
        hallucinated,
        hallucinated_clean,
    ]


def _seen(image: ImageRecord, table: DetectionTable) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Which objects are found, which a detection of another class overlaps, and how many detections are of nothing."""
    own = table.of_images([image.image_id])
    order = np.argsort(-own.scores, kind="stable")
    boxes, classes = own.boxes_xywh[order].astype(np.float64), own.class_ids[order]
    objects = ~image.iscrowd
    truth, truth_class = image.boxes_xywh[objects].astype(np.float64), image.class_ids[objects]
    iou = overlaps(boxes, truth)
    same = classes[:, None] == truth_class
    found = np.zeros(len(truth), np.bool_)
    for detection in range(len(boxes)):
        free = np.where(same[detection] & ~found, iou[detection], 0.0)
        if len(free) and free.max() >= FOREGROUND_IOU:
            found[free.argmax()] = True
    of_others = ((iou >= FOREGROUND_IOU) & ~same).any(0)
    everything = overlaps(boxes, image.boxes_xywh.astype(np.float64), image.iscrowd)
    return found, of_others, int((everything.max(1, initial=0.0) <= BACKGROUND_IOU).sum())
