"""Greedy non-maximum suppression in NumPy, as fast as post-processing on a device must be.

Reference: Felzenszwalb et al., Object Detection with Discriminatively Trained Part Based Models, 2010,
    section 6.2
(greedy suppression in the order of the scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PRE_NMS_TOP_K = 10_000
"""Candidates (box, class pairs) per image that enter NMS unless told otherwise, the best by score.

At a score threshold of 0.25 or 0.5 an image has hundreds and the cap never acts. At COCO's 0.001 an
untrained or attacked network can have several hundred thousand, which greedy NMS cannot digest; pycocotools
looks at 100 detections per class and image, so the ones cut here do not count.
"""

MAX_CANDIDATES = 256
"""Candidates per image of a deployed network, unless its build chose another number; see docs/flood.md.

`PRE_NMS_TOP_K` serves measuring, where only mAP counts. Somebody who can choose the pixels can make thousands of
candidates, and the time of suppression grows with their square: this bounds it.
"""

_MATRIX = 1 << 14  # pairs of candidates that are compared at once: their doubles stay in a core's cache
_BLOCK = (32, 128)


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
    kept = _nms_per_class(boxes[order], np.zeros(len(order), dtype=np.intp), iou_threshold)
    return order[kept].astype(np.int64, copy=False)


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

    rows, classes, candidate_scores = _best_candidates(boxes, scores, score_threshold, pre_nms_top_k)
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


def _best_candidates(
    boxes: npt.NDArray[np.floating], scores: npt.NDArray[np.floating], score_threshold: float, top_k: int | None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.floating]]:
    """Rows, classes and scores of the best (box, class) pairs above the threshold, best first, ties by (box, class)."""
    above = scores > score_threshold
    rows, width = np.arange(len(scores)), max(1, scores.shape[1])
    if top_k is not None and np.count_nonzero(above) > top_k:
        # The best K pairs lie in the K boxes with the best pair each, so that a flood is sorted by box and not by pair.
        best = scores.max(axis=1)
        if not np.isfinite(best).all():
            scores = np.where(np.isfinite(scores), scores, -np.inf)
            best = scores.max(axis=1)
        best[~np.isfinite(boxes).all(axis=1)] = -np.inf
        rows = np.sort(_ranking(best, top_k))
        scores = scores[rows]
        above = scores > score_threshold
    flat = np.flatnonzero(above)
    places, classes = np.divmod(flat, width)
    found, rows = scores.ravel()[flat], rows[places]
    finite = np.isfinite(boxes[rows]).all(axis=1) & np.isfinite(found)
    if not finite.all():
        rows, classes, found = rows[finite], classes[finite], found[finite]
    ranking = _ranking(found, top_k)
    return rows[ranking], classes[ranking], found[ranking]


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
    """Positions kept of candidates ``(N, 4)`` that are sorted by descending score, in that order.

    Sorted by class, where the order by score remains, candidates compete only with what follows up to the end of their
    class. Block by block: a block is settled within itself, then drops what it overlaps further on. N candidates are
    never compared in more than N * (N + `_BLOCK`) / 2 pairs, and of N classes in no more than N * 2 * `_BLOCK`.
    """
    count = len(boxes)
    by_class = np.argsort(classes, kind="stable")
    classes = classes[by_class]
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[by_class].T)
    corners = _Corners(x1, y1, x2, y2, _extent(x1, x2) * _extent(y1, y2))
    ends = np.searchsorted(classes, classes, side="right")  # where each candidate's class ends
    alive = np.ones(count, dtype=bool)
    start = 0
    while start < count:
        stop = min(start + int(np.clip(_MATRIX // (count - start), *_BLOCK)), count)
        end = int(ends[stop - 1])
        block = start + np.flatnonzero(alive[start:stop])
        overlaps = corners.overlap(block, slice(start, end), iou_threshold)
        if len(block) and classes[start] != classes[end - 1]:
            overlaps &= classes[block, None] == classes[start:end]
        stays = _settled(block - start, overlaps[:, : stop - start])
        alive[block[~stays]] = False
        alive[stop:end] &= ~overlaps[stays, stop - start :].any(axis=0)
        start = stop
    return np.sort(by_class[alive])


def _settled(places: npt.NDArray[np.intp], overlaps: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of a block's candidates stay, ``(B,)``.

    Args:
        places: ``(B,)``, the columns that are theirs, ascending.
        overlaps: ``(B, S)``: does the row's candidate compete with the column's?
    """
    # A row as the bits of a whole number: one operation drops all that it overlaps.
    packed = np.packbits(overlaps, axis=1, bitorder="little")
    content, width = packed.tobytes(), packed.shape[1]
    dropped, stays = 0, np.zeros(len(places), dtype=bool)
    for row, place in enumerate(places.tolist()):
        if not dropped >> place & 1:
            stays[row] = True
            dropped |= int.from_bytes(content[row * width : (row + 1) * width], "little")
    return stays


class _Corners(NamedTuple):
    """Boxes by coordinate, each ``(N,)`` float64, and their areas."""

    x1: npt.NDArray[np.float64]
    y1: npt.NDArray[np.float64]
    x2: npt.NDArray[np.float64]
    y2: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]

    def overlap(self, a: npt.NDArray[np.intp], b: slice, iou_threshold: float) -> npt.NDArray[np.bool_]:
        """``(len(a), len(b))``: is the IoU above the threshold? No division, so 0 / 0 is no case."""
        width = np.minimum(self.x2[a, None], self.x2[b])
        width -= np.maximum(self.x1[a, None], self.x1[b])
        np.maximum(width, 0.0, out=width)
        height = np.minimum(self.y2[a, None], self.y2[b])
        height -= np.maximum(self.y1[a, None], self.y1[b])
        width *= height  # the intersection; negative, which is no overlap either, where the boxes pass in y alone
        union = self.areas[a, None] + self.areas[b]
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
