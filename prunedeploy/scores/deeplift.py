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
from prunedeploy.models.darknet import Darknet
from prunedeploy.scores.deeplift_backward import backward
from prunedeploy.scores.deeplift_rules.convolutional import weight_gradients
from prunedeploy.scores.deeplift_rules.interface import Multipliers
from prunedeploy.scores.deeplift_trace import IMAGE, trace
from prunedeploy.scores.interface import Scores
from prunedeploy.scores.reference import ReferenceFunction, zeros_reference
from prunedeploy.scores.target import choose_target
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
        compared = reference(batch.images)
        residuals, at_pixels, delta_target = _explain(model, batch.images, compared, rule, predictions, sums)
        for index, residual in residuals.items():
            layers[index] = max(layers.get(index, 0.0), residual)
        images += len(batch.images)
        missed += float((at_pixels - delta_target).abs().sum())
        explained += float(delta_target.abs().sum())
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


@torch.no_grad()
def _explain(
    model: Darknet, images: Tensor, reference: Tensor, rule: str, predictions: int, sums: Scores
) -> tuple[dict[int, float], Tensor, Tensor]:
    """Take one batch: forward, backward, and what its contributions add up to.

    Args:
        model: The network.
        images: ``(B, 3, H, W)``.
        reference: ``(B, 3, H, W)`` or ``(1, 3, H, W)``.
        rule: As `deeplift`.
        predictions: As `deeplift`.
        sums: By layer index, channels last; per-image absolute weight gradients are added to them.

    Returns:
        Each layer's summation-to-delta; ``(B,)``, sum over pixels of multiplier times difference; ``(B,)``, the
        target's difference, which that should be.
    """
    like = next(model.parameters())
    found = trace(model, images.to(like), reference.to(like), rule)
    target = choose_target(model, found.heads, predictions)
    delta_target = target(found.heads) - target(found.reference_heads)
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

    at_images = backward(model.cfg, found, target, visit)
    return residuals, (at_images * found.deltas[IMAGE]).flatten(1).sum(1), delta_target


def _in_memory_order(weight: Tensor) -> Tensor:
    """All values of a channels-last weight, without a copy."""
    return weight.permute(0, 2, 3, 1).reshape(-1)
