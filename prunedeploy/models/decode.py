"""From raw heads to boxes and scores."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg


class HasCfg(Protocol):
    """Anything built from a Darknet cfg."""

    cfg: DarknetCfg


def decode(heads: list[Tensor], model: HasCfg) -> tuple[Tensor, Tensor]:
    """Decode all heads.

    Args:
        heads: Raw heads in cfg order, each ``(B, A * V, H, W)``, see `prunedeploy.models.sections.head.Head`.
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
    boxes = [head.boxes_xyxy(raw, model.cfg.input_size) for raw, head in zip(heads, layers, strict=True)]
    scores = [head.scores(raw) for raw, head in zip(heads, layers, strict=True)]
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
