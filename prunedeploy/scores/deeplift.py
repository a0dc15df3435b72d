"""DeepLIFT scores of weights: what each weight contributes to the detections, against a reference input.

The contribution of a weight is the part of the target's difference from the reference that passes through it; the
score is the mean over images of its absolute value. All layers come from one forward pass, images and references
concatenated, and one backward pass over all convolutions.

Reference: Shrikumar et al., Learning Important Features Through Propagating Activation Differences, 2017; for
weights as importance scores, the paper this project repeats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunedeploy.data.batches import Batch
from prunedeploy.models.darknet import DARKNET_BN_EPS, Darknet
from prunedeploy.scores.deeplift_backward import Multipliers, backward, weight_gradients
from prunedeploy.scores.deeplift_trace import IMAGE, Trace, trace
from prunedeploy.scores.interface import DetectionLoss, Scores
from prunedeploy.scores.reference import ReferenceFunction, zeros_reference
from prunedeploy.scores.target import DetectionTarget, choose_target
from prunedeploy_engines.errors import PruningError


@dataclass(frozen=True)
class SummationToDelta:
    """How exactly contributions add up to what they explain; 0 in exact arithmetic.

    Attributes:
        layers: By layer index: |sum of contributions - sum of multiplier x delta-output|, over the sum of
            |multiplier x delta-output|, the largest of all images.
        target: |sum over pixels of multiplier x delta - delta of the target|, summed over images, over the sum of
            |delta of the target|.
    """

    layers: dict[int, float]
    target: float

    @property
    def worst_layer(self) -> float:
        """The largest of all layers."""
        return max(self.layers.values(), default=0.0)


@dataclass(frozen=True, eq=False)
class DeepLift:
    """Scores, and how far they can be trusted.

    Attributes:
        scores: Mean over images of |contribution|, by layer index.
        summation: Summation-to-delta over all images.
        images: How many there were.
    """

    scores: Scores
    summation: SummationToDelta
    images: int


def deeplift_scores(
    model: Darknet,
    batches: Iterable[Batch],
    loss: DetectionLoss | None = None,
    *,
    reference: ReferenceFunction = zeros_reference,
    rule: str = "rescale",
    predictions: int = 10,
) -> Scores:
    """The scores of `deeplift`; the loss is not read, a target of logits is explained."""
    return deeplift(model, batches, reference=reference, rule=rule, predictions=predictions).scores


def deeplift(
    model: Darknet,
    batches: Iterable[Batch],
    *,
    reference: ReferenceFunction = zeros_reference,
    rule: str = "rescale",
    predictions: int = 10,
) -> DeepLift:
    """Score every weight by the mean over images of its absolute contribution.

    Args:
        model: The network; its evaluation mode is what is explained. Not modified.
        batches: Images ``(B, 3, H, W)`` float in [0, 1]; read once.
        reference: Gives the reference of each batch.
        rule: ``rescale`` or ``reveal-cancel``.
        predictions: Per head and image, how many predictions the target sums; see `choose_target`.

    Returns:
        Scores of every convolution, at least 0; those of one that the target does not depend on are 0.

    Raises:
        PruningError: There are no images, an activation or a layer has no rule, the reference has another size, or
            the target is the same on every image and its reference.
    """
    like = next(model.parameters())
    sums = {
        layer.index: like.new_zeros(layer.weight_shape).contiguous(memory_format=torch.channels_last)
        for layer in model.cfg.convolutions
    }
    layers: dict[int, float] = {}
    images, missed, explained = 0, 0.0, 0.0
    for batch in batches:
        pass_ = _Pass(model, batch.images, reference(batch.images), rule, predictions)
        for index, residual in pass_.accumulate(sums).items():
            layers[index] = max(layers.get(index, 0.0), residual)
        images += len(batch.images)
        missed += float((pass_.explained - pass_.delta_target).abs().sum())
        explained += float(pass_.delta_target.abs().sum())
    check_explained(images, explained)
    scores = {}
    for layer in model.cfg.convolutions:
        weight = model.conv(layer.index).folded()[0].detach().abs()
        scores[layer.index] = (sums[layer.index] / images * weight).contiguous()
    return DeepLift(scores, SummationToDelta(layers, missed / explained), images)


def check_explained(images: int, explained: float) -> None:
    """Refuse scores of nothing.

    Args:
        images: How many there were.
        explained: Sum over images of |delta of the target|.

    Raises:
        PruningError: There were no images, or the target never differed from the reference's.
    """
    if images == 0:
        raise PruningError("there are no images to take DeepLIFT scores on", "scores", "give at least one image")
    if explained == 0.0:
        raise PruningError(
            "the target is the same on every image and its reference, so nothing can be explained",
            "scores.reference",
            "use another reference or other images",
        )


def contributions(
    model: Darknet, images: Tensor, reference: Tensor, target: DetectionTarget, rule: str = "rescale"
) -> Scores:
    """What each weight contributes to the target of each image, with its sign.

    Args:
        model: The network.
        images: ``(B, 3, H, W)`` in [0, 1], of the model's dtype.
        reference: ``(B, 3, H, W)`` or ``(1, 3, H, W)``.
        target: What is explained.
        rule: ``rescale`` or ``reveal-cancel``.

    Returns:
        By layer index: ``(B, *weight shape)``. B times the network's size: for small networks.

    Raises:
        PruningError: As `deeplift`.
    """
    found = trace(model, images, reference, rule)
    parts: Scores = {}

    def visit(multipliers: Multipliers) -> None:
        layer = multipliers.layer
        weight, delta = found.weights[layer.index], found.deltas[layer.inputs[0]]
        parts[layer.index] = torch.stack([weight * g for g in weight_gradients(multipliers, delta, weight)])

    backward(model.cfg, found, target, visit)
    return parts


def multipliers_at_convolutions(
    model: Darknet, images: Tensor, reference: Tensor, target: DetectionTarget
) -> dict[int, Tensor]:
    """Rescale multipliers at the output of every bare convolution, before normalisation and activation.

    Args:
        model: The network.
        images: ``(B, 3, H, W)``.
        reference: ``(B, 3, H, W)`` or ``(1, 3, H, W)``.
        target: What is explained.

    Returns:
        By layer index: ``(B, filters, H', W')``.
    """
    found: dict[int, Tensor] = {}

    def visit(multipliers: Multipliers) -> None:
        conv = model.conv(multipliers.layer.index)
        at_bare = multipliers.positive
        if conv.scale is not None:
            factor = conv.scale.detach() / (conv.variance.sqrt() + DARKNET_BN_EPS)
            at_bare = at_bare * factor.view(1, -1, 1, 1)
        found[multipliers.layer.index] = at_bare

    backward(model.cfg, trace(model, images, reference, "rescale"), target, visit)
    return found


class _Pass:
    """One batch: forward, backward, and what its contributions add up to.

    Attributes:
        images: ``(B, 3, H, W)``, of the model's dtype and device.
        explained: ``(B,)``, sum over pixels of multiplier times difference; after `accumulate`.
        delta_target: ``(B,)``, what that should be.
    """

    def __init__(self, model: Darknet, images: Tensor, reference: Tensor, rule: str, predictions: int) -> None:
        like = next(model.parameters())
        self.model = model
        self.images = images.to(like)
        self.found: Trace = trace(model, self.images, reference.to(like), rule)
        self.target = choose_target(model, self.found.heads, predictions)
        self.delta_target = self.target(self.found.heads) - self.target(self.found.reference_heads)
        self.explained = torch.zeros_like(self.delta_target)

    @torch.no_grad()
    def accumulate(self, sums: Scores) -> dict[int, float]:
        """Add per-image absolute weight gradients to ``sums``; returns each layer's summation-to-delta."""
        found = self.found
        residuals: dict[int, float] = {}

        def visit(multipliers: Multipliers) -> None:
            layer = multipliers.layer
            weight, delta = found.weights[layer.index], found.deltas[layer.inputs[0]]
            outcome = (multipliers.at_output * found.deltas[layer.index]).flatten(1)  # (B, filters H' W')
            expected, scale = outcome.sum(1), outcome.abs().sum(1)
            worst = 0.0
            for image, gradient in enumerate(weight_gradients(multipliers, delta, weight)):
                total = torch.dot(_in_memory_order(gradient), _in_memory_order(weight))
                if scale[image] > 0:
                    worst = max(worst, float((total - expected[image]).abs() / scale[image]))
                sums[layer.index] += gradient.abs_()
            residuals[layer.index] = worst

        at_images = backward(self.model.cfg, found, self.target, visit)
        self.explained = (at_images * found.deltas[IMAGE]).flatten(1).sum(1)
        return residuals


def _in_memory_order(weight: Tensor) -> Tensor:
    """All values of a channels-last weight, without a copy."""
    return weight.permute(0, 2, 3, 1).reshape(-1)
