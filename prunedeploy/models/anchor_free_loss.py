"""The detection loss of anchor-free heads with distributions of distances: YOLOv8, YOLO11, YOLOv5u.

    box         7.5 * sum over matched points of  w * (1 - CIoU)       (Zheng et al., Distance-IoU Loss, 2020, eq. 10)
    dfl         1.5 * sum over matched points of  w * mean over sides of DFL    (`distribution_focal`)
    classes     0.5 * sum over matched points of  BCE(classes, t of the object's class and 0 of the others) / n
    background  0.5 * sum over all other points of  BCE(classes, 0) / n

with t the wanted scores of `task_aligned`, n the sum of t over the image, at least 1, and w = t / n. Neither has a
gradient. The two last add up to the class term of YOLOv8; such a head has no objectness, and what an objectness term
does elsewhere, `background` does here: it keeps points without an object silent. An image without objects has nothing
but that.

**Every image by itself.** YOLOv8 divides by one n, summed over all images of the batch, and multiplies by their number.
For one image that is what is here, and so it is for several with equal n. In any other batch YOLOv8's gradient of an
image depends on what else is in the batch, and this one does not. The price: images weigh the same, so that an object
among many weighs less than an object alone; and the background of an image without objects is divided by 1, not by the
mean n of the batch, and so weighs that many times more.

**The loss is not the higher, the worse the boxes are.** Wanted scores are as high as overlaps: an object that no
predicted box fits wants scores of nearly 0, and its boxes weigh nearly nothing, so that an object that is lost may cost
less than one that is found badly. For training that is what is meant. It does not keep attacks from the lost object:
those that held `anchor_free_assignment` of the clean heads fixed were no stronger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.anchor_points import AnchorPoints
from prunedeploy.models.assignment import Assignment
from prunedeploy.models.boxes import cxcywh_to_xyxy, paired_iou
from prunedeploy.models.distribution_focal import boxes_around, distribution_focal_loss
from prunedeploy.models.reduction import Reduce, sums_by_image
from prunedeploy.models.task_aligned import task_aligned_assignment

BOX_GAIN, CLASS_GAIN, DFL_GAIN = 7.5, 0.5, 1.5
BINS = 16


@dataclass(frozen=True)
class AnchorFreeTerms:
    """The detection loss and its parts, gains included: of each image ``(B,)``, or as a `Reduce` gives them."""

    box: Tensor
    dfl: Tensor
    classes: Tensor
    background: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.box + self.dfl + self.classes + self.background


def anchor_free_assignment(
    heads: Sequence[Tensor], strides: Sequence[float], targets: Tensor, bins: int = BINS
) -> Assignment:
    """Which predictions belong to which objects, as `anchor_free_terms` finds it; arguments and errors are its."""
    return _assignment(AnchorPoints.of(heads, strides, targets, 4 * bins), targets, bins)


def anchor_free_terms(
    heads: Sequence[Tensor],
    strides: Sequence[float],
    targets: Tensor,
    bins: int = BINS,
    assignment: Assignment | None = None,
    reduce: Reduce | None = None,
) -> AnchorFreeTerms:
    """The terms of the detection loss, of every image of a batch by itself.

    Args:
        heads: The raw output of each scale, ``(B, 4 * bins + C, H, W)``: bins of left, top, right and bottom, then
            class logits. Half precision is computed in float32.
        strides: Width and height of a cell of each scale, in input pixels.
        targets: ``(T, 6)`` float: image index in the batch, class index, then centre x, centre y, width and height
            normalised to [0, 1] by the input size. T may be 0.
        bins: How many distances a distribution has.
        assignment: Which predictions belong to the objects; by default what `anchor_free_assignment` says of these
            heads.
        reduce: What sums predictions; by default every term is ``(B,)``.

    Raises:
        ValueError: Shapes do not fit; they are printed.
    """
    predictions = AnchorPoints.of(heads, strides, targets, 4 * bins)
    matched = _assignment(predictions, targets, bins) if assignment is None else assignment
    image, point, target = matched.image, matched.point, matched.target
    sides, class_logits = _bins(predictions, bins), predictions.values[..., 4 * bins :]
    images = len(class_logits)
    alignment = matched.alignment.to(class_logits.dtype)
    total = alignment.new_zeros(images).index_add(0, image, alignment).clamp(min=1)  # (B,), n
    weight = alignment / total[image]

    reduce = reduce or sums_by_image(images)
    chosen, points_xy, stride = sides[image, point], predictions.points_xy[point], predictions.stride[point]
    truth = predictions.truth_cxcywh(targets)[target]
    box = (1 - paired_iou(boxes_around(chosen, points_xy, stride), truth, "ciou")) * weight
    corners = cxcywh_to_xyxy(truth)
    distances = torch.cat((points_xy - corners[:, :2], corners[:, 2:] - points_xy), dim=1) / stride  # (P, 4)
    dfl = distribution_focal_loss(chosen, distances).mean(1) * weight

    own = F.one_hot(targets[target, 1].long(), class_logits.shape[2]) * alignment[:, None]  # (P, C)
    classes = F.binary_cross_entropy_with_logits(class_logits[image, point], own, reduction="none")
    silent = -F.logsigmoid(-class_logits).sum(2)  # (B, N): the cross-entropy with 0
    taken = torch.zeros_like(silent, dtype=torch.bool)
    taken[image, point] = True
    background = silent.masked_fill(taken, 0.0) / total[:, None]
    every_image = torch.arange(images, device=silent.device)
    return AnchorFreeTerms(
        reduce(box[:, None], image, target) * BOX_GAIN,
        reduce(dfl[:, None], image, target) * DFL_GAIN,
        reduce(classes / total[image, None], image, target) * CLASS_GAIN,
        reduce(background, every_image, None) * CLASS_GAIN,
    )


def _bins(predictions: AnchorPoints, bins: int) -> Tensor:
    """``(B, N, 4, bins)`` logits: left, top, right, bottom."""
    return predictions.values[..., : 4 * bins].unflatten(2, (4, bins))


def _assignment(predictions: AnchorPoints, targets: Tensor, bins: int) -> Assignment:
    with torch.no_grad():
        boxes = boxes_around(_bins(predictions, bins), predictions.points_xy, predictions.stride)
        logits = predictions.values[..., 4 * bins :]
        return task_aligned_assignment(logits, boxes, predictions.points_xy, targets, predictions.truth_cxcywh(targets))
