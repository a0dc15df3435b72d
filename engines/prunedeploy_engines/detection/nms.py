"""Greedy non-maximum suppression in NumPy, as fast as post-processing on a device must be.

Reference: Felzenszwalb et al., Object Detection with Discriminatively Trained Part Based Models, 2010,
    section 6.2
(greedy suppression in the order of the scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

PRE_NMS_TOP_K = 10_000
"""Candidates (box, class pairs) per image that enter NMS unless told otherwise, the best by score.

At a score threshold of 0.25 or 0.5 an image has hundreds and the cap never acts. At COCO's 0.001 an
untrained or attacked network can have several hundred thousand, which greedy NMS cannot digest; pycocotools
looks at 100 detections per class and image, so the ones cut here do not count.
"""

_BLOCK = 128
_JOINT_LIMIT = 512  # below this, one pass over all classes is cheaper than a pass for each


def nms(boxes_xyxy: npt.ArrayLike, scores: npt.ArrayLike, iou_threshold: float) -> npt.NDArray[np.int64]:
    """Keep the best of overlapping boxes.

    Args:
        boxes_xyxy: ``(N, 4)``, any unit, as long as it is one unit.
        scores: ``(N,)``.
        iou_threshold: A box is dropped if its IoU with a kept box of higher score is greater than this, in
            [0, 1].

    Returns:
        ``(K,)`` int64 indices of the kept boxes, by descending score; equal scores keep their order. Empty
        input gives an empty result. A box without area overlaps nothing and is kept.

    Raises:
        ValueError: Wrong shapes (they are printed) or a threshold outside [0, 1].
    """
    boxes = _as_boxes(boxes_xyxy)
    scores = np.asarray(scores)
    if scores.shape != (len(boxes),):
        raise ValueError(f"scores must be ({len(boxes)},) for boxes {boxes.shape}, got {scores.shape}")
    _check_threshold("iou_threshold", iou_threshold)
    order = np.argsort(-scores, kind="stable")
    return order[_nms_sorted(boxes[order], iou_threshold)].astype(np.int64, copy=False)


def detections_from(
    boxes_xyxy: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int | None = None,
    pre_nms_top_k: int | None = PRE_NMS_TOP_K,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Turn the output of a network for one image into detections, with NMS within each class.

    Every class of a box whose score is above the threshold is a candidate (classes are independent
    logistics), so one box may give several detections. Candidates with a non-finite coordinate or score are
    dropped: an overflowing ``exp(tw)`` is not a box.

    Args:
        boxes_xyxy: ``(M, 4)``.
        scores: ``(M, C)``, one per box and class, in [0, 1].
        score_threshold: Candidates have a score greater than this.
        iou_threshold: See `nms`.
        max_detections: Keep this many detections, the best by score; None keeps all.
        pre_nms_top_k: Let this many candidates into NMS, the best by score over all classes; None
            lets all in. See `PRE_NMS_TOP_K`.

    Returns:
        Boxes ``(K, 4)`` float32, scores ``(K,)`` float32 and class ids ``(K,)`` int64, by descending score;
        ties in the order of (box, class).

    Raises:
        ValueError: Wrong shapes (they are printed) or an IoU threshold outside [0, 1].
    """
    boxes = np.asarray(boxes_xyxy)
    scores = np.asarray(scores)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.ndim != 2 or len(scores) != len(boxes):
        raise ValueError(f"boxes must be (M, 4) and scores (M, C), got {boxes.shape} and {scores.shape}")
    _check_threshold("iou_threshold", iou_threshold)

    rows, classes, candidate_scores = _candidates(scores, score_threshold)
    candidate_boxes = boxes[rows]
    finite = np.isfinite(candidate_boxes).all(axis=1) & np.isfinite(candidate_scores)
    if not finite.all():
        rows, classes, candidate_scores = rows[finite], classes[finite], candidate_scores[finite]
    ranking = _ranking(candidate_scores, pre_nms_top_k)
    rows, classes, candidate_scores = rows[ranking], classes[ranking], candidate_scores[ranking]

    kept = _nms_per_class(boxes[rows].astype(np.float64), classes, iou_threshold)[:max_detections]
    return (
        boxes[rows[kept]].astype(np.float32, copy=False),
        candidate_scores[kept].astype(np.float32, copy=False),
        classes[kept].astype(np.int64, copy=False),
    )


