"""DeepLIFT written a second time, for small networks: every layer a dense matrix, the paper's formulas in NumPy.

Nothing is shared with the package but the parsed cfg and the folded weights. Each layer is ``f(A x + b)`` with an
explicit matrix; contributions ``A[j, i] * dx[i]`` are sorted by sign and sent through the rules one output at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.arithmetic import numpy_local_avgpool, numpy_reorg
from prunedeploy.models import Darknet
from prunedeploy.models.sections import Avgpool, Convolutional, LocalAvgpool, Maxpool, Route, Shortcut, Upsample, Yolo

Function = Callable[[float], float]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _mish(x: float) -> float:
    return x * math.tanh(math.log1p(math.exp(x)))


def _mish_slope(x: float) -> float:
    gate = math.tanh(math.log1p(math.exp(x)))
    return gate + x * (1 - gate**2) * _sigmoid(x)


FUNCTIONS: dict[str, Function] = {
    "linear": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "logistic": _sigmoid,
    "swish": lambda x: x * _sigmoid(x),
    "mish": _mish,
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "elu": lambda x: x if x >= 0 else math.expm1(x),
    "selu": lambda x: 1.0507 * (x if x >= 0 else 1.6732 * math.expm1(x)),
    "tanh": math.tanh,
    "hard_mish": lambda x: x if x > 0 else x * x / 2 + x if x > -2 else 0.0,
    "h_swish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "leaky:0.25": lambda x: x if x > 0 else 0.25 * x,
}
DERIVATIVES: dict[str, Function] = {
    "linear": lambda x: 1.0,
    "relu": lambda x: float(x > 0),
    "leaky": lambda x: 1.0 if x > 0 else 0.1,
    "logistic": lambda x: _sigmoid(x) * (1 - _sigmoid(x)),
    "swish": lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
    "mish": _mish_slope,
    "relu6": lambda x: float(0 < x < 6),
    "elu": lambda x: 1.0 if x >= 0 else math.exp(x),
    "selu": lambda x: 1.0507 * (1.0 if x >= 0 else 1.6732 * math.exp(x)),
    "tanh": lambda x: 1 - math.tanh(x) ** 2,
    "hard_mish": lambda x: 1.0 if x > 0 else x + 1 if x > -2 else 0.0,
    "h_swish": lambda x: 0.0 if x < -3 else 1.0 if x > 3 else (2 * x + 3) / 6,
    "leaky:0.25": lambda x: 1.0 if x > 0 else 0.25,
}


@dataclass
class _Step:
    """``f(A x + b)`` on the concatenated inputs; ``owner[j, i]`` is the flat index of the weight in that place."""

    inputs: tuple[int, ...]
    matrix: np.ndarray
    bias: np.ndarray
    activation: str
    owner: np.ndarray | None = None


def rescale(z: float, z0: float, positive: float, negative: float, f: Function, df: Function) -> tuple[float, float]:
    """Shrikumar et al. 2017, equations 10 to 12: one multiplier for both signs."""
    slope = df(z) if z == z0 else (f(z) - f(z0)) / (z - z0)
    return slope, slope


def reveal_cancel(
    z: float, z0: float, positive: float, negative: float, f: Function, df: Function
) -> tuple[float, float]:
    """Shrikumar et al. 2017, section 3.5.3."""
    dy_positive = 0.5 * (f(z0 + positive) - f(z0)) + 0.5 * (f(z0 + negative + positive) - f(z0 + negative))
    dy_negative = 0.5 * (f(z0 + negative) - f(z0)) + 0.5 * (f(z0 + positive + negative) - f(z0 + positive))
    up = dy_positive / positive if positive else 0.5 * (df(z0) + df(z0 + negative))
    down = dy_negative / negative if negative else 0.5 * (df(z0) + df(z0 + positive))
    return up, down


RULES = {"rescale": rescale, "reveal-cancel": reveal_cancel}


def dense_contributions(
    model: Darknet, image: np.ndarray, reference: np.ndarray, targets: list[np.ndarray], rule: str
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Contribution of every weight, and multipliers of the pixels.

    Args:
        model: In float64.
        image: ``(C, H, W)``; so is ``reference``.
        targets: Per head a 0/1 array of its shape.
        rule: Key of `RULES`.
    """
    cfg = model.cfg
    shapes = {-1: image.shape}
    values, values0 = {-1: image.ravel()}, {-1: reference.ravel()}
    steps: dict[int, _Step] = {}
    preactivations: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for layer in cfg.layers:
        if isinstance(layer, Yolo):
            continue
        inputs = [shapes[source] for source in layer.inputs]
        if isinstance(layer, Maxpool):
            shapes[layer.index] = layer.out_shape
            values[layer.index] = _windows(layer, values[layer.inputs[0]].reshape(inputs[0]))[0]
            values0[layer.index] = _windows(layer, values0[layer.inputs[0]].reshape(inputs[0]))[0]
            continue
        step = _step(model, layer, inputs)
        steps[layer.index], shapes[layer.index] = step, layer.out_shape
        z = step.matrix @ np.concatenate([values[source] for source in layer.inputs]) + step.bias
        z0 = step.matrix @ np.concatenate([values0[source] for source in layer.inputs]) + step.bias
        f = np.vectorize(FUNCTIONS[step.activation])
        values[layer.index], values0[layer.index] = f(z), f(z0)
        preactivations[layer.index] = z, z0

    multipliers = {index: np.zeros(len(value)) for index, value in values.items()}
    for head, target in zip(cfg.heads, targets, strict=True):
        multipliers[head.inputs[0]] += target.ravel()
    found = {}
    for layer in reversed(cfg.layers):
        if isinstance(layer, Yolo):
            continue
        m = multipliers[layer.index]
        if isinstance(layer, Maxpool):
            source = layer.inputs[0]
            x, x0 = values[source].reshape(shapes[source]), values0[source].reshape(shapes[source])
            multipliers[source] += _through_pool(layer, x, x0, m)
            continue
        step = steps[layer.index]
        delta = np.concatenate([values[source] - values0[source] for source in layer.inputs])
        contribution = step.matrix * delta[None, :]
        z, z0 = preactivations[layer.index]
        f, df = FUNCTIONS[step.activation], DERIVATIVES[step.activation]
        to_input = np.zeros_like(delta)
        of_weight = np.zeros(0 if step.owner is None else math.prod(layer.weight_shape))
        for j in range(len(m)):
            row = contribution[j]
            up, down = RULES[rule](z[j], z0[j], row[row > 0].sum(), row[row < 0].sum(), f, df)
            slope = np.where(row > 0, up, np.where(row < 0, down, (up + down) / 2))
            to_input += m[j] * slope * step.matrix[j]
            if step.owner is not None:
                used = step.owner[j] >= 0
                np.add.at(of_weight, step.owner[j][used], (m[j] * slope * row)[used])
        start = 0
        for source in layer.inputs:
            multipliers[source] += to_input[start : start + len(values[source])]
            start += len(values[source])
        if isinstance(layer, Convolutional):
            found[layer.index] = of_weight.reshape(layer.weight_shape)
    return found, multipliers[-1].reshape(image.shape)


