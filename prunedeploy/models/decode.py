"""From raw heads to boxes and scores."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg, Yolo


class HasCfg(Protocol):
    """Anything built from a Darknet cfg."""

    cfg: DarknetCfg


def split_head(raw: Tensor, head: Yolo) -> Tensor:
    """View a raw head per prediction.

    Args:
        raw: ``(B, A * (5 + C), H, W)``.
        head: Its yolo layer.

    Returns:
        ``(B, A, H, W, 5 + C)``: tx, ty, tw, th, objectness logit, class logits.

    Raises:
        ValueError: The channel count is not ``A * (5 + C)``.
    """
    batch, channels, height, width = raw.shape
    anchors, values = len(head.anchor_indices), 5 + head.classes
    if channels != anchors * values:
        raise ValueError(f"head at layer {head.index}: expected {anchors * values} channels, got {tuple(raw.shape)}")
    return raw.view(batch, anchors, values, height, width).permute(0, 1, 3, 4, 2)


def decode_boxes(predictions: Tensor, head: Yolo, input_size: tuple[int, int]) -> Tensor:
    """Decode one head's boxes (YOLOv3, Redmon and Farhadi 2018, section 2.1).

    bx = (sigmoid(tx) + cx) / W and bw = pw * exp(tw), here in pixels of the input.

    Args:
        predictions: ``(B, A, H, W, 5 + C)`` of `split_head`.
        head: The yolo layer.
        input_size: ``(height, width)`` of the network's input.

    Returns:
        ``(B, A, H, W, 4)`` as centre x, centre y, width, height in input pixels.
    """
    _, _, height, width, _ = predictions.shape
    device, dtype = predictions.device, predictions.dtype
    cell_y, cell_x = torch.meshgrid(
        torch.arange(height, device=device, dtype=dtype),
        torch.arange(width, device=device, dtype=dtype),
        indexing="ij",
    )
    anchors = torch.tensor(head.head_anchors_wh, device=device, dtype=dtype).view(1, -1, 1, 1, 2)
    stretch = head.scale_x_y
    centre = torch.sigmoid(predictions[..., :2]) * stretch - (stretch - 1) / 2
    stride = torch.tensor([input_size[1] / width, input_size[0] / height], device=device, dtype=dtype)
    centre = (centre + torch.stack((cell_x, cell_y), dim=-1)) * stride
    return torch.cat((centre, anchors * torch.exp(predictions[..., 2:4])), dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """``(..., 4)`` centre and size to corners, same unit."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def decode(heads: list[Tensor], model: HasCfg) -> tuple[Tensor, Tensor]:
    """Decode all heads.

    Args:
        heads: Raw heads in cfg order, each ``(B, A * (5 + C), H, W)``.
        model: The network they come from.

    Returns:
        ``boxes_xyxy (B, N, 4)`` in input pixels and ``scores (B, N, C)`` in [0, 1], objectness times class
        probability. N counts head by head, then anchor, row, column.

    Raises:
        ValueError: The number of heads or a head's channels do not fit the cfg.
    """
    layers = model.cfg.heads
    if len(heads) != len(layers):
        raise ValueError(f"expected {len(layers)} heads, got {len(heads)}")
    boxes, scores = [], []
    for raw, head in zip(heads, layers, strict=True):
        predictions = split_head(raw, head)
        boxes_cxcywh = decode_boxes(predictions, head, model.cfg.input_size)
        boxes.append(cxcywh_to_xyxy(boxes_cxcywh).flatten(1, 3))
        probabilities = torch.sigmoid(predictions[..., 4:])
        scores.append((probabilities[..., :1] * probabilities[..., 1:]).flatten(1, 3))
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
