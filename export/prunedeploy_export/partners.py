"""Finding, for a detection of one network, its partner among those of another network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.nms import detections_from

FloatArray = npt.NDArray[np.floating[Any]]

# Corners this near are the same place: for a box smaller than two pixels, float32 alone can cost 0.01 of IoU.
_SAME_PLACE_PX = 0.01


class Detected:
    """Detections of one image, and the boxes before NMS: where partners are looked for."""

    def __init__(
        self, boxes_xyxy: FloatArray, scores: FloatArray, score_threshold: float, iou_threshold: float
    ) -> None:
        self._all_boxes = boxes_xyxy
        self._all_scores = scores
        self.boxes, self.scores, self.classes = detections_from(
            boxes_xyxy, scores, score_threshold=score_threshold, iou_threshold=iou_threshold
        )
        self._of_class = {int(class_id): self.classes == class_id for class_id in np.unique(self.classes)}

    def partner(
        self, box_xyxy: FloatArray, score: float, class_id: int, min_iou: float, score_tolerance: float
    ) -> tuple[float, float, bool] | None:
        """Find the box that stands for a detection of the other network.

        Returns:
            Its IoU with the detection, the difference of their scores, and whether NMS has dropped it; None
            where no box of this class has the IoU and the score.
        """
        kept = self._of_class.get(int(class_id))
        pools = [] if kept is None else [(self.boxes[kept], self.scores[kept], False)]
        for boxes, scores, dropped in (*pools, (self._all_boxes, self._all_scores[:, class_id], True)):
            differences = np.abs(scores.astype(np.float64) - score)
            near = np.flatnonzero(differences <= score_tolerance)
            overlaps = _likeness(box_xyxy, boxes[near])
            if len(near) and overlaps.max() >= min_iou:
                best = int(overlaps.argmax())
                return float(overlaps[best]), float(differences[near[best]]), dropped
        return None

    def nearest(self, box_xyxy: FloatArray, class_id: int) -> str:
        """What is at the place of a detection, in words."""
        kept = self._of_class.get(int(class_id))
        if kept is None:
            return "the other side has no detection of this class"
        overlaps = _likeness(box_xyxy, self.boxes[kept])
        best = int(overlaps.argmax())
        return f"the nearest one has IoU {overlaps[best]:.4f} and score {self.scores[kept][best]:.4f}"


def _likeness(box_xyxy: FloatArray, boxes_xyxy: FloatArray) -> npt.NDArray[np.float64]:
    """IoU of a box with each of ``(K, 4)``; 1 where all corners are within `_SAME_PLACE_PX`."""
    one, many = box_xyxy.astype(np.float64), boxes_xyxy.astype(np.float64)
    sides = np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2])
    shared = np.maximum(sides, 0.0).prod(axis=1)
    union = (one[2:] - one[:2]).prod() + (many[:, 2:] - many[:, :2]).prod(axis=1) - shared
    iou = shared / np.where(union > 0, union, 1.0)
    same_place = (np.abs(many - one) <= _SAME_PLACE_PX).all(axis=1)
    return np.where(same_place, 1.0, iou)
