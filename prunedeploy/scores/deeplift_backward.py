"""One backward pass of DeepLIFT over a traced network: multipliers, and what every weight contributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.darknet_cfg import Convolutional, DarknetCfg, Maxpool, Route, Shortcut, Upsample, Yolo
from prunedeploy.scores.deeplift_trace import IMAGE, PoolShares, Slopes, Trace
from prunedeploy.scores.target import DetectionTarget


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Of a folded convolution's output before its activation.

    Attributes:
        layer: The convolution.
        positive: ``(B, filters, H', W')``, for contributions that raise the output.
        negative: For those that lower it; the same tensor where the two do not differ.
        at_output: ``(B, filters, H', W')``, of the output behind the activation.
    """

    layer: Convolutional
    positive: Tensor
    negative: Tensor
    at_output: Tensor

    @property
    def equal(self) -> bool:
        """Whether the two parts are one."""
        return self.positive is self.negative


@torch.no_grad()
def backward(cfg: DarknetCfg, found: Trace, target: DetectionTarget, visit: Callable[[Multipliers], None]) -> Tensor:
    """Hand multipliers from the target back to the images, visiting every convolution on the way.

    Args:
        cfg: The network.
        found: Its trace. Slopes and pools are released as they are used.
        target: What is explained.
        visit: Called for each convolution that the target depends on, last to first.

    Returns:
        Multipliers of the images, ``(B, 3, H, W)``.
    """
    at: dict[int, Tensor] = {}
    heads = iter(reversed(target.weights))
    for layer in reversed(cfg.layers):
        if isinstance(layer, Yolo):
            _add(at, layer.inputs[0], next(heads))
            continue
        output = at.pop(layer.index, None)
        if output is None:
            continue
        if isinstance(layer, Convolutional):
            multipliers = _before_activation(found, layer, output)
            visit(multipliers)
            _add(at, layer.inputs[0], _through_convolution(found, multipliers))
        elif isinstance(layer, Maxpool):
            _add(at, layer.inputs[0], _through_maxpool(found.pools.pop(layer.index), output))
        elif isinstance(layer, Upsample):
            area = layer.stride**2
            _add(at, layer.inputs[0], F.avg_pool2d(output, layer.stride, layer.stride) * area)
        elif isinstance(layer, Shortcut):
            slopes = found.slopes.pop(layer.index, None)
            for source in layer.inputs:
                _add(at, source, output if slopes is None else output * _slope_of_part(found, source, slopes))
        elif isinstance(layer, Route):
            for source, part in _through_route(layer, output):
                _add(at, source, part)
    return at[IMAGE]


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


def _before_activation(found: Trace, layer: Convolutional, output: Tensor) -> Multipliers:
    slopes = found.slopes.pop(layer.index, None)
    if slopes is None:
        return Multipliers(layer, output, output, output)
    positive = output * slopes.positive
    return Multipliers(layer, positive, positive if slopes.equal else output * slopes.negative, output)


def _through_convolution(found: Trace, multipliers: Multipliers) -> Tensor:
    """The linear rule: Shrikumar et al. 2017, section 3.5.1, equations 6 to 9."""
    layer = multipliers.layer
    weight, delta = found.weights[layer.index], found.deltas[layer.inputs[0]]
    if multipliers.equal:
        return _input_gradient(layer, delta, multipliers.positive, weight)
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    up, down = multipliers.positive, multipliers.negative
    raised = _input_gradient(layer, delta, up, plus) + _input_gradient(layer, delta, down, minus)
    lowered = _input_gradient(layer, delta, up, minus) + _input_gradient(layer, delta, down, plus)
    return _by_sign(delta, raised, lowered)


def _slope_of_part(found: Trace, source: int, slopes: Slopes) -> Tensor:
    return slopes.positive if slopes.equal else _by_sign(found.deltas[source], slopes.positive, slopes.negative)


def _by_sign(delta: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Choose by the sign of a difference; the mean of the two where it is 0 (section 3.5.1, last equation)."""
    chosen = torch.where(delta > 0, positive, negative)
    return torch.where(delta == 0, (positive + negative) / 2, chosen)


def _through_maxpool(pool: PoolShares, output: Tensor) -> Tensor:
    batch, channels = output.shape[:2]
    rows, columns = pool.padded_size
    padded = output.new_zeros(batch, channels, rows * columns)
    padded.scatter_add_(2, pool.source, output.reshape(batch, channels, -1) * pool.share)
    top = pool.offset
    return padded.view(batch, channels, rows, columns)[:, :, top : top + pool.size[0], top : top + pool.size[1]]


def _through_route(layer: Route, output: Tensor) -> Iterator[tuple[int, Tensor]]:
    parts = output.split([channels // layer.groups for channels in layer.in_channels], dim=1)
    for source, channels, part in zip(layer.inputs, layer.in_channels, parts, strict=True):
        taken = part.shape[1]
        if layer.groups > 1:
            whole = part.new_zeros(len(part), channels, *part.shape[2:])
            whole[:, layer.group_id * taken : (layer.group_id + 1) * taken] = part
            part = whole
        yield source, part


def _add(at: dict[int, Tensor], index: int, multiplier: Tensor) -> None:
    at[index] = multiplier if index not in at else at[index] + multiplier


def _input_gradient(layer: Convolutional, x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    return _convolution_backward(layer, x, gradient, weight, of_input=True)


def _weight_gradient(layer: Convolutional, x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    return _convolution_backward(layer, x, gradient, weight, of_input=False)


def _convolution_backward(
    layer: Convolutional, x: Tensor, gradient: Tensor, weight: Tensor, *, of_input: bool
) -> Tensor:
    pair = [layer.stride, layer.stride], [layer.padding, layer.padding], [layer.dilation, layer.dilation]
    result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *pair, False, [0, 0], layer.groups, [of_input, not of_input, False]
    )
    return result[0 if of_input else 1]
