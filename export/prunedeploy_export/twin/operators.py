"""One function per ONNX operator that our files have before their heads are decoded; `OPERATORS` names them.

A function takes a node's inputs in order, tensors as float32 whatever their type in the file and parameters such as
shapes as tuples of numbers, and the node's attributes by name. An attribute that it does not name is one that our files
do not have.

Reference: ONNX operator schemas, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy_export.twin.rounding import Scaled, Value, quantised, real

Numbers = tuple[float, ...]
Shape = tuple[int, ...]
Operator = Callable[..., Value]


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """``(B, C, H, W)`` with cells around it; ``pads`` are top, left, bottom, right."""
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x


def _conv(
    x: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    kernel_shape: Shape = (),
    strides: Shape = (1, 1),
    pads: Shape = (0, 0, 0, 0),
    dilations: Shape = (1, 1),
    group: int = 1,
) -> Value:
    def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        around = pads[:2]
        if pads[2:] != around:
            x, around = _padded(x, pads), (0, 0)
        return F.conv2d(x, weight, bias, strides, around, dilations, group)

    if isinstance(x, Scaled) and isinstance(weight, Scaled) and not isinstance(bias, Tensor):
        # The bias is counted in the same steps, x.scale * weight.scale.
        steps = convolved(x.steps, weight.steps, None if bias is None else bias.steps)
        return Scaled(steps, (x.scale * weight.scale.flatten()).view(-1, 1, 1))
    return convolved(real(x), real(weight), real(bias))


def _max_pool(x: Tensor, *, kernel_shape: Shape, strides: Shape, pads: Shape = (0, 0, 0, 0)) -> Tensor:
    return F.max_pool2d(_padded(x, pads, -math.inf), kernel_shape, strides)


def _average_pool(
    x: Tensor, *, kernel_shape: Shape, strides: Shape, pads: Shape = (0, 0, 0, 0), count_include_pad: int = 0
) -> Tensor:
    mean = F.avg_pool2d(_padded(x, pads), kernel_shape, strides)
    if count_include_pad or not any(pads):
        return mean
    return mean / F.avg_pool2d(_padded(torch.ones_like(x[:1, :1]), pads), kernel_shape, strides)


def _resize(
    x: Tensor,
    region: Numbers | None,
    scales: Numbers,
    *,
    mode: str,
    coordinate_transformation_mode: str,
    nearest_mode: str,
) -> Tensor:
    chosen = (mode, coordinate_transformation_mode, nearest_mode)
    if chosen != ("nearest", "asymmetric", "floor") or scales[:2] != (1, 1) or any(scale % 1 for scale in scales):
        raise ValueError(f"{', '.join(chosen)} by {scales}")
    return x.repeat_interleave(int(scales[2]), 2).repeat_interleave(int(scales[3]), 3)


def _slice(x: Tensor, starts: Shape, ends: Shape, axes: Shape, steps: Shape = ()) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes, steps or (1,) * len(axes), strict=True):
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


def _pad(x: Tensor, amounts: Shape, value: Tensor | None = None) -> Tensor:
    before, after = amounts[: x.ndim], amounts[x.ndim :]
    # PyTorch counts from the last axis.
    pairs = [amount for axis in reversed(range(x.ndim)) for amount in (before[axis], after[axis])]
    return F.pad(x, pairs, value=0.0 if value is None else float(value))


def _reshape(x: Tensor, shape: Shape) -> Tensor:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _reduce_max(x: Tensor, *, axes: Shape, keepdims: int = 1) -> Tensor:
    return x.amax(axes, keepdim=bool(keepdims))


def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    moved = blocks.permute(0, 3, 5, 1, 2, 4)
    return moved.reshape(batch, channels * blocksize**2, height // blocksize, width // blocksize)


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode != "DCR":
        raise ValueError(f"mode {mode}")
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    moved = blocks.permute(0, 3, 4, 1, 5, 2)
    return moved.reshape(batch, channels // blocksize**2, height * blocksize, width * blocksize)


def _along(parameter: Tensor, like: Tensor, axis: int) -> Tensor:
    """A parameter for each index of an axis, to broadcast with a tensor; one for all stays what it is."""
    return parameter if parameter.ndim == 0 else parameter.view(-1, *([1] * (like.ndim - axis % like.ndim - 1)))


def _quantize_linear(x: Value, scale: Tensor, zero_point: Tensor, *, low: float, high: float) -> Tensor:
    """One scale for all; ``low`` and ``high`` are the range of the zero point's type, which no attribute says."""
    return quantised(x, scale, zero_point, low, high)


def _dequantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int = 1) -> Scaled:
    return Scaled(x - _along(zero_point, x, axis), _along(scale, x, axis))


_OPERATORS: Mapping[str, Operator] = {
    "Add": lambda a, b: a + b,
    "AveragePool": _average_pool,
    "Cast": lambda x, to: x,
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantize_linear,
    "Div": lambda a, b: a / b,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "MatMul": lambda a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda a, b: a * b,
    "Pad": _pad,
    "QuantizeLinear": _quantize_linear,
    "ReduceMax": _reduce_max,
    "Relu": lambda x: F.relu(x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Selu": lambda x, alpha, gamma: gamma * F.elu(x, alpha),
    "Sigmoid": lambda x: torch.sigmoid(x),
    "Slice": _slice,
    "Softmax": lambda x, axis: torch.softmax(x, axis),
    "Softplus": lambda x: F.softplus(x),
    "SpaceToDepth": _space_to_depth,
    "Tanh": lambda x: torch.tanh(x),
    "Transpose": lambda x, perm: x.permute(perm),
}
_ON_STEPS = ("Conv", "QuantizeLinear")


def _on_real(function: Operator) -> Operator:
    """An operator of real numbers that takes `Scaled` too."""

    @functools.wraps(function)
    def run(*inputs: Any, **attributes: Any) -> Value:
        return function(*map(real, inputs), **attributes)

    return run


OPERATORS: Mapping[str, Operator] = {
    kind: function if kind in _ON_STEPS else _on_real(function) for kind, function in _OPERATORS.items()
}
"""By operator of the default domain."""
