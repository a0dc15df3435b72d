"""Finding, for each detection of one network, the match among those of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.nms import detections_from

FloatArray = npt.NDArray[np.floating[Any]]

# A box with a side below two pixels may lose 0.01 of IoU to the rounding of its corners alone. Such boxes are
# the same if their corners are this near.
_SMALL_PX = 2.0
_SAME_PLACE_PX = 0.01
_BLOCK = 64  # detections compared with a pool at a time, which bounds the memory


@dataclass(frozen=True)
class Match:
    """A detection and its match.

    Attributes:
        box_xyxy: Box of the detection, in input pixels; ``score`` and ``class_id`` are its too.
        iou: IoU of the detection and its match; None where there is no match.
        score_difference: Score difference of the detection and its match.
        dropped: Did NMS drop the match?
    """

    box_xyxy: FloatArray
    score: float
    class_id: int
    iou: float | None = None
    score_difference: float = 0.0
    dropped: bool = False


class Detected:
    """Detections of one image, and the boxes before NMS.

    Args:
        boxes_xyxy: ``(M, 4)`` in input pixels.
        scores: ``(M, C)`` in [0, 1].
        score_threshold: Detections have a score greater than this.
        iou_threshold: IoU threshold of NMS.
    """

    def __init__(
        self, boxes_xyxy: FloatArray, scores: FloatArray, score_threshold: float, iou_threshold: float
    ) -> None:
        self._all_boxes = boxes_xyxy
        self._all_scores = scores
        kept_boxes, kept_scores, classes = detections_from(
            boxes_xyxy, scores, score_threshold=score_threshold, iou_threshold=iou_threshold
        )
        self._kept = {
            int(class_id): (kept_boxes[classes == class_id], kept_scores[classes == class_id])
            for class_id in np.unique(classes)
        }

    def matches(self, other: Detected, above_score: float, min_iou: float, score_tolerance: float) -> Iterator[Match]:
        """Match the detections above a score with what ``other`` has.

        A match is of the same class, its IoU is at least ``min_iou`` and its score within
        ``score_tolerance``. One that NMS kept is preferred to one that it dropped.
        """
        for class_id, (boxes, scores) in self._kept.items():
            boxes, scores = boxes[scores > above_score], scores[scores > above_score]
            left = np.arange(len(boxes))
            for pool_boxes, pool_scores, dropped in other._pools(class_id):
                unmatched = []
                for block in np.split(left, range(_BLOCK, len(left), _BLOCK)):
                    best = _best(boxes[block], scores[block], pool_boxes, pool_scores, score_tolerance)
                    for i, iou, difference in zip(block, *best, strict=True):
                        if iou >= min_iou:
                            yield Match(boxes[i], float(scores[i]), class_id, iou, difference, dropped)
                        else:
                            unmatched.append(i)
                left = np.array(unmatched, dtype=np.intp)
            yield from (Match(boxes[i], float(scores[i]), class_id) for i in left)

    def nearest(self, box_xyxy: FloatArray, class_id: int) -> str:
        """What is at the place of a detection, in words."""
        if class_id not in self._kept:
            return "the other side has no detection of this class"
        boxes, scores = self._kept[class_id]
        ious = _likeness(box_xyxy[None], boxes)[0]
        best = int(ious.argmax())
        return f"the nearest one has IoU {ious[best]:.4f} and score {scores[best]:.4f}"

    def _pools(self, class_id: int) -> Iterator[tuple[FloatArray, FloatArray, bool]]:
        """Boxes, scores, and whether NMS dropped them: the detections of a class, then all boxes."""
        if class_id in self._kept:
            yield *self._kept[class_id], False
        yield self._all_boxes, self._all_scores[:, class_id], True


def _best(
    boxes_xyxy: FloatArray,
    scores: FloatArray,
    pool_boxes_xyxy: FloatArray,
    pool_scores: FloatArray,
    score_tolerance: float,
) -> tuple[list[float], list[float]]:
    """IoU and score difference of each of K boxes' best match in a pool; IoU -1 without one."""
    differences = np.abs(scores.astype(np.float64)[:, None] - pool_scores)  # (K, P)
    ious = np.where(differences <= score_tolerance, _likeness(boxes_xyxy, pool_boxes_xyxy), -1.0)
    best = ious.argmax(axis=1)[:, None]
    iou, difference = (np.take_along_axis(values, best, 1)[:, 0].tolist() for values in (ious, differences))
    return iou, difference


def _likeness(a_xyxy: FloatArray, b_xyxy: FloatArray) -> npt.NDArray[np.float64]:
    """``(K, P)`` IoUs of ``(K, 4)`` with ``(P, 4)`` boxes; 1 for small boxes in the same place."""
    a, b = a_xyxy.astype(np.float64)[:, None], b_xyxy.astype(np.float64)
    shared = _area(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - shared
    iou = shared / np.where(union > 0, union, 1.0)
    for i in np.flatnonzero((a[:, 0, 2:] - a[:, 0, :2]).min(axis=1) < _SMALL_PX):
        iou[i, (np.abs(b - a[i]) <= _SAME_PLACE_PX).all(axis=1)] = 1.0
    return iou


def _area(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Areas of boxes from their corners ``(..., 2)``; 0 where a side is negative."""
    sides = np.maximum(high - low, 0.0)
    return sides[..., 0] * sides[..., 1]
