"""One forward pass over images and their references together: everything DeepLIFT's backward pass needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.darknet import Darknet, activate, conv2d, pool_border, run_layer
from prunedeploy.models.darknet_cfg import Convolutional, Maxpool, Route, Shortcut, Upsample, Yolo
from prunedeploy.scores.activation_slopes import secant
from prunedeploy_engines.errors import PruningError

IMAGE = -1
RULES = ("rescale", "reveal-cancel")


@dataclass(frozen=True, eq=False)
class Slopes:
    """Multipliers of an activation, from its input's difference to its output's.

    Attributes:
        positive: ``(B, C, H, W)``, for the positive part of the input's difference.
        negative: For the negative part; the same tensor under the Rescale rule.
    """

    positive: Tensor
    negative: Tensor

    @property
    def equal(self) -> bool:
        """Whether both parts have one multiplier."""
        return self.positive is self.negative


@dataclass(frozen=True, eq=False)
class PoolShares:
    """To which input a maxpool's output difference goes, and how much of it per input difference.

    Attributes:
        source: ``(B, C, h * w)`` int64, position in the padded map.
        share: ``(B, C, h * w)`` in [0, 1].
        size: Height and width of the map.
        padded_size: Those of the padded map.
        offset: Rows above and columns left of the map in it.
    """

    source: Tensor
    share: Tensor
    size: tuple[int, int]
    padded_size: tuple[int, int]
    offset: int


@dataclass(eq=False)
class Trace:
    """What one batch and its references did to a network.

    Attributes:
        weights: Folded weights by layer index.
        deltas: Output on the images minus output on the references by layer index, -1 the images themselves; only
            of layers that a convolution reads, and of convolutions.
        slopes: Slopes of the activations of convolutions and shortcuts; linear ones have none.
        pools: Arguments of maxpools.
        heads: Raw heads of the images.
        reference_heads: Raw heads of the references.
    """

    weights: dict[int, Tensor]
    deltas: dict[int, Tensor] = field(default_factory=dict)
    slopes: dict[int, Slopes] = field(default_factory=dict)
    pools: dict[int, PoolShares] = field(default_factory=dict)
    heads: list[Tensor] = field(default_factory=list)
    reference_heads: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def trace(model: Darknet, images: Tensor, reference: Tensor, rule: str) -> Trace:
    """Run images and references through the network as one batch.

    Args:
        model: In evaluation mode; batch normalisation is folded, so a weight's contribution is that of the folded
            weight and equals that of the weight itself.
        images: ``(B, 3, H, W)`` of the model's dtype.
        reference: ``(B, 3, H, W)``, or ``(1, 3, H, W)``: then it is computed once for the whole batch.
        rule: One of `RULES`.

    Raises:
        PruningError: An activation or a layer has no rule, or the reference has another size than the images.
        ValueError: The rule is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; there are {', '.join(RULES)}")
    if reference.shape[1:] != images.shape[1:] or len(reference) not in (1, len(images)):
        raise PruningError(
            f"the reference is {tuple(reference.shape)}, the images are {tuple(images.shape)}",
            "scores.reference",
            "give a reference of the images' size",
        )
    folded = {layer.index: model.conv(layer.index).folded() for layer in model.cfg.convolutions}
    layout = torch.channels_last
    weights = {index: weight.detach().contiguous(memory_format=layout) for index, (weight, _) in folded.items()}
    found = Trace(weights)
    split = len(images)
    outputs = {IMAGE: torch.cat([images, reference]).contiguous(memory_format=layout)}
    wanted = {index for layer in model.cfg.convolutions for index in (layer.inputs[0], layer.index)}
    if rule == "reveal-cancel":
        wanted |= {source for layer in model.cfg.layers if isinstance(layer, Shortcut) for source in layer.inputs}
    found.deltas[IMAGE] = outputs[IMAGE][:split] - outputs[IMAGE][split:]
    last_reader = {source: layer.index for layer in model.cfg.layers for source in layer.inputs}
    for layer in model.cfg.layers:
        inputs = [outputs[source] for source in layer.inputs]
        if isinstance(layer, Yolo):
            found.heads.append(inputs[0][:split])
            found.reference_heads.append(inputs[0][split:])
        elif isinstance(layer, Convolutional):
            bias = folded[layer.index][1].detach()
            before = conv2d(inputs[0], weights[layer.index], bias, layer)
            if layer.activation != "linear":
                found.slopes[layer.index] = _slopes(found, layer, before, split, rule)
            outputs[layer.index] = activate(before, layer.activation, inplace=True)
        elif isinstance(layer, Shortcut):
            total = inputs[0] + inputs[1]
            if layer.activation != "linear":
                found.slopes[layer.index] = _slopes(found, layer, total, split, rule)
            outputs[layer.index] = activate(total, layer.activation)
        elif isinstance(layer, Maxpool):
            outputs[layer.index], found.pools[layer.index] = _maxpool(inputs[0], layer, split)
        elif isinstance(layer, (Upsample, Route)):
            outputs[layer.index] = run_layer(layer, inputs)
        else:
            what, fix = f"DeepLIFT has no rule for [{layer.kind}]", "use another score for this network"
            raise PruningError(what, f"layer {layer.index}", fix)
        if layer.index in outputs and layer.index in wanted:
            result = outputs[layer.index]
            found.deltas[layer.index] = result[:split] - result[split:]
        for source in layer.inputs:
            if last_reader[source] == layer.index:
                outputs.pop(source, None)
    return found


