"""The attack of Carlini and Wagner in L2, for detectors: how little changes an image enough that it loses an object.

Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017, section VI.A: minimise

    |x' - x|^2 + c f(x'),    x' = (tanh(w) + 1) / 2,

over w by Adam, each image with a constant c of its own, which is searched for as the authors' code does: tenfold until
the attack succeeds, bisected from then on. An image has no ball here; its result is a distance.

A detector's f is the margin by which an image keeps its objects. Of the objects that are found in the clean image,

    f(x') = max(0, min_g  max_{p matches g} log s_p  -  log t)

where s_p is the score of prediction p for g's class, a prediction matches an object it overlaps by an IoU of at least
one half, and t is the score from which a detection counts. It goes down for the object that is nearest to being lost.
Where it is 0, no prediction can find that object. The attack has succeeded where an object is lost by the count of the
evaluation, that is after non-maximum suppression and with each detection given to one object only, which may come
earlier.

A score of 0.5 is what counts unless told otherwise: the network holds such a detection to be right rather than wrong.
The 0.001 that mAP counts from would make nearly every object found, and the attack one on the tail of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunedeploy.attacks.checks import AttackInvariantError, unchanged
from prunedeploy.attacks.found_objects import Counting, Objects
from prunedeploy.attacks.norms import lengths
from prunedeploy.attacks.objectives import TOG_IOU
from prunedeploy.models.detector import Detector
from prunedeploy_engines.detection.letterbox import LetterboxGeometry
from prunedeploy_engines.errors import ConfigError

Aim = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``aim(images) -> margins (B,), reached (B,)``: what goes down, and for which images the attack has succeeded."""

_SHRUNK = 1 - 1e-6  # of [-1, 1], so that pixels of 0 and 1 have a w
_GROWTH = 10.0


@dataclass(frozen=True)
class Lost:
    """What the attack did to a batch; `prunedeploy.evaluation.distortions` sums batches up.

    Attributes:
        images: ``(B, 3, H, W)`` float32 in [0, 1]: the nearest one that loses an object, else the clean one.
        l2: ``(B,)`` L2 norm of the change of an image's vector of pixels; NaN where no object was lost.
        linf: ``(B,)`` its greatest change of a pixel; NaN likewise.
        attackable: ``(B,)`` bool: something is found in the clean image.
    """

    images: Tensor
    l2: Tensor
    linf: Tensor
    attackable: Tensor


