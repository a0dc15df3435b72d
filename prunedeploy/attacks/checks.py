"""What every attack shares: the gradient of an objective by the images, and what an attack must not do."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from prunedeploy.attacks.norms import Norm, lengths
from prunedeploy.attacks.objectives import Objective
from prunedeploy.models.detector import Detector


class AttackWarning(UserWarning):
    """An attack ran, but something about it makes its result doubtful; see docs/attacks.md."""


class AttackInvariantError(RuntimeError):
    """An attack broke a promise: left the ball or the pixel range, or changed the network. A bug of ours."""


def values_and_gradient(
    network: Detector, images: Tensor, objective: Objective, *, may_be_flat: bool = False
) -> tuple[Tensor, Tensor]:
    """An objective of each image, ``(B,)``, and its gradient by the images, ``(B, 3, H, W)``.

    Args:
        network: The network under attack.
        images: ``(B, 3, H, W)`` in [0, 1].
        objective: Bound to the objects of the batch.
        may_be_flat: The objective has nothing left to gain where it has reached its highest value, so that no gradient
            is no reason to warn.

    Warns:
        AttackWarning: ``zero-gradient``: the objective does not depend on some of the images.

    Raises:
        AttackInvariantError: The gradient is not finite.
    """
    images = images.detach().requires_grad_(True)
    # The sum, not the mean: a quotient would round each gradient by the size of the batch.
    values = objective(network(images))
    (gradient,) = torch.autograd.grad(values.sum(), images)
    # One reduction on the hot path: an image's sum of magnitudes is 0 or not finite exactly when something is wrong.
    totals = gradient.abs().flatten(1).sum(1).tolist()
    if not all(map(math.isfinite, totals)):
        raise AttackInvariantError("the gradient of the objective is not finite")
    if not may_be_flat and (zeros := totals.count(0.0)):
        warnings.warn(
            f"zero-gradient: the loss does not depend on {zeros} of {len(totals)} images", AttackWarning, stacklevel=3
        )
    return values.detach(), gradient


@contextmanager
def unchanged(model: Detector) -> Iterator[None]:
    """Check that no parameter and no buffer of a network is modified meanwhile.

    Raises:
        AttackInvariantError: One was.
    """
    # PyTorch's modification counters.
    before = [value._version for value in (*model.parameters(), *model.buffers())]
    yield
    if [value._version for value in (*model.parameters(), *model.buffers())] != before:
        raise AttackInvariantError("the attacked network changed during the attack")


def check_invariants(x_adv: Tensor, images: Tensor, eps: float, norm: Norm = "linf") -> None:
    """Check that an attack kept its promises.

    Raises:
        AttackInvariantError: An image is outside its ball, or a pixel outside [0, 1], or not a number.
    """
    if not x_adv.numel():
        return
    offset = x_adv - images
    if norm == "linf":
        # x + eps is rounded once and the difference once more: two units in the last place of 1.
        distance, slack, moved = float(offset.abs().max()), 2.4e-7, "a pixel"
    else:
        distance, slack, moved = (
            float(lengths(offset).max()),
            1e-5 * eps + 2.4e-7 * math.sqrt(offset[0].numel()),
            "an image",
        )
    if not distance <= eps + slack:
        raise AttackInvariantError(f"the attack moved {moved} by {distance}, more than eps = {eps}")
    if not (float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1):
        raise AttackInvariantError("the attack left the pixel range [0, 1]")


def pixel_keys(images: Tensor) -> list[int]:
    """A key per image that follows from its pixels."""
    return [zlib.crc32(image.contiguous().cpu().numpy().tobytes()) for image in images]