def _step(model: Darknet, layer, inputs: list[tuple[int, int, int]]) -> _Step:
    sizes = [math.prod(shape) for shape in inputs]
    rows = math.prod(layer.out_shape)
    matrix = np.zeros((rows, sum(sizes)))
    if isinstance(layer, Convolutional):
        return _convolution(model, layer, inputs[0])
    if isinstance(layer, Shortcut):
        start = 0
        factors = _shortcut_factors(layer, model.layer_weights().get(layer.index, {}))
        for factor, (channels, height, width), size in zip(factors, inputs, sizes, strict=True):
            place = np.arange(min(channels, layer.out_channels) * height * width)
            matrix[place, start + place] = np.repeat(factor, height * width)[: len(place)]
            start += size
        return _Step(layer.inputs, matrix, np.zeros(rows), layer.activation)
    if isinstance(layer, Upsample):
        channels, height, width = inputs[0]
        place = np.arange(rows).reshape(layer.out_shape)
        for c in range(channels):
            for y in range(height * layer.stride):
                for x in range(width * layer.stride):
                    source = (c * height + y // layer.stride) * width + x // layer.stride
                    matrix[place[c, y, x], source] = 1.0
        return _Step(layer.inputs, matrix, np.zeros(rows), "linear")
    if isinstance(layer, Avgpool):
        cells = math.prod(inputs[0][1:])
        for row in range(rows):
            matrix[row, row * cells : (row + 1) * cells] = 1 / cells
        return _Step(layer.inputs, matrix, np.zeros(rows), "linear")
    if isinstance(layer, LocalAvgpool):
        units = np.eye(sizes[0]).reshape(-1, *inputs[0])
        means = [numpy_local_avgpool(unit, layer.size, layer.strides[0], layer.padding).ravel() for unit in units]
        return _Step(layer.inputs, np.stack(means, axis=1), np.zeros(rows), "linear")
    if layer.kind in ("dropout", "cost", "contrastive"):
        return _Step(layer.inputs, np.eye(rows), np.zeros(rows), "linear")
    if layer.kind in ("reorg", "reorg3d"):
        places = np.arange(rows, dtype=float).reshape(inputs[0])
        source = numpy_reorg(places, layer.kind, layer.stride, layer.reverse).ravel().astype(int)
        matrix[np.arange(rows), source] = 1.0
        return _Step(layer.inputs, matrix, np.zeros(rows), "linear")
    assert isinstance(layer, Route)
    row, start = 0, 0
    for (channels, height, width), size in zip(inputs, sizes, strict=True):
        taken = channels // layer.groups * height * width
        first = start + layer.group_id * taken
        matrix[row + np.arange(taken), first + np.arange(taken)] = 1.0
        row, start = row + taken, start + size
    return _Step(layer.inputs, matrix, np.zeros(rows), "linear")


def _shortcut_factors(layer: Shortcut, weights) -> np.ndarray:
    """What each input's channels are multiplied by, ``(inputs, channels)``: Darknet's formulas, channel by channel."""
    factors = np.ones((len(layer.inputs), layer.out_channels))
    if weights:
        factors *= weights["weights"].detach().numpy().reshape(len(layer.inputs), -1)
        if layer.weights_normalization == "relu":
            factors = np.maximum(factors, 0)
        elif layer.weights_normalization == "softmax":
            factors = np.exp(factors - factors.max(0))
        if layer.weights_normalization != "none":
            factors = factors / (factors.sum(0) + 1e-4)
    return factors


def _convolution(model: Darknet, layer: Convolutional, shape: tuple[int, int, int]) -> _Step:
    weight, bias = (value.detach().numpy() for value in model.conv(layer.index).folded())
    channels, height, width = shape
    filters, per_group, size, _ = layer.weight_shape
    _, rows, columns = layer.out_shape
    matrix = np.zeros((filters * rows * columns, channels * height * width))
    owner = np.full(matrix.shape, -1)
    for o, y, x in np.ndindex(filters, rows, columns):
        group = o // (filters // layer.groups)
        for i, k, l in np.ndindex(per_group, size, size):  # noqa: E741
            row = y * layer.stride + k * layer.dilation - layer.padding
            column = x * layer.stride + l * layer.dilation - layer.padding
            if 0 <= row < height and 0 <= column < width:
                target = (o * rows + y) * columns + x
                source = ((group * per_group + i) * height + row) * width + column
                matrix[target, source] = weight[o, i, k, l]
                owner[target, source] = ((o * per_group + i) * size + k) * size + l
    return _Step(layer.inputs, matrix, np.repeat(bias, rows * columns), layer.activation, owner)


def _windows(layer: Maxpool, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum of every window, and its flat position in ``x``."""
    _, height, width = x.shape
    before = layer.padding // 2
    largest, position = np.zeros(layer.out_shape), np.zeros(layer.out_shape, int)
    for c, y, column in np.ndindex(*layer.out_shape):
        rows = [r for r in range(y * layer.stride - before, y * layer.stride - before + layer.size) if 0 <= r < height]
        first = column * layer.stride - before
        columns = [r for r in range(first, first + layer.size) if 0 <= r < width]
        value, r, s = max(((x[c, r, s], r, s) for r in rows for s in columns), key=lambda cell: cell[0])
        largest[c, y, column], position[c, y, column] = value, (c * height + r) * width + s
    return largest.ravel(), position.ravel()


def _through_pool(layer: Maxpool, x: np.ndarray, x0: np.ndarray, m: np.ndarray) -> np.ndarray:
    """A larger maximum is owed to the image's largest cell, a smaller one to the reference's."""
    result = np.zeros(x.size)
    delta = (x - x0).ravel()
    for multiplier, y, place, y0, place0 in zip(m, *_windows(layer, x), *_windows(layer, x0), strict=True):
        chosen = place if y >= y0 else place0
        if delta[chosen]:
            result[chosen] += multiplier * (y - y0) / delta[chosen]
        elif place == place0:
            result[chosen] += multiplier
    return result
