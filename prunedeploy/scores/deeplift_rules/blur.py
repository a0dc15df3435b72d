"""The blur of ``antialiasing``, which is linear: its gradient is its multiplier."""

from __future__ import annotations

import torch
from torch import Size, Tensor

from prunedeploy.models.sections.blur import Blur


def before_blur(blur: Blur, output: Tensor, shape: Size) -> Tensor:
    """Hand multipliers back through a blur.

    Args:
        blur: The blur.
        output: ``(B, C, H', W')``, multipliers of the blurred map.
        shape: ``(C, H, W)`` of the map before it.

    Returns:
        ``(B, C, H, W)``.
    """
    with torch.enable_grad():
        zeros = output.new_zeros(()).expand(len(output), *shape).requires_grad_()
        (gradient,) = torch.autograd.grad(blur.run(zeros), zeros, output)
    return gradient
