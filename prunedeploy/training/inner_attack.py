"""The images that adversarial training is taken on: which attack makes them, of several the strongest, some left clean.

With L = L_box + L_obj + L_cls, the loss that is trained on::

    pgd                 the image that drives up one objective, by default L
    mtd                 of two images, which drive up L_obj + L_cls and L_box, the one of higher L
    objectness-aware    of three images, which drive up L_obj, L_cls and L_box, the one of highest L

``mtd`` is algorithm 1 of Zhang and Wang, Towards Adversarially Robust Object Detection, ICCV 2019. The classification
loss of their network has a class for background, so whether something is there is part of it: of YOLO's terms that is
objectness and classes. ``objectness-aware`` is Choi and Tian, Adversarial Attack and Defense of YOLO Detectors in
Autonomous Driving Scenarios, IV 2022. All attacks of an image start at the same point.

What differs: both take one step, here each attack takes those of its threat model. In the code of Choi and Tian one of
the three is chosen for a whole batch, and none if the two highest losses are equal; here each image has its own, of
equals the first. They train on batches of which 60 % are clean, and multiply the sums of the two losses by 0.6 and 0.4,
so that a clean image counts more than an attacked one; with ``clean_share`` every image counts the same.

``class-wise`` as the objective of ``pgd`` is the inner attack of Chen, Kung and Chen, Class-Aware Robust Adversarial
Training for Object Detection, CVPR 2021, without their clipping of each object's losses.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prunedeploy.attacks import AttackWarning, Pgd, ThreatModel
from prunedeploy.config import TrainingConfig
from prunedeploy.models.detector import Detector
from prunedeploy.models.loss import yolo_losses

ATTACKED_TERMS = {
    "mtd": ("objectness + classes", "box"),
    "objectness-aware": ("objectness", "classes", "box"),
}
"""Objectives by ``adversarial``, one attack for each; the first has a gradient whether an image has objects or not."""


def attacked_batch(
    model: Detector,
    settings: TrainingConfig,
    threat_model: ThreatModel,
    seed: int,
    images: Tensor,
    targets: Tensor,
    image_ids: list[int],
    step: int,
) -> Tensor:
    """What a batch is trained on.

    Args:
        model: The network, attacked in evaluation mode.
        settings: Which attacks, how many images stay clean, precision of the attacks.
        threat_model: The ball and the search of each attack.
        seed: Seed of random starts.
        images: Clean images, ``(B, 3, H, W)`` float32, pixels in [0, 1].
        targets: Ground truth ``(T, 6)`` as `yolo_loss` takes it.
        image_ids: Key the random starts; so does ``step``.
        step: Number of the training step.

    Returns:
        New images, ``(B, 3, H, W)``: the first ``int(clean_share * B)`` as they were, the others attacked.
    """
    attack = Pgd.against(model, threat_model, settings.precision, seed)
    objective, *others = ATTACKED_TERMS.get(settings.adversarial, (settings.attack_objective,))
    clean = int(settings.clean_share * len(images))
    own = targets[targets[:, 0] >= clean].clone()
    own[:, 0] -= clean
    batch = images[clean:], own, image_ids[clean:], step
    candidates = [replace(attack, objective=objective)(*batch)]
    with warnings.catch_warnings():
        # An image without objects has no box and no class term, and attacks on those leave it where it started.
        warnings.simplefilter("ignore", AttackWarning)
        candidates += [replace(attack, objective=other)(*batch) for other in others]
    attacked = strongest(candidates, own, attack.network) if others else candidates[0]
    return torch.cat((images[:clean], attacked)) if clean else attacked


def strongest(candidates: Sequence[Tensor], targets: Tensor, network: Detector) -> Tensor:
    """The one of several attacks' results, each ``(B, 3, H, W)``, with the highest detection loss, image by image."""
    with torch.no_grad():
        losses = torch.stack([yolo_losses(network(attacked), targets, network.cfg) for attacked in candidates])
    chosen = losses.argmax(0)  # (B,), of losses (attacks, B)
    return torch.stack(list(candidates))[chosen, torch.arange(len(chosen), device=chosen.device)]


def passes_per_step(settings: TrainingConfig) -> float:
    """Passes through the network and back that one training step takes, by image of a batch.

    The pass that trains the weights is one of them; ``free`` takes no other. Passes forward alone do not count: those
    by which the strongest of several attacks, the best of several starts or the best iterate is chosen.
    """
    if settings.adversarial == "free":
        return 1.0
    attacked = 1 - int(settings.clean_share * settings.batch_size) / settings.batch_size
    attacks = len(ATTACKED_TERMS.get(settings.adversarial, ("one",)))
    return 1 + attacked * attacks * settings.attack.restarts * settings.attack.steps
