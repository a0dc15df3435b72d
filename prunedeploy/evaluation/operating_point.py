"""The score threshold that a detector is deployed with, from its detections on images that it is not judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.coco_map import run_cocoeval
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy_engines.errors import DataError

IOU_THRESHOLD = 0.5
"""A detection is right if it overlaps an object of its class by at least this (PASCAL VOC's rule)."""


@dataclass(frozen=True)
class ScoreCurve:
    """Precision and recall of all classes together, over the score that a detection must exceed.

    Attributes:
        thresholds: ``(n,)`` float64, descending, in [0, 1]: each keeps one more group of equal scores.
        precision: ``(n,)``, right detections / detections above the threshold.
        recall: ``(n,)``, objects found / objects.
        scores: ``(n,)`` float64, of each group.
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]

    @property
    def f1(self) -> NDArray[np.float64]:
        """``(n,)``, harmonic mean of precision and recall; 0 where both are."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what a detector does there; detections have a score above it.

    Attributes:
        score_threshold: In [0, 1].
        precision: Right detections / detections.
        recall: Objects found / objects.
        f1: Their harmonic mean.
    """

    score_threshold: float
    precision: float
    recall: float
    f1: float


def score_curve(dataset: CocoDataset, detections: DetectionTable) -> ScoreCurve:
    """Match detections with objects as pycocotools does, at `IOU_THRESHOLD`, and count over scores.

    Args:
        dataset: Ground truth; what is on a crowd region counts neither way.
        detections: Detections in all its images, with scores as low as a threshold may be.

    Raises:
        DataError: There is no object to find.
    """
    evaluation = run_cocoeval(dataset, detections.above(0.0))
    at = int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, IOU_THRESHOLD))[0])
    scores, right, objects = [np.zeros(0)], [np.zeros(0, np.bool_)], 0
    for image in evaluation.evalImgs:
        if image is None:  # neither objects nor detections of this class
            continue
        counted = ~np.asarray(image["dtIgnore"][at], np.bool_)
        scores.append(np.asarray(image["dtScores"])[counted])
        right.append(np.asarray(image["dtMatches"][at])[counted] > 0)
        objects += int((np.asarray(image["gtIgnore"]) == 0).sum())
    if objects == 0:
        raise DataError("no operating point can be chosen: the held-out images have no boxes", dataset.json_path)
    values, is_right = np.concatenate(scores), np.concatenate(right)
    order = np.argsort(-values, kind="stable")
    values, found = values[order], np.cumsum(is_right[order])
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True)) if len(values) else np.zeros(0, np.int64)
    below = np.append(values[last][1:], 0.0)[: len(last)]
    return ScoreCurve(
        thresholds=(values[last] + below) / 2,  # halfway to the next lower score, so that rounding moves nothing
        precision=found[last] / (last + 1),
        recall=found[last] / objects,
        scores=values[last],
    )


def best_f1(curve: ScoreCurve) -> OperatingPoint:
    """The threshold of the highest F1, the highest of them if several have it; 0 if nothing was found at all."""
    if len(curve.thresholds) == 0:
        return OperatingPoint(0.0, 0.0, 0.0, 0.0)
    return _point(curve, int(curve.f1.argmax()))


def with_precision(curve: ScoreCurve, precision: float) -> OperatingPoint:
    """The threshold of the highest recall whose precision is at least this.

    Raises:
        DataError: No threshold has it; the best is named.
    """
    enough = np.flatnonzero(curve.precision >= precision)
    if len(enough) == 0:
        best = f"the best is {curve.precision.max():.3f}" if len(curve.precision) else "nothing was detected"
        raise DataError(f"no score threshold has a precision of {precision:g} on the held-out images: {best}")
    return _point(curve, int(enough[-1]))


def at_threshold(curve: ScoreCurve, score_threshold: float) -> OperatingPoint:
    """What a detector does at a given threshold; without a detection above it precision and recall are 0."""
    kept = np.flatnonzero(curve.scores > score_threshold)
    if len(kept) == 0:
        return OperatingPoint(score_threshold, 0.0, 0.0, 0.0)
    return replace(_point(curve, int(kept[-1])), score_threshold=score_threshold)


def _point(curve: ScoreCurve, at: int) -> OperatingPoint:
    columns = (curve.thresholds, curve.precision, curve.recall, curve.f1)
    return OperatingPoint(*(float(column[at]) for column in columns))
