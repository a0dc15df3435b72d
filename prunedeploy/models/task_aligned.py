"""Which predictions an object trains where there are no anchors: those that class and box make most of.

Feng et al., TOOD: Task-aligned One-stage Object Detection, ICCV 2021, sections 3.2 and 3.2.1. The alignment of a
prediction and an object is ``t = s^alpha * u^beta`` (equation 7), s the probability of the object's class and u the
overlap. Of the anchor points inside its box an object takes the `TOP_K` of highest t; a point that several take goes to
the one that its prediction overlaps most. The wanted score of a point is its t, scaled so that the highest of an
object is the object's highest u.

Constants are YOLOv8's, and so is u: complete IoU (Zheng et al., Distance-IoU Loss, 2020, equation 10), 0 where that is
negative; the paper has IoU. Where this is not YOLOv8's own assignment, on purpose:

- a prediction with u = 0 belongs to nothing. There it may or may not be among the `TOP_K`, which changes nothing but
  what other objects lose to it: its wanted score is 0 either way;
- of equal t the lower point comes first, of equal u the lower object, on every device and in every batch;
- a point goes to one of the objects that took it, as in the authors' own code. There it may go to one that did not,
  if it lies inside that one too and overlaps it more;
- t is compared and divided in logarithms, so that it does not underflow, and nothing is added to the divisor. There
  1e-9 is, and an object that no prediction fits (highest t below about 1e-9: one of score 0.01 and u 0.05) has wanted
  scores of nearly 0 instead of u;
- an object without a point inside its box (smaller than a cell) trains nothing, as in YOLOv8's first releases. Later
  ones enlarge boxes narrower than the finest cell to the second finest for this one question.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.boxes import cxcywh_to_xyxy, paired_iou

ALPHA, BETA = 0.5, 6.0
TOP_K = 10


@dataclass(frozen=True, eq=False)
class Assignment:
    """The predictions that belong to objects, P pairs; none of them twice.

    Attributes:
        image: ``(P,)`` int64, index of the image in the batch.
        point: ``(P,)`` int64, index of the anchor point.
        target: ``(P,)`` int64, index of the object.
        alignment: ``(P,)`` in (0, 1]: the wanted score of the object's class.
    """

    image: Tensor
    point: Tensor
    target: Tensor
    alignment: Tensor


@torch.no_grad()
def task_aligned_assignment(
    class_logits: Tensor, predicted_cxcywh: Tensor, points_xy: Tensor, targets: Tensor, truth_cxcywh: Tensor
) -> Assignment:
    """Assign predictions to the objects of their image.

    Args:
        class_logits: ``(B, N, C)``.
        predicted_cxcywh: ``(B, N, 4)`` in input pixels, sizes positive.
        points_xy: ``(N, 2)``, the anchor point of each prediction in input pixels.
        targets: ``(T, 6)``, of which the image index and the class index are read; T may be 0.
        truth_cxcywh: ``(T, 4)``, the objects in input pixels.
    """
    image, class_id = targets[:, 0].long(), targets[:, 1].long()
    corners = cxcywh_to_xyxy(truth_cxcywh)[:, :, None]  # (T, 4, 1)
    x, y = points_xy.unbind(1)
    inside = (x > corners[:, 0]) & (y > corners[:, 1]) & (x < corners[:, 2]) & (y < corners[:, 3])  # (T, N)
    target, point = inside.nonzero(as_tuple=True)  # (candidates,) by target, then point

    overlap = paired_iou(predicted_cxcywh[image[target], point], truth_cxcywh[target], "ciou")
    overlaps = overlap > 0
    target, point, overlap = target[overlaps], point[overlaps], overlap[overlaps]
    log_score = F.logsigmoid(class_logits[image[target], point, class_id[target]])
    log_metric = ALPHA * log_score + BETA * overlap.log()

    best = _best_of_each(log_metric, target, len(targets))
    target, point, overlap, log_metric = target[best], point[best], overlap[best], log_metric[best]
    place = image[target] * len(points_xy) + point
    places = class_logits.shape[0] * len(points_xy)
    owned = overlap == _reduced(overlap, place, places, "amax")
    owned &= target == _reduced(target.where(owned, len(targets)), place, places, "amin")
    target, point, overlap, log_metric = target[owned], point[owned], overlap[owned], log_metric[owned]

    highest_metric = _reduced(log_metric, target, len(targets), "amax")
    highest_overlap = _reduced(overlap, target, len(targets), "amax")
    return Assignment(image[target], point, target, (log_metric - highest_metric).exp() * highest_overlap)


def _best_of_each(log_metric: Tensor, target: Tensor, targets: int) -> Tensor:
    """Indices of the `TOP_K` highest of every target; of equal ones the first."""
    order = log_metric.argsort(descending=True, stable=True)
    order = order[target[order].argsort(stable=True)]  # by target, then from the highest
    counts = torch.bincount(target, minlength=targets)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - starts[target[order]]
    return order[rank < TOP_K]


def _reduced(values: Tensor, group: Tensor, groups: int, how: str) -> Tensor:
    """The extreme of each value's group, shaped as ``values``."""
    return values.new_zeros(groups).scatter_reduce(0, group, values, how, include_self=False)[group]
