"""Rounding as an ONNX file says, with a gradient.

Rounding is flat almost everywhere, so its own gradient is 0 and an attack that follows it goes nowhere. The
straight-through estimator takes the gradient of what is rounded instead (Bengio, Leonard and Courville, Estimating or
Propagating Gradients Through Stochastic Neurons for Conditional Computation, 2013): 1 where the rounded
value is inside the range of its type. Where it saturates the gradient is 0, as in Jacob et al., Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018, section 3, equation 12: its clamp
is no rounding to look through, since there the output does not follow its input however far that moves.

Integers are held as float32, which has all of 8 bits, and half precision as the float32 of the same value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Scaled:
    """Real numbers as whole numbers of steps, as DequantizeLinear gives them.

    A runtime that fuses a convolution between DequantizeLinear and QuantizeLinear adds integers, which is exact, and
    rounds once. Two values that differ in the last bit of float32 would often round to different steps, and these
    differences grow from layer to layer; so the twin does the same.

    Attributes:
        steps: Whole numbers held as float32, exact up to 2 ** 24.
        scale: Length of a step; broadcasts with ``steps``.
    """

    steps: Tensor
    scale: Tensor

    @property
    def real(self) -> Tensor:
        """The real numbers."""
        return self.steps * self.scale

    def to(self, dtype: torch.dtype) -> Scaled:
        """The same in another float type."""
        return Scaled(self.steps.to(dtype), self.scale.to(dtype))


Value = Tensor | Scaled
"""What passes between operators."""


def real(value: Value | None) -> Any:
    """Real numbers of either kind; None stays None."""
    return value.real if isinstance(value, Scaled) else value


class _Quantised(torch.autograd.Function):
    """See `quantised`; in one function, since it stands behind every layer."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, scale: Tensor, zero_point: Tensor, low: float, high: float, divide: bool
    ) -> Tensor:
        steps = value / scale if divide else value * scale
        steps.round_().add_(zero_point)  # half to even
        ctx.save_for_backward(scale, (steps >= low) & (steps <= high))
        ctx.divide = divide
        return steps.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, inside = ctx.saved_tensors
        gradient = gradients[0] * inside
        return (gradient.div_(scale) if ctx.divide else gradient.mul_(scale)), None, None, None, None, None


def quantised(value: Value, scale: Tensor, zero_point: Tensor, low: float, high: float) -> Tensor:
    """Steps of a quantised tensor: clip(round(value / scale) + zero_point), halves to the even step.

    Args:
        value: Any shape.
        scale: Length of a step; broadcasts with ``value``.
        zero_point: Step of 0; likewise.
        low: Lowest step of the type, e.g. 0 of uint8.
        high: Highest step.

    Returns:
        Whole numbers in [low, high]. The gradient by the real value is 1 / scale where they are so without the clip,
        else 0.
    """
    if isinstance(value, Scaled):
        # One product with a constant, as ONNX Runtime's convolutions do it.
        values, factor, divide = value.steps, value.scale / scale, False
    else:
        values, factor, divide = value, scale, True
    result: Tensor = _Quantised.apply(values, factor, zero_point, low, high, divide)
    return result


class _Half(torch.autograd.Function):
    """See `half`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value.abs() <= LARGEST_HALF)
        return value.half().to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside


def half(value: Tensor) -> Tensor:
    """The nearest value in half precision, infinite beyond its range; the gradient is 1 within it and 0 beyond."""
    result: Tensor = _Half.apply(value)
    return result
