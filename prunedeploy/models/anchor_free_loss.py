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
less than one that is found badly. For training that is what is meant. An attack that keeps the highest loss it saw
should hold `anchor_free_assignment` of the clean heads fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.boxes import cxcywh_to_xyxy, paired_iou
from prunedeploy.models.distribution_focal import boxes_around, distribution_focal_loss
from prunedeploy.models.task_aligned import Assignment, task_aligned_assignment

BOX_GAIN, CLASS_GAIN, DFL_GAIN = 7.5, 0.5, 1.5
BINS = 16

Reduce = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""Sums ``(P, ...)`` values by the image of each, ``(P,)``, or by the target of each; None where they belong to none."""


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


@dataclass(frozen=True, eq=False)
class _Predictions:
    """Raw heads by anchor point: N of them, scale by scale, then row, then column.

    Attributes:
        bins: ``(B, N, 4, bins)`` logits: left, top, right, bottom.
        class_logits: ``(B, N, C)``.
        points_xy: ``(N, 2)`` in input pixels.
        stride: ``(N, 1)`` in input pixels.
        input_size: ``(height, width)`` in pixels.
    """

    bins: Tensor
    class_logits: Tensor
    points_xy: Tensor
    stride: Tensor
    input_size: tuple[float, float]

    def truth_cxcywh(self, targets: Tensor) -> Tensor:
        """The objects of ``targets (T, 6)`` in input pixels, ``(T, 4)``."""
        height, width = self.input_size
        return targets[:, 2:].to(self.bins.dtype) * self.bins.new_tensor([width, height, width, height])


def anchor_free_assignment(
    heads: Sequence[Tensor], strides: Sequence[float], targets: Tensor, bins: int = BINS
) -> Assignment:
    """Which predictions belong to which objects, as `anchor_free_terms` finds it; arguments and errors are its."""
    return _assignment(_read(heads, strides, targets, bins), targets)


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
    predictions = _read(heads, strides, targets, bins)
    matched = _assignment(predictions, targets) if assignment is None else assignment
    image, point, target = matched.image, matched.point, matched.target
    images = predictions.bins.new_zeros(len(predictions.bins))
    alignment = matched.alignment.to(images.dtype)
    total = images.index_add(0, image, alignment).clamp(min=1)  # (B,), n
    weight = alignment / total[image]

    def per_image(values: Tensor, image: Tensor, _: Tensor | None) -> Tensor:
        return images.index_add(0, image, values.flatten(1).sum(1))

    reduce = reduce or per_image
    chosen, points_xy, stride = predictions.bins[image, point], predictions.points_xy[point], predictions.stride[point]
    truth = predictions.truth_cxcywh(targets)[target]
    box = (1 - paired_iou(boxes_around(chosen, points_xy, stride), truth, "ciou")) * weight
    corners = cxcywh_to_xyxy(truth)
    distances = torch.cat((points_xy - corners[:, :2], corners[:, 2:] - points_xy), dim=1) / stride  # (P, 4)
    dfl = distribution_focal_loss(chosen, distances).mean(1) * weight

    own = F.one_hot(targets[target, 1].long(), predictions.class_logits.shape[2]) * alignment[:, None]  # (P, C)
    classes = F.binary_cross_entropy_with_logits(predictions.class_logits[image, point], own, reduction="none")
    silent = -F.logsigmoid(-predictions.class_logits).sum(2)  # (B, N): the cross-entropy with 0
    taken = torch.zeros_like(silent, dtype=torch.bool)
    taken[image, point] = True
    background = silent.masked_fill(taken, 0.0) / total[:, None]
    every_image = torch.arange(len(images), device=images.device)
    return AnchorFreeTerms(
        reduce(box[:, None], image, target) * BOX_GAIN,
        reduce(dfl[:, None], image, target) * DFL_GAIN,
        reduce(classes / total[image, None], image, target) * CLASS_GAIN,
        reduce(background, every_image, None) * CLASS_GAIN,
    )


def _assignment(predictions: _Predictions, targets: Tensor) -> Assignment:
    with torch.no_grad():
        boxes = boxes_around(predictions.bins, predictions.points_xy, predictions.stride)
        return task_aligned_assignment(
            predictions.class_logits, boxes, predictions.points_xy, targets, predictions.truth_cxcywh(targets)
        )


def _read(heads: Sequence[Tensor], strides: Sequence[float], targets: Tensor, bins: int) -> _Predictions:
    """Check shapes, and view heads by anchor point."""
    shapes = [tuple(raw.shape) for raw in heads]
    if targets.ndim != 2 or targets.shape[1] != 6:
        raise ValueError(f"expected targets (T, 6), got {tuple(targets.shape)}")
    if not heads or len(heads) != len(strides):
        raise ValueError(f"expected a stride for each head, got {len(heads)} heads and {len(strides)} strides")
    if any(raw.ndim != 4 for raw in heads) or len({shape[:2] for shape in shapes}) > 1 or shapes[0][1] <= 4 * bins:
        raise ValueError(f"expected heads (B, {4 * bins} + classes, H, W) with one B and C, got {shapes}")
    sizes = {(shape[2] * stride, shape[3] * stride) for shape, stride in zip(shapes, strides, strict=True)}
    if len(sizes) > 1:
        raise ValueError(f"heads {shapes} with strides {list(strides)} are not of one input size")
    dtype = torch.float64 if heads[0].dtype == torch.float64 else torch.float32
    flat = torch.cat([raw.to(dtype).flatten(2) for raw in heads], dim=2).transpose(1, 2)  # (B, N, 4 * bins + C)
    points, cells = [], []
    for (_, _, height, width), stride in zip(shapes, strides, strict=True):
        rows, columns = (torch.arange(n, device=flat.device, dtype=dtype) + 0.5 for n in (height, width))
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        points.append(torch.stack((x, y), dim=-1).flatten(0, 1) * stride)
        cells.append(flat.new_full((height * width, 1), stride))
    return _Predictions(
        flat[..., : 4 * bins].unflatten(2, (4, bins)),
        flat[..., 4 * bins :],
        torch.cat(points),
        torch.cat(cells),
        sizes.pop(),
    )
