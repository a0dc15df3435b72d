"""Exact secants of activations: (f(a) - f(b)) / (a - b) without subtracting nearly equal numbers.

Both of DeepLIFT's rules are made of these. Dividing a difference of outputs by a difference of inputs loses all digits
where the two are close: in float32 up to 4 % of a multiplier. So each secant is written such that a - b cancels by
hand, and is the derivative where a = b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.activations import SELU_ALPHA, SELU_SCALE, leaky_slope
from prunedeploy_engines.errors import PruningError

# Beyond it tanh(softplus(x)) is 1 to float64's last digit, and exp(2 x) is still finite in float32.
_MISH_LINEAR = 20.0


def secant(a: Tensor, b: Tensor, activation: str) -> Tensor:
    """The slope of the line through two points of an activation.

    Args:
        a: Any shape, float.
        b: A shape that broadcasts with it.
        activation: Name as in a Darknet cfg.

    Returns:
        ``(f(a) - f(b)) / (a - b)``, and ``f'(a)`` where they are equal.

    Raises:
        PruningError: There is no rule for this activation.
    """
    if (slope := leaky_slope(activation)) is not None:
        # leaky(x) = slope * x + (1 - slope) * relu(x)
        return _relu_secant(a, b).mul_(1.0 - slope).add_(slope)
    if activation not in _SECANTS:
        raise PruningError(
            f"DeepLIFT has no rule for the activation {activation}", "scores.name", "use another score for this network"
        )
    return _SECANTS[activation](a, b)


def _relu_secant(a: Tensor, b: Tensor) -> Tensor:
    """Exactly 1 or 0 where the signs agree: both differences are then the same number, or the upper one is 0."""
    difference = a - b
    slope = (a.clamp(min=0) - b.clamp(min=0)).div_(difference)
    return torch.where(difference == 0, (a > 0).to(slope.dtype), slope)


def _logistic_secant(a: Tensor, b: Tensor) -> Tensor:
    """s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)); taken from the larger one, so that exp does not overflow."""
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    return torch.sigmoid(high) * torch.sigmoid(-low) * _decay(high - low)


def _mish_gate(x: Tensor) -> Tensor:
    """tanh(softplus(x)) = n / (n + 2) with n = exp(x) (exp(x) + 2)."""
    e = torch.exp(x.clamp(max=_MISH_LINEAR))
    n = e * (e + 2)
    return n / (n + 2)


def _mish_gate_secant(a: Tensor, b: Tensor) -> Tensor:
    """g(a) - g(b) = 2 (n_a - n_b) / ((n_a + 2) (n_b + 2)), n_a - n_b = (e_a - e_b) (e_a + e_b + 2)."""
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    difference = high - low
    high, low = high.clamp(max=_MISH_LINEAR), low.clamp(max=_MISH_LINEAR)
    e_high, e_low = torch.exp(high), torch.exp(low)
    n_high, n_low = e_high * (e_high + 2), e_low * (e_low + 2)
    # (e_high - e_low) / difference = e_high (1 - exp(-d)) / difference, d the difference that is left after the clamp
    clamped = high - low
    steepness = _decay(clamped) * torch.where(difference == 0, 1.0, clamped / difference)
    return 2 * e_high * steepness * ((e_high + e_low + 2) / (n_high + 2)) / (n_low + 2)


def _elu_tail_secant(a: Tensor, b: Tensor) -> Tensor:
    """Of exp(min(x, 0)) - 1, which is elu - relu: e_high (1 - exp(-d)), d the difference below 0."""
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    below = high.clamp(max=0)
    clamped = below - low.clamp(max=0)
    share = torch.where(high == low, (high <= 0).to(high.dtype), clamped / (high - low))
    return torch.exp(below) * _decay(clamped) * share


def _hard_mish_secant(a: Tensor, b: Tensor) -> Tensor:
    """Of relu(x) + g(low(x)), low = x between -2 and 0: g(u) - g(v) = (u - v) ((u + v) / 2 + 1), g(u) = u^2 / 2 + u."""
    u, v = a.clamp(-2, 0), b.clamp(-2, 0)
    share = torch.where(a == b, ((a >= -2) & (a <= 0)).to(u.dtype), (u - v) / (a - b))
    return _relu_secant(a, b) + ((u + v) / 2 + 1) * share


def _decay(d: Tensor) -> Tensor:
    """(1 - exp(-d)) / d for d >= 0, and 1 at 0."""
    return torch.where(d == 0, 1.0, -torch.expm1(-d) / d)


_SECANTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda a, b: torch.ones_like(a - b),
    "relu": _relu_secant,
    "logistic": _logistic_secant,
    # a s(a) - b s(b) = (a - b) s(a) + b (s(a) - s(b)), and so with mish's gate
    "swish": lambda a, b: torch.sigmoid(a) + b * _logistic_secant(a, b),
    "mish": lambda a, b: _mish_gate(a) + b * _mish_gate_secant(a, b),
    # and with h_swish's, relu6(x + 3) / 6
    "h_swish": lambda a, b: F.hardsigmoid(a) + b * (_relu_secant(a + 3, b + 3) - _relu_secant(a - 3, b - 3)) / 6,
    # min(max(x, 0), 6) = relu(x) - relu(x - 6)
    "relu6": lambda a, b: _relu_secant(a, b) - _relu_secant(a - 6, b - 6),
    "elu": lambda a, b: _relu_secant(a, b) + _elu_tail_secant(a, b),
    "selu": lambda a, b: (_relu_secant(a, b) + SELU_ALPHA * _elu_tail_secant(a, b)) * SELU_SCALE,
    # tanh(x) = 2 s(2 x) - 1
    "tanh": lambda a, b: 4 * _logistic_secant(2 * a, 2 * b),
    "hard_mish": _hard_mish_secant,
}
