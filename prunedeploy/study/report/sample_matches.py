"""Which detections in a sample image are right, and which objects were not found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from prunedeploy.study.report.samples import Detection, Object

MATCH_IOU = 0.5

Box = tuple[float, float, float, float]


class Mark(Enum):
    """What a box says."""

    FOUND = "right"
    WRONG = "wrong"
    MISSED = "missed"


@dataclass(frozen=True)
class MarkedBox:
    """A box to draw.

    Attributes:
        mark: What it says.
        box_xyxy: The detection's; of an object that was missed the object's.
    """

    mark: Mark
    box_xyxy: Box


def marked_boxes(ground_truth: Sequence[Object], detections: Sequence[Detection]) -> list[MarkedBox]:
    """Match detections with objects, the best score first, each object once.

    A detection is right if an object of its class that no better one has taken overlaps it with an IoU of at least
    `MATCH_IOU`; of several the one with the largest. Every other detection is wrong: another class, the wrong place,
    nothing there, or the same object again.

    Returns:
        A box for every detection, by descending score, then one for every object that none has found.
    """
    left = list(ground_truth)
    marked = []
    for detection in sorted(detections, key=lambda one: -one.score):
        same = [one for one in left if one.class_name == detection.class_name]
        best = max(same, key=lambda one: iou(one.box_xyxy, detection.box_xyxy), default=None)
        if best is not None and iou(best.box_xyxy, detection.box_xyxy) >= MATCH_IOU:
            left.remove(best)
            marked.append(MarkedBox(Mark.FOUND, detection.box_xyxy))
        else:
            marked.append(MarkedBox(Mark.WRONG, detection.box_xyxy))
    return marked + [MarkedBox(Mark.MISSED, one.box_xyxy) for one in left]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two xyxy boxes; 0 if neither has an area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / whole if whole > 0 else 0.0
