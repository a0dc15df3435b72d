"""The YOLOv3 detection loss, batched over images, boxes and anchors.

Assignment and terms follow Darknet's ``forward_yolo_layer`` and Redmon and Farhadi, YOLOv3, 2018,
section 2: every box belongs to the anchor of the whole network whose shape fits best (and, with
``iou_thresh`` below 1, to every other anchor that fits better than that), in the cell of its centre;
objectness is pushed to 1 there, and to 0 everywhere else but where the prediction overlaps a box by
more than ``ignore_thresh``. ``iou_loss=mse`` is Darknet's original box term, ``ciou`` that of Zheng et al.,
Distance-IoU Loss, 2020, equation 10.

Every term is a sum over one image's predictions. `yolo_loss` is the mean over images; `yolo_losses` and `image_terms`
give them one by one, and the gradient of their sum is each image's own, whatever else is in the batch, as an attack
needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg, Yolo
from prunedeploy.models.decode import cxcywh_to_xyxy, decode_boxes, split_head

# exp(8) anchors is far beyond any image and exp(-16) far below a pixel; keeps CIoU finite for wild predictions.
_MIN_LOG_SIZE, _MAX_LOG_SIZE = -16.0, 8.0


@dataclass(frozen=True)
class LossTerms:
    """The detection loss and its parts, sums over predictions: of each image ``(B,)``, or their mean ``()``."""

    box: Tensor
    objectness: Tensor
    classes: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised, and what an attack maximises."""
        return self.box + self.objectness + self.classes


