"""Which predictions an object trains where there are no anchors: those that class and box make most of.

Feng et al., TOOD: Task-aligned One-stage Object Detection, ICCV 2021, section 3.2. The alignment of a prediction and an
object is ``t = s^alpha * u^beta`` (equation 7), s the probability of the object's class and u the overlap. Of the
anchor points inside its box an object takes the `TOP_K` of highest t. A point that several take goes to the object that
its prediction overlaps most, of all whose box it lies in. The wanted score of a point is its t, scaled so that the
highest of an object is the object's highest u.

Constants are YOLOv8's, and so is u: complete IoU (Zheng et al., Distance-IoU Loss, 2020, equation 10), 0 where that is
negative; the paper has IoU. An object without a point inside its box, smaller than a cell as a rule, trains nothing, as
in YOLOv8's first releases; later ones enlarge boxes narrower than the finest cell to the second finest for this one
question. Where this is not YOLOv8's own assignment, on purpose:

- the highest t of an object is divided by itself, as the paper says, in logarithms, so that nothing underflows. There
  1e-9 is added to the divisor: where no prediction fits an object (at a score of 0.01 and a u of 0.04, t is 4e-10), its
  wanted scores fall to 0 instead of u, and with them every gradient;
- a prediction whose u is 0 belongs to nothing. There it may belong to an object, with a wanted score of 0;
- of equal t the lower point comes first, of equal u the lower object, on every device and in every batch.
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
    touching = overlap > 0
    target, point, overlap = target[touching], point[touching], overlap[touching]
    log_score = F.logsigmoid(class_logits[image[target], point, class_id[target]])
    log_metric = ALPHA * log_score + BETA * overlap.log()

    taken = _best_of_each(log_metric, target, len(targets))
    place = image[target] * len(points_xy) + point
    places = class_logits.shape[0] * len(points_xy)
    several = torch.bincount(place[taken], minlength=places)[place] > 1
    owned = taken | several
    owned &= ~several | (overlap == _extreme(overlap, place, places, "amax"))
    owned &= ~several | (target == _extreme(target.where(owned, len(targets)), place, places, "amin"))
    target, point, overlap, log_metric = target[owned], point[owned], overlap[owned], log_metric[owned]

    highest_metric = _extreme(log_metric, target, len(targets), "amax")
    highest_overlap = _extreme(overlap, target, len(targets), "amax")
    return Assignment(image[target], point, target, (log_metric - highest_metric).exp() * highest_overlap)


def _best_of_each(log_metric: Tensor, target: Tensor, targets: int) -> Tensor:
    """Which are among the `TOP_K` highest of their target, bool; of equal ones the first."""
    order = log_metric.argsort(descending=True, stable=True)
    order = order[target[order].argsort(stable=True)]  # by target, then from the highest
    counts = torch.bincount(target, minlength=targets)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - starts[target[order]]
    best = torch.empty_like(order, dtype=torch.bool)
    best[order] = rank < TOP_K
    return best


def _extreme(values: Tensor, group: Tensor, groups: int, how: str) -> Tensor:
    """The extreme of each value's group, shaped as ``values``."""
    return values.new_zeros(groups).scatter_reduce(0, group, values, how, include_self=False)[group]
