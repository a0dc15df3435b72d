"""Activations in PyTorch, by their names in a cfg: Darknet's, and two that only files of ours have.

On a CPU Darknet's fork forgets relu6, and hard_mish outside of convolutions, and gives zeros; here they are what they
are called. Where Darknet reads a name that it does not know, it computes relu without a word; so h_swish is not called
hard_swish, which stands in cfgs that Darknet trained with relu.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.reading import Reader

SELU_ALPHA, SELU_SCALE = 1.6732, 1.0507
"""Darknet's constants of selu, which has four digits of them."""

_FUNCTIONS: Mapping[str, Callable[[Tensor, bool], Tensor]] = {
    "linear": lambda x, _: x,
    "leaky": lambda x, inplace: F.leaky_relu(x, 0.1, inplace=inplace),
    "relu": lambda x, inplace: F.relu(x, inplace=inplace),
    "mish": lambda x, _: F.mish(x),
    "swish": lambda x, _: F.silu(x),
    "logistic": lambda x, _: torch.sigmoid(x),
    "relu6": lambda x, inplace: F.relu6(x, inplace=inplace),
    "elu": lambda x, inplace: F.elu(x, inplace=inplace),
    "selu": lambda x, inplace: F.elu(x, SELU_ALPHA, inplace=inplace) * SELU_SCALE,
    "tanh": lambda x, _: torch.tanh(x),
    # x relu6(x + 3) / 6: Howard et al., Searching for MobileNetV3, 2019, section 5.2
    "h_swish": lambda x, _: F.hardswish(x),
    # x above 0, x^2 / 2 + x from -2 to 0, and 0 below
    "hard_mish": lambda x, _: F.relu(x) + (low := x.clamp(-2, 0)) * (low / 2 + 1),
}

ACTIVATIONS = tuple(_FUNCTIONS)
SLOPE = "leaky_slope"
"""The option beside ``activation=leaky`` that says another slope than Darknet's. It becomes a part of the name."""
_DARKNETS_SLOPE = 0.1

_OVER_CHANNELS = "each channel depends on all the others, so that none can be pruned"
_UNKNOWN_TO_DARKNET = "Darknet does not know it and computes relu in its place"
_RARE = "no detector that we know of has it"
REFUSED: Mapping[str, str] = {
    "normalize_channels": _OVER_CHANNELS,
    "normalize_channels_softmax": _OVER_CHANNELS,
    "normalize_channels_softmax_maxval": _OVER_CHANNELS,
    "hard_swish": _UNKNOWN_TO_DARKNET,
    "hardswish": _UNKNOWN_TO_DARKNET,
    "silu": _UNKNOWN_TO_DARKNET,
    **dict.fromkeys("gelu loggy relie ramp plse stair hardtan lhtan revleaky".split(), _RARE),
}
"""Why activations that people write are refused, by name."""


def read_activation(reader: Reader, default: str) -> str:
    """The section's ``activation``.

    Returns:
        Its name; of a leaky one with another slope than Darknet's ``leaky:`` and the slope.

    Raises:
        DarknetFormatError: It is none of ours.
    """
    name = reader.text("activation", default)
    if name in REFUSED:
        fix = f"supported are {', '.join(ACTIVATIONS)}"
        raise reader.error(f"activation {name} is not supported: {REFUSED[name]}", "activation", fix)
    name, slope = reader.choice("activation", default, ACTIVATIONS), reader.number(SLOPE, _DARKNETS_SLOPE)
    if SLOPE in reader.section.options and (name != "leaky" or not 0 < slope < 1):
        fix = "give a slope between 0 and 1 beside activation=leaky"
        raise reader.error(f"{SLOPE}={slope:g} of activation={name} means nothing", SLOPE, fix)
    return name if slope == _DARKNETS_SLOPE else f"leaky:{slope!r}"


def leaky_slope(activation: str) -> float | None:
    """The slope below 0 of a leaky activation; None of another one."""
    if activation == "leaky":
        return _DARKNETS_SLOPE
    return float(activation.removeprefix("leaky:")) if activation.startswith("leaky:") else None


def not_in_darknet(activation: str) -> str | None:
    """What of an activation Darknet does not have; None if it has it."""
    if activation.startswith("leaky:"):
        return SLOPE
    return activation if activation == "h_swish" else None


def activate(x: Tensor, activation: str, inplace: bool = False) -> Tensor:
    """Apply an activation by the name of `read_activation`."""
    if (slope := leaky_slope(activation)) is not None:
        return F.leaky_relu(x, slope, inplace=inplace)
    if activation not in _FUNCTIONS:
        raise ValueError(f"unknown activation {activation!r}")
    return _FUNCTIONS[activation](x, inplace)


def alive_at_zero(index: int, activation: str) -> str | None:
    """Why a dead channel does not stay dead behind the activation of layer ``index``; None if it does."""
    if bool(activate(torch.zeros(1), activation).item() == 0.0):
        return None
    return f"layer {index} turns zero into something else by activation {activation}"
