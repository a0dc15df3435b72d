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
    "h_swish": lambda x: np.where(x > 3, x, np.where(x > -3, x * (x + 3) / 6, 0)),
    "leaky:0.25": lambda x: np.where(x > 0, x, 0.25 * x),
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


def numpy_local_avgpool(x: np.ndarray, size: int, stride: int, padding: int) -> np.ndarray:
    """Darknet's forward_local_avgpool_layer as its C source does it, one window at a time; ``(C, H, W)``."""
    channels, height, width = x.shape
    out_h, out_w = (height + padding - size) // stride + 1, (width + padding - size) // stride + 1
    out = np.zeros((channels, out_h, out_w), x.dtype)
    for i, j in np.ndindex(out_h, out_w):
        total, counter = np.zeros(channels, x.dtype), 0
        for n, m in np.ndindex(size, size):
            row, column = -(padding // 2) + i * stride + n, -(padding // 2) + j * stride + m
            if 0 <= row < height and 0 <= column < width:
                counter += 1
                total += x[:, row, column]
        out[:, i, j] = total / counter
    return out


def numpy_reorg(x: np.ndarray, kind: str, stride: int, reverse: bool) -> np.ndarray:
    """``(C, H, W)`` rearranged as Darknet's C source does it, one value at a time, in flat memory.

    The loop is that of reorg_cpu; ``[reorg]`` hands it the shape of its input, ``[reorg3d]`` that of its output.
    """
    c, h, w = x.shape
    out = (c // stride**2, h * stride, w * stride) if reverse else (c * stride**2, h // stride, w // stride)
    out_c, out_h, out_w = (c, h, w) if kind == "reorg" else out
    in_c = out_c // stride**2
    source, result = x.ravel(), np.full(x.size, np.nan, x.dtype)
    for k, j, i in np.ndindex(out_c, out_h, out_w):
        in_index = i + out_w * (j + out_h * k)
        c2, offset = k % in_c, k // in_c
        w2, h2 = i * stride + offset % stride, j * stride + offset // stride
        out_index = w2 + out_w * stride * (h2 + out_h * stride * c2)
        if reverse:
            result[out_index] = source[in_index]
        else:
            result[in_index] = source[out_index]
    return result.reshape(out)
