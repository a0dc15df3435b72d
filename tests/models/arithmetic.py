"""Layers and activations in NumPy, written as their formulas say."""

from __future__ import annotations

import numpy as np

FORMULAS = {
    "linear": lambda x: x,
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "relu": lambda x: np.maximum(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x >= 0, x, np.exp(np.minimum(x, 0)) - 1),
    "selu": lambda x: 1.0507 * np.where(x >= 0, x, 1.6732 * (np.exp(np.minimum(x, 0)) - 1)),
    "tanh": lambda x: 2 / (1 + np.exp(-2 * x)) - 1,
    "hard_mish": lambda x: np.where(x > 0, x, np.where(x > -2, x * x / 2 + x, 0)),
}


def numpy_convolution(x: np.ndarray, weight: np.ndarray, layer_options: dict[str, int]) -> np.ndarray:
    """One output value at a time, float64."""
    stride, pad, groups, dilation = (layer_options[k] for k in ("stride", "pad", "groups", "dilation"))
    filters, per_group, size, _ = weight.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    reach = dilation * (size - 1) + 1
    out_h, out_w = (padded.shape[2] - reach) // stride + 1, (padded.shape[3] - reach) // stride + 1
    out = np.zeros((len(x), filters, out_h, out_w))
    for f in range(filters):
        first = f // (filters // groups) * per_group
        for i in range(out_h):
            for j in range(out_w):
                rows, columns = (
                    slice(i * stride, i * stride + reach, dilation),
                    slice(j * stride, j * stride + reach, dilation),
                )
                window = padded[:, first : first + per_group, rows, columns]
                out[:, f, i, j] = (window * weight[f]).sum((1, 2, 3))
    return out