def _sorted_by_sign(found: Trace, layer: Convolutional | Shortcut) -> tuple[Tensor, Tensor]:
    """Positive and negative contributions to the difference of what a layer's activation takes.

    Reference: the linear rule, Shrikumar et al. 2017, section 3.5.1, sorts each product w dx by its sign.
    """
    deltas = [found.deltas[source] for source in layer.inputs]
    up, down = [delta.clamp(min=0) for delta in deltas], [delta.clamp(max=0) for delta in deltas]
    if isinstance(layer, Shortcut):
        return up[0] + up[1], down[0] + down[1]
    weight = found.weights[layer.index]
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    positive = conv2d(up[0], plus, None, layer) + conv2d(down[0], minus, None, layer)
    negative = conv2d(up[0], minus, None, layer) + conv2d(down[0], plus, None, layer)
    return positive, negative


def _slopes(found: Trace, layer: Convolutional | Shortcut, before: Tensor, split: int, rule: str) -> Slopes:
    """Slopes of a layer's activation, ``before`` being what it takes, images first.

    Reference: the Rescale rule, Shrikumar et al. 2017, section 3.5.2, equations 10 to 12.
    """
    y, y0 = before[:split], before[split:]
    if rule == "reveal-cancel":
        return reveal_cancel_slopes(y0, *_sorted_by_sign(found, layer), layer.activation)
    slope = secant(y, y0, layer.activation)
    return Slopes(slope, slope)


def reveal_cancel_slopes(reference: Tensor, positive: Tensor, negative: Tensor, activation: str) -> Slopes:
    """The RevealCancel rule, in secants.

    The effect of the positive part is the mean of its effect alone and its effect after the negative one, and the
    other way round.

    Args:
        reference: Input of the activation on the reference, any shape.
        positive: Sum of positive contributions to its difference, at least 0.
        negative: Sum of negative ones, at most 0.
        activation: Name as in a Darknet cfg.

    Reference: Shrikumar et al., Learning Important Features Through Propagating Activation Differences, 2017,
    section 3.5.3.
    """
    up, down = reference + positive, reference + negative
    both = up + negative
    return Slopes(
        (secant(up, reference, activation) + secant(both, down, activation)) / 2,
        (secant(down, reference, activation) + secant(both, up, activation)) / 2,
    )


def _maxpool(x: Tensor, layer: Maxpool, split: int) -> tuple[Tensor, PoolShares]:
    """Pool, and say where the output's difference comes from.

    A larger maximum comes from the input's largest value, a smaller one from the reference's; there the input
    differs at least as much as the output, so a share never exceeds 1. Overlapping windows add up.
    """
    border = pool_border(layer, x.shape[-2:])
    padded = F.pad(x, border, value=float("-inf"))
    pooled, source = F.max_pool2d(padded, layer.size, layer.stride, return_indices=True)
    y, y0 = pooled[:split].flatten(2), pooled[split:].flatten(2)
    source, source0 = source[:split].flatten(2), source[split:].flatten(2).expand(split, -1, -1)
    chosen = torch.where(y >= y0, source, source0)
    delta = F.pad(x[:split] - x[split:], border).flatten(2).gather(2, chosen)
    same = (source == source0).to(x.dtype)
    share = torch.where(delta == 0, same, (y - y0) / delta)
    return pooled, PoolShares(
        chosen, share, (x.shape[-2], x.shape[-1]), (padded.shape[-2], padded.shape[-1]), border[0]
    )
