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


@dataclass(frozen=True, eq=False)
class Unmatched:
    """A detection without a match: box ``(4,)`` in input pixels, score and class."""

    box_xyxy: FloatArray
    score: float
    class_id: int


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections of one side, matched with the other side's.

    Attributes:
        ious: ``(D,)`` IoU of each of the detections that have a match.
        score_differences: ``(D,)`` likewise.
        dropped: ``(D,)`` bool: did NMS drop the match?
        unmatched: The other detections.
    """

    ious: FloatArray
    score_differences: FloatArray
    dropped: npt.NDArray[np.bool_]
    unmatched: tuple[Unmatched, ...]


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

    def matches(self, other: Detected, above_score: float, min_iou: float, score_tolerance: float) -> Matches:
        """Match the detections above a score with what ``other`` has.

        A match is of the same class, its IoU is at least ``min_iou`` and its score within ``score_tolerance``. One that
        NMS kept is preferred to one that it dropped, and among the kept ones that of the same rank.
        """
        found: list[tuple[FloatArray, FloatArray, bool]] = []
        unmatched: list[Unmatched] = []
        for class_id, (boxes, scores) in self._kept.items():
            left = scores > above_score
            boxes, scores = boxes[left], scores[left]
            for pool_boxes, pool_scores, dropped in other._pools(class_id):
                for search in (_best,) if dropped else (_of_same_rank, _best):
                    ious, differences = search(boxes, scores, pool_boxes, pool_scores, score_tolerance)
                    matched = ious >= min_iou
                    found.append((ious[matched], differences[matched], dropped))
                    boxes, scores = boxes[~matched], scores[~matched]
            unmatched.extend(Unmatched(box, float(score), class_id) for box, score in zip(boxes, scores, strict=True))
        empty = np.empty(0)
        return Matches(
            np.concatenate([empty, *(ious for ious, _, _ in found)]),
            np.concatenate([empty, *(differences for _, differences, _ in found)]),
            np.concatenate([empty.astype(bool), *(np.full(len(ious), dropped) for ious, _, dropped in found)]),
            tuple(unmatched),
        )

    def nearest(self, box_xyxy: FloatArray, class_id: int) -> str:
        """What is at the place of a detection, in words."""
        if class_id not in self._kept:
            return "the other side has no detection of this class"
        boxes, scores = self._kept[class_id]
        ious = _likeness(box_xyxy, boxes)
        best = int(ious.argmax())
        return f"the nearest one has IoU {ious[best]:.4f} and score {scores[best]:.4f}"

    def _pools(self, class_id: int) -> Iterator[tuple[FloatArray, FloatArray, bool]]:
        """Boxes, scores, and whether NMS dropped them: the detections of a class, then all boxes."""
        if class_id in self._kept:
            yield *self._kept[class_id], False
        yield self._all_boxes, self._all_scores[:, class_id], True


def _of_same_rank(
    boxes_xyxy: FloatArray, scores: FloatArray, pool_boxes_xyxy: FloatArray, pool_scores: FloatArray, tolerance: float
) -> tuple[FloatArray, FloatArray]:
    """As `_best`, but of the pool's boxes only the one of the same place in the order of scores counts.

    Two good copies of a network have the same detections in the same order, so hardly any is left to be searched for.
    """
    both = min(len(boxes_xyxy), len(pool_boxes_xyxy))
    ious, apart = np.full(len(boxes_xyxy), -1.0), np.zeros(len(boxes_xyxy))
    apart[:both] = np.abs(scores[:both].astype(np.float64) - pool_scores[:both])
    ious[:both] = np.where(apart[:both] <= tolerance, _likeness(boxes_xyxy[:both], pool_boxes_xyxy[:both]), -1.0)
    return ious, apart


def _best(
    boxes_xyxy: FloatArray, scores: FloatArray, pool_boxes_xyxy: FloatArray, pool_scores: FloatArray, tolerance: float
) -> tuple[FloatArray, FloatArray]:
    """IoU and score difference ``(K,)`` of the best match whose score is within a tolerance; IoU -1 without one."""
    ious, differences = np.empty(len(boxes_xyxy)), np.empty(len(boxes_xyxy))
    for start in range(0, len(boxes_xyxy), _BLOCK):
        block = slice(start, start + _BLOCK)
        apart = np.abs(scores[block].astype(np.float64)[:, None] - pool_scores)  # (block, P)
        alike = np.where(apart <= tolerance, _likeness(boxes_xyxy[block, None], pool_boxes_xyxy), -1.0)
        best = alike.argmax(axis=1)[:, None]
        ious[block] = np.take_along_axis(alike, best, 1)[:, 0]
        differences[block] = np.take_along_axis(apart, best, 1)[:, 0]
    return ious, differences


def _likeness(a_xyxy: FloatArray, b_xyxy: FloatArray) -> npt.NDArray[np.float64]:
    """IoUs of boxes ``(..., 4)``, broadcast against each other; 1 for small boxes in the same place."""
    a, b = a_xyxy.astype(np.float64), b_xyxy.astype(np.float64)
    shared = _area(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - shared
    iou: npt.NDArray[np.float64] = shared / np.where(union > 0, union, 1.0)
    small = (a[..., 2:] - a[..., :2]).min(axis=-1) < _SMALL_PX
    if small.any():
        iou[small & (np.abs(b - a) <= _SAME_PLACE_PX).all(axis=-1)] = 1.0
    return iou


def _area(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Areas of boxes from their corners ``(..., 2)``; 0 where a side is negative."""
    sides = np.maximum(high - low, 0.0)
    return sides[..., 0] * sides[..., 1]
