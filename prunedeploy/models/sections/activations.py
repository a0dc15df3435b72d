"""Darknet's activations in PyTorch, by their names in a cfg."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_FUNCTIONS: Mapping[str, Callable[[Tensor, bool], Tensor]] = {
    "linear": lambda x, _: x,
    "leaky": lambda x, inplace: F.leaky_relu(x, 0.1, inplace=inplace),
    "relu": lambda x, inplace: F.relu(x, inplace=inplace),
    "mish": lambda x, _: F.mish(x),
    "swish": lambda x, _: F.silu(x),
    "logistic": lambda x, _: torch.sigmoid(x),
}

ACTIVATIONS = tuple(_FUNCTIONS)


def activate(x: Tensor, activation: str, inplace: bool = False) -> Tensor:
    """Apply a Darknet activation by its cfg name; leaky has slope 0.1."""
    if activation not in _FUNCTIONS:
        raise ValueError(f"unknown activation {activation!r}")
    return _FUNCTIONS[activation](x, inplace)


def alive_at_zero(index: int, activation: str) -> str | None:
    """Why a dead channel does not stay dead behind the activation of layer ``index``; None if it does."""
    if bool(activate(torch.zeros(1), activation).item() == 0.0):
        return None
    return f"layer {index} turns zero into something else by activation {activation}"
