"""What kinds of errors a detector makes, and what each kind costs: TIDE.

Bolya, Foley, Hays and Hoffman, TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, section 2. A
detection that is not a true positive at IoU `FOREGROUND_IOU` has the first of these errors that fits:

    localisation     the right class, an IoU between `BACKGROUND_IOU` and `FOREGROUND_IOU`
    classification   overlaps an object of another class by at least `FOREGROUND_IOU`
    duplicate        overlaps an object of its class that a better detection has taken
    background       overlaps nothing by more than `BACKGROUND_IOU`
    both             the rest: wrong class and badly placed

and an object that no detection found is ``missed`` unless a localisation or classification error is about it. What a
kind costs is how much AP at IoU .5 rises when its errors alone are fixed: the best-scored error about an object
becomes its true positive, other errors go; missed objects are not counted any more. Costs do not add up to 1 - AP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from prunedeploy.data.records import CocoDataset, ImageRecord
from prunedeploy.evaluation.coco_map import MAX_DETECTIONS
from prunedeploy.evaluation.detection_table import DetectionTable

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_RIGHT = "right"


@dataclass(frozen=True)
class ErrorTypes:
    """The errors of one detector on one data set.

    Attributes:
        ap_50: AP at IoU .5, mean over classes with objects or detections (as TIDE has it), in [0, 1].
        counts: How many errors there are of each kind.
        costs: By how much `ap_50` rises if the errors of a kind are fixed; at least 0.
    """

    ap_50: float
    counts: Mapping[str, int]
    costs: Mapping[str, float]


@dataclass(frozen=True)
class _Judged:
    """A detection: its class and score, what it is, and the object that fixing it would find, if it is the best."""

    class_id: int
    score: float
    kind: str
    mended_class: int | None = None


def error_types(
    dataset: CocoDataset, detections: DetectionTable, image_ids: Collection[int] | None = None
) -> ErrorTypes:
    """Sort the errors of a detector and measure what each kind costs.

    Args:
        dataset: Ground truth; a detection that lies on a crowd region of its class is not an error in AP, and counts
            among the kinds as TIDE counts it.
        detections: Detections in its images.
        image_ids: The images that count; None: all.
    """
    judged: list[_Judged] = []
    objects: dict[int, int] = defaultdict(int)
    missed: dict[int, int] = defaultdict(int)
    ignored: list[_Judged] = []
    rows_of = _rows_by_image(detections)
    for image in dataset.images:
        if image_ids is not None and image.image_id not in image_ids:
            continue
        for class_id in image.class_ids[~image.iscrowd].tolist():
            objects[class_id] += 1
        _judge(image, detections, rows_of.get(image.image_id, np.zeros(0, np.int64)), judged, ignored, missed)
    present = set(objects) | {one.class_id for one in judged}
    counts = dict.fromkeys(KINDS, 0)
    for one in (*judged, *ignored):
        if one.kind != _RIGHT:
            counts[one.kind] += 1
    counts["missed"] = sum(missed.values())

    def ap(mended: str | None) -> float:
        points: dict[int, list[tuple[float, bool]]] = defaultdict(list)
        for one in judged if mended is None else (*judged, *(one for one in ignored if one.kind == mended)):
            if one.kind == _RIGHT or one.kind != mended:
                points[one.class_id].append((one.score, one.kind == _RIGHT))
            elif one.mended_class is not None:
                points[one.mended_class].append((one.score, True))
        wanted = {class_id: objects[class_id] - (missed[class_id] if mended == "missed" else 0) for class_id in present}
        # Mending can empty a class: no object is counted and no detection is left.
        values = [
            _ap(points[class_id], wanted[class_id]) for class_id in present if points[class_id] or wanted[class_id]
        ]
        return float(np.mean(values)) if values else 0.0

    as_it_is = ap(None)
    return ErrorTypes(as_it_is, counts, {kind: max(0.0, ap(kind) - as_it_is) for kind in KINDS})


def _rows_by_image(detections: DetectionTable) -> dict[int, NDArray[np.int64]]:
    """Row numbers of each image's detections, the best score first, at most `MAX_DETECTIONS`."""
    order = np.lexsort((-detections.scores, detections.image_ids))
    rows: dict[int, list[int]] = defaultdict(list)
    for row, image_id in zip(order.tolist(), detections.image_ids[order].tolist(), strict=True):
        rows[image_id].append(row)
    return {image_id: np.array(own[:MAX_DETECTIONS], np.int64) for image_id, own in rows.items()}


