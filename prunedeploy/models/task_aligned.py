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

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.assignment import Assignment, extreme_within, rank_within, settled
from prunedeploy.models.boxes import cxcywh_to_xyxy, paired_iou

ALPHA, BETA = 0.5, 6.0
TOP_K = 10


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

    taken = rank_within(log_metric, target, len(targets)) < TOP_K
    places = class_logits.shape[0] * len(points_xy)
    owned = settled(taken, overlap, target, image[target] * len(points_xy) + point, places)
    target, point, overlap, log_metric = target[owned], point[owned], overlap[owned], log_metric[owned]

    highest_metric = extreme_within(log_metric, target, len(targets), "amax")
    highest_overlap = extreme_within(overlap, target, len(targets), "amax")
    return Assignment(image[target], point, target, (log_metric - highest_metric).exp() * highest_overlap)
