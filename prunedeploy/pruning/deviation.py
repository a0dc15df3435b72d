"""How far two networks that should compute the same are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from prunedeploy.models.darknet import Darknet

TEST_SEED = 0


@torch.no_grad()
def largest_deviation(model: Darknet, other: Darknet) -> float:
    """How far two networks of the same input and heads are apart in evaluation mode.

    Compared on random pixels, on white (so that zero padding is an edge), and on random pixels in a frame around black;
    over each whole head, and over its outermost cells alone, where padding tells.

    Returns:
        The largest of max|a - b| / max|a|; NaN if a network gives one.
    """
    channels, height, width = model.cfg.input_shape
    parameter = next(model.parameters())
    noise = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(TEST_SEED))
    framed = noise.clone()
    framed[:, :, height // 8 : -(height // 8) or None, width // 8 : -(width // 8) or None] = 0.0
    images = torch.cat([noise, torch.ones_like(noise), framed]).to(parameter)
    modes = model.training, other.training
    try:
        pairs = list(zip(model.eval()(images), other.eval()(images), strict=True))
    finally:
        model.train(modes[0])
        other.train(modes[1])
    found = []
    for ours, theirs in pairs:
        for a, b in ((ours, theirs), (_outermost(ours), _outermost(theirs))):
            # One figure per image, so that a quiet one is not lost in a loud one.
            difference = (a - b).abs().flatten(1).amax(1)
            found.append(difference / a.abs().flatten(1).amax(1).clamp(min=1e-12))
    return float(torch.cat(found).max())


def _outermost(head: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C, cells)``, the cells of the first and last rows and columns."""
    return torch.cat([head[:, :, 0], head[:, :, -1], head[..., 0], head[..., -1]], dim=2)
