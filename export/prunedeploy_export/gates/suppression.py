"""What suppression on the host leaves, in the form in which a file with suppression in its graph gives it."""

from __future__ import annotations

import numpy as np

from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_export.gates.parity import Outputs


def suppressed_on_the_host(outputs: Outputs, nms: NmsInGraph, rows: int, max_candidates: int) -> Outputs:
    """Detections in the form of boxes ``(N, rows, 4)`` and scores ``(N, rows, C)``.

    Args:
        outputs: Boxes ``(N, M, 4)`` and scores ``(N, M, C)`` of the file without suppression.
        nms: The suppression of the file that is compared.
        rows: Its detections per image.
        max_candidates: Its bound, which stands in its metadata as ``nms_candidates``.
    """
    images, classes = len(outputs[0]), outputs[1].shape[2]
    boxes = np.zeros((images, rows, 4), np.float32)
    scores = np.zeros((images, rows, classes), np.float32)
    for i in range(images):
        found, found_scores, class_ids = detections_from(
            outputs[0][i],
            outputs[1][i],
            score_threshold=nms.score_threshold,
            iou_threshold=nms.iou_threshold,
            max_detections=rows,
            pre_nms_top_k=max_candidates,
        )
        boxes[i, : len(found)] = found
        scores[i, np.arange(len(found)), class_ids] = found_scores
    return boxes, scores
