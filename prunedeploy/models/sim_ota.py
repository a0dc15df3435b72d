"""Which predictions an object trains in YOLOX: as many as fit it, those that cost least.

Ge et al., YOLOX: Exceeding YOLO Series in 2021, section 2.3, SimOTA. A prediction p costs an object g

    c(g, p) = BCE(sqrt(objectness * classes), g's class) - 3 log(IoU + 1e-8)                        (equation 1)

and an object takes the k predictions of least cost whose anchor point lies within 1.5 cells of its centre in x and y.
k is the sum of its 10 highest IoUs, rounded down and at least 1 (Ge et al., OTA: Optimal Transport Assignment for
Object Detection, CVPR 2021, section 3.3, dynamic k estimation). A prediction that several take goes to the object that
it costs least, of all near whose centre it lies. What it is wanted to say of the object's class is its IoU.

The constants are those of YOLOX's own program, and so is the cost's root, of which the paper says nothing. Where this
is not that program's own assignment, on purpose:

- an object chooses among the points near its own centre, as the paper says, and k counts overlaps there. There every
  point near the centre of any object of the image counts, so that k depends on other objects, and an object with a k
  above the number of its points takes those of others;
- of equal costs the lower point comes first, and for a point the lower object, on every device and in every batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.assignment import Assignment, rank_within, settled
from prunedeploy.models.boxes import paired_iou

CENTRE_RADIUS = 1.5
"""In cells."""
OVERLAP_WEIGHT = 3.0
MOST = 10
"""How many overlaps make k."""

_LEAST_OVERLAP = 1e-8
_LEAST_LOG = -100.0
"""Keeps the cost of a score of 1 for a wrong class finite."""


@torch.no_grad()
def sim_ota_assignment(
    objectness_logits: Tensor,
    class_logits: Tensor,
    predicted_cxcywh: Tensor,
    points_xy: Tensor,
    stride: Tensor,
    targets: Tensor,
    truth_cxcywh: Tensor,
) -> Assignment:
    """Assign predictions to the objects of their image.

    Args:
        objectness_logits: ``(B, N)``.
        class_logits: ``(B, N, C)``.
        predicted_cxcywh: ``(B, N, 4)`` in input pixels, sizes positive.
        points_xy: ``(N, 2)``, the anchor point of each prediction in input pixels.
        stride: ``(N, 1)``, width and height of its cell in input pixels.
        targets: ``(T, 6)``, of which the image index and the class index are read; T may be 0.
        truth_cxcywh: ``(T, 4)``, the objects in input pixels.
    """
    image, class_id = targets[:, 0].long(), targets[:, 1].long()
    near = [(points_xy[:, axis] - truth_cxcywh[:, None, axis]).abs() < CENTRE_RADIUS * stride[:, 0] for axis in (0, 1)]
    target, point = (near[0] & near[1]).nonzero(as_tuple=True)  # (candidates,) by target, then point
    place = (image[target], point)

    overlap = paired_iou(predicted_cxcywh[place], truth_cxcywh[target], "iou")
    log_score = (F.logsigmoid(objectness_logits[place])[:, None] + F.logsigmoid(class_logits[place])) / 2
    log_rest = torch.log(-torch.expm1(log_score)).clamp(min=_LEAST_LOG)  # of 1 - score
    own = F.one_hot(class_id[target], class_logits.shape[2]).bool()
    fitness = torch.where(own, log_score, log_rest).sum(1) + OVERLAP_WEIGHT * (overlap + _LEAST_OVERLAP).log()  # - cost

    rank = rank_within(overlap, target, len(targets))
    highest = overlap.new_zeros(len(targets), MOST)
    highest[target[rank < MOST], rank[rank < MOST]] = overlap[rank < MOST]
    k = highest.sum(1).long().clamp(min=1)
    taken = rank_within(fitness, target, len(targets)) < k[target]

    predictions = len(class_logits) * len(points_xy)
    owned = settled(taken, fitness, target, image[target] * len(points_xy) + point, predictions)
    return Assignment(image[target[owned]], point[owned], target[owned], overlap[owned])
