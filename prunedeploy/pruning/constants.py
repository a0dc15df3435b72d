"""Channels whose value does not depend on the image, and what they mean for the convolutions that read them.

A filter with zero weights only gives the same number everywhere: its activation of what normalisation makes of 0.
The other layers hand such constants on, as `Layer.constants` says. A convolution that reads a constant channel of
value v gets v * w from each tap of its kernel, but zero where the tap lies on the zero padding. So

- the taps that never touch the padding add the same number at every position: it moves into the bias;
- the other taps add something at the inside and nothing at the border, so folding them into the bias is wrong there:
  see `carriers`.

A convolution that shares its weights with others goes on reading constants: they are not the same for all of them.

Constants are kept by layer: a channel of a residual stage may be constant at one depth and not at the next.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_conv import DARKNET_BN_EPS, DarknetConv
from prunedeploy.models.sections import Convolutional
from prunedeploy.models.sections.activations import activate
from prunedeploy.models.sections.convolutional import spread_by_group


@dataclass(frozen=True, eq=False)
class FoldedConstants:
    """A network whose convolutions no longer read constant channels, and what is still to be carried.

    Attributes:
        model: A copy of the network in which every weight that reads a constant channel is zero, and the share of
            the taps that never touch padding is in the bias (with normalisation: in the mean).
        values: By layer index, -1 for the image: ``(channels,)`` float64, the constant; NaN where it is none.
        carried: By the index of a convolution: ``(filters, size, size)`` float64, what the constant channels of its
            input contribute by the other taps. Convolutions for which it is all zero are not named.
    """

    model: Darknet
    values: dict[int, Tensor]
    carried: dict[int, Tensor]


@torch.no_grad()
def fold_constants(model: Darknet) -> FoldedConstants:
    """Find all constant channels and take them out of the convolutions that read them.

    Args:
        model: The network; judged in evaluation mode, not modified.
    """
    folded = copy.deepcopy(model)
    values: dict[int, Tensor] = {-1: torch.full(model.cfg.input_shape[:1], torch.nan, dtype=torch.float64)}
    weights = {
        index: {name: value.double().cpu() for name, value in own.items()}
        for index, own in model.layer_weights().items()
    }
    carried = {}
    for layer in model.cfg.layers:
        inputs = [values[source] for source in layer.inputs]
        if isinstance(layer, Convolutional):
            conv = folded.conv(layer.index)
            reads = conv.weight != 0
            if layer.weights_from not in model.cfg.shared_weights:
                outside = _take_out(conv, inputs[0])
                if bool(outside.any()):
                    carried[layer.index] = outside
                reads = (conv.weight != 0) | (outside != 0)[:, None]
            values[layer.index] = _constant_filters(conv, layer, reads.flatten(1).any(1))
        else:
            values[layer.index] = layer.constants(inputs, weights.get(layer.index, {}))
    return FoldedConstants(folded, values, carried)


def inside_taps(layer: Convolutional) -> Tensor:
    """The taps of a kernel that never touch padding, whatever the size of the map.

    With dilation d, tap k reads row i * stride + k * d - padding for the output rows i from 0 to the last one that
    fits. The first is not above the map if k * d >= padding, and the last one is not below it if
    k * d <= d * (size - 1) - padding.

    Returns:
        ``(size, size)`` bool.
    """
    reach = torch.arange(layer.size) * layer.dilation
    inside = (reach >= layer.padding) & (reach <= layer.dilation * (layer.size - 1) - layer.padding)
    return inside[:, None] & inside[None, :]


def _take_out(conv: DarknetConv, values: Tensor) -> Tensor:
    """Stop a convolution from reading constants; what they contribute by the inside taps goes into its bias.

    Returns:
        What they contribute by the other taps: ``(filters, size, size)`` float64, zero at the inside taps.
    """
    layer = conv.layer
    if conv.scale is not None:
        # What normalisation multiplies by zero might as well be zero.
        conv.weight[conv.scale == 0] = 0.0
    read = spread_by_group(layer, values).to(conv.weight.device)
    constant = ~read.isnan()
    # (filters, in / groups, size, size) * (filters, in / groups, 1, 1), summed over the input channels
    kernels = (conv.weight.double() * read.nan_to_num(0.0)[:, :, None, None]).sum(1)
    conv.weight.masked_fill_(constant[:, :, None, None], 0.0)
    inside = inside_taps(layer).to(kernels.device)
    shift = (kernels * inside).sum((1, 2))
    if conv.scale is None:
        conv.bias.copy_(conv.bias.double() + shift)
    else:
        conv.mean.copy_(conv.mean.double() - shift)
    return kernels.masked_fill(inside, 0.0)


def _constant_filters(conv: DarknetConv, layer: Convolutional, reads: Tensor) -> Tensor:
    """Values of the filters that read nothing; NaN for the others, and where the value is not finite."""
    value = conv.bias.double()
    if conv.scale is not None:
        scale, variance = conv.scale.double(), conv.variance.double()
        value = value - conv.mean.double() * scale / (variance.sqrt() + DARKNET_BN_EPS)
    value = activate(value, layer.activation)
    if layer.blur is not None:
        value = layer.blur.constants(value)
    return torch.where(reads | ~value.isfinite(), torch.nan, value).cpu()
