"""The detection loss of heads without anchors that have objectness: YOLOX.

    box         5 * sum over matched points of  (1 - IoU^2) / n
    objectness  sum over all points of          BCE(objectness, 1 where matched and 0 elsewhere) / n
    classes     sum over matched points of      BCE(classes, IoU for the object's class and 0 for the others) / n

with the matches of `sim_ota` and n their number in the image, at least 1; the IoU that is wanted has no gradient. After
Ge et al., YOLOX: Exceeding YOLO Series in 2021, section 2.1, and Yu et al., UnitBox: An Advanced Object Detection
Network, 2016 (a loss of the IoU itself). An image without objects has nothing but objectness.

**Every image by itself.** YOLOX divides by the matches of the whole batch. For one image that is what is here, and so
it is, as a mean over images, for several with equally many. In any other batch YOLOX's gradient of an image depends on
what else is in the batch, and this one does not. The price is that of `anchor_free_loss`.

What YOLOX adds in its last 15 epochs, the absolute error of the four numbers of a box, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.anchor_points import AnchorPoints
from prunedeploy.models.assignment import Assignment
from prunedeploy.models.boxes import paired_iou
from prunedeploy.models.reduction import Reduce, sums_by_image
from prunedeploy.models.sim_ota import sim_ota_assignment

BOX_GAIN = 5.0
CLASS_START = 5

# exp(8) cells is far beyond any image and exp(-16) far below a pixel; keeps overlaps finite for wild predictions.
_MIN_LOG_SIZE, _MAX_LOG_SIZE = -16.0, 8.0


def yolox_assignment(heads: Sequence[Tensor], strides: Sequence[float], targets: Tensor) -> Assignment:
    """Which predictions belong to which objects, as `yolox_terms` finds it; arguments and errors are its."""
    return _assignment(AnchorPoints.of(heads, strides, targets, CLASS_START), targets)


def yolox_terms(
    heads: Sequence[Tensor],
    strides: Sequence[float],
    targets: Tensor,
    assignment: Assignment | None = None,
    reduce: Reduce | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of the detection loss, of every image of a batch by itself.

    Args:
        heads: The raw output of each scale, ``(B, 5 + C, H, W)``: x, y, w, h, objectness logit, class logits. Half
            precision is computed in float32.
        strides: Width and height of a cell of each scale, in input pixels.
        targets: ``(T, 6)`` float: image index in the batch, class index, then centre x, centre y, width and height
            normalised to [0, 1] by the input size. T may be 0.
        assignment: Which predictions belong to the objects; by default what `yolox_assignment` says of these heads.
        reduce: What sums predictions; by default every term is ``(B,)``.

    Returns:
        The terms of boxes, objectness and classes, gains included.

    Raises:
        ValueError: Shapes do not fit; they are printed.
    """
    predictions = AnchorPoints.of(heads, strides, targets, CLASS_START)
    matched = _assignment(predictions, targets) if assignment is None else assignment
    values, image, target = predictions.values, matched.image, matched.target
    place = (image, matched.point)
    reduce = reduce or sums_by_image(len(values))
    count = torch.bincount(image, minlength=len(values)).clamp(min=1).to(values.dtype)  # (B,), n

    overlap = paired_iou(_boxes(predictions)[place], predictions.truth_cxcywh(targets)[target], "iou")
    box = (1 - overlap**2) / count[image]
    wanted = torch.zeros_like(values[..., 4]).index_put(place, values.new_ones(()))
    objectness = F.binary_cross_entropy_with_logits(values[..., 4], wanted, reduction="none") / count[:, None]
    logits = values[place][:, CLASS_START:]  # (P, C)
    own = F.one_hot(targets[target, 1].long(), logits.shape[1]) * matched.alignment.to(values.dtype)[:, None]
    classes = F.binary_cross_entropy_with_logits(logits, own, reduction="none") / count[image, None]
    every_image = torch.arange(len(values), device=values.device)
    return (
        reduce(box[:, None], image, target) * BOX_GAIN,
        reduce(objectness, every_image, None),
        reduce(classes, image, target),
    )


def _boxes(predictions: AnchorPoints) -> Tensor:
    """``(B, N, 4)``: centre and size in input pixels, as a yolox section decodes them."""
    values, stride = predictions.values, predictions.stride
    centre = predictions.points_xy + (values[..., :2] - 0.5) * stride
    return torch.cat((centre, values[..., 2:4].clamp(_MIN_LOG_SIZE, _MAX_LOG_SIZE).exp() * stride), dim=-1)


def _assignment(predictions: AnchorPoints, targets: Tensor) -> Assignment:
    with torch.no_grad():
        return sim_ota_assignment(
            predictions.values[..., 4],
            predictions.values[..., CLASS_START:],
            _boxes(predictions),
            predictions.points_xy,
            predictions.stride,
            targets,
            predictions.truth_cxcywh(targets),
        )
