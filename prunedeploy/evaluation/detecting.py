"""From batches to detections in pixels of the original images, whatever runs the network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.data.loader import Batch
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.candidates import Candidates
from prunedeploy.evaluation.coco_map import MAX_DETECTIONS
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy_engines.detection.letterbox import unletterbox_boxes
from prunedeploy_engines.detection.nms import PRE_NMS_TOP_K, detections_from
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.runtimes.runner import Float32Array, Runner

IOU_THRESHOLD = 0.45
"""IoU threshold of NMS within a class."""
SCORE_THRESHOLD = 0.001
"""COCO's usual one."""
_FIRST_CANDIDATES = 1000


@dataclass(frozen=True)
class Thresholds:
    """What becomes a detection.

    Attributes:
        iou: NMS drops a box whose IoU with a better one of its class is greater, in [0, 1].
        score: Detections have a score greater than this, in [0, 1].
        max_detections: Per image, the best by score.
    """

    iou: float = IOU_THRESHOLD
    score: float = SCORE_THRESHOLD
    max_detections: int = MAX_DETECTIONS


def detect_batch(
    runner: Runner,
    images: Tensor,
    batch: Batch,
    dataset: CocoDataset,
    thresholds: Thresholds,
    candidates: list[Candidates] | None = None,
) -> DetectionTable:
    """Detect in one batch.

    Args:
        runner: The detector.
        images: ``(B, 3, H, W)`` float32 in [0, 1]: the batch's own, or attacked ones.
        batch: Says which images these are and where each lies in the input.
        dataset: Where the images are from.
        thresholds: What becomes a detection.
        candidates: Where to put how many the batch's images have, if anywhere.

    Returns:
        Detections in pixels of the original images, clipped to them.
    """
    boxes, scores = runner.infer(np.ascontiguousarray(images.detach().cpu().numpy()))
    if scores.shape[2] != len(dataset.class_names):
        raise DataError(
            f"the network has {scores.shape[2]} classes, the data set {len(dataset.class_names)}",
            dataset.json_path,
            "use a network and a data set with the same classes",
        )
    if candidates is not None:
        candidates.append(Candidates.among(scores, thresholds.score))
    tables = []
    for one_boxes, one_scores, image_id, geometry in zip(boxes, scores, batch.image_ids, batch.geometries, strict=True):
        found, found_scores, class_ids = _suppressed(one_boxes, one_scores, thresholds)
        original = unletterbox_boxes(found.astype(np.float64), geometry)
        tables.append(DetectionTable.of_image(image_id, original, found_scores, class_ids))
    return DetectionTable.concatenate(tables)


def _suppressed(
    boxes: Float32Array, scores: Float32Array, thresholds: Thresholds
) -> tuple[Float32Array, Float32Array, NDArray[np.int64]]:
    """`detections_from` for one image, ``(M, 4)`` and ``(M, C)``, without suppressing more than is kept.

    An untrained or attacked network has tens of thousands of candidates above 0.001. Suppression goes by
    descending score, so what survives among the best candidates does so whatever comes after them: once that
    is enough, the rest cannot change the result.
    """
    many = np.count_nonzero(scores > thresholds.score) > _FIRST_CANDIDATES
    for candidates in (_FIRST_CANDIDATES, PRE_NMS_TOP_K) if many else (PRE_NMS_TOP_K,):
        found = detections_from(
            boxes,
            scores,
            score_threshold=thresholds.score,
            iou_threshold=thresholds.iou,
            max_detections=thresholds.max_detections,
            pre_nms_top_k=candidates,
        )
        if len(found[1]) >= thresholds.max_detections:
            break
    return found
