"""What an attacker may do: the L-inf ball, and how hard it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Iterate = Literal["last", "best"]


@dataclass(frozen=True)
class ThreatModel:
    """An L-inf attack by projected gradient descent; the defaults are the paper's (section III-B).

    Attributes:
        eps: Radius of the ball in pixel units of [0, 1].
        step_size: Length of one step, same unit.
        steps: Number of steps.
        random_start: Start from a uniform point of the ball rather than the clean image.
        restarts: Attempts per image; the one with the largest loss is kept. More than one needs random
            starts.
        iterate: What an attempt gives: where its ``last`` step ended, or of all places it came through, the start
            among them, each image's ``best`` (with the largest loss).

    Raises:
        ValueError: A value is out of range.
    """

    eps: float = 0.05
    step_size: float = 0.02
    steps: int = 5
    random_start: bool = False
    restarts: int = 1
    iterate: Iterate = "last"

    def __post_init__(self) -> None:
        counts = self.steps >= 1 and self.restarts >= 1
        if not (0 <= self.eps <= 1 and self.step_size > 0 and counts and self.iterate in get_args(Iterate)):
            raise ValueError(f"threat model out of range: {self}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts > 1 repeats the same attack unless random_start is on")


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
