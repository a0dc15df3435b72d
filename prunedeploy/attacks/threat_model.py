"""What an attacker may do: the L-inf ball, and how hard it is searched.

`ThreatModel` is the configuration's block ``attack`` itself, `prunedeploy.config.AttackConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunedeploy.config import AttackConfig as ThreatModel

__all__ = ["ThreatModel", "project_linf", "start_noise"]


def project_linf(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """Clip ``x_adv`` to the L-inf ball around ``x`` and to valid pixels.

    Args:
        x_adv: Candidate images, ``(B, 3, H, W)`` float32, pixels in [0, 1].
        x: Clean images; same shape, dtype and range.
        eps: Ball radius in pixel units of [0, 1], e.g. ``8 / 255``.

    Returns:
        New tensor, same shape; ``x_adv`` is not modified.

    Raises:
        ValueError: Shapes differ (both printed) or ``eps`` is negative.

    Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, eq. 1.
    """
    if x_adv.shape != x.shape:
        raise ValueError(f"shapes differ: {tuple(x_adv.shape)} and {tuple(x.shape)}")
    if eps < 0:
        raise ValueError(f"eps is negative: {eps}")
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)


def start_noise(shape: tuple[int, ...], eps: float, keys: Sequence[tuple[int, ...]]) -> Tensor:
    """Uniform noise in [-eps, eps], drawn per image from its own key.

    Args:
        shape: ``(B, C, H, W)``.
        eps: Ball radius.
        keys: One tuple of non-negative integers per image, e.g. (seed, epoch, image id, restart).

    Returns:
        ``(B, C, H, W)`` float32. An image's noise depends on its key alone, not on its batch.
    """
    if len(keys) != shape[0]:
        raise ValueError(f"expected {shape[0]} keys, got {len(keys)}")
    noise = [np.random.default_rng(key).random(shape[1:], dtype=np.float32) * 2 - 1 for key in keys]
    return torch.from_numpy(np.stack(noise)) * eps
