"""Free adversarial training: one backward pass moves the weights down and the perturbation up.

Shafahi et al., Adversarial Training for Free!, 2019, algorithm 1. Every batch is trained on m times in a row. Of each
pass the gradient by the weights is the optimiser's, and the gradient by the image moves the perturbation::

    delta <- clip(delta + step_size * sign(grad_delta loss(clip(x + delta, 0, 1))), -eps, eps)

As in the authors' code the perturbation starts at 0 and is kept from one batch to the next, so that an image goes on
from what the last batch left in its place, and the network is in training mode, since one pass serves both. The paper's
step size is eps; here it is a setting. A training step is one such pass: m steps see one batch, and a training of N
steps sees N / m batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunedeploy.attacks import ThreatModel
from prunedeploy.data.loader import Batch
from prunedeploy.training.distributed import shard

Loss = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""Named 0-d terms, ``loss`` among them, of images to train on, the clean images and their targets."""


class FreeObjective:
    """A `prunedeploy.training.loop.ReplayingObjective`, whose backward pass also takes the attack's step.

    Args:
        loss: What weights are to lower and the perturbation to raise.
        threat_model: Radius of the ball and length of a step; nothing else is read.
        replays: m, steps that each batch is seen for.
        device: Where the batches go.

    Attributes:
        carried: The perturbation, ``(B, 3, H, W)`` float32 in [-eps, eps]; None before the first step.
    """

    def __init__(self, loss: Loss, threat_model: ThreatModel, replays: int, device: torch.device) -> None:
        self.replays = replays
        self.carried: Tensor | None = None
        self._loss, self._threat_model, self._device = loss, threat_model, device

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The terms of a step; the perturbation has taken its own when ``loss`` has gone backward."""
        batch = shard(batch)
        clean, targets = batch.images.to(self._device), batch.targets.to(self._device)
        start = torch.zeros_like(clean) if self.carried is None else self.carried.to(self._device)
        perturbation = start.detach().requires_grad_(True)

        def ascend(gradient: Tensor) -> None:
            attack = self._threat_model
            self.carried = (start + attack.step_size * gradient.sign()).clamp(-attack.eps, attack.eps)

        perturbation.register_hook(ascend)
        return self._loss((clean + perturbation).clamp(0, 1), clean, targets)
