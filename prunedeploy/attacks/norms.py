"""Balls in L-inf and L2: projection, steps of a given length, random points. Pixels always stay in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prunedeploy.attacks.threat_model import project_linf, start_noise

Norm = Literal["linf", "l2"]

_TINY = 1e-12


def lengths(vectors: Tensor) -> Tensor:
    """L2 norm of each image's vector of pixels, ``(B, 1, 1, 1)`` of ``(B, C, H, W)``."""
    return vectors.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def project(x_adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """Move ``x_adv (B, C, H, W)`` into the ball of radius ``eps`` around ``x`` and into [0, 1].

    In L2 the pixels are clipped after the projection, which leaves them in the ball: ``x`` is in [0, 1] itself, so that
    clipping moves no pixel away from it.
    """
    if norm == "linf":
        return project_linf(x_adv, x, eps)
    offset = x_adv - x
    return (x + offset * (eps / lengths(offset).clamp(min=_TINY)).clamp(max=1)).clamp(0, 1)


def unit_step(gradient: Tensor, step_size: Tensor, norm: Norm) -> Tensor:
    """The steepest step of a length of its own for each image: ``(B, C, H, W)`` of sizes ``(B,)``."""
    size = step_size.view(-1, 1, 1, 1)
    return size * (gradient.sign() if norm == "linf" else gradient / (lengths(gradient) + _TINY))


def random_start(images: Tensor, eps: float, norm: Norm, keys: Sequence[tuple[int, ...]]) -> Tensor:
    """A random point of each image's ball: uniform in L-inf, of random direction on the sphere in L2.

    Args:
        images: ``(B, C, H, W)`` in [0, 1].
        eps: Radius.
        norm: Norm of the ball.
        keys: One tuple of non-negative integers per image, which alone decides its draw.
    """
    if norm == "linf":
        noise = start_noise(tuple(images.shape), eps, keys)
    else:
        drawn = [np.random.default_rng(key).standard_normal(images.shape[1:], dtype=np.float32) for key in keys]
        noise = torch.from_numpy(np.stack(drawn))
        noise = noise * (eps / lengths(noise))
    return project(images + noise.to(images.device), images, eps, norm)


def on_lattice(x_adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """Attacked images as 8 bits can hold them: whole 255ths, in the ball.

    Rounding alone may leave the ball: 0.05 is 12.75 grey levels, and the nearest whole number is 13. In L-inf a pixel
    goes to the nearest level in the ball; in L2 to the nearest, but of images that leave their ball by that every pixel
    goes to the next level towards the clean one.

    Args:
        x_adv: ``(B, C, H, W)`` in [0, 1], in the ball.
        x: Clean images of 255ths, so that they are in it too.
        eps: Radius.
        norm: Norm of the ball.
    """
    level, clean = x_adv.double() * 255, x.double() * 255
    near = level.round()
    if norm == "linf":
        # Pixels are float32: 255 * x is whole up to 2e-5, and 255 * eps may be.
        low, high = (clean - 255 * eps - 5e-5).ceil(), (clean + 255 * eps + 5e-5).floor()
        near = torch.minimum(torch.maximum(near, low), high)
    else:
        inward = clean.round() + (level - clean.round()).trunc()
        near = torch.where(lengths(near - clean) > 255 * eps, inward, near)
    return near.clamp(0, 255).to(x_adv.dtype) / 255
