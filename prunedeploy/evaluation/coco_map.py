"""COCO mAP by pycocotools itself, from a data set and detections in memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.detection_table import DetectionTable

MAX_DETECTIONS = 100
"""pycocotools looks at this many detections, the best by score, per image and class."""


@dataclass(frozen=True)
class MapResult:
    """Mean average precision; every value in [0, 1], None where it is undefined (no object to find).

    Attributes:
        map_50_95: COCO's mAP: mean over IoU thresholds .50, .55, ... .95 and over classes that have objects.
        map_50: The same at IoU .50 alone.
        class_map_50_95: `map_50_95` of every class by its name.
        class_map_50: `map_50` of every class by its name.
    """

    map_50_95: float | None
    map_50: float | None
    class_map_50_95: dict[str, float | None]
    class_map_50: dict[str, float | None]


def coco_map(dataset: CocoDataset, detections: DetectionTable, image_ids: Collection[int] | None = None) -> MapResult:
    """Mean average precision of detections on a data set.

    Args:
        dataset: Ground truth. Crowd boxes are regions to ignore: not finding one is not a miss, and a detection
            on one is not a false positive.
        detections: Detections in any of its images; an image without rows had no detections.
        image_ids: The images that count; None: all of the data set.

    Raises:
        ValueError: A detection is of an image or a class that the data set does not have, or its score or box
            is not finite.
    """
    return map_from(run_cocoeval(dataset, detections, image_ids), dataset.class_names)


def run_cocoeval(
    dataset: CocoDataset, detections: DetectionTable, image_ids: Collection[int] | None = None
) -> COCOeval:
    """Match and accumulate, for all areas and `MAX_DETECTIONS`; arguments and errors of `coco_map`.

    Returns:
        A ``COCOeval`` whose category ids are class indices, with ``evalImgs`` and ``eval`` filled.
    """
    known = {image.image_id for image in dataset.images}
    wanted = known if image_ids is None else set(image_ids)
    _check(dataset, detections, known, wanted)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_ground_truth(dataset, wanted), _results(dataset, detections, wanted), iouType="bbox")
        evaluation.params.areaRng = [[0, 1e5**2]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def map_from(evaluation: COCOeval, class_names: Collection[str]) -> MapResult:
    """Read the means off an accumulated ``COCOeval`` of `run_cocoeval`."""
    precision = evaluation.eval["precision"][..., 0, 0]  # (IoU thresholds, recall thresholds, classes)
    return MapResult(
        map_50_95=_mean(precision),
        map_50=_mean(precision[0]),
        class_map_50_95={name: _mean(precision[:, :, k]) for k, name in enumerate(class_names)},
        class_map_50={name: _mean(precision[0, :, k]) for k, name in enumerate(class_names)},
    )


def _mean(precision: NDArray[np.float64]) -> float | None:
    """As COCOeval.summarize: -1 marks a class without objects."""
    defined = precision[precision > -1]
    return float(np.mean(defined)) if defined.size else None


def _check(dataset: CocoDataset, detections: DetectionTable, known: set[int], wanted: set[int]) -> None:
    if not wanted <= known:
        raise ValueError(f"the data set has no image {min(wanted - known)}")
    strange = set(detections.image_ids.tolist()) - known
    if strange:
        raise ValueError(f"detections of image {min(strange)}, which the data set does not have")
    classes = detections.class_ids
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(dataset.class_names):
        raise ValueError(
            f"class ids must be in [0, {len(dataset.class_names)}), got {classes.min()} to {classes.max()}"
        )
    if not (np.isfinite(detections.scores).all() and np.isfinite(detections.boxes_xywh).all()):
        raise ValueError("detections with a score or a box that is not finite")


def _annotation(image_id: int, class_id: int, box_xywh: list[float], **more: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": class_id, "bbox": box_xywh, **more}


def _indexed(dataset: CocoDataset, annotations: list[dict[str, Any]], wanted: set[int]) -> COCO:
    """A ``COCO`` as if read from a JSON; the category id is the class index."""
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": image.image_id, "height": image.height, "width": image.width}
            for image in dataset.images
            if image.image_id in wanted
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(dataset.class_names)],
        # From 1: pycocotools takes a match with id 0 for no match.
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _ground_truth(dataset: CocoDataset, wanted: set[int]) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        if image.image_id not in wanted:
            continue
        boxes = image.boxes_xywh.astype(np.float64)
        areas = boxes[:, 2] * boxes[:, 3] if image.areas is None else image.areas
        columns = (boxes, image.class_ids, image.iscrowd, areas)
        for box, class_id, crowd, area in zip(*(column.tolist() for column in columns), strict=True):
            annotations.append(_annotation(image.image_id, class_id, box, area=area, iscrowd=int(crowd)))
    return _indexed(dataset, annotations, wanted)


def _results(dataset: CocoDataset, detections: DetectionTable, wanted: set[int]) -> COCO:
    """What ``COCO.loadRes`` makes of a result file; that one cannot read a file without detections."""
    rows = zip(
        detections.image_ids.tolist(),
        detections.class_ids.tolist(),
        detections.boxes_xywh.astype(np.float64).tolist(),
        detections.scores.astype(np.float64).tolist(),
        strict=True,
    )
    annotations: list[dict[str, Any]] = [
        _annotation(image_id, class_id, box, area=box[2] * box[3], iscrowd=0, score=score)
        for image_id, class_id, box, score in rows
        if image_id in wanted
    ]
    return _indexed(dataset, annotations, wanted)
