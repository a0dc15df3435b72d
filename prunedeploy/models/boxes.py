"""Geometry of boxes in tensors: corners, and overlaps that gradients pass through."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """``(..., 4)`` centre and size to corners, same unit."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


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


def paired_iou(predicted_cxcywh: Tensor, truth_cxcywh: Tensor, kind: str) -> Tensor:
    """Overlap of paired boxes.

    Args:
        predicted_cxcywh: ``(P, 4)``, sizes positive.
        truth_cxcywh: ``(P, 4)`` in the same unit.
        kind: ``iou``; ``giou``: less the share of the enclosing box that neither covers; ``diou``: less the distance of
            centres; ``ciou``: less that and the difference of aspect ratios.

    Returns:
        ``(P,)`` at most 1.

    Reference: Rezatofighi et al., Generalized Intersection over Union, 2019, algorithm 1; Zheng et al., Distance-IoU
    Loss: Faster and Better Learning for Bounding Box Regression, 2020, equations 6 to 11.
    """
    a, b = cxcywh_to_xyxy(predicted_cxcywh), cxcywh_to_xyxy(truth_cxcywh)
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = predicted_cxcywh[:, 2:].prod(-1) + truth_cxcywh[:, 2:].prod(-1) - overlap
    iou = overlap / union.clamp(min=1e-9)
    if kind == "iou":
        return iou
    enclosing = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    if kind == "giou":
        area = enclosing.prod(-1).clamp(min=1e-9)
        return iou - (area - union) / area
    diagonal = enclosing.pow(2).sum(-1).clamp(min=1e-9)
    distance = (predicted_cxcywh[:, :2] - truth_cxcywh[:, :2]).pow(2).sum(-1)
    if kind == "diou":
        return iou - distance / diagonal
    angle = torch.atan(truth_cxcywh[:, 2] / truth_cxcywh[:, 3]) - torch.atan(
        predicted_cxcywh[:, 2] / predicted_cxcywh[:, 3]
    )
    aspect = 4 / math.pi**2 * angle.pow(2)
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect).clamp(min=1e-9)
    return iou - distance / diagonal - trade_off * aspect
