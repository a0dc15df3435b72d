"""Projected gradient descent on the detection loss, or on another objective.

Two things make it fast without changing what it computes. Normalisation is folded into the convolutions once
per attack, which leaves one operation per layer; and the folded weights are constants, so that the backward
pass reaches the image only and never forms a weight gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunedeploy.attacks.checks import check_invariants, pixel_keys, unchanged, values_and_gradient
from prunedeploy.attacks.objectives import may_be_flat, objective_for
from prunedeploy.attacks.threat_model import ThreatModel, project_linf, start_noise
from prunedeploy.models.detector import Detector

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Pgd:
    """PGD against one network, folded once, for any number of batches.

    Attributes:
        model: The network under attack. It is attacked as it stands when `against` is called.
        network: Its folded copy.
        threat_model: The ball and the search.
        precision: Precision of the folded copy. Anything that is reported is computed in fp32.
        seed: Seed of random starts.
        objective: What is driven up, see `prunedeploy.attacks.objectives`; ``total`` is the paper's.
    """

    model: Detector
    network: Detector
    threat_model: ThreatModel
    precision: Precision
    seed: int
    objective: str = "total"

    @classmethod
    def against(
        cls,
        model: Detector,
        threat_model: ThreatModel,
        precision: Precision = "fp32",
        seed: int = 0,
        objective: str = "total",
    ) -> Pgd:
        """Prepare an attack on ``model``, in evaluation mode whatever mode it is in."""
        return cls(model, model.for_inference(DTYPES[precision]), threat_model, precision, seed, objective)

    @classmethod
    def fgsm(cls, model: Detector, eps: float, objective: str = "total") -> Pgd:
        """FGSM: one step of the whole radius, from the clean image.

        Args:
            model: The network.
            eps: Radius of the L-inf ball and length of the step, in pixel units of [0, 1], above 0.
            objective: What is driven up.

        Reference: Goodfellow, Shlens and Szegedy, Explaining and Harnessing Adversarial Examples, 2015, section 4.
        """
        step = ThreatModel(eps=eps, step_size=eps, steps=1, random_start=False, restarts=1, iterate="last")
        return cls.against(model, step, objective=objective)

    def __call__(self, images: Tensor, targets: Tensor, image_ids: list[int] | None = None, epoch: int = 0) -> Tensor:
        """Attack a batch.

        Args:
            images: Clean images, ``(B, 3, H, W)`` float32, pixels in [0, 1].
            targets: Ground truth ``(T, 6)`` as `yolo_loss` takes it.
            image_ids: Key the random starts; default: a checksum of each image's pixels, so that an image's start
                depends on neither its batch nor its place in a data set.
            epoch: Keys the random starts too.

        Returns:
            Attacked images, same shape and dtype, within ``eps`` of ``images`` and in [0, 1]; contiguous.

        Raises:
            AttackInvariantError: The result left the ball or the range, or the network changed meanwhile.
        """
        attack, flat = self.threat_model, may_be_flat(self.objective)
        kept: _Attempt | None = None
        with unchanged(self.model):
            attacked = images = images.contiguous(memory_format=torch.channels_last)
            objective = objective_for(self.objective, lambda: self.network(images), targets, self.model.cfg)
            for restart in range(attack.restarts):
                attacked = self._start(images, image_ids, epoch, restart)
                for _ in range(attack.steps):
                    values, gradient = values_and_gradient(self.network, attacked, objective, may_be_flat=flat)
                    if attack.iterate == "best":
                        kept = _worse(kept, attacked, values)
                    # x_{t+1} = clip(x_t + step * sign(grad)), Madry et al. 2018, equation in section 2.1.
                    attacked = project_linf(attacked + attack.step_size * gradient.sign(), images, attack.eps)
                if attack.restarts > 1 or attack.iterate == "best":
                    with torch.no_grad():
                        kept = _worse(kept, attacked, objective(self.network(attacked)))
            if kept is not None:
                attacked = kept.images
            check_invariants(attacked, images, attack.eps)
        return attacked.contiguous()

    def of_model(self, model: Detector, images: Tensor, targets: Tensor) -> Tensor:
        """Attack a batch as `prunedeploy.evaluation.evaluate` asks for it: of ``model``, wherever the batch lies."""
        device = self.model.device
        return self(images.to(device), targets.to(device)).to(images.device)

    def _start(self, images: Tensor, image_ids: list[int] | None, epoch: int, restart: int) -> Tensor:
        """Where an attempt starts: the images, or with random starts points of the ball."""
        if not self.threat_model.random_start:
            return images
        ids = pixel_keys(images) if image_ids is None else image_ids
        # Python integers may be negative; a key may not.
        keys = [(self.seed, epoch, image_id % 2**63, restart) for image_id in ids]
        noise = start_noise(tuple(images.shape), self.threat_model.eps, keys).to(images.device)
        return project_linf(images + noise, images, self.threat_model.eps)


@dataclass(frozen=True)
class _Attempt:
    """Attacked images, ``(B, 3, H, W)``, and the objective of each, ``(B,)``."""

    images: Tensor
    losses: Tensor


def _worse(kept: _Attempt | None, images: Tensor, losses: Tensor) -> _Attempt:
    """The one of two attempts that is worse for the network, image by image."""
    if kept is None:
        return _Attempt(images, losses)
    worse = losses > kept.losses
    return _Attempt(torch.where(worse.view(-1, 1, 1, 1), images, kept.images), torch.where(worse, losses, kept.losses))
