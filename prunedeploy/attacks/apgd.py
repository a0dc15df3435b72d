"""APGD: projected gradient descent that sets its own step sizes.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks, ICML
2020, section 3 and algorithm 1. Steps begin at twice the radius and are halved, image by image, at checkpoints before
which the objective rose in too few of them, or where neither step nor best value has changed; the search then goes on
from the best point so far, which is also the result.

The schedule of radii is that of Croce, Singh and Hein, Towards Reliable Evaluation and Fast Training of Robust Semantic
Segmentation Models, 2023, section 3.2: a search in a larger ball, its result projected into a smaller one and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunedeploy.attacks.checks import check_invariants, pixel_keys, unchanged, values_and_gradient
from prunedeploy.attacks.norms import Norm, project, random_start, unit_step
from prunedeploy.attacks.objectives import Objective, may_be_flat, objective_for
from prunedeploy.models.detector import Detector

MOMENTUM = 0.75
RISING_SHARE = 0.75
FIRST_CHECKPOINT, SHORTENING, SHORTEST = 0.22, 0.03, 0.06

RADII = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
"""The schedule: multiples of eps, and the share of the steps that each gets."""


def checkpoints(steps: int) -> list[int]:
    """After which steps step sizes are looked at, ascending; equations 2 and 3 of the paper, in whole steps.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    length, shortening, shortest = (max(1, int(share * steps)) for share in (FIRST_CHECKPOINT, SHORTENING, SHORTEST))
    found = []
    at = length
    while at <= steps:
        found.append(at)
        length = max(length - shortening, shortest)
        at += length
    return found


@dataclass(frozen=True)
class Apgd:
    """APGD against one network, folded once, for any number of batches.

    Attributes:
        model: The network under attack.
        network: Its folded copy in fp32.
        eps: Radius of the ball, in pixel units of [0, 1]; of L2, of an image's whole vector of pixels.
        steps: Gradient steps of one start; the start costs one gradient more.
        objective: What is driven up, see `prunedeploy.attacks.objectives`.
        norm: ``linf`` or ``l2``.
        starts: Starts, of which the best counts, image by image. The first is the clean image, the others are random.
        schedule: Search in the larger balls of `RADII` first.
        seed: Seed of random starts.
    """

    model: Detector
    network: Detector
    eps: float
    steps: int
    objective: str = "total"
    norm: Norm = "linf"
    starts: int = 1
    schedule: bool = False
    seed: int = 0

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Attack a batch: ``(B, 3, H, W)`` float32 in [0, 1] with targets ``(T, 6)`` as `yolo_loss` takes them.

        Raises:
            AttackInvariantError: The result left the ball or the range, or the network changed meanwhile.
        """
        with unchanged(self.model):
            images = images.contiguous(memory_format=torch.channels_last)
            objective = objective_for(self.objective, lambda: self.network(images), targets, self.network.cfg)
            best, best_values = images, None
            for start in range(self.starts):
                attacked, values = self._from(start, images, objective)
                if best_values is None:
                    best, best_values = attacked, values
                better = values > best_values
                best = torch.where(better.view(-1, 1, 1, 1), attacked, best)
                best_values = torch.where(better, values, best_values)
            check_invariants(best, images, self.eps, self.norm)
        return best.contiguous()

    def of_model(self, model: Detector, images: Tensor, targets: Tensor) -> Tensor:
        """Attack a batch as `prunedeploy.evaluation.evaluate` asks for it: of ``model``, wherever the batch lies."""
        device = self.model.device
        return self(images.to(device), targets.to(device)).to(images.device)

    def _from(self, start: int, images: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """One start: attacked images and the objective of each, ``(B,)``."""
        radii = RADII if self.schedule else ((1.0, 1.0),)
        attacked = images
        if start > 0:
            keys = [(self.seed, start, key) for key in pixel_keys(images)]
            attacked = random_start(images, self.eps * radii[0][0], self.norm, keys)
        left = self.steps
        for number, (factor, share) in enumerate(radii):
            eps = self.eps * factor
            steps = left if number == len(radii) - 1 else int(share * self.steps)
            left -= steps
            attacked = project(attacked, images, eps, self.norm)
            attacked, values = self._search(attacked, images, eps, steps, objective)
        return attacked, values

    def _search(self, x: Tensor, images: Tensor, eps: float, steps: int, objective: Objective) -> tuple[Tensor, Tensor]:
        """Algorithm 1 in one ball."""
        flat = may_be_flat(self.objective)
        count = len(x)
        values, gradient = values_and_gradient(self.network, x, objective, may_be_flat=flat)
        best, best_values, best_gradient = x, values, gradient
        step_size = torch.full((count,), 2 * eps, device=x.device)
        before = x
        rises = torch.zeros(count, device=x.device)
        halved, best_at_checkpoint = torch.ones(count, dtype=torch.bool, device=x.device), best_values
        at_checkpoint, last = set(checkpoints(steps)), 0
        for step in range(1, steps + 1):
            momentum = MOMENTUM if step > 1 else 1.0
            ahead = project(x + unit_step(gradient, step_size, self.norm), images, eps, self.norm)
            # x_{k+1} = P(x_k + alpha (z_{k+1} - x_k) + (1 - alpha) (x_k - x_{k-1}))
            moved = project(x + momentum * (ahead - x) + (1 - momentum) * (x - before), images, eps, self.norm)
            before, x, earlier = x, moved, values
            values, gradient = values_and_gradient(self.network, x, objective, may_be_flat=flat)
            rises += values > earlier
            better = values > best_values
            best, best_gradient = _chosen(better, x, best), _chosen(better, gradient, best_gradient)
            best_values = torch.where(better, values, best_values)
            if step in at_checkpoint:
                # Condition 1: too few rises. Condition 2: step and best value are those of the last checkpoint.
                halve = (rises <= RISING_SHARE * (step - last)) | (~halved & (best_at_checkpoint >= best_values))
                step_size = torch.where(halve, step_size / 2, step_size)
                x, gradient = _chosen(halve, best, x), _chosen(halve, best_gradient, gradient)
                values = torch.where(halve, best_values, values)
                halved, best_at_checkpoint, last = halve, best_values, step
                rises = torch.zeros_like(rises)
        return best, best_values


def _chosen(where: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` of the first where ``where (B,)`` is true, else of the second."""
    return torch.where(where.view(-1, 1, 1, 1), first, second)
