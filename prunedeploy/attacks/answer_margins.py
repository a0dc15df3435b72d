"""By what margin each image keeps its objects, from what a detector answers: boxes and scores, or detections alone.

No gradients and no PyTorch, so that it exists for every runner and for a served model. Like the objective ``rank`` of
`prunedeploy.attacks.objectives`, turned into a loss that an attack lowers, and with the placement of the boxes, which
average precision over IoU .50 to .95 is also made of::

    loss = sum over objects g of  m(g)

    m(g) = log s_l  -  max_{p matches nothing of g's class} log s_p  +  `PLACEMENT` * (IoU(l, g) - `MATCH_IOU`)

s_p is the score of prediction p for g's class, or the floor if it is lower; likewise a maximum over nothing. l, the
leader, is the prediction with the highest score among those that match g (an IoU of at least `MATCH_IOU`): it is what
suppression leaves there. An object whose leader is not above the floor is lost: m(g) = log floor, which is less than
that of any object that is still found. An image is lost when every one of its objects is.

From boxes and scores the predictions are all candidates of the network, and the floor is `LOST_SCORE`. From detections
they are what suppression and the score threshold left, and the floor is that threshold: what is below it nobody sees.
Boxes are clipped to the photo within the input, as the evaluation clips them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.attacks.objectives import LOST_SCORE, MATCH_IOU
from prunedeploy.attacks.square import Loss
from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.letterbox import LetterboxGeometry
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.runner import Float32Array, Runner

PLACEMENT = 20.0
"""Weight of an IoU beside log scores."""

Detect = Callable[[Float32Array], Sequence[Detections]]
"""``detect(images (n, C, H, W)) -> n Detections`` in input pixels: a served model, or `served`."""


@dataclass(frozen=True)
class ImageObjects:
    """The objects of one image.

    Attributes:
        boxes_xyxy: ``(T, 4)`` float64, input pixels.
        class_ids: ``(T,)`` int64.
        frame: ``(4,)`` float64, corners of the photo in the input.
    """

    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    frame: NDArray[np.float64]


def objects_of(
    targets: Tensor, images: int, input_size: tuple[int, int], geometries: Sequence[LetterboxGeometry] = ()
) -> list[ImageObjects]:
    """The objects of each image of a batch.

    Args:
        targets: ``(T, 6)`` as `prunedeploy.data.batches.Batch` has them.
        images: How many images.
        input_size: (height, width), in pixels.
        geometries: Where each photo lies in its input; without them it fills it.
    """
    height, width = input_size
    rows = targets.detach().cpu().numpy().astype(np.float64)
    centres, sizes = rows[:, 2:4] * (width, height), rows[:, 4:6] * (width, height)
    boxes = np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)
    found = []
    for number in range(images):
        own = rows[:, 0] == number
        frame = (0, 0, width, height)
        if geometries:
            one = geometries[number]
            left, top = one.pad_left, one.pad_top
            frame = (left, top, left + one.resized_size[1], top + one.resized_size[0])
        found.append(ImageObjects(boxes[own], rows[own, 1].astype(np.int64), np.array(frame, np.float64)))
    return found


def from_scores(runner: Runner, objects: Sequence[ImageObjects]) -> Loss:
    """The loss of each image, from all boxes and scores that a runner gives.

    Raises:
        ConfigError: The runner gives no scores but those of its detections.
    """
    if runner.nms_classes is not None:
        raise ConfigError(
            f"{runner.runtime} runs a file with suppression in its graph, which gives no scores of candidates",
            "--feedback scores",
            "use --feedback detections",
        )

    def loss(images: Float32Array, indices: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        boxes, scores = runner.infer(images)
        return _of_each([
            margin(own_boxes, own_scores[:, objects[index].class_ids].T, objects[index], LOST_SCORE)
            for own_boxes, own_scores, index in zip(boxes, scores, indices.tolist(), strict=True)
        ])  # fmt: skip

    return loss


def from_detections(detect: Detect, objects: Sequence[ImageObjects], score_threshold: float) -> Loss:
    """The loss of each image, from served detections alone.

    Args:
        detect: Who is asked.
        objects: Of each image.
        score_threshold: The server's, in [0, 1].
    """
    floor = max(score_threshold, LOST_SCORE)

    def loss(images: Float32Array, indices: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        found = []
        for detected, index in zip(detect(images), indices.tolist(), strict=True):
            own = objects[index]
            scores = np.where(own.class_ids[:, None] == detected.class_ids, detected.scores, 0)
            found.append(margin(detected.boxes_xyxy, scores, own, floor))
        return _of_each(found)

    return loss


def served(runner: Runner, score_threshold: float, iou_threshold: float) -> Detect:
    """What a server would answer that runs ``runner``: suppressed, above a threshold, in input pixels.

    Args:
        runner: Of a file with suppression in its graph or without.
        score_threshold: Detections have a score greater than this, in [0, 1].
        iou_threshold: Suppression drops a box whose IoU with a better one of its class is greater, in [0, 1].
    """

    def detect(images: Float32Array) -> list[Detections]:
        boxes, scores = runner.infer(images)
        names = tuple(map(str, range(scores.shape[2])))
        return [
            Detections(*detections_from(one, own, score_threshold=score_threshold, iou_threshold=iou_threshold), names)
            for one, own in zip(boxes, scores, strict=True)
        ]

    return detect


def margin(
    boxes_xyxy: NDArray[np.floating], scores: NDArray[np.floating], objects: ImageObjects, floor: float
) -> tuple[float, bool]:
    """The loss of one image, and whether it has nothing left to lose.

    Args:
        boxes_xyxy: Predictions, ``(M, 4)`` in input pixels; those that are not finite do not count.
        scores: ``(T, M)``, the score of each prediction for each object's class.
        objects: T of them.
        floor: As above, in (0, 1).

    Returns:
        The loss; of an image without objects 0 and True.
    """
    if not len(objects.class_ids):
        return 0.0, True
    seen = (scores > floor).any(0) & np.isfinite(boxes_xyxy).all(1)
    if not seen.any():
        return len(scores) * math.log(floor), True
    boxes = np.clip(boxes_xyxy[seen].astype(np.float64), np.tile(objects.frame[:2], 2), np.tile(objects.frame[2:], 2))
    logs = np.log(np.maximum(scores[:, seen], floor))  # (T, S)
    iou = _iou(objects.boxes_xyxy, boxes)
    same_class = objects.class_ids[:, None] == objects.class_ids
    of_class = np.stack([iou[own].max(0) for own in same_class])  # with the nearest object of the class
    leader = np.where(iou >= MATCH_IOU, logs, -np.inf).argmax(1)[:, None]
    score, placed = (np.take_along_axis(one, leader, 1)[:, 0] for one in (logs, iou))
    wrong = np.where(of_class < MATCH_IOU, logs, math.log(floor)).max(1)
    found = (placed >= MATCH_IOU) & (score > math.log(floor))
    margins = np.where(found, score - wrong + PLACEMENT * (placed - MATCH_IOU), math.log(floor))
    return float(margins.sum()), not found.any()


def _iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(T, S)`` of boxes ``(T, 4)`` and ``(S, 4)``."""
    a, b = first[:, None], second[None]
    extent = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0)
    overlap = extent.prod(-1)
    union = np.maximum(a[..., 2:] - a[..., :2], 0).prod(-1) + np.maximum(b[..., 2:] - b[..., :2], 0).prod(-1) - overlap
    return np.asarray(overlap / np.maximum(union, 1e-9), np.float64)


def _of_each(found: Sequence[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    losses, lost = zip(*found, strict=True)
    return np.array(losses, np.float64), np.array(lost, np.bool_)
