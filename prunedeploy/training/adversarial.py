"""Adversarial training: minimise the detection loss on images attacked at every step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.attacks import ThreatModel
from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.models.darknet import Darknet, FoldedDarknet
from prunedeploy.models.darknet_conv import BN_MOMENTUM
from prunedeploy.models.detector import Detector
from prunedeploy.models.loss import LossTerms, yolo_loss
from prunedeploy.training.distributed import shard
from prunedeploy.training.free import FreeObjective
from prunedeploy.training.inner_attack import attacked_batch
from prunedeploy.training.loop import Objective, ReplayingObjective


def robust_objective(
    model: Detector,
    settings: TrainingConfig,
    threat_model: ThreatModel | None,
    seed: int,
    device: torch.device,
    *,
    teacher: FoldedDarknet | None = None,
    distillation: float = 0.0,
    temperature: float = 1.0,
) -> Objective | ReplayingObjective:
    """The objective of adversarial training (Madry et al. 2018, equation 2.1) for `train`.

    The attack sees the network in evaluation mode and in the precision of the training; the loss is taken
    in training mode. How attacked images are made is in `prunedeploy.training.inner_attack` and
    `prunedeploy.training.free`.

    Args:
        model: The network that is trained.
        settings: How attacked images are made, and the precision of the passes.
        threat_model: The inner attack; None trains on clean images.
        seed: Seed of random starts.
        device: Where the batches go.
        teacher: A frozen network whose predictions on the clean images are matched on the attacked ones.
        distillation: Weight of that term; 0 leaves it out.
        temperature: Temperature of the teacher's and the student's logits in that term.

    Reference: the distillation term follows Goldblum et al., Adversarially Robust Distillation, 2020,
    equation 4.
    """

    def loss(images: Tensor, clean: Tensor, targets: Tensor) -> dict[str, Tensor]:
        model.train()
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            heads = model(images)
        heads = [head.float() for head in heads]
        named = loss_terms(yolo_loss(heads, targets, model.cfg))
        if teacher is not None and distillation > 0:
            with torch.no_grad():
                taught = teacher(clean)
            named["distillation"] = distillation * distillation_loss(heads, taught, model, temperature)
            named["loss"] = named["loss"] + named["distillation"]
        return named

    if threat_model is not None and settings.adversarial == "free":
        return FreeObjective(loss, threat_model, settings.replays, device)

    def objective(batch: Batch, step: int) -> dict[str, Tensor]:
        batch = shard(batch)
        clean, targets = batch.images.to(device), batch.targets.to(device)
        images = clean
        if threat_model is not None:
            model.eval()
            images = attacked_batch(model, settings, threat_model, seed, clean, targets, batch.image_ids, step)
        return loss(images, clean, targets)

    return objective


def loss_terms(terms: LossTerms) -> dict[str, Tensor]:
    """The detection loss as named terms for the log."""
    return {"loss": terms.total, "box": terms.box, "objectness": terms.objectness, "classes": terms.classes}


def distillation_loss(heads: list[Tensor], taught: list[Tensor], model: Detector, temperature: float = 1.0) -> Tensor:
    """How far predictions are from a teacher's, weighted by the teacher's objectness.

    Cross-entropy to the teacher's objectness everywhere; to its class probabilities and squared distance to
    its box offsets where it sees an object. Sum over predictions, mean over images, like the detection loss.

    Args:
        heads: The student's raw heads, each ``(B, A * V, H, W)``.
        taught: The teacher's, same shapes.
        model: Either network; gives the heads' layout.
        temperature: T > 0; objectness and class logits are divided by it and their terms multiplied by T^2
            (Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2).

    Returns:
        0-d tensor.
    """
    total = heads[0].new_zeros(())
    for student, teacher, head in zip(heads, taught, model.cfg.heads, strict=True):
        own, wanted, box_values = head.logits(student), head.logits(teacher), head.box_values
        first = head.class_start
        # Without objectness classes count everywhere, and boxes where the teacher is sure of some class.
        sure = torch.sigmoid(wanted[..., box_values:first] if head.has_objectness else wanted[..., first:]).amax(-1)
        soft = torch.sigmoid(wanted[..., box_values:] / temperature)
        logits = F.binary_cross_entropy_with_logits(own[..., box_values:] / temperature, soft, reduction="none")
        everywhere = logits[..., : first - box_values].sum(-1) * temperature**2
        classes = logits[..., first - box_values :].sum(-1) * temperature**2
        if head.exclusive_classes:
            soft = torch.softmax(wanted[..., first:] / temperature, dim=-1)
            logs = F.log_softmax(own[..., first:] / temperature, dim=-1)
            classes = -(soft * logs).sum(-1) * temperature**2
        boxes = (own[..., :box_values] - wanted[..., :box_values]).square().sum(-1)
        given_object = classes + boxes
        if not head.has_objectness:
            everywhere, given_object = classes, boxes
        total = total + (everywhere + sure * given_object).sum()
    return total / heads[0].shape[0]


@torch.no_grad()
def recalibrate_normalisation(model: Darknet, batches: list[Tensor]) -> None:
    """Replace running means and variances by their averages over ``batches``.

    Args:
        model: Modified in place; left in evaluation mode.
        batches: Images, each ``(B, 3, H, W)`` in [0, 1]; attacked ones for a robust network.
    """
    convs = [model.conv(layer.index) for layer in model.cfg.convolutions if layer.batch_normalize]
    sums = [(torch.zeros_like(conv.mean), torch.zeros_like(conv.variance)) for conv in convs]
    model.train()
    for conv in convs:
        conv.momentum = 1.0
    for images in batches:
        model(images.contiguous(memory_format=torch.channels_last))
        for conv, (mean, variance) in zip(convs, sums, strict=True):
            mean += conv.mean
            variance += conv.variance
    for conv, (mean, variance) in zip(convs, sums, strict=True):
        conv.momentum = BN_MOMENTUM
        conv.mean.copy_(mean / len(batches))
        conv.variance.copy_(variance / len(batches))
    model.eval()
