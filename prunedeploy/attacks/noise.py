"""Uniform noise: what a ball of that size does to a detector without any attacker; every attack must do more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunedeploy.attacks.checks import check_invariants, pixel_keys
from prunedeploy.attacks.norms import Norm, random_start
from prunedeploy.models.darknet import Darknet


@dataclass(frozen=True)
class Noise:
    """A random point of each image's ball, keyed by the image's pixels.

    Attributes:
        eps: Radius, in pixel units of [0, 1]; of L2, of an image's whole vector of pixels.
        norm: ``linf``, uniform in the ball, or ``l2``, on the sphere.
        seed: Of the draws.
    """

    eps: float
    norm: Norm = "linf"
    seed: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Add noise to a batch ``(B, 3, H, W)`` float32 in [0, 1]; stays in [0, 1]."""
        noisy = random_start(images, self.eps, self.norm, [(self.seed, key) for key in pixel_keys(images)])
        check_invariants(noisy, images, self.eps, self.norm)
        return noisy

    def of_model(self, model: Darknet, images: Tensor, targets: Tensor) -> Tensor:
        """As `prunedeploy.evaluation.evaluate` asks for an attack; needs neither network nor targets."""
        return self(images)
