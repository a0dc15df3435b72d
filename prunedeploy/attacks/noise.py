"""Noise: what a change of the images that knows nothing of the network does to it, as a floor for every attack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunedeploy.attacks.checks import check_invariants, pixel_keys
from prunedeploy.attacks.norms import Norm, random_start
from prunedeploy.models.detector import Detector


@dataclass(frozen=True)
class Noise:
    """One random point of each image's ball.

    In L-inf each pixel moves uniformly within [-eps, eps]. In L2 the direction is uniform and the length eps: in as
    many dimensions as an image has, all but nothing of a ball lies deeper inside. Then pixels are clipped to [0, 1].

    Attributes:
        eps: Radius of the ball, in pixel units of [0, 1]; of L2, of an image's whole vector of pixels.
        norm: ``linf`` or ``l2``.
        seed: Together with an image's own pixels it decides that image's draw.
    """

    eps: float
    norm: Norm = "linf"
    seed: int = 0

    def __call__(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Move a batch, ``(B, 3, H, W)`` float32 in [0, 1]; targets are not looked at."""
        moved = random_start(images, self.eps, self.norm, [(self.seed, 0, key) for key in pixel_keys(images)])
        check_invariants(moved, images, self.eps, self.norm)
        return moved.contiguous()

    def of_model(self, model: Detector, images: Tensor, targets: Tensor) -> Tensor:
        """Move a batch as `prunedeploy.evaluation.evaluate` asks for it."""
        return self(images)