def _judge(
    image: ImageRecord,
    detections: DetectionTable,
    rows: NDArray[np.int64],
    judged: list[_Judged],
    ignored: list[_Judged],
    missed: dict[int, int],
) -> None:
    """Sort one image's detections and missed objects."""
    truth, truth_class = image.boxes_xywh[~image.iscrowd].astype(np.float64), image.class_ids[~image.iscrowd]
    boxes, classes, scores = (
        detections.boxes_xywh[rows].astype(np.float64),
        detections.class_ids[rows],
        detections.scores[rows],
    )
    iou = overlaps(boxes, truth)
    same = classes[:, None] == truth_class
    taken = np.zeros(len(truth), np.bool_)
    right = np.zeros(len(rows), np.bool_)
    for d in range(len(rows)):
        free = np.where(same[d] & ~taken, iou[d], 0.0)
        if len(free) and free.max() >= FOREGROUND_IOU:
            taken[free.argmax()] = right[d] = True
    on_crowd = _on_crowd(image, boxes, classes) & ~right
    wrong = [_error(iou[d], same[d], taken) for d in range(len(rows))]
    # Of several errors about one object the best-scored is fixed; the others go.
    mending: set[int] = set()
    for d, (score, class_id) in enumerate(zip(scores.tolist(), classes.tolist(), strict=True)):
        if right[d]:
            judged.append(_Judged(class_id, score, _RIGHT))
            continue
        kind, about = wrong[d]
        first = about is not None and not taken[about] and about not in mending
        if first:
            mending.add(int(about))  # type: ignore[arg-type]
        mended_class = int(truth_class[about]) if first else None
        (ignored if on_crowd[d] else judged).append(_Judged(class_id, score, kind, mended_class))
    for g in np.flatnonzero(~taken).tolist():
        if g not in mending:
            missed[int(truth_class[g])] += 1


def _error(iou: NDArray[np.float64], same: NDArray[np.bool_], taken: NDArray[np.bool_]) -> tuple[str, int | None]:
    """The kind of a wrong detection's error, and the object it is about."""
    if not len(iou):
        return "background", None
    of_class, of_others = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    if BACKGROUND_IOU <= of_class.max() <= FOREGROUND_IOU:
        return "localisation", int(of_class.argmax())
    if of_others.max() >= FOREGROUND_IOU:
        return "classification", int(of_others.argmax())
    if np.where(taken, of_class, 0.0).max() >= FOREGROUND_IOU:
        return "duplicate", None
    return ("background" if iou.max() <= BACKGROUND_IOU else "both"), None


def _on_crowd(image: ImageRecord, boxes: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which detections lie on a crowd region of their class by more than `FOREGROUND_IOU` of their own area."""
    regions, region_class = image.boxes_xywh[image.iscrowd].astype(np.float64), image.class_ids[image.iscrowd]
    covered = overlaps(boxes, regions, np.ones(len(regions), np.bool_))
    return ((covered > FOREGROUND_IOU) & (classes[:, None] == region_class)).any(1)


def overlaps(
    boxes: NDArray[np.float64], others: NDArray[np.float64], crowd: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """IoU of detections with objects, ``(D, G)``; of crowd regions the share of the detection that they cover.

    Args:
        boxes: ``(D, 4)`` float64, left, top, width, height.
        others: ``(G, 4)``, likewise.
        crowd: ``(G,)``, which of the others are crowd regions; None: none.
    """
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    return np.asarray(mask.iou(boxes, others, [False] * len(others) if crowd is None else crowd.tolist()))


def _ap(points: list[tuple[float, bool]], objects: int) -> float:
    """Average precision of scored right and wrong detections, over 101 recalls as COCO has it; 0 without objects."""
    if objects <= 0:
        return 0.0
    points = sorted(points, key=lambda point: -point[0])
    right = np.cumsum([point[1] for point in points])
    precision = right / np.arange(1, len(points) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / objects, np.arange(101) / 100, side="left")
    return float(np.where(at < len(precision), np.append(precision, 0.0)[np.minimum(at, len(precision))], 0.0).mean())