def yolo_loss(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> LossTerms:
    """Detection loss of raw heads against ground truth, mean over images.

    Args:
        heads: Raw heads in cfg order, each ``(B, A * (5 + C), H, W)``.
        targets: ``(T, 6)`` float: image index in the batch, class index, then centre x, centre y, width and
            height normalised to [0, 1] by the input size. T may be 0.
        cfg: The network's cfg.

    Raises:
        ValueError: A shape does not fit; both shapes are printed.
    """
    box, objectness, classes = _terms(heads, targets, cfg, lambda values, *_: values.sum())
    batch = heads[0].shape[0]
    return LossTerms(box / batch, objectness / batch, classes / batch)


def yolo_losses(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> Tensor:
    """Detection loss of every image of a batch by itself: `image_terms`, summed to ``(B,)``."""
    return image_terms(heads, targets, cfg).total


def image_terms(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> LossTerms:
    """The terms of the detection loss, of every image of a batch by itself.

    Args:
        heads: As `yolo_loss` takes them.
        targets: Likewise, ``(T, 6)``.
        cfg: The network's cfg.

    Returns:
        Terms of shape ``(B,)``.

    Raises:
        ValueError: A shape does not fit; both shapes are printed.
    """

    def per_image(values: Tensor, image: Tensor, _: Tensor | None) -> Tensor:
        return values.new_zeros(heads[0].shape[0]).index_add(0, image, values.flatten(1).sum(1))

    return LossTerms(*_terms(heads, targets, cfg, per_image))


def target_terms(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> tuple[Tensor, Tensor]:
    """Box and class terms of every target by itself, each ``(T,)``; arguments and errors of `yolo_loss`."""

    def per_target(values: Tensor, _: Tensor, target: Tensor | None) -> Tensor:
        if target is None:  # objectness belongs to no target
            return values.new_zeros(len(targets))
        return values.new_zeros(len(targets)).index_add(0, target, values.flatten(1).sum(1))

    box, _, classes = _terms(heads, targets, cfg, per_target)
    return box, classes


def _terms(
    heads: list[Tensor], targets: Tensor, cfg: DarknetCfg, reduce: Callable[[Tensor, Tensor, Tensor | None], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Box, objectness and class terms over all heads.

    ``reduce`` takes ``(N, ...)`` values, the image of each, and the target of each, or None where there is none.
    """
    if targets.ndim != 2 or targets.shape[1] != 6:
        raise ValueError(f"expected targets (T, 6), got {tuple(targets.shape)}")
    if len(heads) != len(cfg.heads):
        raise ValueError(f"expected {len(cfg.heads)} heads, got {len(heads)}")
    height, width = cfg.input_size
    pixels = targets.new_tensor([width, height, width, height])
    boxes = targets[:, 2:] * pixels
    image = targets[:, 0].long()
    padded = _pad_per_image(boxes, image, heads[0].shape[0])
    matches = _match_anchors(boxes[:, 2:], cfg)
    box = objectness = classes = heads[0].new_zeros(())
    for raw, head in zip(heads, cfg.heads, strict=True):
        predictions = split_head(raw if raw.dtype == torch.float64 else raw.float(), head)
        terms = _head_loss(predictions, head, cfg, targets, boxes, image, padded, matches, reduce)
        box, objectness, classes = box + terms[0], objectness + terms[1], classes + terms[2]
    return box, objectness, classes


def _match_anchors(sizes_wh: Tensor, cfg: DarknetCfg) -> dict[int, Tensor]:
    """Which anchors of each head each box belongs to: ``(T, A)`` bool by the head's layer index."""
    anchors = sizes_wh.new_tensor(cfg.heads[0].anchors_wh)  # (anchors of the network, 2)
    overlap = torch.minimum(sizes_wh[:, None], anchors[None]).prod(-1)
    iou = overlap / (sizes_wh.prod(-1)[:, None] + anchors.prod(-1)[None] - overlap)
    best = F.one_hot(iou.argmax(1), len(anchors)).bool() if len(sizes_wh) else torch.zeros_like(iou, dtype=torch.bool)
    return {head.index: (best | (iou > head.iou_thresh))[:, list(head.anchor_indices)] for head in cfg.heads}


def _pad_per_image(boxes_cxcywh: Tensor, image: Tensor, batch: int) -> Tensor:
    """Boxes as ``(B, most boxes of one image, 4)`` xyxy; unused places hold empty boxes far outside."""
    counts = torch.bincount(image, minlength=batch)
    most = int(counts.max()) if len(image) else 0
    padded = boxes_cxcywh.new_full((batch, most, 4), -1e4)
    if most:
        order = torch.argsort(image, stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(image), device=image.device) - starts[image[order]]
        padded[image[order], place] = cxcywh_to_xyxy(boxes_cxcywh[order])
    return padded


def _head_loss(
    predictions: Tensor,
    head: Yolo,
    cfg: DarknetCfg,
    targets: Tensor,
    boxes: Tensor,
    image: Tensor,
    padded: Tensor,
    matches: dict[int, Tensor],
    reduce: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, rows, columns, _ = predictions.shape
    height, width = cfg.input_size
    target_index, anchor = matches[head.index].nonzero(as_tuple=True)  # (P,) each
    image_index = image[target_index]
    position = targets[target_index, 2:4] * targets.new_tensor([columns, rows])
    column = position[:, 0].long().clamp(0, columns - 1)
    row = position[:, 1].long().clamp(0, rows - 1)
    cell = (image_index, anchor, row, column)

    objectness_logits = predictions[..., 4]
    wanted = torch.zeros_like(objectness_logits)
    wanted[cell] = 1.0
    with torch.no_grad():
        predicted = cxcywh_to_xyxy(decode_boxes(predictions, head, cfg.input_size)).flatten(1, 3)
        overlap = best_iou(predicted, padded).view_as(wanted)
        counted = (overlap <= head.ignore_thresh) | wanted.bool()
    objectness = F.binary_cross_entropy_with_logits(objectness_logits, wanted, reduction="none")
    every_image = torch.arange(batch, device=image.device)
    objectness = reduce(objectness * counted, every_image, None) * head.obj_normalizer

    chosen = predictions[cell]  # (P, 5 + C)
    labels = F.one_hot(targets[target_index, 1].long(), head.classes).to(chosen.dtype)
    classes = F.binary_cross_entropy_with_logits(chosen[:, 5:], labels, reduction="none")
    classes = reduce(classes, image_index, target_index) * head.cls_normalizer

    truth = boxes[target_index]
    anchors = truth.new_tensor(head.head_anchors_wh)[anchor]
    stretch = head.scale_x_y
    if head.iou_loss == "mse":
        # Darknet scales by 2 - w * h, so that small boxes are not forgotten; its delta on x and y is the
        # gradient of the logistic cross-entropy, on w and h that of half the squared error.
        weight = (2 - truth[:, 2:].prod(-1) / (width * height))[:, None]
        offset = position - torch.stack((column, row), dim=1)
        # The logistic that `decode_boxes` would stretch to this offset; for YOLOv3 the offset itself.
        logistic = (offset + (stretch - 1) / 2) / stretch
        xy = F.binary_cross_entropy_with_logits(chosen[:, :2], logistic, reduction="none")
        wh = (chosen[:, 2:4] - (truth[:, 2:] / anchors).log()) ** 2 / 2
        box = (xy + wh) * weight
    else:
        centre = torch.sigmoid(chosen[:, :2]) * stretch - (stretch - 1) / 2 + torch.stack((column, row), dim=1)
        centre = centre * truth.new_tensor([width / columns, height / rows])
        size = anchors * chosen[:, 2:4].clamp(_MIN_LOG_SIZE, _MAX_LOG_SIZE).exp()
        box = 1 - complete_iou(torch.cat((centre, size), dim=1), truth)[:, None]
    return reduce(box, image_index, target_index) * head.iou_normalizer, objectness, classes


def best_iou(predicted_xyxy: Tensor, truth_xyxy: Tensor) -> Tensor:
    """Largest IoU of each prediction with any box of its image.

    Args:
        predicted_xyxy: ``(B, N, 4)``.
        truth_xyxy: ``(B, G, 4)`` in the same unit; G may be 0.

    Returns:
        ``(B, N)`` in [0, 1]; 0 where an image has no box.
    """
    if truth_xyxy.shape[1] == 0:
        return predicted_xyxy.new_zeros(predicted_xyxy.shape[:2])
    a, b = predicted_xyxy[:, :, None], truth_xyxy[:, None]
    extent = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    overlap = extent.prod(-1)  # (B, N, G)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    return (overlap / union.clamp(min=1e-9)).amax(-1)


def complete_iou(predicted_cxcywh: Tensor, truth_cxcywh: Tensor) -> Tensor:
    """CIoU of paired boxes: IoU - distance of centres - difference of aspect ratios.

    Args:
        predicted_cxcywh: ``(P, 4)``, sizes positive.
        truth_cxcywh: ``(P, 4)`` in the same unit.

    Returns:
        ``(P,)`` at most 1.

    Reference: Zheng et al., Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression,
    2020, equations 8 to 11.
    """
    a, b = cxcywh_to_xyxy(predicted_cxcywh), cxcywh_to_xyxy(truth_cxcywh)
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = predicted_cxcywh[:, 2:].prod(-1) + truth_cxcywh[:, 2:].prod(-1) - overlap
    iou = overlap / union.clamp(min=1e-9)
    enclosing = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    diagonal = enclosing.pow(2).sum(-1).clamp(min=1e-9)
    distance = (predicted_cxcywh[:, :2] - truth_cxcywh[:, :2]).pow(2).sum(-1)
    angle = torch.atan(truth_cxcywh[:, 2] / truth_cxcywh[:, 3]) - torch.atan(
        predicted_cxcywh[:, 2] / predicted_cxcywh[:, 3]
    )
    aspect = 4 / math.pi**2 * angle.pow(2)
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect).clamp(min=1e-9)
    return iou - distance / diagonal - trade_off * aspect