@dataclass(frozen=True)
class CarliniWagner:
    """The attack on one network, folded once, for any number of batches.

    An image costs ``searches * steps`` passes through the network and back, and one pass for the clean image.

    Attributes:
        model: The network under attack.
        network: Its folded copy in fp32.
        steps: Steps of Adam, for each constant.
        searches: Constants c that are tried.
        learning_rate: Learning rate of Adam, in the space of w.
        first_c: The first constant. The margin is at most log(1 / score_threshold), so c is of the order of the squared
            distance that is looked for.
        score_threshold: A detection counts with a score above it, in (0, 1).
        iou_threshold: IoU threshold of non-maximum suppression.
    """

    model: Detector
    network: Detector
    steps: int = 1000
    searches: int = 9
    learning_rate: float = 0.01
    first_c: float = 1.0
    score_threshold: float = 0.5
    iou_threshold: float = TOG_IOU

    def __post_init__(self) -> None:
        """Refuse what cannot be searched with."""
        if not 0 < self.score_threshold < 1:
            raise ConfigError(f"{self.score_threshold} is not between 0 and 1", "score_threshold", "take 0.5")
        for name in ("steps", "searches", "learning_rate", "first_c"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{getattr(self, name)} is not above 0", name, "give a positive number")

    def __call__(self, images: Tensor, targets: Tensor, geometries: Sequence[LetterboxGeometry] | None = None) -> Lost:
        """Attack a batch.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1], on the network's device; so are the results.
            targets: Ground truth ``(T, 6)`` as `yolo_loss` takes it.
            geometries: Where each photo lies in its input: boxes are clipped to it, as the evaluation clips them.
                Default: it fills its input.

        Raises:
            AttackInvariantError: A gradient is not finite, or the network changed meanwhile.
        """
        with unchanged(self.model):
            counting = Counting(self.score_threshold, self.iou_threshold)
            whole = Objects.of(self.network.cfg, targets, geometries, len(images), counting)
            with torch.no_grad():
                found = whole.found(self.network(images))
            attackable = torch.zeros(len(images), dtype=torch.bool, device=images.device)
            attackable[whole.image[found]] = True
            attacked = images.clone(memory_format=torch.contiguous_format)
            l2 = images.new_full((len(images),), math.nan)
            if bool(attackable.any()):
                some, wanted = whole.of_images(attackable), found[attackable[whole.image]]
                nearest, reached = smallest_change(
                    images[attackable],
                    lambda x: some.margins_and_lost(self.network(x), wanted),
                    steps=self.steps,
                    searches=self.searches,
                    learning_rate=self.learning_rate,
                    first_c=self.first_c,
                )
                attacked[attackable] = nearest
                distance = lengths(nearest - images[attackable]).flatten()
                l2[attackable] = torch.where(reached, distance, distance.new_tensor(math.nan))
        linf = (attacked - images).abs().flatten(1).amax(1)
        return Lost(attacked, l2, torch.where(l2.isnan(), l2, linf), attackable)


def smallest_change(
    images: Tensor, aim: Aim, *, steps: int, searches: int, learning_rate: float, first_c: float
) -> tuple[Tensor, Tensor]:
    """The nearest images, in L2, that Adam finds to reach an aim.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        aim: Margins, of which those above 0 are driven down, and which images have reached what is wanted.
        steps: Steps of Adam, for each constant.
        searches: Constants that are tried.
        learning_rate: Learning rate of Adam.
        first_c: The first constant.

    Returns:
        Images, the clean one where the aim was never reached, and whether it was, ``(B,)`` bool.

    Raises:
        AttackInvariantError: A gradient is not finite.
    """
    start = torch.atanh((2 * images - 1) * _SHRUNK)
    c = images.new_full((len(images),), first_c)
    lower, upper = torch.zeros_like(c), torch.full_like(c, math.inf)
    nearest, least = images, torch.full_like(c, math.inf)
    for _ in range(searches):
        found, distance = _search(images, start, aim, c, steps, learning_rate)
        nearest = torch.where((distance < least).view(-1, 1, 1, 1), found, nearest)
        least = torch.minimum(least, distance)
        reached = distance.isfinite()
        upper, lower = torch.where(reached, c, upper), torch.where(reached, lower, c)
        c = torch.where(upper.isinf(), c * _GROWTH, (lower + upper) / 2)
    return nearest, least.isfinite()


def _search(
    images: Tensor, start: Tensor, aim: Aim, c: Tensor, steps: int, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """One constant for each image: the nearest images, and their squared distances, infinite where there is none."""
    w = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w], learning_rate)
    nearest, least = images, torch.full_like(c, math.inf)
    for _ in range(steps):
        x = (torch.tanh(w) + 1) / 2
        margins, reached = aim(x)
        distance = (x - images).square().flatten(1).sum(1)
        better = reached & (distance.detach() < least)
        nearest = torch.where(better.view(-1, 1, 1, 1), x.detach(), nearest)
        least = torch.where(better, distance.detach(), least)
        # Every image's loss and w are its own, and Adam works number by number: the sum mixes nothing.
        (w.grad,) = torch.autograd.grad((distance + c * margins.clamp(min=0)).sum(), w)
        if not bool(w.grad.isfinite().all()):
            raise AttackInvariantError("the gradient of the distance and the margin is not finite")
        optimizer.step()
    return nearest, least