def padded(
    found: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]],
) -> dict[str, npt.NDArray[Any]]:
    """Stack detections of several images, with zeros up to the largest number K.

    Args:
        found: Boxes, scores and class ids of each image, as `detections_from` gives them.

    Returns:
        ``boxes`` ``(N, K, 4)`` float32, ``scores`` ``(N, K)`` float32, ``classes`` ``(N, K)`` int64 and
        ``num_detections`` ``(N,)`` int32.
    """
    counts = [len(scores) for _, scores, _ in found]
    size = (len(found), max(counts, default=0))
    boxes, scores, classes = np.zeros((*size, 4), np.float32), np.zeros(size, np.float32), np.zeros(size, np.int64)
    for number, count in enumerate(counts):
        boxes[number, :count], scores[number, :count], classes[number, :count] = found[number]
    return {"boxes": boxes, "scores": scores, "classes": classes, "num_detections": np.array(counts, np.int32)}


def _candidates(
    scores: npt.NDArray[np.floating], score_threshold: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.floating]]:
    """Rows, classes and scores of all (box, class) pairs above the threshold, in row-major order."""
    flat = np.flatnonzero(scores > score_threshold)
    rows, classes = np.divmod(flat, max(1, scores.shape[1]))
    return rows, classes, scores[rows, classes]


def _ranking(scores: npt.NDArray[np.floating], top_k: int | None) -> npt.NDArray[np.intp]:
    """Indices of the ``top_k`` highest scores, descending, ties in their order."""
    if top_k is None or len(scores) <= top_k:
        return np.argsort(-scores, kind="stable")
    if top_k == 0:
        return np.empty(0, dtype=np.intp)
    lowest = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    among = np.flatnonzero(scores >= lowest)
    return among[np.argsort(-scores[among], kind="stable")][:top_k]


def _nms_per_class(
    boxes: npt.NDArray[np.float64], classes: npt.NDArray[np.intp], iou_threshold: float
) -> npt.NDArray[np.intp]:
    """Positions kept of candidates that are sorted by descending score, in that order."""
    if len(boxes) <= _JOINT_LIMIT:
        return _nms_sorted(boxes, iou_threshold, classes)
    by_class = np.argsort(classes, kind="stable")  # within a class the order by score remains
    starts = np.flatnonzero(np.diff(classes[by_class], prepend=-1))
    kept = []
    for group in np.split(by_class, starts[1:]):
        kept.append(group if len(group) < 2 else group[_nms_sorted(boxes[group], iou_threshold)])
    return np.sort(np.concatenate(kept))


def _nms_sorted(
    boxes: npt.NDArray[np.float64], iou_threshold: float, classes: npt.NDArray[np.intp] | None = None
) -> npt.NDArray[np.intp]:
    """Positions kept of boxes sorted by descending score.

    With ``classes``, boxes of two classes never compete. Block by block: the best of what is left are
    settled among themselves, then drop what they overlap in one matrix operation. Memory is a block times
    what is left, never N x N.
    """
    areas = _extent(boxes[:, 0], boxes[:, 2]) * _extent(boxes[:, 1], boxes[:, 3])

    def competes(a: npt.NDArray[np.intp], b: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        overlaps = _overlap(boxes, areas, a, b, iou_threshold)
        return overlaps if classes is None else overlaps & (classes[a][:, None] == classes[b])

    kept = [np.empty(0, dtype=np.intp)]
    left = np.arange(len(boxes))
    while len(left):
        block, left = left[:_BLOCK], left[_BLOCK:]
        overlaps = competes(block, block)
        alive = np.ones(len(block), dtype=bool)
        for i in np.flatnonzero(np.triu(overlaps, 1).any(axis=1)):
            if alive[i]:
                alive[i + 1 :] &= ~overlaps[i, i + 1 :]
        block = block[alive]
        kept.append(block)
        if len(left):
            left = left[~competes(block, left).any(axis=0)]
    return np.concatenate(kept)


def _overlap(
    boxes: npt.NDArray[np.float64],
    areas: npt.NDArray[np.float64],
    a: npt.NDArray[np.intp],
    b: npt.NDArray[np.intp],
    iou_threshold: float,
) -> npt.NDArray[np.bool_]:
    """``(len(a), len(b))``: is the IoU above the threshold? No division, so 0 / 0 is no case."""
    ax1, ay1, ax2, ay2 = boxes[a].T[:, :, None]  # each (len(a), 1)
    bx1, by1, bx2, by2 = boxes[b].T[:, None, :]  # each (1, len(b))
    width = np.minimum(ax2, bx2)
    width -= np.maximum(ax1, bx1)
    np.maximum(width, 0.0, out=width)
    height = np.minimum(ay2, by2)
    height -= np.maximum(ay1, by1)
    np.maximum(height, 0.0, out=height)
    width *= height  # the intersection
    union = areas[a][:, None] + areas[b][None, :]
    union -= width
    union *= iou_threshold
    return width > union


def _extent(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(high - low, 0.0)


def _as_boxes(boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.shape == (0,):  # an empty list
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), got {boxes.shape}")
    return boxes


def _check_threshold(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
