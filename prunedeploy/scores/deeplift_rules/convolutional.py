"""A convolution: the linear rule, its activation's slopes, and the linear rule of a blur."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from prunedeploy.models.sections import Convolutional
from prunedeploy.models.sections.convolutional import conv2d
from prunedeploy.scores.deeplift_rules.blur import before_blur
from prunedeploy.scores.deeplift_rules.interface import LayerRule, Multipliers, Trace, Visit, by_sign
from prunedeploy.scores.deeplift_rules.slopes import keep_slopes


class ConvolutionalRule(LayerRule[Convolutional]):
    """Reference: Shrikumar et al. 2017, section 3.5.1, equations 6 to 9."""

    def lacking(self, layer: Convolutional) -> str | None:
        """See `LayerRule.lacking`."""
        return f"weights that are those of layer {layer.weights_from} as well" if layer.shares_weights else None

    def deltas(self, layer: Convolutional, rule: str) -> Iterable[int]:
        """See `LayerRule.deltas`."""
        return layer.inputs[0], layer.index

    def forward(self, found: Trace, layer: Convolutional, inputs: list[Tensor], rule: str) -> Tensor:
        """See `LayerRule.forward`."""
        before = conv2d(inputs[0], found.weights[layer.index], found.biases[layer.index], layer)
        keep_slopes(found, layer.index, layer.activation, before, rule, lambda: _sorted_by_sign(found, layer))
        found.kept[layer.index] = before.shape[1:]
        return layer.finish(before, inplace=True)

    def backward(
        self, found: Trace, layer: Convolutional, output: Tensor, visit: Visit
    ) -> Iterable[tuple[int, Tensor]]:
        """See `LayerRule.backward`."""
        multipliers = _before_activation(found, layer, output)
        visit(multipliers)
        return [(layer.inputs[0], _to_input(found, multipliers))]


def _sorted_by_sign(found: Trace, layer: Convolutional) -> tuple[Tensor, Tensor]:
    """Positive and negative contributions to the difference of what the activation takes.

    Reference: the linear rule, Shrikumar et al. 2017, section 3.5.1, sorts each product w dx by its sign.
    """
    delta, weight = found.deltas[layer.inputs[0]], found.weights[layer.index]
    up, down = delta.clamp(min=0), delta.clamp(max=0)
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    positive = conv2d(up, plus, None, layer) + conv2d(down, minus, None, layer)
    negative = conv2d(up, minus, None, layer) + conv2d(down, plus, None, layer)
    return positive, negative


def _before_activation(found: Trace, layer: Convolutional, output: Tensor) -> Multipliers:
    slopes, shape = found.slopes.pop(layer.index, None), found.kept.pop(layer.index)
    unblurred = output if layer.blur is None else before_blur(layer.blur, output, shape)
    if slopes is None:
        return Multipliers(layer, unblurred, unblurred, output)
    positive = unblurred * slopes.positive
    return Multipliers(layer, positive, positive if slopes.equal else unblurred * slopes.negative, output)


def _to_input(found: Trace, multipliers: Multipliers) -> Tensor:
    layer = multipliers.layer
    weight, delta = found.weights[layer.index], found.deltas[layer.inputs[0]]
    if multipliers.equal:
        return _input_gradient(layer, delta, multipliers.positive, weight)
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    up, down = multipliers.positive, multipliers.negative
    raised = _input_gradient(layer, delta, up, plus) + _input_gradient(layer, delta, down, minus)
    lowered = _input_gradient(layer, delta, up, minus) + _input_gradient(layer, delta, down, plus)
    return by_sign(delta, raised, lowered)


def weight_gradients(multipliers: Multipliers, delta: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """Per image the sum over positions of multiplier times delta-input, for every weight.

    Contribution of weight w[o, i, k, l] = w * sum over positions p of m_o(p) * (x_i(p + kl) - x0_i(p + kl)): the weight
    gradient of the convolution, with multipliers in the place of the output's gradient and delta-inputs in that
    of the input. Image by image, because absolute values are taken before the mean.

    Args:
        multipliers: Multipliers of the convolution's output.
        delta: ``(B, in, H, W)``, the input's difference.
        weight: Folded.

    Yields:
        Weight-shaped, one per image; times the weight it is the contribution.
    """
    layer = multipliers.layer
    for image in range(len(delta)):
        x, m = delta[image : image + 1], multipliers.positive[image : image + 1]
        if multipliers.equal:
            yield _weight_gradient(layer, x, m, weight)
            continue
        n = multipliers.negative[image : image + 1]
        up, down = x.clamp(min=0), x.clamp(max=0)
        # A product w dx is positive, and goes with m+, where weight and difference agree in sign.
        agree = _weight_gradient(layer, up, m, weight) + _weight_gradient(layer, down, n, weight)
        differ = _weight_gradient(layer, up, n, weight) + _weight_gradient(layer, down, m, weight)
        yield torch.where(weight >= 0, agree, differ)


def _input_gradient(layer: Convolutional, x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    return _convolution_backward(layer, x, gradient, weight, of_input=True)


def _weight_gradient(layer: Convolutional, x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    return _convolution_backward(layer, x, gradient, weight, of_input=False)


def _convolution_backward(
    layer: Convolutional, x: Tensor, gradient: Tensor, weight: Tensor, *, of_input: bool
) -> Tensor:
    pair = list(layer.strides), [layer.padding, layer.padding], [layer.dilation, layer.dilation]
    result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *pair, False, [0, 0], layer.groups, [of_input, not of_input, False]
    )
    return result[0 if of_input else 1]
