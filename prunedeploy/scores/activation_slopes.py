"""Exact secants of activations: (f(a) - f(b)) / (a - b) without subtracting nearly equal numbers.

Both of DeepLIFT's rules are made of these. Dividing a difference of outputs by a difference of inputs loses all digits
where the two are close: in float32 up to 4 % of a multiplier. So each secant is written such that a - b cancels by
hand, and is the derivative where a = b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunedeploy_engines.errors import PruningError

LEAKY_SLOPE = 0.1
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


def _decay(d: Tensor) -> Tensor:
    """(1 - exp(-d)) / d for d >= 0, and 1 at 0."""
    return torch.where(d == 0, 1.0, -torch.expm1(-d) / d)


_SECANTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda a, b: torch.ones_like(a - b),
    "relu": _relu_secant,
    # leaky(x) = slope * x + (1 - slope) * relu(x)
    "leaky": lambda a, b: _relu_secant(a, b).mul_(1.0 - LEAKY_SLOPE).add_(LEAKY_SLOPE),
    "logistic": _logistic_secant,
    # a s(a) - b s(b) = (a - b) s(a) + b (s(a) - s(b)), and so with mish's gate
    "swish": lambda a, b: torch.sigmoid(a) + b * _logistic_secant(a, b),
    "mish": lambda a, b: _mish_gate(a) + b * _mish_gate_secant(a, b),
}
