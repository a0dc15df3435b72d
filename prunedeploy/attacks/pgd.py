"""Projected gradient descent on the detection loss.

Two things make it fast without changing what it computes. Normalisation is folded into the convolutions once
per attack, which leaves one operation per layer; and the folded weights are constants, so that the backward
pass reaches the image only and never forms a weight gradient.
"""

from __future__ import annotations

import math
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunedeploy.attacks.threat_model import ThreatModel, project_linf, start_noise
from prunedeploy.models.darknet import Darknet, FoldedDarknet
from prunedeploy.models.loss import yolo_losses

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class AttackWarning(UserWarning):
    """An attack ran, but something about it makes its result doubtful; see docs/attacks.md."""


class AttackInvariantError(RuntimeError):
    """An attack broke a promise: left the ball or the pixel range, or changed the network. A bug of ours."""


@dataclass(frozen=True)
class Pgd:
    """PGD against one network, folded once, for any number of batches.

    Attributes:
        model: The network under attack. It is attacked as it stands when `against` is called.
        network: Its folded copy.
        threat_model: The ball and the search.
        precision: Precision of the folded copy. Anything that is reported is computed in fp32.
        seed: Seed of random starts.
    """

    model: Darknet
    network: FoldedDarknet
    threat_model: ThreatModel
    precision: Precision
    seed: int

    @classmethod
    def against(cls, model: Darknet, threat_model: ThreatModel, precision: Precision = "fp32", seed: int = 0) -> Pgd:
        """Prepare an attack on ``model``, in evaluation mode whatever mode it is in."""
        return cls(model, FoldedDarknet(model, DTYPES[precision]), threat_model, precision, seed)

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
        versions, attack = _versions(self.model), self.threat_model
        images = images.contiguous(memory_format=torch.channels_last)
        attacked, kept = images, None
        for restart in range(attack.restarts):
            attacked = self._start(images, image_ids, epoch, restart)
            for _ in range(attack.steps):
                gradient, losses = self._gradient(attacked, targets)
                if attack.iterate == "best":
                    kept = _worse(kept, attacked, losses)
                # x_{t+1} = clip(x_t + step * sign(grad)), Madry et al. 2018, equation in section 2.1.
                attacked = project_linf(attacked + attack.step_size * gradient.sign(), images, attack.eps)
            if attack.restarts > 1 or attack.iterate == "best":
                kept = _worse(kept, attacked, per_image_loss(self.network, attacked, targets))
        if kept is not None:
            attacked = kept.images
        check_invariants(attacked, images, attack.eps)
        if _versions(self.model) != versions:
            raise AttackInvariantError("the attacked network changed during the attack")
        return attacked.contiguous()

    def of_model(self, model: Darknet, images: Tensor, targets: Tensor) -> Tensor:
        """Attack a batch as `prunedeploy.evaluation.evaluate` asks for it: of ``model``, wherever the batch lies."""
        device = next(self.model.parameters()).device
        return self(images.to(device), targets.to(device)).to(images.device)

    def _start(self, images: Tensor, image_ids: list[int] | None, epoch: int, restart: int) -> Tensor:
        """Where an attempt starts: the images, or with random starts points of the ball."""
        if not self.threat_model.random_start:
            return images
        ids = _pixel_keys(images) if image_ids is None else image_ids
        # Python integers may be negative; a key may not.
        keys = [(self.seed, epoch, image_id % 2**63, restart) for image_id in ids]
        noise = start_noise(tuple(images.shape), self.threat_model.eps, keys).to(images.device)
        return project_linf(images + noise, images, self.threat_model.eps)

    def _gradient(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the loss by the images, ``(B, 3, H, W)``, and the loss of each, ``(B,)``."""
        images = images.detach().requires_grad_(True)
        # The sum, not the mean: a quotient would round each gradient by the size of the batch.
        losses = yolo_losses(self.network(images), targets, self.model.cfg)
        (gradient,) = torch.autograd.grad(losses.sum(), images)
        _check_gradient(gradient)
        return gradient, losses.detach()


@dataclass(frozen=True)
class _Attempt:
    """Attacked images, ``(B, 3, H, W)``, and the loss of each, ``(B,)``."""

    images: Tensor
    losses: Tensor


def _worse(kept: _Attempt | None, images: Tensor, losses: Tensor) -> _Attempt:
    """Of two attempts the one that is worse for the network, image by image."""
    if kept is None:
        return _Attempt(images, losses)
    worse = losses > kept.losses
    return _Attempt(torch.where(worse.view(-1, 1, 1, 1), images, kept.images), torch.where(worse, losses, kept.losses))


def per_image_loss(network: FoldedDarknet, images: Tensor, targets: Tensor) -> Tensor:
    """Detection loss of each image alone, ``(B,)``."""
    with torch.no_grad():
        return yolo_losses(network(images), targets, network.cfg)


def check_invariants(x_adv: Tensor, images: Tensor, eps: float) -> None:
    """Check that an attack kept its promises.

    Raises:
        AttackInvariantError: A pixel is outside the ball or outside [0, 1], or not a number.
    """
    # x + eps is rounded once and the difference once more: two units in the last place of 1.
    slack = 2.4e-7
    distance = float((x_adv - images).abs().max()) if x_adv.numel() else 0.0
    if not distance <= eps + slack:
        raise AttackInvariantError(f"the attack moved a pixel by {distance}, more than eps = {eps}")
    if x_adv.numel() and not (float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1):
        raise AttackInvariantError("the attack left the pixel range [0, 1]")


def _check_gradient(gradient: Tensor) -> None:
    # One reduction on the hot path: an image's sum of magnitudes is 0 or not finite exactly when something is wrong.
    totals = gradient.abs().flatten(1).sum(1).tolist()
    if not all(map(math.isfinite, totals)):
        raise AttackInvariantError("the gradient of the loss is not finite")
    if zeros := totals.count(0.0):
        warnings.warn(
            f"zero-gradient: the loss does not depend on {zeros} of {len(totals)} images", AttackWarning, stacklevel=3
        )


def _versions(model: Darknet) -> list[int]:
    """PyTorch's modification counter of every parameter and buffer."""
    return [value._version for value in (*model.parameters(), *model.buffers())]


def _pixel_keys(images: Tensor) -> list[int]:
    """A key per image that follows from its pixels."""
    return [zlib.crc32(image.contiguous().cpu().numpy().tobytes()) for image in images]
