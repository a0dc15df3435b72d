"""Boxes as distributions: how far each side lies from a point, as probabilities of whole distances.

Li et al., Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection, NeurIPS
2020, section 3.2. Distances are in cells of the head's map. YOLOv8 has 16 bins, for distances of 0 to 15 cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MARGIN = 0.01
"""How far below the last bin the longest wanted distance stays, in cells: YOLOv8's, so that there is a bin after it."""

_LEAST_SIZE = 1e-6
"""In pixels. Where all mass is in bin 0 a box is a point, whose aspect ratio would have no gradient."""


def expected_distances(logits: Tensor) -> Tensor:
    """What a distribution says: the mean over bins 0, 1, 2 and so on, Li et al.'s equation 5.

    Args:
        logits: ``(..., bins)``.

    Returns:
        ``(...)`` in [0, bins - 1] cells.
    """
    # A product and a sum, since autocast would take a matrix product in half precision.
    bins = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return (logits.softmax(-1) * bins).sum(-1)


def boxes_around(logits: Tensor, points_xy: Tensor, stride: Tensor) -> Tensor:
    """Decode boxes.

    Args:
        logits: ``(..., 4, bins)``: left, top, right, bottom.
        points_xy: ``(..., 2)`` that distances are from, in input pixels.
        stride: ``(..., 1)``: width and height of a cell in input pixels.

    Returns:
        ``(..., 4)`` as centre x, centre y, width, height in input pixels; sizes positive.
    """
    distances = expected_distances(logits) * stride  # (..., 4)
    before, after = distances[..., :2], distances[..., 2:]
    return torch.cat((points_xy + (after - before) / 2, (before + after).clamp(min=_LEAST_SIZE)), dim=-1)


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy with the two bins next to each wanted distance, either by how near it is.

    Args:
        logits: ``(..., bins)``.
        distances: ``(...)`` in cells; those outside the bins are wanted at the nearest end, less `_MARGIN` at the last.

    Returns:
        ``(...)``; least, though not 0, where the two bins have the distance as their mean and the others nothing.

    Reference: Li et al., equation 6.
    """
    wanted = distances.clamp(0, logits.shape[-1] - 1 - _MARGIN)
    left = wanted.floor()
    right_share = wanted - left
    pair = torch.stack((left, left + 1), dim=-1).long()  # (..., 2)
    log_left, log_right = logits.log_softmax(-1).gather(-1, pair).unbind(-1)
    return -((1 - right_share) * log_left + right_share * log_right)
