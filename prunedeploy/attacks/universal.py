"""One perturbation for all images: what somebody needs who cannot look at the image that is attacked.

A sticker on the lens or a change to a stream is computed once. The search is signed gradient ascent on the sum of the
objective over a set of images, in a ball around zero::

    d <- clip(d + a sign(sum over a batch's images x of the gradient of f at clip(x + d, 0, 1)), -eps, eps)

with a falling from ``FIRST_STEP`` eps linearly to zero, and of all passes the perturbation with the highest sum counts.

References: Moosavi-Dezfooli et al., Universal Adversarial Perturbations, CVPR 2017, equation 1; Shafahi et al.,
    Universal Adversarial Training, AAAI 2020, algorithm 2 (the ascent in batches); Shapira et al., Phantom Sponges,
    WACV 2023 (against a detector's time).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from prunedeploy.attacks.checks import check_invariants, unchanged, values_and_gradient
from prunedeploy.attacks.objectives import may_be_flat, objective_for
from prunedeploy.attacks.threat_model import project_linf
from prunedeploy.models.darknet import Darknet, FoldedDarknet

FIRST_STEP = 0.25


def universal_perturbation(
    model: Darknet,
    batches: Sequence[tuple[Tensor, Tensor]],
    eps: float,
    *,
    objective: str = "flood",
    passes: int = 10,
) -> Tensor:
    """Search for a perturbation that drives an objective up on all images at once.

    Args:
        model: The network under attack, as it stands, in evaluation mode and fp32.
        batches: Images ``(B, 3, H, W)`` float32 in [0, 1] with targets ``(T, 6)`` as `yolo_loss` takes them; at least
            one.
        eps: Radius of the L-inf ball, in pixel units of [0, 1].
        objective: What is driven up, see `prunedeploy.attacks.objectives`.
        passes: How often the images are gone through, each image once forward and back; at least 1.

    Returns:
        ``(1, 3, H, W)`` in [-eps, eps]; see `perturbed`.

    Raises:
        AttackInvariantError: The network changed meanwhile, or a gradient is not finite.
        ValueError: There are no images.
    """
    if not batches:
        raise ValueError("a universal perturbation needs images")
    network, flat = FoldedDarknet(model), may_be_flat(objective)
    found = best = torch.zeros_like(batches[0][0][:1])
    best_sum, step, steps = -float("inf"), 0, passes * len(batches)
    with unchanged(model):
        for _ in range(passes):
            before, total = found, 0.0
            for images, targets in batches:
                bound = objective_for(objective, partial(network, images), targets, model.cfg)
                moved = perturbed(images, found, eps)
                values, gradient = values_and_gradient(network, moved, bound, may_be_flat=flat)
                total += float(values.sum())
                size = eps * FIRST_STEP * (1 - step / steps)
                found = (found + size * gradient.sum(0, keepdim=True).sign()).clamp(-eps, eps)
                step += 1
            if total > best_sum:
                best, best_sum = before, total
        total = sum(_value(network, batch, found, eps, objective) for batch in batches)
    return found if total > best_sum else best


def perturbed(images: Tensor, perturbation: Tensor, eps: float) -> Tensor:
    """Images ``(B, 3, H, W)`` with the perturbation ``(1, 3, H, W)`` put on, clipped to their balls and to [0, 1].

    Raises:
        AttackInvariantError: An image left its ball or the pixel range. A bug of ours.
    """
    moved = project_linf(images + perturbation, images, eps)
    check_invariants(moved, images, eps)
    return moved


@torch.no_grad()
def _value(network: FoldedDarknet, batch: tuple[Tensor, Tensor], perturbation: Tensor, eps: float, name: str) -> float:
    images, targets = batch
    objective = objective_for(name, partial(network, images), targets, network.cfg)
    return float(objective(network(perturbed(images, perturbation, eps))).sum())
